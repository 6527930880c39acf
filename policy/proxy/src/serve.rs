//! One TCP connection of the guest, from its first bytes to its end: a tunnel, or requests.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bulkhead_record::Verdict;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::client_hello::{self, FirstBytes};
use crate::conditions::Question;
use crate::exchange::{Answer, Exchange, refusal_text};
use crate::guarded::Guarded;
use crate::meter::{Meter, Metered};
use crate::policy::{Allowed, Flow, Refusal, Treatment};
use crate::records::Intent;
use crate::rewound::Rewound;
use crate::upstream::{Local, Upstream, open};
use crate::{MAX_CONNECTIONS, Proxy, Shared};

/// How long a guest may take to say what it wants, or to agree on TLS.
const BEGIN: Duration = Duration::from_secs(30);
/// How long it may be silent between two requests, and inside of a head.
const HEAD: Duration = Duration::from_secs(120);
/// Most headers of a request.
const MAX_HEADERS: usize = 128;
/// Largest header section of HTTP/2, in bytes.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Most requests at a time on a connection of HTTP/2.
const MAX_STREAMS: u32 = 64;
/// Most bytes of a request that nobody has taken yet, on a connection of HTTP/2, and on a stream.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
/// Largest buffer of HTTP/1.
const MAX_BUFFER: usize = 128 * 1024;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Well: what was written is to be delivered.
    Closed,
    /// Otherwise: the guest is to see a reset.
    Reset,
}

/// Counts an open connection.
struct Open<'s>(&'s Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
    }
}

impl Proxy {
    /// Serves the connection `guest`, which is for `flow`, until it ends. To be run in a
    /// [`tokio::task::LocalSet`].
    pub async fn serve<S>(&self, flow: Flow, guest: S) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.0.clone();
        let what = format!("tcp to {}:{}", server(&flow), flow.port);
        if shared.open.get() >= MAX_CONNECTIONS {
            shared.refused(&what, "too many connections are looked into");
            return End::Reset;
        }
        shared.open.set(shared.open.get() + 1);
        let _open = Open(&shared);
        match shared.begin(flow, guest).await {
            Ok(()) => End::Closed,
            Err(Stop::Refused(refusal)) => {
                shared.refused(&what, &refusal.to_string());
                End::Reset
            }
            Err(Stop::Broken) => End::Reset,
        }
    }
}

impl Proxy {
    /// Serves the requests that the partition's tools make for `host` on a stream of their own, which
    /// is in the clear, whether the server is spoken to by TLS or not. Each is decided on as one of
    /// the guest's.
    pub async fn serve_tools<S>(&self, flow: Flow, host: String, tls: bool, tools: S) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.0.clone();
        let what = format!("tcp to {host}:{}", flow.port);
        if shared.open.get() >= MAX_CONNECTIONS {
            shared.refused(&what, "too many connections are looked into");
            return End::Reset;
        }
        shared.open.set(shared.open.get() + 1);
        let _open = Open(&shared);
        let client = match tls {
            false => None,
            true => match ServerName::try_from(host.clone()) {
                Ok(name) => Some((shared.clients.first.clone(), name)),
                Err(_) => return End::Reset,
            },
        };
        let upstream = Upstream::new(flow.to, client, true);
        shared
            .first_version(flow, tls.then_some(host), upstream, tools)
            .await;
        End::Closed
    }
}

/// Whom a flow is to, for people.
fn server(flow: &Flow) -> String {
    match flow.names.first() {
        Some(name) => name.clone(),
        None => flow.to.ip().to_string(),
    }
}

/// Why a connection does not go on.
enum Stop {
    /// Not allowed.
    Refused(Refusal),
    /// One side has ended it, or is silent.
    Broken,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl Shared {
    async fn begin<S>(self: &Rc<Self>, flow: Flow, mut guest: S) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut first = Vec::new();
        let reading = timeout(BEGIN, read_first(&mut guest, &mut first)).await;
        let found = match reading {
            Ok(read) => read?,
            // Where the server speaks first, the guest waits as well.
            Err(_) => FirstBytes::Other,
        };
        let guest = Rewound::new(first, guest);
        match found {
            FirstBytes::Incomplete => Ok(()),
            FirstBytes::Malformed => Err(Refusal::Unreadable.into()),
            FirstBytes::Tls(name) => {
                // Who names no server means the address.
                let host = name.unwrap_or_else(|| match flow.address {
                    Some(address) => address.to_string(),
                    None => String::new(),
                });
                match self.policy.tls(&flow, &host)? {
                    Treatment::Tunnel(allowed) => {
                        self.tunnel(&flow, Some(&host), allowed, guest).await
                    }
                    Treatment::Intercept => self.tls(flow, host, guest).await,
                }
            }
            FirstBytes::Other => match self.policy.plain(&flow) {
                Treatment::Tunnel(allowed) => self.tunnel(&flow, None, allowed, guest).await,
                Treatment::Intercept => {
                    let upstream = Upstream::new(flow.to, None, true);
                    self.first_version(flow, None, upstream, guest).await;
                    Ok(())
                }
            },
        }
    }

    /// Moves bytes both ways, with the server that was asked for where one was.
    async fn tunnel<S>(
        self: &Rc<Self>,
        flow: &Flow,
        host: Option<&str>,
        allowed: Allowed<'_>,
        guest: S,
    ) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let grant = allowed.grant;
        let counted = self.policy.quotas().call(&grant.quotas);
        counted.map_err(Refusal::from)?;
        let whom = host.map_or_else(|| server(flow), str::to_owned);
        let object = format!("tcp {whom}:{}", flow.port);
        let consent = self.consent(allowed, &object).await?;
        let detail = consent.map(|how| ("consent".to_owned(), how));
        let intent = Intent {
            action: "net.connect",
            object: object.clone(),
            reason: format!("net.connect:{}", grant.rule),
            detail: detail.into_iter().collect(),
            question: Question {
                connection: Some(allowed.connection(flow, host, None)),
                acts: Vec::new(),
            },
        };
        let act = match self.records.intent(intent).await {
            Ok(act) => act,
            Err(error) => {
                self.refused(&object, &error.to_string());
                return Err(Stop::Broken);
            }
        };
        let quotas = self.policy.quotas().clone();
        let meter = Meter::new(quotas, grant.quotas.clone(), self.records.clone(), act);
        let failed = |reason: String| {
            meter.ended(Verdict::Failed, reason);
            Stop::Broken
        };
        let opened = open(flow.to, None).await;
        let (mut server, _) = opened.map_err(|failure| failed(failure.to_string()))?;
        let mut guest = Metered::new(guest, meter.clone());
        let moved = copy_bidirectional(&mut guest, &mut server).await;
        moved.map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    /// Is the server `host` to the guest.
    async fn tls<S>(self: &Rc<Self>, flow: Flow, host: String, guest: S) -> Result<(), Stop>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let name = ServerName::try_from(host.clone()).map_err(|_| Refusal::Unreadable)?;
        let config = self.authority.borrow_mut().server(&host);
        let config = config.map_err(io::Error::other)?;
        let accepting = timeout(BEGIN, TlsAcceptor::from(config).accept(guest)).await;
        // A guest that does not trust the authority ends it here, and knows best why.
        let guest = accepting.map_err(|_| Stop::Broken)??;
        let many = guest.get_ref().1.alpn_protocol() == Some(b"h2");
        let client = match many {
            true => self.clients.newest.clone(),
            // An upgrade is possible with HTTP/1.1 alone.
            false => self.clients.first.clone(),
        };
        let upstream = Upstream::new(flow.to, Some((client, name)), !many);
        match many {
            true => self.second_version(flow, host, upstream, guest).await,
            false => self.first_version(flow, Some(host), upstream, guest).await,
        }
        Ok(())
    }

    /// Answers requests of HTTP/1.
    async fn first_version<S>(
        self: &Rc<Self>,
        flow: Flow,
        tls: Option<String>,
        upstream: Rc<Upstream>,
        guest: S,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut guarded = Guarded::new(guest);
        let ending = guarded.clone();
        let exchange = Rc::new(Exchange {
            shared: self.clone(),
            flow,
            tls,
            upstream,
            end_http: Box::new(move || ending.end_http()),
        });
        let what = exchange.whom();
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .half_close(true)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(guarded.clone()), answering(exchange))
            .with_upgrades()
            .await;
        if let Some(violation) = guarded.violation() {
            let reason = violation.to_string();
            self.refused(&what, &reason);
            let body = refusal_text(&reason);
            let status = StatusCode::BAD_REQUEST;
            let text = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            // The guest may be gone.
            let _ = guarded.write_all(text.as_bytes()).await;
            let _ = guarded.end().await;
        }
        // What else ends a connection concerns nobody but the guest, which sees it.
        drop(served);
    }

    /// Answers requests of HTTP/2.
    async fn second_version<S>(
        self: &Rc<Self>,
        flow: Flow,
        host: String,
        upstream: Rc<Upstream>,
        guest: S,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let exchange = Rc::new(Exchange {
            shared: self.clone(),
            flow,
            tls: Some(host),
            upstream,
            end_http: Box::new(|| {}),
        });
        // How it ends concerns nobody but the guest, which sees it.
        let _ = http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .keep_alive_interval(HEAD)
            .serve_connection(TokioIo::new(guest), answering(exchange))
            .await;
    }
}

/// What hyper calls for each request.
fn answering(
    exchange: Rc<Exchange>,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = Answer,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Answer>, Infallible>>,
> {
    service_fn(move |request: Request<Incoming>| exchange.clone().answer(request))
}

/// Reads until the first bytes tell what they are.
async fn read_first<S>(guest: &mut S, first: &mut Vec<u8>) -> io::Result<FirstBytes>
where
    S: AsyncRead + Unpin,
{
    loop {
        match client_hello::read(first) {
            FirstBytes::Incomplete => {}
            found => return Ok(found),
        }
        if guest.read_buf(first).await? == 0 {
            return Ok(match first.is_empty() {
                true => FirstBytes::Incomplete,
                false => FirstBytes::Malformed,
            });
        }
    }
}

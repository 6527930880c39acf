//! Connections to a server, for the requests of one connection of the guest. Used by the exchange.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{COOKIE, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::meter::Counted;

/// How long a server may take to be connected, and again to agree on TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// How long it may take to begin to answer: models think.
const ANSWER: Duration = Duration::from_secs(600);
/// How long a connection may take to be ready for the next request when it should be.
const READY: Duration = Duration::from_secs(1);
/// Most connections that wait for another request.
const MAX_IDLE: usize = 8;
/// Largest header section of an answer, in bytes.
const MAX_HEADERS: u32 = 64 * 1024;

/// Why there is no answer. Said to the guest: nothing in it comes from a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The host could not connect.
    #[error("cannot connect to the server: {0}")]
    Connect(io::Error),
    /// It is not who it should be, or speaks no TLS.
    #[error("cannot agree on TLS with the server: {0}")]
    Tls(io::Error),
    /// It says nothing.
    #[error("the server does not answer in time")]
    Silent,
    /// Its HTTP is wrong, or it ended the connection.
    #[error("the server broke off: {0}")]
    Http(#[from] hyper::Error),
    /// A request that cannot be written.
    #[error("the request cannot be written for the server")]
    Unwritable,
}

/// A byte stream to a server.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Runs futures on this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// How to speak TLS with servers.
#[derive(Clone)]
pub(crate) struct Clients {
    /// HTTP/2, or 1.1 where they have no other.
    pub(crate) newest: Arc<ClientConfig>,
    /// HTTP/1.1.
    pub(crate) first: Arc<ClientConfig>,
}

/// A server.
pub(crate) struct Upstream {
    to: SocketAddr,
    /// How to speak TLS with it, and as whom it has to show itself.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// One request at a time comes, and when it comes the answer to the one before was read.
    serial: bool,
    idle: RefCell<Vec<http1::SendRequest<Counted>>>,
    shared: RefCell<Option<http2::SendRequest<Counted>>>,
}

enum Sender {
    One(http1::SendRequest<Counted>),
    Many(http2::SendRequest<Counted>),
}

impl Upstream {
    /// The server at `to`.
    pub(crate) fn new(
        to: SocketAddr,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
        serial: bool,
    ) -> Rc<Self> {
        Rc::new(Self {
            to,
            tls,
            serial,
            idle: RefCell::default(),
            shared: RefCell::default(),
        })
    }

    /// Sends a request for `authority`, whose URI is a path with its query, and waits for the
    /// beginning of the answer.
    pub(crate) async fn send(
        self: &Rc<Self>,
        mut request: Request<Counted>,
        authority: &Authority,
    ) -> Result<Response<Incoming>, Failure> {
        let mut reuse = true;
        loop {
            let (sender, used) = match self.waiting(reuse).await {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            let (answer, back) = self.try_send(sender, request, authority).await?;
            match (answer, back) {
                (Ok(answer), _) => return Ok(answer),
                // The server had ended a connection that waited; nothing was sent.
                (Err(_), Some(unsent)) if used => request = unsent,
                (Err(failure), _) => return Err(failure),
            }
            reuse = false;
        }
    }

    async fn try_send(
        self: &Rc<Self>,
        sender: Sender,
        mut request: Request<Counted>,
        authority: &Authority,
    ) -> Result<
        (
            Result<Response<Incoming>, Failure>,
            Option<Request<Counted>>,
        ),
        Failure,
    > {
        let scheme = match self.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        };
        let answer = match sender {
            Sender::One(mut sender) => {
                dress_for_one(&mut request, authority)?;
                let answer = timeout(ANSWER, sender.try_send_request(request)).await;
                self.keep(sender);
                answer
            }
            Sender::Many(mut sender) => {
                dress_for_many(&mut request, authority, scheme)?;
                timeout(ANSWER, sender.try_send_request(request)).await
            }
        };
        Ok(match answer {
            Err(_) => (Err(Failure::Silent), None),
            Ok(Ok(answer)) => (Ok(answer), None),
            Ok(Err(mut error)) => {
                let back = error.take_message();
                (Err(error.into_error().into()), back)
            }
        })
    }

    /// A connection that can take a request now.
    async fn waiting(&self, reuse: bool) -> Option<Sender> {
        if !reuse {
            return None;
        }
        if self.serial {
            let mut one = self.idle.borrow_mut().pop()?;
            let ready = timeout(READY, one.ready()).await;
            return matches!(ready, Ok(Ok(()))).then_some(Sender::One(one));
        }
        let mut shared = self.shared.borrow_mut();
        if let Some(many) = shared.as_ref().filter(|many| !many.is_closed()) {
            return Some(Sender::Many(many.clone()));
        }
        *shared = None;
        let mut idle = self.idle.borrow_mut();
        while let Some(one) = idle.pop() {
            if one.is_ready() {
                return Some(Sender::One(one));
            }
        }
        None
    }

    /// Keeps a connection until its answer was read, and for the next request then.
    fn keep(self: &Rc<Self>, mut sender: http1::SendRequest<Counted>) {
        if self.serial {
            self.idle.borrow_mut().push(sender);
            return;
        }
        let upstream = Rc::downgrade(self);
        spawn_local(async move {
            if sender.ready().await.is_ok()
                && let Some(upstream) = upstream.upgrade()
                && upstream.idle.borrow().len() < MAX_IDLE
            {
                upstream.idle.borrow_mut().push(sender);
            }
        });
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let (stream, many) = open(self.to, self.tls.as_ref()).await?;
        let io = TokioIo::new(stream);
        if many {
            let (sender, connection) = http2::Builder::new(Local)
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEADERS)
                .handshake(io)
                .await?;
            spawn_local(connection);
            *self.shared.borrow_mut() = Some(sender.clone());
            return Ok(Sender::Many(sender));
        }
        let (sender, connection) = http1::Builder::new().handshake(io).await?;
        spawn_local(connection.with_upgrades());
        Ok(Sender::One(sender))
    }
}

/// A stream to the server, and whether HTTP/2 was agreed on.
pub(crate) async fn open(
    to: SocketAddr,
    tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
) -> Result<(Box<dyn Stream>, bool), Failure> {
    let connecting = timeout(CONNECT, TcpStream::connect(to)).await;
    let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = stream.map_err(Failure::Connect)?;
    // What the guest sends goes on at once.
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    let Some((config, name)) = tls else {
        return Ok((Box::new(stream), false));
    };
    let connector = TlsConnector::from(config.clone());
    let agreeing = timeout(CONNECT, connector.connect(name.clone(), stream)).await;
    let stream = agreeing.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = stream.map_err(Failure::Tls)?;
    let many = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(stream), many))
}

fn path(uri: &Uri) -> PathAndQuery {
    let root = || PathAndQuery::from_static("/");
    uri.path_and_query().cloned().unwrap_or_else(root)
}

/// As HTTP/1.1 has it: a path, and a Host.
fn dress_for_one(request: &mut Request<Counted>, authority: &Authority) -> Result<(), Failure> {
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::Unwritable)?;
    *request.uri_mut() = path(request.uri()).into();
    *request.version_mut() = Version::HTTP_11;
    join_cookies(request.headers_mut())?;
    request.headers_mut().insert(HOST, host);
    Ok(())
}

/// As HTTP/2 has it: a whole URI, and no Host.
fn dress_for_many(
    request: &mut Request<Counted>,
    authority: &Authority,
    scheme: Scheme,
) -> Result<(), Failure> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority.clone())
        .path_and_query(path(request.uri()));
    *request.uri_mut() = uri.build().map_err(|_| Failure::Unwritable)?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    Ok(())
}

/// HTTP/2 may split what HTTP/1.1 has in one header (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Failure> {
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        headers.insert(COOKIE, joined.map_err(|_| Failure::Unwritable)?);
    }
    Ok(())
}

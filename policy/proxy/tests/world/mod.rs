//! A server on the host's loopback, a proxy before it, and a guest that speaks HTTP or anything.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its part of it"
)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_conditions::Asker;
use bulkhead_network::http::HttpRule;
use bulkhead_network::{Connect, Deny, Quota};
use bulkhead_proxy::quota::Quotas;
use bulkhead_proxy::records::Outside;
use bulkhead_proxy::secrets::{Secret, Secrets};
use bulkhead_proxy::{Authority, Consent, End, Flow, Policy, Proxy, Records, authority, provider};
use bulkhead_record::{Entry, RecordError, Recorder};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::HeaderMap;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

pub const PLACEHOLDER: &str = "bulkhead-secret-0123456789abcdef";
pub const VALUE: &str = "the-value-that-no-guest-sees";
/// The header, and the trailer, in which the server repeats a secret.
pub const ECHO: HeaderName = HeaderName::from_static("x-echo");
/// No test waits longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test on one thread, as the gateway does.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let limited = tokio::time::timeout(LIMIT, test).await;
        limited.expect("it takes too long");
    });
}

/// Bytes of the body at /v1/long, more than all buffers on its way.
pub const LONG: usize = 16 * 1024 * 1024;

/// A ledger in memory that can fail.
#[derive(Default)]
pub struct Ledger {
    pub entries: Mutex<Vec<Entry>>,
    pub full: AtomicBool,
}

impl Recorder for Ledger {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(RecordError::NotWritten("no space".into()));
        }
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry.clone());
        Ok(entries.len() as u64 - 1)
    }
}

/// What a test sets up.
pub struct Setup {
    pub allow: Vec<Connect>,
    pub quotas: Vec<Quota>,
    pub secrets: Vec<Secret>,
    pub record: bool,
    pub consent: Consent,
    pub conditions: Option<Arc<Asker>>,
    /// The server speaks TLS.
    pub tls: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            allow: vec![narrowed(
                "tcp:api.example:443",
                &["GET", "POST"],
                &["/v1/**"],
            )],
            quotas: Vec::new(),
            secrets: Vec::new(),
            record: false,
            consent: Consent::default(),
            conditions: None,
            tls: true,
        }
    }
}

pub fn narrowed(rule: &str, methods: &[&str], paths: &[&str]) -> Connect {
    let mut connect: Connect = rule.parse().unwrap();
    connect.http = Some(HttpRule {
        methods: methods.iter().map(|m| m.parse().unwrap()).collect(),
        paths: paths.iter().map(|p| p.parse().unwrap()).collect(),
    });
    connect
}

pub fn secret() -> Secret {
    Secret {
        name: "key".into(),
        placeholder: PLACEHOLDER.into(),
        value: Zeroizing::new(VALUE.as_bytes().to_vec()),
        host: "api.example".into(),
        port: 443,
        header: HeaderName::from_static("authorization"),
        paths: Vec::new(),
    }
}

pub struct World {
    pub proxy: Proxy,
    pub flow: Flow,
    pub ledger: Arc<Ledger>,
    pub refusals: Rc<RefCell<Vec<String>>>,
    /// Requests that reached the server: method, path, and headers as they came.
    pub seen: Rc<RefCell<Vec<(Version, String)>>>,
    /// Connections that reached it.
    pub accepted: Arc<AtomicU64>,
    guest_trusts: RootCertStore,
}

impl World {
    pub async fn new(setup: Setup) -> Self {
        let created = authority::create("web").unwrap();
        let pem = format!("{}{}", created.certificate, *created.key);
        let own = Authority::new("web", &pem, provider()).unwrap();
        let mut guest_trusts = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(created.certificate.as_bytes()).unwrap();
        guest_trusts.add(certificate).unwrap();

        let (config, trust) = server_config();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let accepted = Arc::new(AtomicU64::new(0));
        let tls = setup.tls.then(|| TlsAcceptor::from(config));
        spawn_local(serve(listener, tls, seen.clone(), accepted.clone()));

        let ledger = Arc::new(Ledger::default());
        let outside = Outside {
            recorder: setup.record.then(|| ledger.clone() as Arc<dyn Recorder>),
            conditions: setup.conditions,
        };
        let records = Records::start(&outside, "sys/web").unwrap();
        let refusals = Rc::new(RefCell::new(Vec::new()));
        let heard = refusals.clone();
        let tell = Box::new(move |text: &str| heard.borrow_mut().push(text.to_owned()));
        let (quotas, consent) = (Quotas::new(&setup.quotas), setup.consent);
        let policy = Policy::new(
            setup.allow,
            Deny::default(),
            quotas,
            Secrets::new(setup.secrets),
        );
        let proxy = Proxy::new(policy, own, vec![trust], records, consent, tell).unwrap();
        let flow = Flow {
            to,
            port: 443,
            address: Some(Ipv4Addr::new(192, 0, 2, 1)),
            by_address: true,
            names: Box::new(["api.example".to_owned()]),
            pinned: Box::new(["api.example".to_owned()]),
        };
        Self {
            proxy,
            flow,
            ledger,
            refusals,
            seen,
            accepted,
            guest_trusts,
        }
    }

    /// A connection of the guest.
    pub fn connect(&self) -> (DuplexStream, JoinHandle<End>) {
        let (guest, ours) = duplex(64 * 1024);
        let (proxy, flow) = (self.proxy.clone(), self.flow.clone());
        (
            guest,
            spawn_local(async move { proxy.serve(flow, ours).await }),
        )
    }

    /// The same with TLS that asks for `name`.
    pub async fn tls(&self, name: &str, alpn: &str) -> std::io::Result<TlsStream<DuplexStream>> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.guest_trusts.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (guest, _) = self.connect();
        TlsConnector::from(Arc::new(config))
            .connect(name, guest)
            .await
    }

    /// Says `text` in TLS to api.example; everything that is answered.
    pub async fn says(&self, text: &str) -> String {
        let stream = self.tls("api.example", "http/1.1").await.unwrap();
        converse(stream, text.as_bytes()).await
    }

    /// Sends one request of HTTP/2, or 1.
    pub async fn asks(&self, version: Version, request: Request<&'static str>) -> (u16, String) {
        let answer = match version {
            Version::HTTP_2 => {
                let io = TokioIo::new(self.tls("api.example", "h2").await.unwrap());
                let made = hyper::client::conn::http2::handshake(Local, io).await;
                let (mut sender, connection) = made.unwrap();
                spawn_local(connection);
                sender.send_request(request.map(body)).await
            }
            _ => {
                let io = TokioIo::new(self.tls("api.example", "http/1.1").await.unwrap());
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(io).await.unwrap();
                spawn_local(connection);
                sender.send_request(request.map(body)).await
            }
        };
        let answer = answer.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Waits for this many records.
    pub async fn recorded(&self, count: usize) {
        while self.ledger.entries.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen
            .borrow()
            .iter()
            .map(|(_, path)| path.clone())
            .collect()
    }
}

pub fn body(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

/// Writes `text`, and reads until the other side ends.
pub async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, text: &[u8]) -> String {
    stream.write_all(text).await.unwrap();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).into_owned()
}

#[derive(Clone, Copy)]
pub struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// The server's TLS, and who vouches for it.
fn server_config() -> (Arc<ServerConfig>, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["api.example".to_owned(), "plain.example".to_owned()];
    let own = rcgen::CertificateParams::new(names).unwrap();
    let certificate = own.self_signed(&key).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (Arc::new(config), certificate)
}

async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    seen: Rc<RefCell<Vec<(Version, String)>>>,
    accepted: Arc<AtomicU64>,
) {
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::SeqCst);
        let (tls, seen) = (tls.clone(), seen.clone());
        spawn_local(async move {
            let answering = service_fn(move |request| answer(request, seen.clone()));
            let Some(tls) = tls else {
                let serving =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
                let _ = serving.with_upgrades().await;
                return;
            };
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let many = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let io = TokioIo::new(stream);
            if many {
                let _ = http2::Builder::new(Local)
                    .serve_connection(io, answering)
                    .await;
            } else {
                let serving = http1::Builder::new().serve_connection(io, answering);
                let _ = serving.with_upgrades().await;
            }
        });
    }
}

/// Says what came: the request line, then its headers, then its body.
async fn answer(
    mut request: Request<Incoming>,
    seen: Rc<RefCell<Vec<(Version, String)>>>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    seen.borrow_mut().push((request.version(), path.clone()));
    let mut response = Response::new(Full::default().boxed_unsync());
    if path == "/v1/long" {
        let body = Full::new(Bytes::from(vec![b'x'; LONG]));
        *response.body_mut() = body.boxed_unsync();
        return Ok(response);
    }
    if path == "/v1/elsewhere" {
        *response.status_mut() = StatusCode::FOUND;
        let place = HeaderValue::from_static("https://evil.example/v1/x");
        response.headers_mut().insert("location", place);
        return Ok(response);
    }
    if request.headers().contains_key("upgrade") {
        let upgrading = hyper::upgrade::on(&mut request);
        spawn_local(async move {
            let mut io = TokioIo::new(upgrading.await.unwrap());
            let mut word = [0; 5];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word.map(|byte| byte.to_ascii_uppercase()))
                .await
                .unwrap();
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [("upgrade", "websocket"), ("connection", "upgrade")] {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        return Ok(response);
    }
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or(host);
    let mut text = format!(
        "{} {} {}\n",
        request.method(),
        host.unwrap_or("?"),
        request.uri().path()
    );
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    if let Some(value) = request.headers().get("authorization").cloned() {
        let reason = hyper::ext::ReasonPhrase::try_from(value.as_bytes()).unwrap();
        response.extensions_mut().insert(reason);
        response.headers_mut().insert(ECHO, value);
    }
    let secret = request.headers().get("authorization").cloned();
    if let Ok(body) = request.into_body().collect().await {
        for (name, value) in body.trailers().into_iter().flatten() {
            text += &format!("trailer {name}: {}\n", value.to_str().unwrap());
        }
        text += &String::from_utf8_lossy(&body.to_bytes());
    }
    let trailers = secret.map(|value| Ok(HeaderMap::from_iter([(ECHO, value)])));
    let body = Full::new(Bytes::from(text)).with_trailers(std::future::ready(trailers));
    *response.body_mut() = body.boxed_unsync();
    response
        .headers_mut()
        .insert("alt-svc", HeaderValue::from_static("h3=\":443\""));
    Ok(response)
}

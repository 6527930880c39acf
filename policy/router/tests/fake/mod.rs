//! What the tests put around a router: providers on the loopback that behave as they are told, a
//! ledger in memory, a clock that stands still.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_conditions::Asker;
use bulkhead_models::{
    Budget, Grant, Key, LimitField, Model, Models, Order, Price, Provider, Spent, Wire,
};
use bulkhead_record::{Entry, RecordError, Recorder};
use bulkhead_router::{Ask, Asking, Clock, HostConnector, Outside, Router};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A request that a provider received.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
    pub bytes: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// How a provider answers.
#[derive(Clone, Debug)]
pub enum Reply {
    Whole(u16, Vec<(&'static str, String)>, String),
    /// Pieces of a stream, and how it ends.
    Stream(Vec<String>, End),
    /// Nothing comes.
    Stall,
    /// The connection is closed without a word.
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Clean,
    Cut,
    Stall,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Whole(
            status,
            Vec::new(),
            json!({"error": {"message": "no"}}).to_string(),
        )
    }

    pub fn ok(body: Value) -> Self {
        Self::Whole(200, Vec::new(), body.to_string())
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Whole(_, headers, _) = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }
}

type Behaviour = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A provider on the loopback.
pub struct Fake {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub async fn start(behaviour: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, behaviour).await
    }

    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        behaviour: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (behaviour, seen, tls) =
                    (Arc::clone(&behaviour), Arc::clone(&all), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        answer(Arc::clone(&behaviour), Arc::clone(&seen), request)
                    });
                    let http = http1::Builder::new();
                    // Whatever ends a connection is part of the test.
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let io = TokioIo::new(stream);
                                drop(http.serve_connection(io, service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }
}

async fn answer(
    behaviour: Arc<Behaviour>,
    all: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, io::Error>>, io::Error> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let path = head.uri.path().to_owned();
    let seen = Seen {
        path,
        headers: head.headers,
        body,
        bytes: bytes.len(),
    };
    all.lock().unwrap().push(seen.clone());
    match behaviour(&seen) {
        Reply::Stall => std::future::pending().await,
        Reply::Hang => Err(io::Error::other("hang up")),
        Reply::Whole(status, headers, body) => {
            let body = Full::new(Bytes::from(body)).map_err(|error: Infallible| match error {});
            let mut response = Response::new(body.boxed());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            Ok(response)
        }
        Reply::Stream(pieces, end) => {
            let (mut sender, body) = Channel::new(1);
            tokio::spawn(async move {
                for piece in pieces {
                    if sender.send_data(Bytes::from(piece)).await.is_err() {
                        return;
                    }
                }
                match end {
                    End::Clean => {}
                    End::Cut => sender.abort(io::Error::other("cut")),
                    End::Stall => std::future::pending().await,
                }
            });
            let mut response = Response::new(body.boxed());
            let sse = "text/event-stream".parse().unwrap();
            response.headers_mut().insert("content-type", sse);
            Ok(response)
        }
    }
}

/// A ledger in memory, which can be made to fail.
#[derive(Default)]
pub struct Memory {
    pub entries: Mutex<Vec<Entry>>,
    pub broken: AtomicBool,
}

impl Recorder for Memory {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(RecordError::WriterGone);
        }
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry.clone());
        Ok(u64::try_from(entries.len()).unwrap() - 1)
    }
}

/// A clock that the test moves.
#[derive(Default)]
pub struct Still(AtomicU64);

impl Still {
    pub fn forward(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl Clock for Still {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.monotonic()
    }
}

/// There is no person.
struct Nobody;

impl Ask for Nobody {
    fn ask<'a>(&'a self, _: &'a str, _: &'a str) -> Asking<'a> {
        Box::pin(async { Err("nobody can be asked".to_owned()) })
    }
}

/// A router among its fakes.
pub struct World {
    pub router: Router,
    pub memory: Arc<Memory>,
    pub clock: Arc<Still>,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl World {
    pub fn new(models: Models) -> Self {
        Self::trusting(models, RootCertStore::empty())
    }

    pub fn trusting(models: Models, roots: RootCertStore) -> Self {
        Self::with(models, roots, None, Arc::new(Nobody))
    }

    /// Who asks this person.
    pub fn asking(models: Models, person: Arc<dyn Ask>) -> Self {
        Self::with(models, RootCertStore::empty(), None, person)
    }

    pub fn with_conditions(
        models: Models,
        roots: RootCertStore,
        conditions: Option<Arc<Asker>>,
    ) -> Self {
        Self::with(models, roots, conditions, Arc::new(Nobody))
    }

    fn with(
        models: Models,
        roots: RootCertStore,
        conditions: Option<Arc<Asker>>,
        consent: Arc<dyn Ask>,
    ) -> Self {
        let (memory, clock) = (Arc::new(Memory::default()), Arc::new(Still::default()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let outside = Outside {
            connector: Arc::new(HostConnector),
            tls: Arc::new(tls),
            recorder: Arc::clone(&memory) as Arc<dyn Recorder>,
            conditions,
            consent,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            carry: None,
            log: Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned())),
        };
        Self {
            router: Router::new(models, outside).unwrap(),
            memory,
            clock,
            log,
        }
    }

    /// Posts `body`; the response's status, headers and whole body.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, HeaderMap, String) {
        self.send("POST", path, &[], body.to_string()).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> (u16, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let (head, body) = self.router.handle(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            head.status.as_u16(),
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    /// A chat on the OpenAI wire.
    pub async fn chat(&self, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.post("/v1/chat/completions", body).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Records, each as kind, verdict and reason.
    pub fn records(&self) -> Vec<(String, String)> {
        let entries = self.memory.entries.lock().unwrap();
        let name = |value: Value| value.as_str().unwrap().to_owned();
        entries
            .iter()
            .map(|entry| (name(json!(entry.kind)), name(json!(entry.verdict))))
            .collect()
    }

    pub fn details(&self) -> Vec<BTreeMap<String, String>> {
        let entries = self.memory.entries.lock().unwrap();
        entries.iter().map(|entry| entry.detail.clone()).collect()
    }
}

/// A question on the OpenAI wire.
pub fn question() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100})
}

pub fn price(text: &str) -> Price {
    text.parse().unwrap()
}

pub fn model(name: &str) -> Model {
    Model {
        name: name.to_owned(),
        aliases: Vec::new(),
        upstream: format!("{name}-upstream"),
        input: price("1"),
        output: price("2"),
        max_tokens: 1000,
        cache: false,
        grants: vec![Grant::default()],
    }
}

pub fn provider(name: &str, wire: Wire, address: SocketAddr) -> Provider {
    let url = format!("http://127.0.0.1:{}/v1", address.port());
    Provider {
        name: name.to_owned(),
        wire,
        url: url.parse().unwrap(),
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        keys: vec![key(&format!("{name}-key"))],
        priority: 0,
        requests_per_minute: None,
        tokens_per_minute: None,
        timeout: Duration::from_millis(500),
        limit_field: LimitField::default(),
        trust_usage: true,
        models: vec![model("m")],
    }
}

pub fn key(name: &str) -> Key {
    Key {
        name: name.to_owned(),
        value: format!("value-of-{name}").into(),
    }
}

pub fn models(providers: Vec<Provider>) -> Models {
    Models {
        actor: "s/p".to_owned(),
        order: Order::Priority,
        providers,
        budget: Budget::default(),
        spent: Spent::default(),
        requests_per_minute: 1_000_000,
    }
}

/// An answer of the OpenAI wire.
pub fn openai_answer(text: &str, input: u64, output: u64) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-upstream",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        },
    })
}

/// An answer of the Anthropic wire.
pub fn anthropic_answer(text: &str, input: u64, output: u64) -> Value {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m-upstream",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": input, "output_tokens": output},
    })
}

/// The pieces of a stream of the OpenAI wire, one for each word.
pub fn openai_stream(text: &str, usage: Option<(u64, u64)>) -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
            "model": "m-upstream", "choices": choices, "usage": usage,
        });
        format!("data: {chunk}\n\n")
    };
    let delta = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let words = text
        .split_inclusive(' ')
        .map(|word| chunk(delta(json!({"content": word}), Value::Null), Value::Null));
    let mut pieces: Vec<String> = words.collect();
    pieces.push(chunk(delta(json!({}), json!("stop")), Value::Null));
    if let Some((input, output)) = usage {
        let usage = json!({
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        });
        pieces.push(chunk(json!([]), usage));
    }
    pieces.push("data: [DONE]\n\n".to_owned());
    pieces
}

/// The pieces of a stream of the Anthropic wire, one for each word.
pub fn anthropic_stream(text: &str, usage: Option<(u64, u64)>) -> Vec<String> {
    let event = |data: Value| {
        format!(
            "event: {}\ndata: {data}\n\n",
            data["type"].as_str().unwrap()
        )
    };
    let mut start = json!({
        "type": "message_start",
        "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m-upstream",
            "content": [], "stop_reason": null, "stop_sequence": null,
        },
    });
    let mut end = json!({
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": null},
    });
    if let Some((input, output)) = usage {
        start["message"]["usage"] = json!({"input_tokens": input, "output_tokens": 1});
        end["usage"] = json!({"output_tokens": output});
    }
    let mut pieces = vec![
        event(start),
        event(json!({
            "type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""},
        })),
        event(json!({"type": "ping"})),
    ];
    pieces.extend(text.split_inclusive(' ').map(|word| {
        event(json!({
            "type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }))
    }));
    pieces.push(event(json!({"type": "content_block_stop", "index": 0})));
    pieces.push(event(end));
    pieces.push(event(json!({"type": "message_stop"})));
    pieces
}

/// TLS for a provider called `localhost`, and who trusts it.
pub fn tls() -> (TlsAcceptor, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    (TlsAcceptor::from(Arc::new(server)), roots)
}

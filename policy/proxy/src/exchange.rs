//! One connection of the guest whose requests are looked into: each is decided, recorded, sent to
//! the server and answered, or refused in a way that a program and a person can read. Used by the
//! proxy.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bulkhead_conditions::Act;
use bulkhead_record::{RecordError, Verdict};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::header::{
    self, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::task::spawn_local;

use crate::Shared;
use crate::conditions::Question;
use crate::meter::{Counted, Meter, Metered, Way};
use crate::policy::{Flow, Refusal};
use crate::records::{GAVE_UP, Intent, NotDone};
use crate::upstream::{Failure, Upstream};

/// Most bytes of a refused request's body that are read, so that the connection stays usable.
const MAX_DRAINED: usize = 64 * 1024;
/// What concerns one connection and is not handed on (RFC 9110, section 7.6.1).
const OF_ONE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// The connection.
pub(crate) struct Exchange {
    pub(crate) shared: Rc<Shared>,
    pub(crate) flow: Flow,
    /// Whom TLS asked for; `None` in the clear.
    pub(crate) tls: Option<String>,
    pub(crate) upstream: Rc<Upstream>,
    /// What follows is no HTTP.
    pub(crate) end_http: Box<dyn Fn()>,
}

/// A request that is about to be sent.
struct Permitted {
    meter: Rc<Meter>,
    authority: Authority,
    host: String,
    upgrade: bool,
    /// Its headers, with secrets.
    head: HeaderMap,
}

/// An answer's body: ours, or the server's as it comes.
pub(crate) enum Answer {
    Ours(Full<Bytes>),
    Theirs(Counted),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Ours(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Theirs(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ours(body) => body.is_end_stream(),
            Self::Theirs(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Ours(body) => body.size_hint(),
            Self::Theirs(body) => body.size_hint(),
        }
    }
}

/// Why a request gets an answer of ours.
enum Trouble {
    Refused(Refusal),
    Failed(Failure),
    NotRecorded(RecordError),
    Malformed(&'static str),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<NotDone> for Trouble {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::Denied(ruling) => Refusal::Condition(ruling).into(),
            NotDone::NotRecorded(error) => Self::NotRecorded(error),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Exchange {
    /// Answers a request, one way or the other.
    pub(crate) async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let what = self.describe(&request);
        let trouble = match self.permit(&request, &what).await {
            Ok(permitted) => match self.send(request, permitted).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => trouble,
            },
            Err(trouble) => {
                drain(request).await;
                trouble
            }
        };
        let (status, reason) = self.judge(&what, trouble);
        Ok(refusal(status, &reason))
    }

    /// Says what went wrong to everybody but the guest; what to tell that.
    fn judge(&self, what: &str, trouble: Trouble) -> (StatusCode, String) {
        match trouble {
            Trouble::Refused(refused) => {
                let reason = refused.to_string();
                self.shared.refused(what, &reason);
                let status = match refused {
                    Refusal::Quota(_) => StatusCode::TOO_MANY_REQUESTS,
                    Refusal::Unreadable => StatusCode::BAD_REQUEST,
                    _ => StatusCode::FORBIDDEN,
                };
                (status, reason)
            }
            Trouble::Malformed(reason) => {
                self.shared.refused(what, reason);
                (StatusCode::BAD_REQUEST, reason.to_owned())
            }
            Trouble::NotRecorded(error) => {
                let reason = error.to_string();
                self.shared.refused(what, &reason);
                (StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            Trouble::Failed(failure) => {
                let status = match failure {
                    Failure::Silent => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                (status, failure.to_string())
            }
        }
    }

    /// Whom the connection is to, for people.
    pub(crate) fn whom(&self) -> String {
        let name = self.tls.as_ref().or(self.flow.names.first());
        let name = name
            .cloned()
            .unwrap_or_else(|| self.flow.to.ip().to_string());
        format!("a request to {name}:{}", self.flow.port)
    }

    /// A request in a few words, for people and records.
    fn describe(&self, request: &Request<Incoming>) -> String {
        let scheme = match self.tls {
            Some(_) => "https",
            None => "http",
        };
        let host = asked_host(request).unwrap_or("?");
        let method = request.method();
        format!("{method} {scheme}://{host}{}", request.uri().path())
    }

    /// Decides on a request, and has it recorded that it is about to be sent.
    async fn permit(&self, request: &Request<Incoming>, what: &str) -> Result<Permitted, Trouble> {
        let asked = authority(request)?;
        let host = self.host(&asked)?;
        // As the server is told it: in one spelling.
        let authority = match asked.port_u16() {
            Some(port) => format!("{host}:{port}").parse(),
            None => host.parse(),
        };
        let authority = authority.map_err(|_| MALFORMED_HOST)?;
        let upgrade = upgrade(request)?;
        let path = request.uri().path();
        let policy = &self.shared.policy;
        let method = request.method().as_str();
        let allowed = policy.request(&self.flow, &host, method, path)?;
        let grant = allowed.grant;
        // What is asked for is shown whole.
        let query = request.uri().query().map(|query| format!("?{query}"));
        let object = format!("{what}{}", query.unwrap_or_default());
        let consent = self.shared.consent(allowed, &object).await?;
        let private = self.tls.is_some() || self.flow.address.is_none();
        let mut head = request.headers().clone();
        let server = (host.as_str(), self.flow.port);
        let swapped = policy.secrets().swap(&mut head, server, path, private);
        let http = Some((method, path));
        let question = Question {
            connection: Some(allowed.connection(&self.flow, Some(&host), http)),
            acts: swapped.used.iter().cloned().map(Act::Secret).collect(),
        };
        let consent = consent.map(|how| ("consent".to_owned(), how));
        let mut detail: BTreeMap<_, _> = consent.into_iter().collect();
        for (key, names) in [("secrets", swapped.used), ("placeholders", swapped.left)] {
            if !names.is_empty() {
                detail.insert(key.to_owned(), names.join(" "));
            }
        }
        let intent = Intent {
            action: "net.connect",
            object: what.to_owned(),
            reason: format!("net.connect:{}", grant.rule),
            detail,
            question,
        };
        let records = self.shared.records.clone();
        let act = records.intent(intent).await?;
        let quotas = policy.quotas().clone();
        Ok(Permitted {
            meter: Meter::new(quotas, grant.quotas.clone(), records, act),
            authority,
            host,
            upgrade,
            head,
        })
    }

    /// Sends a request to the server, and gives its answer on.
    async fn send(
        &self,
        mut request: Request<Incoming>,
        permitted: Permitted,
    ) -> Result<Response<Answer>, Trouble> {
        let Permitted {
            meter,
            authority,
            host,
            upgrade,
            mut head,
        } = permitted;
        let from_guest = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        strip(&mut head);
        head.remove(EXPECT);
        if upgrade {
            head.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        parts.headers = head;
        parts.extensions.clear();
        let body = Counted::new(body, meter.clone(), Way::Out(Box::new(strip)));
        let outgoing = Request::from_parts(parts, body);
        // Unless it comes to something else.
        meter.ended(Verdict::Failed, GAVE_UP.to_owned());
        let sent = self.upstream.send(outgoing, &authority).await;
        let mut answer = sent.inspect_err(|failure| {
            meter.ended(Verdict::Failed, failure.to_string());
        })?;
        meter.ended(Verdict::Done, answer.status().as_u16().to_string());
        let hide = {
            let (shared, host) = (self.shared.clone(), host);
            move |headers: &mut HeaderMap| shared.policy.secrets().hide(headers, &host)
        };
        hide(answer.headers_mut());
        // Words of the server's own beside its status, which could be anything.
        answer.extensions_mut().remove::<ReasonPhrase>();
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(from_guest) = from_guest else {
                return Err(Trouble::Malformed(
                    "the server changed the protocol unasked",
                ));
            };
            (self.end_http)();
            let from_server = hyper::upgrade::on(&mut answer);
            spawn_local(async move {
                if let (Ok(guest), Ok(server)) = tokio::join!(from_guest, from_server) {
                    let mut guest = Metered::new(TokioIo::new(guest), meter);
                    // How it ends concerns the two.
                    let _ = copy_bidirectional(&mut guest, &mut TokioIo::new(server)).await;
                }
            });
            return Ok(answer.map(|_| Answer::Ours(Full::default())));
        }
        strip(answer.headers_mut());
        // Another way to the server, which goes past here.
        answer.headers_mut().remove(header::ALT_SVC);
        let trailers = Box::new(move |trailers: &mut HeaderMap| {
            hide(trailers);
            strip(trailers);
        });
        Ok(answer.map(|body| Answer::Theirs(Counted::new(body, meter, Way::In(trailers)))))
    }

    /// The server that a request is for, which is the one that the connection was made to.
    fn host(&self, authority: &Authority) -> Result<String, Trouble> {
        let host = authority.host().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
        let other = |granted: String| Refusal::OtherHost {
            asked: authority.to_string(),
            granted,
        };
        if authority
            .port_u16()
            .is_some_and(|port| port != self.flow.port)
        {
            return Err(other(format!("port {}", self.flow.port)).into());
        }
        match &self.tls {
            Some(name) if *name != host => Err(other(name.clone()).into()),
            _ => Ok(host),
        }
    }
}

/// The host that a request names, wherever it does.
fn asked_host(request: &Request<Incoming>) -> Option<&str> {
    let header = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    request.uri().authority().map(Authority::as_str).or(header)
}

/// The one server that a request names.
fn authority(request: &Request<Incoming>) -> Result<Authority, Trouble> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => {
            let parsed = host
                .to_str()
                .ok()
                .and_then(|host| host.parse::<Authority>().ok());
            Some(parsed.ok_or(MALFORMED_HOST)?)
        }
        _ => return Err(Trouble::Malformed("the request has not exactly one Host")),
    };
    let authority = match (request.uri().authority().cloned(), header) {
        (Some(uri), Some(header)) if uri != header => {
            return Err(Trouble::Refused(Refusal::OtherHost {
                asked: uri.to_string(),
                granted: header.to_string(),
            }));
        }
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(Trouble::Malformed("the request names no host")),
    };
    if authority.as_str().contains('@') {
        return Err(Trouble::Malformed("the request's host has a user"));
    }
    // Of a name with an empty label nobody knows whom a server takes it for.
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.split('.').any(str::is_empty) {
        return Err(MALFORMED_HOST);
    }
    // Nothing may follow the host but a port that is one.
    let rest = authority.as_str().strip_prefix(authority.host());
    let digits = rest.and_then(|rest| rest.strip_prefix(':'));
    let port = |digits: &str| {
        let proper = digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        proper && digits.parse().is_ok_and(|port: u16| port != 0)
    };
    match (rest, digits) {
        (Some(""), _) => Ok(authority),
        (_, Some(digits)) if port(digits) => Ok(authority),
        _ => Err(MALFORMED_HOST),
    }
}

/// Whether a request asks for WebSocket; other upgrades are refused.
fn upgrade(request: &Request<Incoming>) -> Result<bool, Trouble> {
    let headers = request.headers();
    if headers.contains_key("http2-settings") {
        return Err(Refusal::Never("an upgrade to HTTP/2").into());
    }
    let Some(protocol) = headers.get(UPGRADE) else {
        return Ok(false);
    };
    let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
        && headers.get_all(UPGRADE).iter().count() == 1
        && request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream();
    match websocket {
        true => Ok(true),
        false => Err(Refusal::Never("an upgrade to another protocol than WebSocket").into()),
    }
}

const MALFORMED_HOST: Trouble = Trouble::Malformed("the request's Host is malformed");

/// Removes what concerns one connection alone.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A name such as Host or Authorization means something to the server.
        .filter(|name| ![HOST, header::AUTHORIZATION, header::COOKIE].contains(name))
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
    // The one thing that may be asked for through others.
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
}

/// Reads what is left of a refused request, as far as that is cheaper than a new connection.
async fn drain(request: Request<Incoming>) {
    let waits = request.headers().contains_key(EXPECT);
    let body = request.into_body();
    let small = body
        .size_hint()
        .exact()
        .is_some_and(|size| size <= MAX_DRAINED as u64);
    if small && !waits {
        let _ = Limited::new(body, MAX_DRAINED).collect().await;
    }
}

/// An answer of ours.
pub(crate) fn refusal(status: StatusCode, reason: &str) -> Response<Answer> {
    let text = refusal_text(reason);
    let mut answer = Response::new(Answer::Ours(Full::new(text.into())));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// The body of an answer of ours.
pub(crate) fn refusal_text(reason: &str) -> String {
    let text = serde_json::json!({ "error": "refused", "by": "bulkhead", "reason": reason });
    format!("{text}\n")
}

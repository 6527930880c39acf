//! `http.get` and `http.request`: requests to web servers, by way of the partition's gateway, which decides
//! on each as on one of the guest's own, puts secrets in and keeps the record of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_toolbox::Risk;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ToolError;
use crate::host::Host;
use crate::registry::{Action, Deadline, Facts, Need, object};

/// Most bytes of an answer's body that are given back.
const MAX_BODY: usize = 1024 * 1024;
/// Longest body of a request.
const MAX_SENT: usize = 1024 * 1024;
/// Longest address, and most headers of a request.
const MAX_URL: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a request may take, of which a person may have asked for all.
const TIMEOUT: Duration = Duration::from_secs(120);

const fn facts(name: &'static str, summary: &'static str, idempotent: bool) -> Facts {
    Facts {
        name,
        version: "1",
        summary,
        needs: "`net.connect` of host and port, with method and path",
        risk: Risk::Network,
        idempotent,
        rollback: None,
        timeout: TIMEOUT,
    }
}

fn url() -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": MAX_URL, "pattern": "^https?://[!-~]+$",
        "description": "http:// or https://, what is no ASCII escaped",
    })
}

fn headers() -> Value {
    json!({
        "type": "object", "maxProperties": MAX_HEADERS,
        "additionalProperties": { "type": "string", "maxLength": 8192 },
        "description": "a placeholder of a secret stands where the guest would write it",
    })
}

fn answer() -> Value {
    object(
        json!({
            "status": { "type": "integer", "minimum": 100, "maximum": 999 },
            "headers": {
                "type": "array",
                "items": { "type": "array", "items": { "type": "string" } },
            },
            "text": { "type": "string", "description": "the body, where it is text" },
            "base64": { "type": "string", "description": "the body, where it is none" },
            "truncated": { "type": "boolean" },
        }),
        &["status", "headers", "truncated"],
    )
}

/// A request, taken apart.
struct Target {
    host: String,
    port: u16,
    tls: bool,
    /// Path and query, as they are sent.
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, ToolError> {
        let wrong = || ToolError::refused("it is no address of a web server");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let tls = uri.scheme_str() == Some("https");
        // Whoever writes a password there would send it.
        if authority.as_str().contains('@') || url.contains('#') {
            return Err(wrong());
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let written = authority.as_str().strip_prefix(authority.host());
        let port = match written.ok_or_else(wrong)?.strip_prefix(':') {
            None => Some(if tls { 443 } else { 80 }),
            Some(port) if !port.starts_with('+') => port.parse().ok().filter(|port| *port != 0),
            Some(_) => None,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(wrong());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host,
            port: port.ok_or_else(wrong)?,
            tls,
            path: path.to_owned(),
        })
    }

    fn need(&self, method: &str) -> Need {
        let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
        Need::Request {
            host: self.host.clone(),
            port: self.port,
            method: method.to_owned(),
            path: path.to_owned(),
        }
    }
}

/// A request of `method`, and what is answered.
fn ask(
    host: &Host,
    (method, url): (&str, &str),
    headers: &serde_json::Map<String, Value>,
    body: Vec<u8>,
    deadline: &Deadline,
) -> Result<Value, ToolError> {
    let gate = host.gate.as_ref().ok_or_else(|| {
        let why = "the partition has no network through which its tools could ask";
        ToolError::refused(why)
    })?;
    let target = Target::parse(url)?;
    let wrong = |what: &str| ToolError::refused(format!("{what} is no part of a request"));
    let method: Method = method.parse().map_err(|_| wrong("the method"))?;
    let mut request = Request::builder().method(method).uri(&target.path);
    let standard = if target.tls { 443 } else { 80 };
    let named = match target.port == standard {
        true => target.host.clone(),
        false => format!("{}:{}", target.host, target.port),
    };
    for (name, value) in headers {
        let parsed: HeaderName = name.parse().map_err(|_| wrong("a header"))?;
        // What frames a request is ours to say.
        if OURS.contains(&parsed.as_str()) {
            return Err(ToolError::refused(format!(
                "the header {parsed} is not for tools to set"
            )));
        }
        let value = HeaderValue::from_str(value.as_str().unwrap_or_default());
        request = request.header(parsed, value.map_err(|_| wrong("a header"))?);
    }
    let request = request
        .header(HOST, named)
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| wrong("it"))?;
    let stream = gate.connect(&target.host, target.port, target.tls, deadline)?;
    let failed = |error: std::io::Error| ToolError::refused(format!("there is no answer: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let exchanged = tokio::time::timeout(deadline.left(), exchange(stream, request)).await;
        exchanged.map_err(|_| deadline.passed())?.map_err(failed)
    })
}

/// Headers that frame a request, or speak to the next on its way.
const OURS: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
];

async fn exchange(
    stream: std::os::unix::net::UnixStream,
    request: Request<Full<Bytes>>,
) -> std::io::Result<Value> {
    let broken = |error: hyper::Error| std::io::Error::other(error);
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(broken)?;
    let asking = async move {
        let answer = sender.send_request(request).await.map_err(broken)?;
        told(answer).await.map_err(broken)
    };
    tokio::pin!(asking);
    tokio::select! {
        told = &mut asking => told,
        // Its end may come before all of the answer was looked at.
        _ = connection => asking.await,
    }
}

async fn told(answer: Response<Incoming>) -> Result<Value, hyper::Error> {
    let (head, mut body) = answer.into_parts();
    let mut bytes = Vec::new();
    let mut truncated = false;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let data = frame.data_ref().map(AsRef::as_ref).unwrap_or_default();
        let room = MAX_BODY.saturating_sub(bytes.len()).min(data.len());
        bytes.extend(data.get(..room).unwrap_or_default());
        if room < data.len() {
            truncated = true;
            break;
        }
    }
    let headers = head.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        json!([name.as_str(), value])
    });
    let mut told = json!({
        "status": head.status.as_u16(),
        "headers": headers.collect::<Vec<_>>(),
        "truncated": truncated,
    });
    match String::from_utf8(bytes) {
        Ok(text) => told["text"] = json!(text),
        Err(error) => told["base64"] = json!(STANDARD.encode(error.as_bytes())),
    }
    Ok(told)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    url: String,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
}

impl Action for Get {
    type Input = Self;
    const FACTS: Facts = facts(
        "http.get",
        "gets what is at an address of a web server",
        true,
    );

    fn input() -> Value {
        object(json!({ "url": url(), "headers": headers() }), &["url"])
    }

    fn output() -> Value {
        answer()
    }

    fn needs(_: &Host, input: &Self) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Target::parse(&input.url)?.need("GET")])
    }

    fn run(host: &Host, input: &Self, deadline: &Deadline) -> Result<Value, ToolError> {
        let asked = ("GET", input.url.as_str());
        ask(host, asked, &input.headers, Vec::new(), deadline)
    }
}

/// `http.request`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Any {
    method: String,
    url: String,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    base64: Option<String>,
}

impl Any {
    fn body(&self) -> Result<Vec<u8>, ToolError> {
        match (&self.text, &self.base64) {
            (Some(_), Some(_)) => Err(ToolError::refused("it has two bodies, `text` and `base64`")),
            (Some(text), None) => Ok(text.clone().into_bytes()),
            (None, Some(bytes)) => {
                let decoded = STANDARD.decode(bytes);
                decoded.map_err(|_| ToolError::refused("`base64` is none"))
            }
            (None, None) => Ok(Vec::new()),
        }
    }
}

impl Action for Any {
    type Input = Self;
    const FACTS: Facts = facts(
        "http.request",
        "sends a request to a web server, and gives back its answer",
        false,
    );

    fn input() -> Value {
        let body = |what: &str, most: usize| json!({ "type": "string", "maxLength": most, "description": what });
        object(
            json!({
                "method": { "type": "string", "pattern": "^[A-Z]{1,20}$" },
                "url": url(),
                "headers": headers(),
                "text": body("the body, where it is text", MAX_SENT),
                "base64": body("the body, where it is none", MAX_SENT.div_ceil(3) * 4),
            }),
            &["method", "url"],
        )
    }

    fn output() -> Value {
        answer()
    }

    fn needs(_: &Host, input: &Self) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Target::parse(&input.url)?.need(&input.method)])
    }

    fn run(host: &Host, input: &Self, deadline: &Deadline) -> Result<Value, ToolError> {
        let asked = (input.method.as_str(), input.url.as_str());
        ask(host, asked, &input.headers, input.body()?, deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_one_thing() {
        for (url, host, port, tls, path) in [
            ("https://A.example", "a.example", 443, true, "/"),
            (
                "http://a.example:8080/x?y=z",
                "a.example",
                8080,
                false,
                "/x?y=z",
            ),
            ("https://192.0.2.1/a%20b", "192.0.2.1", 443, true, "/a%20b"),
            ("http://a.example./", "a.example", 80, false, "/"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
            assert_eq!((target.tls, target.path.as_str()), (tls, path), "{url}");
        }
        for url in [
            "",
            "/x",
            "a.example/x",
            "https:///x",
            "https://user@a.example/",
            "https://user:word@a.example/",
            "https://a.example:0/",
            "https://a.example:99999/",
            "https://a.example:/",
            "https://a.example:+80/",
            "https://[::1]/",
            "https://a.example/#x",
            "https://a b/",
            "https://ä.example/",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}

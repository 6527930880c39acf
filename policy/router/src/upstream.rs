//! One request to one provider, over a connection of its own: beside what a model takes to answer,
//! opening one is nothing, and whether a request on a used one was received could not be known.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_models::{KeyValue, Provider, Wire};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::wire::anthropic;

/// Longest time for a connection and its TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection that is being made.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// What opens connections to providers.
pub trait Connect: Send + Sync {
    /// Connects to the provider's host and port; TLS comes on top.
    fn connect<'a>(&'a self, provider: &'a Provider) -> Connecting<'a>;
}

/// Connects to the addresses that the description has, in their order.
#[derive(Debug)]
pub struct HostConnector;

impl Connect for HostConnector {
    fn connect<'a>(&'a self, provider: &'a Provider) -> Connecting<'a> {
        Box::pin(async {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the provider has no address");
            for address in &provider.addresses {
                match TcpStream::connect((*address, provider.url.port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }
}

/// Why there is no response. The text is for operators.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request did not reach the provider: it cost nothing.
    NotSent(String),
    /// Nobody knows what the provider made of it.
    Lost(String),
    /// Nor here, and no word came for too long.
    TimedOut,
}

/// Sends `body` and waits for the head of the response.
pub(crate) async fn send(
    connector: &dyn Connect,
    tls: &Arc<ClientConfig>,
    provider: &Provider,
    key: Option<&KeyValue>,
    body: Bytes,
) -> Result<Response<Incoming>, Failure> {
    let not_sent = |what: &str, error: String| Failure::NotSent(format!("{what}: {error}"));
    let request = request(provider, key, body)
        .map_err(|error| not_sent("cannot write the request", error.to_string()))?;
    let connected = timeout(CONNECT, async {
        let stream = connector.connect(provider).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match provider.url.tls {
            false => Box::new(stream),
            true => {
                let name = ServerName::try_from(provider.url.host.clone());
                let name = name.map_err(|error| io::Error::other(error.to_string()))?;
                let tls = TlsConnector::from(Arc::clone(tls));
                Box::new(tls.connect(name, stream).await?)
            }
        };
        Ok::<_, io::Error>(stream)
    });
    let stream = match connected.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(not_sent("cannot connect", error.to_string())),
        Err(_) => return Err(not_sent("cannot connect", "it takes too long".to_owned())),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_sent("cannot connect", error.to_string()))?;
    // It ends with the response's body, or when that is dropped.
    tokio::spawn(connection);
    match timeout(provider.timeout, sender.send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Failure::Lost(error.to_string())),
        Err(_) => Err(Failure::TimedOut),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn request(
    provider: &Provider,
    key: Option<&KeyValue>,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let end = match provider.wire {
        Wire::Openai => "/chat/completions",
        Wire::Anthropic => "/messages",
    };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}{end}", provider.url.path))
        .header(HOST, provider.url.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT_ENCODING, "identity")
        .header(USER_AGENT, "bulkhead");
    if provider.wire == Wire::Anthropic {
        request = request.header("anthropic-version", anthropic::VERSION);
    }
    if let Some(key) = key {
        let (name, value) = match provider.wire {
            Wire::Openai => (AUTHORIZATION.as_str(), format!("Bearer {}", key.expose())),
            Wire::Anthropic => ("x-api-key", key.expose().to_owned()),
        };
        let mut value = HeaderValue::try_from(zeroize::Zeroizing::new(value).as_str())?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    request.body(Full::new(body))
}

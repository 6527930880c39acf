//! Web requests as bytes, with and without TLS, by whatever name and to whatever address.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::Outcome;

/// The certificate of the servers, as `attacker serve` has written it.
const SERVERS: &str = "/ca.pem";
/// How long silence is waited for.
const SILENCE: Duration = Duration::from_secs(10);

/// Connects.
pub(crate) fn connect(to: Ipv4Addr, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddrV4::new(to, port);
    let stream = TcpStream::connect_timeout(&address.into(), SILENCE);
    let stream = stream.map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SILENCE)).expect("a socket");
    Ok(stream)
}

/// Sends bytes and reads what comes back, without TLS.
pub(crate) fn plain(to: Ipv4Addr, port: u16, request: &[u8]) -> Result<String, String> {
    let mut stream = connect(to, port)?;
    exchange(&mut stream, request)
}

/// The same by TLS, asking for `name`, or for no server.
pub(crate) fn tls(
    to: Ipv4Addr,
    port: u16,
    name: Option<&str>,
    request: &[u8],
) -> Result<String, String> {
    let mut trust = RootCertStore::empty();
    let bundle =
        std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| "/bulkhead/ca-bundle.pem".into());
    // The partition's authority, and the servers' own: not every connection is looked into.
    for file in [bundle.as_str(), SERVERS] {
        for certificate in CertificateDer::pem_file_iter(file).expect("certificates to trust") {
            let certificate = certificate.expect("a certificate");
            trust.add(certificate).expect("a certificate");
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(trust)
        .with_no_client_auth();
    // Addresses are not named in TLS.
    config.enable_sni = name.is_some();
    let server = name.unwrap_or("api.example.org").to_owned();
    let server = ServerName::try_from(server).map_err(|error| error.to_string())?;
    let mut session = ClientConnection::new(Arc::new(config), server).expect("a session");
    let mut stream = connect(to, port)?;
    exchange(&mut Stream::new(&mut session, &mut stream), request)
}

fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Result<String, String> {
    stream
        .write_all(request)
        .map_err(|error| error.to_string())?;
    stream.flush().map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend(&part[..count]),
            // What has come is the answer.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error.to_string()),
        }
        let text = String::from_utf8_lossy(&answer);
        // All of these servers' answers are short, and say how long they are.
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().ok())?
            });
            if body.len() >= length.unwrap_or(usize::MAX) {
                break;
            }
        }
    }
    match answer.is_empty() {
        true => Err("closed without a word".into()),
        false => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// What an answer says: it got through where a server, and not the gateway, gave it.
pub(crate) fn read(answer: Result<String, String>) -> Outcome {
    let answer = answer?;
    let first = answer.lines().next().unwrap_or_default().to_owned();
    match answer.contains("served by") {
        true => Ok(answer),
        false => Err(first),
    }
}

/// A request as it should be.
pub(crate) fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}

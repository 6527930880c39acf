//! What the way through the gateway costs: round trips and throughput of a guest's connection, plain
//! and with TLS that is looked into, beside a direct connection of the host in the same run. The guest
//! is a TCP/IP stack in this process, and part of what is measured.

#[path = "../../../policy/gateway/tests/guest/mod.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is that of the gateway's tests: what it expects and does not get is the report"
)]
mod guest;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bulkhead_network::http::HttpRule;
use bulkhead_network::{
    Connect, Fd, Host, Jail, Loopback, NetworkDescription, Ports, Protocol, Rule, Web,
};
use bulkhead_proxy::{authority, certificates, provider};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use serde::Serialize;
use smoltcp::socket::tcp;

use crate::error::Error;
use crate::policy::{Rate, Rates};
use crate::stats::Stats;
use guest::stream::Stream;
use guest::{Guest, MAC, PROGRAM, ROUTER};

/// Round trips of a run, after some that are not counted.
const TRIPS: usize = 500;
const WARM: usize = 50;
/// Bytes of a question and of its answer.
const WORD: usize = 64;
/// Bytes of the body of an answer to a web request.
const BODY: usize = 1024;
/// Bytes moved in a run.
const BULK: usize = 64 << 20;
/// Bytes moved at a time.
const PIECE: usize = 1 << 18;
/// The server's name.
const NAME: &str = "api.example";

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) trips: Vec<Trip>,
    pub(crate) megabytes: Vec<Rate>,
}

/// How long one round trip takes.
#[derive(Debug, Serialize)]
pub(crate) struct Trip {
    /// Stable name.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// Half of a run's take less, in microseconds.
    pub(crate) p50: Stats,
    /// All but one of a hundred.
    pub(crate) p99: Stats,
    /// The one without the gateway.
    pub(crate) beside: Option<&'static str>,
}

/// Measures everything, in turns.
pub(crate) fn run(library: &Path, runs: u32) -> Result<Figures, Error> {
    let program = library.join("bulkhead-gateway");
    std::fs::metadata(&program).map_err(Error::io(program.display().to_string()))?;
    // Nobody set another one before.
    let _ = PROGRAM.set(program);
    let echo = serve(|mut stream| {
        let mut word = [0; WORD];
        while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
    })?;
    let sink = serve(|mut stream| {
        let mut buffer = vec![0; PIECE];
        while matches!(stream.read(&mut buffer), Ok(1..)) {}
    })?;
    let source = serve(|mut stream| {
        let buffer = vec![0; PIECE];
        while stream.write_all(&buffer).is_ok() {}
    })?;
    let web = WebServer::start()?;
    let mut series: [Series; 4] = Default::default();
    let mut rates = Rates::default();
    for _ in 0..runs {
        let [plain, plain_through, tls, tls_through] = &mut series;
        plain.add({
            let mut stream = direct(echo)?;
            trips(|| exchange(&mut stream))?
        });
        plain_through.add({
            let (_gateway, mut guest) = Way::to(&[(80, echo)]).start();
            let mut stream = Stream::connect(&mut guest, 80);
            trips(|| exchange(&mut stream))?
        });
        tls.add(web.trips(&mut direct(web.port)?, &web.certificate)?);
        tls_through.add({
            let (_gateway, mut guest) = web.way().start();
            let mut stream = Stream::connect(&mut guest, 443);
            web.trips(&mut stream, &web.authority.certificate)?
        });
        let (_gateway, mut guest) = Way::to(&[(80, sink), (81, source)]).start();
        rates.add("sent-direct", "MB sent, direct", None, None, || {
            let stream = direct(sink)?;
            megabytes(|| send(&stream))
        })?;
        let floor = Some("sent-direct");
        rates.add("sent", "MB sent, by the gateway", floor, None, || {
            megabytes(|| {
                bulk(&mut guest, 80, true);
                Ok(())
            })
        })?;
        let floor = Some("received-direct");
        rates.add("received-direct", "MB received, direct", None, None, || {
            let stream = direct(source)?;
            megabytes(|| take(&stream))
        })?;
        rates.add(
            "received",
            "MB received, by the gateway",
            floor,
            None,
            || {
                megabytes(|| {
                    bulk(&mut guest, 81, false);
                    Ok(())
                })
            },
        )?;
    }
    let [plain, plain_through, tls, tls_through] = series;
    Ok(Figures {
        trips: vec![
            plain.finish("tcp-direct", "64 bytes by TCP, direct", None)?,
            plain_through.finish("tcp", "the same by the gateway", Some("tcp-direct"))?,
            tls.finish("https-direct", "a GET by HTTPS, direct", None)?,
            tls_through.finish(
                "https",
                "the same, looked into by the gateway",
                Some("https-direct"),
            )?,
        ],
        megabytes: rates.finish()?,
    })
}

/// A connection of the host without anything between.
fn direct(port: u16) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|stream| {
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    stream.map_err(Error::io("connecting"))
}

/// A service of the host's loopback, each connection on a thread; its port.
fn serve(service: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<u16, Error> {
    let failed = || Error::io("listening");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    let port = listener.local_addr().map_err(failed())?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let service = service.clone();
            // Answers go out at once.
            if stream.set_nodelay(true).is_ok() {
                thread::spawn(move || service(stream));
            }
        }
    });
    Ok(port)
}

/// A gateway before services of the host.
struct Way {
    services: Vec<Loopback>,
    /// The partition's authority and whom servers are trusted by, in PEM, where requests are looked
    /// into.
    web: Option<(String, String)>,
}

impl Way {
    fn to(services: &[(u16, u16)]) -> Self {
        let service = |(port, host_port): &(u16, u16)| Loopback {
            protocol: Protocol::Tcp,
            port: *port,
            host_port: *host_port,
        };
        Self {
            services: services.iter().map(service).collect(),
            web: None,
        }
    }

    /// Starts it, with a guest at its link.
    fn start(&self) -> (guest::Gateway, Guest) {
        let mut described = NetworkDescription::new("bench", Fd(4), MAC, Jail::BestEffort);
        described.loopback.clone_from(&self.services);
        let mut files = Vec::new();
        if let Some((authority, trust)) = &self.web {
            for (number, text) in [(40, authority), (41, trust)] {
                files.push((guest::memory_file(text.as_bytes()).into(), number));
            }
            described.web = Some(Web {
                authority: Fd(40),
                trust: vec![Fd(41)],
            });
            described.hosts = vec![NAME.to_owned()];
            let rule = Rule {
                protocol: Protocol::Tcp,
                host: Host::Name(NAME.to_owned()),
                ports: Ports::ALL,
            };
            described.allow = vec![Connect {
                http: Some(HttpRule::default()),
                ..rule.into()
            }];
        }
        let (gateway, mut guest) = guest::start_with(described, Vec::new(), files);
        // As a guest whose device says that they are right.
        guest.trust_checksums();
        guest.configure();
        (gateway, guest)
    }
}

/// A server with TLS that answers each request in the same way, and the authority between.
struct WebServer {
    port: u16,
    /// Its certificate, in PEM.
    certificate: String,
    authority: authority::Created,
}

impl WebServer {
    fn start() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Answer(error.to_string());
        let key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
        let own = rcgen::CertificateParams::new(vec![NAME.to_owned()]);
        let own = own.and_then(|own| own.self_signed(&key));
        let own = own.map_err(|error| failed(&error))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map(|config| config.with_no_client_auth())
            .and_then(|config| {
                let key = PrivatePkcs8KeyDer::from(key.serialize_der());
                config.with_single_cert(vec![own.der().clone()], key.into())
            });
        let config = Arc::new(config.map_err(|error| failed(&error))?);
        let port = serve(move |stream| {
            // A client that goes away has measured enough.
            let _ = answer(&config, stream);
        })?;
        Ok(Self {
            port,
            certificate: own.pem(),
            authority: authority::create("bench").map_err(|error| failed(&error))?,
        })
    }

    /// The way to it.
    fn way(&self) -> Way {
        let own = format!("{}{}", self.authority.certificate, *self.authority.key);
        Way {
            web: Some((own, self.certificate.clone())),
            ..Way::to(&[(443, self.port)])
        }
    }

    /// Requests over one connection, by TLS with whom `trusted` vouches for.
    fn trips<S: Read + Write>(&self, stream: &mut S, trusted: &str) -> Result<Vec<u64>, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Answer(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(trusted).unwrap_or_default());
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(NAME).map_err(|error| failed(&error))?;
        let tls = ClientConnection::new(Arc::new(config), name);
        let mut tls = tls.map_err(|error| failed(&error))?;
        let mut stream = rustls::Stream::new(&mut tls, stream);
        trips(|| {
            let request = format!("GET /v1/a HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let head = read_head(&mut stream)?;
            if !head.starts_with(b"HTTP/1.1 200") {
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.read_exact(&mut [0; BODY])
        })
    }
}

/// Answers the requests of one connection.
fn answer(config: &Arc<ServerConfig>, mut stream: TcpStream) -> io::Result<()> {
    let tls = ServerConnection::new(config.clone());
    let mut tls = tls.map_err(io::Error::other)?;
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    let mut text = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").into_bytes();
    text.resize(text.len() + BODY, b'x');
    loop {
        read_head(&mut stream)?;
        stream.write_all(&text)?;
    }
}

/// Reads up to an empty line.
fn read_head(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(head)
}

/// Nanoseconds of each of a run's round trips.
fn trips(mut trip: impl FnMut() -> io::Result<()>) -> Result<Vec<u64>, Error> {
    let mut taken = Vec::with_capacity(TRIPS);
    for number in 0..WARM + TRIPS {
        let begun = Instant::now();
        trip().map_err(Error::io("a round trip"))?;
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if number >= WARM {
            taken.push(nanoseconds);
        }
    }
    Ok(taken)
}

/// A question and its answer.
fn exchange(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut word = [7; WORD];
    stream.write_all(&word)?;
    stream.read_exact(&mut word)
}

/// Megabytes a second, of one that moves [`BULK`] bytes.
fn megabytes(mut bulk: impl FnMut() -> io::Result<()>) -> Result<f64, Error> {
    let begun = Instant::now();
    bulk().map_err(Error::io("moving bytes"))?;
    Ok(BULK as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// Sends everything directly, until the other side has it.
fn send(mut stream: &TcpStream) -> io::Result<()> {
    let buffer = vec![0; PIECE];
    for _ in 0..BULK / PIECE {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0]).map(drop)
}

/// Takes everything directly.
fn take(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut left = BULK;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// Moves everything over a connection of the guest to `port`; sends it, or takes it.
fn bulk(guest: &mut Guest, port: u16, sends: bool) {
    let handle = guest.connect(4 << 20, ROUTER, port);
    let mut moved = 0;
    guest.until("all of it", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        while sends && moved < BULK && socket.can_send() {
            let sent = socket.send(|buffer| {
                let count = buffer.len().min(BULK - moved);
                (count, count)
            });
            moved += sent.unwrap_or(0);
            if moved == BULK {
                socket.close();
            }
        }
        while !sends && socket.can_recv() {
            moved += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
        }
        // What was sent has arrived when the other side ends its direction.
        (moved >= BULK && !(sends && socket.may_recv())).then_some(())
    });
    guest.sockets.remove(handle);
}

/// Round trips in the making.
#[derive(Default)]
struct Series {
    p50: Vec<u64>,
    p99: Vec<u64>,
}

impl Series {
    fn add(&mut self, mut taken: Vec<u64>) {
        taken.sort_unstable();
        let at = |percent: usize| taken.get(taken.len() * percent / 100).copied();
        self.p50.extend(at(50));
        self.p99.extend(at(99));
    }

    fn finish(
        self,
        id: &'static str,
        what: &'static str,
        beside: Option<&'static str>,
    ) -> Result<Trip, Error> {
        let nothing = || Error::Answer("nothing was measured".to_owned());
        Ok(Trip {
            id,
            what,
            p50: Stats::of(&self.p50).ok_or_else(nothing)?,
            p99: Stats::of(&self.p99).ok_or_else(nothing)?,
            beside,
        })
    }
}

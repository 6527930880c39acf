//! The servers of the host: those that are granted, the attacker's own, and the resolver that the host
//! asks. Each writes down everything that reaches it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

use crate::{BOOTY, EVIL, FREE, GRANTED};

/// Names that the certificate is for: if something let a request for another through, it would be
/// served.
const NAMES: [&str; 4] = [
    "api.example.org",
    "free.example.org",
    "plain.example.org",
    "evil.example.net",
];
const TCP: [u16; 5] = [22, 25, 53, 80, 123];
const UDP: [u16; 4] = [9, 53, 123, 443];
/// Services of the host's loopback: one that is granted, and one that is not.
const LOOPBACK: [u16; 2] = [8099, 2201];
/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// What was seen, a line for each thing.
#[derive(Clone)]
struct Seen(Arc<Mutex<File>>);

impl Seen {
    fn note(&self, line: &str) {
        let mut file = self.0.lock().expect("nobody panics");
        writeln!(file, "{}", line.escape_debug()).expect("a disk");
    }
}

/// Serves until somebody ends it. `ready` in the directory says that all of it is there.
pub(crate) fn for_ever(directory: &Path) {
    let seen = Seen(Arc::new(Mutex::new(
        File::create(directory.join("seen")).expect("a directory"),
    )));
    let key = rcgen::KeyPair::generate().expect("a key");
    let own = rcgen::CertificateParams::new(NAMES.map(str::to_owned).to_vec()).expect("names");
    let own = own.self_signed(&key).expect("a certificate");
    std::fs::write(directory.join("ca.pem"), own.pem()).expect("a directory");
    let pair = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("versions of TLS")
    .with_no_client_auth()
    .with_single_cert(vec![own.der().clone()], pair.into())
    .expect("its own certificate");
    let config = Arc::new(config);
    for address in [GRANTED, FREE, EVIL] {
        for port in [443, 8443] {
            let (config, seen) = (config.clone(), seen.clone());
            listen(address.into(), port, move |stream, whose| {
                let mut session = ServerConnection::new(config.clone()).expect("a session");
                serve(
                    &mut Stream::new(&mut session, stream),
                    whose,
                    "by TLS",
                    &seen,
                );
            });
        }
        for port in TCP {
            let seen = seen.clone();
            listen(address.into(), port, move |stream, whose| {
                serve(stream, whose, "", &seen)
            });
        }
        for port in UDP {
            let socket = UdpSocket::bind((address, port)).expect("a free port");
            let seen = seen.clone();
            thread::spawn(move || {
                let mut packet = [0; 2048];
                while let Ok((count, from)) = socket.recv_from(&mut packet) {
                    let text = String::from_utf8_lossy(&packet[..count]).into_owned();
                    seen.note(&format!("{address}:{port} by UDP: {text}"));
                    let _ = socket.send_to(b"served by UDP", from);
                }
            });
        }
    }
    for port in LOOPBACK {
        let seen = seen.clone();
        listen(Ipv4Addr::LOCALHOST.into(), port, move |stream, whose| {
            serve(stream, whose, "", &seen);
        });
    }
    resolve(seen);
    std::fs::write(directory.join("ready"), "").expect("a directory");
    loop {
        thread::park();
    }
}

fn listen(
    address: IpAddr,
    port: u16,
    serve: impl Fn(&mut TcpStream, SocketAddr) + Send + Sync + 'static,
) {
    let listener = TcpListener::bind((address, port)).expect("a free port");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || {
                stream.set_read_timeout(Some(SILENCE)).expect("a socket");
                serve(&mut stream, SocketAddr::new(address, port));
            });
        }
    });
}

/// Serves requests, one after the other, to a peer that may be anything.
fn serve(stream: &mut (impl Read + Write), whose: SocketAddr, how: &str, seen: &Seen) {
    seen.note(&format!("{whose} is connected to {how}"));
    let mut head = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        seen.note(&format!("{whose} {how}: {text}"));
        head.clear();
        let answer = match text.split(' ').nth(1) {
            Some("/v1/redirect") => format!(
                "HTTP/1.1 302 Found\r\nLocation: https://evil.example.net/{BOOTY}\r\nContent-Length: 0\r\n\r\n"
            ),
            _ => {
                let body = format!("served by {whose}");
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
        };
        if stream
            .write_all(answer.as_bytes())
            .and_then(|()| stream.flush())
            .is_err()
        {
            return;
        }
    }
    if !head.is_empty() {
        let text = String::from_utf8_lossy(&head).into_owned();
        seen.note(&format!("{whose} {how}, no request: {text}"));
    }
}

/// The host's resolver, which knows names that lead to where no guest may go.
fn resolve(seen: Seen) {
    let socket = UdpSocket::bind("127.0.0.1:53").expect("a free port");
    let flipped = AtomicBool::new(false);
    thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut packet) {
            if let Some(answer) = answer(&packet[..count], &flipped, &seen) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

fn answer(query: &[u8], flipped: &AtomicBool, seen: &Seen) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = String::from_utf8_lossy(query.get(at..at + length)?).into_owned();
        name = if name.is_empty() {
            label
        } else {
            format!("{name}.{label}")
        };
        at += length;
    }
    let end = at + 4;
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let rest = String::from_utf8_lossy(query.get(end..)?).into_owned();
    seen.note(&format!("asked for {name} {kind}: {rest}"));
    let address = match name.to_ascii_lowercase().as_str() {
        "free.example.org" => FREE,
        "api.example.org" | "plain.example.org" | "public.rebind.example.org" => GRANTED,
        "flip.rebind.example.org" if !flipped.swap(true, Ordering::Relaxed) => GRANTED,
        "flip.rebind.example.org" | "loop.rebind.example.org" => Ipv4Addr::LOCALHOST,
        "loop2.rebind.example.org" => Ipv4Addr::new(127, 0, 0, 53),
        "meta.rebind.example.org" => Ipv4Addr::new(169, 254, 169, 254),
        "private.rebind.example.org" => Ipv4Addr::new(10, 9, 9, 9),
        "shared.rebind.example.org" => Ipv4Addr::new(100, 64, 0, 1),
        "router.rebind.example.org" => Ipv4Addr::new(10, 0, 2, 2),
        "none.rebind.example.org" => Ipv4Addr::UNSPECIFIED,
        _ => EVIL,
    };
    let mut answer = query.get(..end)?.to_vec();
    answer
        .get_mut(2..12)?
        .copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    if kind != 1 {
        answer[7] = 0;
        return Some(answer);
    }
    // A pointer to the name, an address, no time to live.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
    answer.extend(address.octets());
    Some(answer)
}

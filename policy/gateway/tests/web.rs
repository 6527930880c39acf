//! Web requests of a guest through a real gateway: TLS that the partition's authority ends, requests
//! decided one by one, secrets, and the red team's ways out. The servers are on the host's loopback.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use bulkhead_network::http::HttpRule;
use bulkhead_network::tools::{Answer, MAX_PACKET, Wanted};
use bulkhead_network::{Connect, Fd, NetworkDescription, Quota, Secret, Web};
use bulkhead_proxy::{authority, certificates, provider};
use bulkhead_record::Kind;
use guest::ledger::writer;
use guest::stream::Stream;
use guest::{Gateway, Guest, ROUTER, start_with};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recv, recvmsg, send, socketpair,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use smoltcp::socket::udp;

const PLACEHOLDER: &str = "bulkhead-secret-0123456789abcdef";
const VALUE: &str = "the-value-that-no-guest-sees";

/// A server with TLS on the host's loopback that says what it was asked, and what it saw.
struct Server {
    port: u16,
    certificate: String,
    seen: Arc<Mutex<Vec<String>>>,
}

fn server() -> Server {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["api.example".to_owned(), "free.example".to_owned()];
    let own = rcgen::CertificateParams::new(names).unwrap();
    let own = own.self_signed(&key).unwrap();
    let pair = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], pair.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, config) = (stream.unwrap(), config.clone());
            let heard = heard.clone();
            thread::spawn(move || {
                let mut tls = ServerConnection::new(config).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut stream);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                if head.is_empty() {
                    return;
                }
                let head = String::from_utf8(head).unwrap();
                let first = head.lines().next().unwrap().to_owned();
                heard.lock().unwrap().push(head);
                let text = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{first}",
                    first.len()
                );
                let _ = stream.write_all(text.as_bytes());
            });
        }
    });
    Server {
        port,
        certificate: own.pem(),
        seen,
    }
}

/// What a gateway is given beside its description.
struct Given {
    files: Vec<(OwnedFd, i32)>,
}

impl Given {
    fn keep(&mut self, descriptor: OwnedFd) -> Fd {
        let number = 40 + self.files.len() as i32;
        self.files.push((descriptor, number));
        Fd(number)
    }

    fn file(&mut self, text: &str) -> Fd {
        self.keep(guest::memory_file(text.as_bytes()).into())
    }
}

fn narrowed(rule: &str, methods: &[&str], paths: &[&str]) -> Connect {
    let mut connect: Connect = rule.parse().unwrap();
    connect.http = Some(HttpRule {
        methods: methods.iter().map(|m| m.parse().unwrap()).collect(),
        paths: paths.iter().map(|p| p.parse().unwrap()).collect(),
    });
    connect
}

/// A gateway before `server`, a guest that trusts the partition's authority, and that trust.
fn begin(
    server: &Server,
    change: impl FnOnce(&mut NetworkDescription, &mut Given),
) -> (Gateway, Guest, RootCertStore) {
    let created = authority::create("test").unwrap();
    let mut trust = RootCertStore::empty();
    for certificate in certificates(&created.certificate).unwrap() {
        trust.add(certificate).unwrap();
    }
    let mut given = Given { files: Vec::new() };
    let mut described = NetworkDescription::new(
        "test",
        Fd(4),
        guest::MAC,
        bulkhead_network::Jail::BestEffort,
    );
    described.web = Some(Web {
        authority: given.file(&format!("{}{}", created.certificate, *created.key)),
        trust: vec![given.file(&server.certificate)],
    });
    described.allow = vec![
        narrowed("tcp:api.example:443", &["GET"], &["/v1/**"]),
        "tcp:free.example:443".parse().unwrap(),
    ];
    described.loopback = vec![format!("tcp:443={}", server.port).parse().unwrap()];
    described.hosts = vec!["api.example".into(), "free.example".into()];
    change(&mut described, &mut given);
    let (gateway, mut guest) = start_with(described, Vec::new(), given.files);
    guest.configure();
    (gateway, guest, trust)
}

/// Says `text` to `name` by TLS; what is answered.
fn says(guest: &mut Guest, trust: &RootCertStore, name: &str, text: &str) -> io::Result<String> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trust.clone())
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), server).unwrap();
    let mut stream = Stream::connect(guest, 443);
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    stream.write_all(text.as_bytes())?;
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        // A server that does not say goodbye in TLS.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(String::from_utf8(heard).unwrap()),
    }
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[test]
fn requests_are_decided_where_the_rule_says_so_and_bytes_elsewhere() {
    let server = server();
    let (gateway, mut guest, trust) = begin(&server, |_, _| {});
    let answer = says(
        &mut guest,
        &trust,
        "api.example",
        &get("api.example", "/v1/a"),
    )
    .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("GET /v1/a HTTP/1.1"),
        "{answer}"
    );
    let answer = says(
        &mut guest,
        &trust,
        "api.example",
        &get("api.example", "/v2"),
    )
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(
        answer.contains("no rule allows GET /v2 at api.example:443"),
        "{answer}"
    );
    // Not narrowed: the guest speaks with the server itself, whose certificate it does not trust.
    assert!(
        says(
            &mut guest,
            &trust,
            "free.example",
            &get("free.example", "/")
        )
        .is_err()
    );
    let mut own = RootCertStore::empty();
    own.add(certificates(&server.certificate).unwrap().remove(0))
        .unwrap();
    let answer = says(&mut guest, &own, "free.example", &get("free.example", "/x")).unwrap();
    assert!(answer.ends_with("GET /x HTTP/1.1"), "{answer}");
    assert_eq!(server.seen.lock().unwrap().len(), 2);
    assert!(
        gateway
            .end()
            .contains("refused GET https://api.example/v2: no rule allows")
    );
}

#[test]
fn the_ways_out_that_are_known_are_closed() {
    let server = server();
    let (gateway, mut guest, trust) = begin(&server, |_, _| {});
    // SNI of another host, and of an address.
    for name in ["evil.example", "192.0.2.1"] {
        assert!(
            says(&mut guest, &trust, name, &get(name, "/v1/a")).is_err(),
            "{name}"
        );
    }
    for (text, reason) in [
        // The right SNI, and another Host.
        (get("free.example", "/v1/a"), "the connection was made to api.example"),
        // A proxy inside of the partition.
        ("CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\nConnection: close\r\n\r\n".into(), "CONNECT"),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n".into(), "evil.example"),
        // One request in another.
        (
            "POST /v1/a HTTP/1.1\r\nHost: api.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG".into(),
            "both Content-Length and Transfer-Encoding",
        ),
        ("GET /v1/a HTTP/1.1\nHost: api.example\n\n".into(), "CR LF"),
        ("GET /v1/a HTTP/1.1\r\nHost: api.example\r\nX: y\r\n z\r\n\r\n".into(), "folded"),
        // The path in another spelling.
        (get("api.example", "/v1/%2e%2e/v2"), "in different ways"),
    ] {
        let answer = says(&mut guest, &trust, "api.example", &text).unwrap();
        assert!(answer.starts_with("HTTP/1.1 40") && answer.contains(reason), "{answer}");
    }
    // What is no TLS, where it is looked for, is HTTP or nothing.
    let mut plain = Stream::connect(&mut guest, 443);
    plain.write_all(b"SSH-2.0-x\r\n\r\n").unwrap();
    let mut heard = String::new();
    plain.read_to_string(&mut heard).unwrap();
    assert!(heard.starts_with("HTTP/1.1 400"), "{heard}");
    drop(plain);
    assert!(
        server.seen.lock().unwrap().is_empty(),
        "the server heard of none of them"
    );
    let said = gateway.end();
    assert!(
        said.contains("evil.example did not resolve to this address"),
        "{said}"
    );
}

#[test]
fn secrets_are_with_the_gateway_alone() {
    let server = server();
    let (gateway, mut guest, trust) = begin(&server, |described, given| {
        described.secrets = vec![Secret {
            name: "key".into(),
            placeholder: PLACEHOLDER.into(),
            value: given.file(VALUE),
            host: "api.example".into(),
            port: 443,
            header: "authorization".into(),
            paths: vec!["/v1/chat".parse().unwrap()],
        }];
    });
    let ask = |path: &str, header: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: api.example\r\n{header}: Bearer {PLACEHOLDER}\r\nConnection: close\r\n\r\n"
        )
    };
    for (path, header) in [
        ("/v1/chat", "authorization"),
        ("/v1/chat", "x-copy"),
        ("/v1/other", "authorization"),
    ] {
        let answer = says(&mut guest, &trust, "api.example", &ask(path, header)).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && !answer.contains(VALUE),
            "{answer}"
        );
    }
    let seen = server.seen.lock().unwrap();
    let has_value: Vec<bool> = seen.iter().map(|head| head.contains(VALUE)).collect();
    assert_eq!(has_value, [true, false, false], "{seen:?}");
    assert!(!gateway.end().contains(VALUE));
}

#[test]
fn a_person_is_asked_from_inside_the_jail() {
    let server = server();
    let (ours, theirs) = guest::pair();
    let person = thread::spawn(move || {
        let mut objects = Vec::new();
        let mut buffer = vec![0; bulkhead_approval::MAX_MESSAGE_BYTES];
        while let Ok((_, length @ 1..)) = recv(&ours, &mut buffer[..], RecvFlags::empty()) {
            let request: bulkhead_approval::Request =
                serde_json::from_slice(&buffer[..length]).unwrap();
            let answer = bulkhead_approval::Answer {
                id: request.id,
                allowed: !request.question.object.contains("/v1/no"),
                reason: "a person said so".into(),
            };
            objects.push(request.question.object);
            let answer = serde_json::to_vec(&answer).unwrap();
            send(&ours, &answer, SendFlags::NOSIGNAL).unwrap();
        }
        objects
    });
    let (gateway, mut guest, trust) = begin(&server, |described, given| {
        described.allow[0].approval = true;
        given.files.push((theirs, 60));
        described.approvals = Some(Fd(60));
    });
    for (path, status) in [("/v1/yes", "200"), ("/v1/no", "403")] {
        let answer = says(&mut guest, &trust, "api.example", &get("api.example", path)).unwrap();
        assert_eq!(&answer[9..12], status, "{answer}");
    }
    gateway.end();
    let asked = [
        "GET https://api.example/v1/yes",
        "GET https://api.example/v1/no",
    ];
    assert_eq!(person.join().unwrap(), asked);
}

#[test]
fn amounts_run_out_for_requests_and_connections() {
    let server = server();
    let (gateway, mut guest, trust) = begin(&server, |described, _| {
        let quota = |name: &str, calls_per_minute| Quota {
            name: name.into(),
            calls_per_minute: Some(calls_per_minute),
            bytes: None,
        };
        described.quotas = vec![quota("api", 2), quota("free", 1)];
        described.allow[0].quotas = vec![0];
        described.allow[1].quotas = vec![1];
    });
    let mut own = RootCertStore::empty();
    own.add(certificates(&server.certificate).unwrap().remove(0))
        .unwrap();
    let mut ask = |trust: &RootCertStore, name: &str| {
        let answer = says(&mut guest, trust, name, &get(name, "/v1/a"));
        answer.map(|answer| answer[9..12].to_owned())
    };
    for expected in ["200", "200", "429"] {
        assert_eq!(ask(&trust, "api.example").unwrap(), expected);
    }
    assert_eq!(ask(&own, "free.example").unwrap(), "200");
    assert!(ask(&own, "free.example").is_err(), "a reset");
    assert!(
        gateway
            .end()
            .contains("the calls per minute of free are used up")
    );
}

#[test]
fn acts_are_on_record_before_they_take_effect() {
    let server = server();
    let (ours, theirs) = guest::pair();
    let echo = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    echo.set_nonblocking(true).unwrap();
    let echo_port = echo.local_addr().unwrap().port();
    // A connection, a flow of datagrams, a request and a refusal, with what became of them.
    let entries = writer(ours, 7);
    let (gateway, mut guest, trust) = begin(&server, |described, given| {
        described
            .loopback
            .push(format!("udp:9={echo_port}").parse().unwrap());
        given.files.push((theirs, 60));
        described.ledger = Some(Fd(60));
        described.actor = Some("demo/test".into());
    });
    let recorded = |guest: &mut Guest, count| {
        guest.until("records", |_| {
            (entries.lock().unwrap().len() == count).then_some(())
        });
    };
    let mut own = RootCertStore::empty();
    own.add(certificates(&server.certificate).unwrap().remove(0))
        .unwrap();
    says(&mut guest, &own, "free.example", &get("free.example", "/x")).unwrap();
    recorded(&mut guest, 2);
    let answer = says(
        &mut guest,
        &trust,
        "api.example",
        &get("api.example", "/v1/a"),
    )
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    recorded(&mut guest, 4);
    assert!(!guest.connects(ROUTER, 22));
    recorded(&mut guest, 5);
    let metadata = || vec![udp::PacketMetadata::EMPTY; 4];
    let buffer = || udp::PacketBuffer::new(metadata(), vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(1234).unwrap();
    let handle = guest.sockets.add(socket);
    let socket = guest.get::<udp::Socket<'_>>(handle);
    socket.send_slice(b"hello", (ROUTER, 9)).unwrap();
    let mut bytes = [0; 16];
    let (len, _) = guest.until("the datagram", |_| echo.recv_from(&mut bytes).ok());
    assert_eq!(&bytes[..len], b"hello");
    recorded(&mut guest, 6);
    let refused = says(
        &mut guest,
        &trust,
        "api.example",
        &get("api.example", "/v2"),
    )
    .unwrap();
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    recorded(&mut guest, 7);
    {
        let entries = entries.lock().unwrap();
        let acts: Vec<(Kind, &str)> = entries
            .iter()
            .map(|e| (e.kind, e.object.as_str()))
            .collect();
        assert_eq!(
            acts,
            [
                (Kind::Intent, "tcp free.example:443"),
                (Kind::Outcome, "tcp free.example:443"),
                (Kind::Intent, "GET https://api.example/v1/a"),
                (Kind::Outcome, "GET https://api.example/v1/a"),
                (Kind::Refusal, "tcp 10.0.2.2:22"),
                (Kind::Intent, "udp 10.0.2.2:9"),
                (Kind::Refusal, "GET https://api.example/v2"),
            ]
        );
        assert!(entries.iter().all(|entry| entry.actor == "demo/test"));
        assert_eq!((entries[0].intent, entries[1].intent), (None, Some(0)));
        assert_eq!(entries[0].reason, "net.connect:tcp:free.example:443");
    }
    // The ledger is full: nothing is done any more.
    let before = server.seen.lock().unwrap().len();
    let refused = says(
        &mut guest,
        &trust,
        "api.example",
        &get("api.example", "/v1/a"),
    )
    .unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(!guest.connects(ROUTER, 443) || says(&mut guest, &own, "free.example", "x").is_err());
    let socket = guest.get::<udp::Socket<'_>>(handle);
    socket.send_slice(b"again", (ROUTER, 9)).unwrap();
    assert_eq!(server.seen.lock().unwrap().len(), before);
    assert!(
        gateway
            .end()
            .contains("the ledger cannot be written: no space left")
    );
}

/// The partition's tools, as the gateway knows them, beside its guest.
struct Tools {
    socket: OwnedFd,
    /// Without it the gateway ends.
    _guest: Guest,
}

impl Tools {
    /// A connection that the gateway gives them, or why it does not.
    fn connect(&self, host: &str, port: u16, tls: bool) -> Result<UnixStream, String> {
        let wanted = Wanted {
            id: u64::from(port),
            host: host.to_owned(),
            port,
            tls,
        };
        let wanted = serde_json::to_vec(&wanted).unwrap();
        send(&self.socket, &wanted, SendFlags::NOSIGNAL).unwrap();
        let mut buffer = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut parts, &mut ancillary, flags).unwrap();
        let passed = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let answer: Answer = serde_json::from_slice(&buffer[..received.bytes]).unwrap();
        assert_eq!(answer.id, u64::from(port));
        match (answer.refused, passed) {
            (None, Some(stream)) => {
                let stream = UnixStream::from(stream);
                stream.set_nonblocking(false).unwrap();
                Ok(stream)
            }
            (Some(why), None) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// What is answered to a request.
    fn says(&self, host: &str, text: &str) -> String {
        let mut stream = self.connect(host, 443, true).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// A gateway that tools ask for connections.
fn with_tools(
    server: &Server,
    change: impl FnOnce(&mut NetworkDescription, &mut Given),
) -> (Gateway, Tools) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let (gateway, guest, _) = begin(server, |described, given| {
        described.tools = Some(given.keep(theirs));
        change(described, given);
    });
    (
        gateway,
        Tools {
            socket: ours,
            _guest: guest,
        },
    )
}

#[test]
fn requests_of_tools_are_under_the_rules_of_the_guests_own() {
    let server = server();
    let (ours, theirs) = guest::pair();
    let (gateway, tools) = with_tools(&server, |described, given| {
        described.ledger = Some(given.keep(theirs));
        described.secrets = vec![Secret {
            name: "key".into(),
            placeholder: PLACEHOLDER.into(),
            value: given.file(VALUE),
            host: "api.example".into(),
            port: 443,
            header: "authorization".into(),
            paths: vec!["/v1/chat".parse().unwrap()],
        }];
    });
    let entries = writer(ours, 100);
    let answer = tools.says("api.example", &get("api.example", "/v1/a"));
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("GET /v1/a HTTP/1.1"),
        "{answer}"
    );
    // What the guest would have of the server itself.
    let answer = tools.says("free.example", &get("free.example", "/x"));
    assert!(answer.ends_with("GET /x HTTP/1.1"), "{answer}");
    for (host, text, reason) in [
        (
            "api.example",
            get("api.example", "/v2"),
            "no rule allows GET /v2 at api.example:443",
        ),
        (
            "api.example",
            get("free.example", "/v1/a"),
            "the connection was made to api.example",
        ),
    ] {
        let answer = tools.says(host, &text);
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains(reason),
            "{answer}"
        );
    }
    for (host, port, reason) in [
        ("evil.example", 443, "the rule tcp:evil.example:443"),
        ("api.example", 444, "refused tcp"),
        ("192.0.2.1", 443, "refused tcp to 192.0.2.1:443"),
        ("127.0.0.1", 22, "no rule can allow it"),
        ("", 443, "no name"),
        ("a..b", 443, "no name"),
    ] {
        let refused = tools.connect(host, port, true).unwrap_err();
        assert!(refused.contains(reason), "{host}: {refused}");
    }
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: api.example\r\nauthorization: Bearer {PLACEHOLDER}\r\nConnection: close\r\n\r\n"
        )
    };
    for path in ["/v1/chat", "/v1/other"] {
        let answer = tools.says("api.example", &ask(path));
        assert!(
            answer.starts_with("HTTP/1.1 200") && !answer.contains(VALUE),
            "{answer}"
        );
    }
    let seen = server.seen.lock().unwrap().clone();
    let has_value: Vec<bool> = seen.iter().map(|head| head.contains(VALUE)).collect();
    assert_eq!(has_value, [false, false, true, false], "{seen:?}");
    let recorded = entries.lock().unwrap();
    let intents = recorded.iter().filter(|entry| entry.kind == Kind::Intent);
    assert_eq!(intents.count(), 4, "{recorded:?}");
    drop(recorded);
    assert!(!gateway.end().contains(VALUE));
}

/// A resolver on the host's loopback, for which every name stands for 192.0.2.5.
fn resolver() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let name = buffer[12..length].iter().position(|byte| *byte == 0);
            let mut answer = buffer[..12 + name.unwrap() + 5].to_vec();
            answer[2] |= 0x80;
            (answer[7], answer[11]) = (1, 0);
            answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x05");
            socket.send_to(&answer, from).unwrap();
        }
    });
    port
}

#[test]
fn names_that_tools_want_resolve_as_the_guests_do() {
    let server = server();
    let (gateway, tools) = with_tools(&server, |described, _| {
        described.allow.push("tcp:far.example:80".parse().unwrap());
        described.resolvers = vec![(Ipv4Addr::LOCALHOST, resolver()).into()];
    });
    let refused = tools.connect("far.example", 81, false).unwrap_err();
    assert!(
        refused.contains("192.0.2.5:81 (far.example): the rule tcp:far.example:81"),
        "{refused}"
    );
    let refused = tools.connect("evil.example", 80, false).unwrap_err();
    assert!(
        refused.contains("the rule tcp:evil.example:80"),
        "{refused}"
    );
    assert!(tools.connect("far.example", 80, false).is_ok());
    gateway.end();
}

#[test]
fn what_tools_move_counts_against_the_partitions_budget() {
    let server = server();
    let (gateway, tools) = with_tools(&server, |described, _| {
        described.quotas = vec![Quota {
            name: "the partition's budget".to_owned(),
            calls_per_minute: None,
            bytes: Some(1000),
        }];
        described.budget = Some(0);
    });
    let ask = get("api.example", "/v1/a");
    let mut asked = 0;
    // Headers count as well, of question and answer.
    while tools.connect("api.example", 443, true).is_ok() {
        asked += 1;
        assert!(asked * ask.len() < 2000, "nothing is counted");
        tools.says("api.example", &ask);
    }
    assert!(asked > 1, "{asked}");
    let refused = tools.connect("api.example", 443, true).unwrap_err();
    assert!(refused.contains("budget are used up"), "{refused}");
    gateway.end();
}

#[test]
fn tools_that_speak_nonsense_are_heard_no_more() {
    let server = server();
    let (gateway, tools) = with_tools(&server, |_, _| {});
    tools.says("api.example", &get("api.example", "/v1/a"));
    send(&tools.socket, b"nonsense", SendFlags::NOSIGNAL).unwrap();
    let mut buffer = [0; 16];
    let heard = recv(&tools.socket, buffer.as_mut_slice(), RecvFlags::empty());
    assert!(matches!(heard, Ok((0, _)) | Err(_)), "{heard:?}");
    gateway.end();
}

//! Requests to web servers, through a gateway that the tests play: what is asked of it, and what becomes
//! of its answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use bench::{Bench, Setup};
use bulkhead_capability::{Autonomy, Capability, Constraints, Grant, http_rule};
use bulkhead_network::tools::{Answer, MAX_PACKET, Wanted};
use bulkhead_record::Kind;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use serde_json::{Value, json};
use tools::CallError;
use tools::gate::Gate;

/// What the gateway was asked: for connections, and on them.
#[derive(Default)]
struct Asked {
    wanted: Vec<Wanted>,
    requests: Vec<String>,
}

/// A gateway that lets whatever is no host `refused` through, and answers so.
fn gateway(answer: &'static [u8]) -> (Gate, Arc<Mutex<Asked>>) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let asked = Arc::<Mutex<Asked>>::default();
    let heard = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; MAX_PACKET];
        while let Ok((length @ 1.., _)) = recv(&ours, &mut buffer[..], RecvFlags::empty()) {
            let wanted: Wanted = serde_json::from_slice(&buffer[..length]).unwrap();
            let refused = wanted.host == "refused";
            // About something that nobody waits for.
            tell(&ours, wanted.id - 1, None, None);
            let why = refused.then(|| "no rule would allow it".to_owned());
            let (stream, own) = stream();
            tell(&ours, wanted.id, why, (!refused).then_some(stream));
            heard.lock().unwrap().wanted.push(wanted);
            if !refused {
                serve(own, answer, &heard);
            }
        }
    });
    (Gate::new(theirs), asked)
}

/// A stream whose first end does not block.
fn stream() -> (OwnedFd, UnixStream) {
    let (theirs, own) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (theirs.into(), own)
}

fn tell(socket: &OwnedFd, id: u64, refused: Option<String>, stream: Option<OwnedFd>) {
    let answer = serde_json::to_vec(&Answer { id, refused }).unwrap();
    let passed: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
    }
    let parts = [IoSlice::new(&answer)];
    sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// Reads a request, of which no body has this in it, and answers.
fn serve(mut stream: UnixStream, answer: &[u8], heard: &Mutex<Asked>) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        request.push(byte[0]);
    }
    let text = String::from_utf8(request).unwrap().to_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    let body = String::from_utf8_lossy(&body).into_owned();
    heard.lock().unwrap().requests.push(text + &body);
    // Who has had enough of it goes.
    let _ = stream.write_all(answer);
}

/// `net.connect` of this, with methods and paths.
fn narrowed(rule: &str, methods: &[&str], paths: &[&str]) -> Grant {
    let methods = methods.iter().map(|method| method.parse().unwrap());
    let paths = paths.iter().map(|path| path.parse().unwrap());
    let http = http_rule(methods.collect(), paths.collect());
    let constraints = Constraints {
        http: Some(http),
        ..Constraints::default()
    };
    let capability: Capability = format!("net.connect:{rule}").parse().unwrap();
    Grant::new(capability, constraints).unwrap()
}

fn bench(answer: &'static [u8]) -> (Bench, Arc<Mutex<Asked>>) {
    let (gate, asked) = gateway(answer);
    let plain =
        |rule: &str| Grant::from(format!("net.connect:{rule}").parse::<Capability>().unwrap());
    let bench = Bench::of(Setup {
        gate: Some(gate),
        more: vec![
            narrowed("api.example:443", &["GET", "POST"], &["/v1/**"]),
            plain("plain.example:8080"),
            plain("refused:80"),
        ],
        ..Setup::default()
    });
    (bench, asked)
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello";

#[test]
fn a_request_goes_by_way_of_the_gateway_and_comes_back_whole() {
    let (bench, asked) = bench(HELLO);
    let got = bench.call("http.get", json!({ "url": "https://API.example/v1/a?b=c" }));
    let expected = json!({
        "status": 200, "text": "hello", "truncated": false,
        "headers": [["content-length", "5"], ["x-a", "b"]],
    });
    assert_eq!(got.unwrap().result, expected);
    let sent = json!({
        "method": "POST", "url": "http://plain.example:8080/x",
        "headers": { "Authorization": "Bearer placeholder" }, "base64": "AAECaGk=",
    });
    bench.call("http.request", sent).unwrap();
    let asked = asked.lock().unwrap();
    let wanted: Vec<_> = (asked.wanted.iter())
        .map(|wanted| (wanted.host.as_str(), wanted.port, wanted.tls))
        .collect();
    assert_eq!(
        wanted,
        [("api.example", 443, true), ("plain.example", 8080, false)]
    );
    let [get, post] = asked.requests.as_slice() else {
        panic!("{:?}", asked.requests)
    };
    assert!(get.starts_with("get /v1/a?b=c http/1.1\r\n"), "{get}");
    assert!(get.contains("\r\nhost: api.example\r\n"), "{get}");
    assert!(post.contains("\r\nhost: plain.example:8080\r\n"), "{post}");
    assert!(
        post.contains("\r\nauthorization: bearer placeholder\r\n"),
        "{post}"
    );
    assert!(post.ends_with("\r\n\r\n\u{0}\u{1}\u{2}hi"), "{post}");
    use Kind::{Intent, Outcome};
    assert_eq!(bench.kinds(), [Intent, Outcome, Intent, Outcome]);
    let intent = bench.ledger.entries.lock().unwrap()[0].clone();
    assert_eq!(
        intent.detail["objects"],
        "net.connect:api.example:443 GET /v1/a"
    );
}

#[test]
fn what_is_no_text_is_told_in_base64_and_what_is_long_in_part() {
    let answers: [(&[u8], Value, u64); 2] = [
        (
            b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n2\r\n\xff\xfe\r\n1\r\n\0\r\n0\r\n\r\n",
            json!("//4A"),
            404,
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Value::Null, 204),
    ];
    for (answer, base64, status) in answers {
        let (bench, _) = bench(answer);
        let got = bench.call("http.get", json!({ "url": "https://api.example/v1/a" }));
        let result = got.unwrap().result;
        assert_eq!(
            (&result["base64"], result["status"].as_u64()),
            (&base64, Some(status))
        );
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 8 << 20);
    let long = [head.into_bytes(), vec![b'x'; 8 << 20]].concat();
    let (bench, _) = bench(long.leak());
    let got = bench.call("http.get", json!({ "url": "https://api.example/v1/a" }));
    let result = got.unwrap().result;
    assert_eq!(result["truncated"], true);
    assert_eq!(result["text"].as_str().unwrap().len(), 1 << 20);
}

#[test]
fn what_no_grant_covers_is_not_asked_for() {
    let (bench, asked) = bench(HELLO);
    for (method, url) in [
        ("DELETE", "https://api.example/v1/a"),
        ("GET", "https://api.example/v2"),
        ("GET", "https://api.example/v1/../v2"),
        ("GET", "https://api.example:444/v1/a"),
        ("GET", "http://api.example/v1/a"),
        ("GET", "https://other.example/v1/a"),
        ("GET", "https://127.0.0.1/v1/a"),
    ] {
        let refused = bench.call("http.request", json!({ "method": method, "url": url }));
        assert!(
            matches!(refused, Err(CallError::NotPermitted(_))),
            "{method} {url}: {refused:?}"
        );
    }
    for headers in [
        json!({ "Host": "other.example" }),
        json!({ "Transfer-Encoding": "chunked" }),
        json!({ "a": "b\r\nc: d" }),
        json!({ "a b": "c" }),
    ] {
        let arguments = json!({ "url": "https://api.example/v1/a", "headers": headers });
        assert!(bench.call("http.get", arguments).is_err(), "{headers}");
    }
    assert!(asked.lock().unwrap().wanted.is_empty());
}

#[test]
fn what_the_gateway_refuses_fails_and_says_why() {
    let (bench, _) = bench(HELLO);
    let refused = bench.call("http.get", json!({ "url": "http://refused/" }));
    let refused = refused.unwrap_err().to_string();
    assert_eq!(refused, "no rule would allow it");
    // An answer that is none.
    let (bench, _) = self::bench(b"nonsense\r\n\r\n");
    let broken = bench.call("http.get", json!({ "url": "https://api.example/v1/a" }));
    assert!(
        broken
            .unwrap_err()
            .to_string()
            .starts_with("there is no answer")
    );
    // A partition whose tools have no way out.
    let bench = Bench::of(Setup {
        more: vec![narrowed("api.example:443", &[], &[])],
        ..Setup::default()
    });
    let none = bench.call("http.get", json!({ "url": "https://api.example/" }));
    assert!(none.unwrap_err().to_string().contains("has no network"));
}

#[test]
fn a_request_waits_for_a_person_unless_the_partition_is_fully_autonomous() {
    for (autonomy, asks) in [
        (Autonomy::Full, false),
        (Autonomy::Supervised, true),
        (Autonomy::Manual, true),
    ] {
        let (gate, asked) = gateway(HELLO);
        let bench = Bench::of(Setup {
            gate: Some(gate),
            more: vec![narrowed("api.example:443", &[], &[])],
            autonomy,
            ..Setup::default()
        });
        let got = bench.call("http.get", json!({ "url": "https://api.example/" }));
        assert_eq!(
            matches!(got, Err(CallError::NotConfirmed(_))),
            asks,
            "{got:?}"
        );
        assert_eq!(asked.lock().unwrap().wanted.is_empty(), asks);
    }
}

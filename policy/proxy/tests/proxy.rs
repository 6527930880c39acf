//! The proxy between a guest and a real server on the host's loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]
#![allow(clippy::await_holding_lock, reason = "tests run alone on their thread")]

mod world;

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bulkhead_approval::{Answer, Question, Request as AskedFor};
use bulkhead_network::Quota;
use bulkhead_proxy::Consent;
use bulkhead_record::{Kind, Verdict};
use http_body_util::BodyExt;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use world::{LONG, Local, PLACEHOLDER, Setup, VALUE, World, body, converse, narrowed, run, secret};

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// A request as either version has it.
fn request(
    version: Version,
    method: &str,
    path: &str,
    text: &'static str,
) -> Request<&'static str> {
    let uri = match version {
        Version::HTTP_2 => format!("https://api.example{path}"),
        _ => path.to_owned(),
    };
    let mut request = Request::builder().method(method).uri(uri);
    if version != Version::HTTP_2 {
        request = request.header("host", "api.example");
    }
    request.body(text).unwrap()
}

#[test]
fn what_is_granted_goes_through_and_what_is_not_is_a_403() {
    run(async {
        let world = World::new(Setup::default()).await;
        for version in VERSIONS {
            let granted = request(version, "POST", "/v1/chat?x=y", "hello");
            let (status, text) = world.asks(version, granted).await;
            assert_eq!(status, 200, "{text}");
            assert!(text.starts_with("POST api.example /v1/chat\n"), "{text}");
            assert!(text.ends_with("hello"), "{text}");
            for (method, path, reason) in [
                ("DELETE", "/v1/chat", "no rule allows"),
                ("GET", "/v2", "no rule allows"),
                ("GET", "/v1/../v2", "in different ways"),
                ("GET", "/v1/..;/v2", "in different ways"),
                ("GET", "/v1/%252e%252e/v2", "in different ways"),
                ("GET", "/v1/%c0%ae%c0%ae/v2", "in different ways"),
            ] {
                let (status, text) = world
                    .asks(version, request(version, method, path, "x"))
                    .await;
                assert_eq!(status, 403, "{text}");
                assert!(text.contains(reason), "{text}");
                assert!(text.contains("api.example:443"), "{text}");
            }
        }
        let versions: Vec<Version> = world.seen.borrow().iter().map(|(v, _)| *v).collect();
        assert_eq!(versions, VERSIONS, "nothing else reached the server");
        assert_eq!(world.refusals.borrow().len(), 12);
    });
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    run(async {
        let world = World::new(Setup::default()).await;
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: api.example\r\n\r\n");
        let post = "POST /v2 HTTP/1.1\r\nHost: api.example\r\nContent-Length: 5\r\n\r\nhello";
        let last = "GET /v1/b HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
        let heard = world
            .says(&[&get("/v1/a"), &get("/v2"), post, last].concat())
            .await;
        let statuses: Vec<&str> = heard
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| &heard[at + 9..at + 12])
            .collect();
        assert_eq!(statuses, ["200", "403", "403", "200"], "{heard}");
        assert_eq!(world.paths(), ["/v1/a", "/v1/b"]);
        assert_eq!(
            world.accepted.load(Ordering::SeqCst),
            1,
            "one connection served both"
        );
        assert!(!heard.contains("alt-svc"), "no other way is offered");
    });
}

#[test]
fn a_request_is_for_the_host_that_tls_asked_for() {
    run(async {
        let allow = vec![
            narrowed("tcp:api.example:443", &[], &[]),
            narrowed("tcp:other.example:443", &[], &[]),
        ];
        let mut world = World::new(Setup {
            allow,
            ..Setup::default()
        })
        .await;
        world.flow.names = Box::new(["api.example".into(), "other.example".into()]);
        for (head, reason) in [
            (
                "GET / HTTP/1.1\r\nHost: other.example\r\n",
                "the connection was made to api.example",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example:8443\r\n",
                "the connection was made to port 443",
            ),
            (
                "GET / HTTP/1.1\r\nHost: evil.example\r\n",
                "for evil.example",
            ),
            (
                "GET https://evil.example/ HTTP/1.1\r\nHost: api.example\r\n",
                "for evil.example",
            ),
            (
                "GET http://api.example/ HTTP/1.1\r\nHost: evil.example\r\n",
                "made to evil.example",
            ),
            ("GET / HTTP/1.1\r\nHost: x@api.example\r\n", "has a user"),
            ("GET / HTTP/1.1\r\nHost: api.example..\r\n", "malformed"),
            ("GET / HTTP/1.1\r\nHost: .api.example\r\n", "malformed"),
            (
                "GET / HTTP/1.1\r\nHost: api.example:99999\r\n",
                "Host is malformed",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example:0\r\n",
                "Host is malformed",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example:\r\n",
                "Host is malformed",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example:443x\r\n",
                "Host is malformed",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example, evil.example\r\n",
                "Host is malformed",
            ),
            (
                "GET https://api.example:99999/ HTTP/1.1\r\nHost: api.example:99999\r\n",
                "Host is malformed",
            ),
            (
                "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n",
                "made to api.example",
            ),
            (
                "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n",
                "CONNECT",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example\r\nUpgrade: h2c\r\nConnection: upgrade\r\n",
                "an upgrade",
            ),
            (
                "GET / HTTP/1.1\r\nHost: api.example\r\nHTTP2-Settings: x\r\n",
                "HTTP/2",
            ),
        ] {
            let heard = world
                .says(&format!("{head}Connection: close\r\n\r\n"))
                .await;
            assert!(heard.starts_with("HTTP/1.1 40"), "{head} {heard}");
            assert!(heard.contains(reason), "{head} {heard}");
        }
        let wrong = Request::builder()
            .uri("https://other.example/")
            .body("")
            .unwrap();
        let (status, _) = world.asks(Version::HTTP_2, wrong).await;
        assert_eq!(status, 403);
        let mut two = request(Version::HTTP_2, "GET", "/", "");
        two.headers_mut()
            .insert("host", "other.example".parse().unwrap());
        assert_eq!(world.asks(Version::HTTP_2, two).await.0, 403);
        let connect = Request::builder().method("CONNECT").uri("api.example:443");
        let connect = world.asks(Version::HTTP_2, connect.body("").unwrap()).await;
        assert_eq!(connect.0, 403);
        assert!(connect.1.contains("CONNECT"), "{}", connect.1);
        let proper =
            world.says("GET / HTTP/1.1\r\nHost: API.example.:443\r\nConnection: close\r\n\r\n");
        let heard = proper.await;
        assert!(heard.starts_with("HTTP/1.1 200"));
        assert!(
            heard.contains("GET api.example:443 /\n"),
            "in one spelling: {heard}"
        );
        assert_eq!(world.paths(), ["/"]);
    });
}

#[test]
fn smuggled_requests_are_refused_whole() {
    run(async {
        let world = World::new(Setup::default()).await;
        let hidden = "GET /v2/secret HTTP/1.1\r\nHost: api.example\r\n\r\n";
        for (headers, body, reason) in [
            (
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
                "both",
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                "0\r\n\r\n",
                "both",
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
                "0\r\n\r\n",
                "chunked alone",
            ),
            (
                "Transfer-Encoding: chunked, identity\r\n",
                "0\r\n\r\n",
                "chunked alone",
            ),
            ("Content-Length: 0\r\nContent-Length: 60\r\n", "", "single"),
            ("X: y\rContent-Length: 60\r\n", "", "CR LF"),
            ("Transfer-Encoding: chunked\r\n", "0;x\r\n\r\n", "extension"),
            ("X: y\r\n Transfer-Encoding: chunked\r\n", "", "folded"),
            ("X: y\nContent-Length: 60\r\n", "", "CR LF"),
        ] {
            let text =
                format!("POST /v1/a HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n{body}{hidden}");
            let heard = world.says(&text).await;
            let statuses = heard.matches("HTTP/1.1 ").count();
            assert!(heard.contains("HTTP/1.1 400"), "{headers} {heard}");
            assert!(statuses <= 2 && heard.contains(reason), "{headers} {heard}");
            assert!(world.refusals.borrow().last().unwrap().contains(reason));
        }
        assert!(!world.paths().contains(&"/v2/secret".to_owned()));
    });
}

#[test]
fn tls_for_another_name_ends_before_the_server_hears_of_it() {
    run(async {
        let world = World::new(Setup::default()).await;
        for name in ["evil.example", "x.api.example", "192.0.2.1"] {
            assert!(world.tls(name, "h2").await.is_err(), "{name}");
        }
        assert_eq!(world.accepted.load(Ordering::SeqCst), 0);
        let refusals = world.refusals.borrow();
        assert!(
            refusals[0].contains("evil.example did not resolve"),
            "{refusals:?}"
        );
    });
}

#[test]
fn what_is_not_narrowed_is_handed_on_as_it_is() {
    run(async {
        let allow = vec!["tcp:api.example:443".parse().unwrap()];
        let world = World::new(Setup {
            allow,
            record: true,
            ..Setup::default()
        })
        .await;
        // The server shows itself, and the guest does not trust it.
        assert!(world.tls("api.example", "h2").await.is_err());
        assert_eq!(world.accepted.load(Ordering::SeqCst), 1);
        assert!(world.tls("evil.example", "h2").await.is_err());
        assert_eq!(world.accepted.load(Ordering::SeqCst), 1);
        world.recorded(3).await;
        let entries = world.ledger.entries.lock().unwrap();
        let kinds: Vec<Kind> = entries.iter().map(|entry| entry.kind).collect();
        assert!(kinds.starts_with(&[Kind::Intent]), "{entries:?}");
        assert!(
            kinds.contains(&Kind::Outcome) && kinds.contains(&Kind::Refusal),
            "{entries:?}"
        );
        assert_eq!(entries[0].object, "tcp api.example:443");
    });
}

#[test]
fn plain_http_is_looked_into_as_well() {
    run(async {
        let allow = vec![narrowed("tcp:api.example:80", &["GET"], &["/v1/**"])];
        let mut world = World::new(Setup {
            allow,
            tls: false,
            ..Setup::default()
        })
        .await;
        world.flow.port = 80;
        let mut says = Vec::new();
        for (path, host) in [
            ("/v1/a", "api.example"),
            ("/v2", "api.example"),
            ("/v1/a", "evil.example"),
        ] {
            let (guest, _) = world.connect();
            let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            says.push(converse(guest, text.as_bytes()).await[9..12].to_owned());
        }
        assert_eq!(says, ["200", "403", "403"]);
        // HTTP/2 without TLS, and no HTTP at all.
        for text in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"\0\x01\x02\r\n\r\n",
        ] {
            let (guest, _) = world.connect();
            assert!(converse(guest, text).await.starts_with("HTTP/1.1 400"));
        }
        assert_eq!(world.paths(), ["/v1/a"]);
    });
}

#[test]
fn a_redirect_is_the_guests_to_follow() {
    run(async {
        let world = World::new(Setup::default()).await;
        let text = "GET /v1/elsewhere HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
        let heard = world.says(text).await;
        assert!(heard.starts_with("HTTP/1.1 302"), "{heard}");
        assert!(heard.contains("https://evil.example/v1/x"));
        assert!(world.tls("evil.example", "http/1.1").await.is_err());
    });
}

#[test]
fn websocket_goes_through_where_get_does() {
    run(async {
        let world = World::new(Setup::default()).await;
        let upgrade = |path: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n"
            )
        };
        let mut guest = world.tls("api.example", "http/1.1").await.unwrap();
        guest
            .write_all(upgrade("/v1/live").as_bytes())
            .await
            .unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            heard.push(guest.read_u8().await.unwrap());
        }
        let head = String::from_utf8(heard).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 101") && head.contains("websocket"),
            "{head}"
        );
        // No HTTP, and not looked into.
        guest.write_all(b"a\nb\0c").await.unwrap();
        let mut word = [0; 5];
        guest.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"A\nB\0C");
        let refused = format!(
            "{}x",
            upgrade("/v2/live").replace("Connection: Upgrade", "Connection: close, Upgrade")
        );
        assert!(world.says(&refused).await.starts_with("HTTP/1.1 403"));
    });
}

#[test]
fn secrets_reach_the_server_and_never_the_guest() {
    run(async {
        let mut secret = secret();
        secret.paths = vec!["/v1/chat".parse().unwrap()];
        let allow = vec!["tcp:api.example:443".parse().unwrap()];
        let setup = Setup {
            allow,
            secrets: vec![secret],
            record: true,
            ..Setup::default()
        };
        let world = World::new(setup).await;
        let get = |path: &str, header: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: api.example\r\n{header}: Bearer {PLACEHOLDER}\r\nConnection: close\r\n\r\n"
            )
        };
        let used = world.says(&get("/v1/chat", "Authorization")).await;
        // The server's body is its own affair; what it repeats in a header is hidden.
        assert!(
            used.contains(&format!("authorization: Bearer {VALUE}")),
            "{used}"
        );
        let (head, _) = used.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("x-echo: Bearer {PLACEHOLDER}")),
            "{head}"
        );
        assert!(!head.contains(VALUE), "nor in the words beside the status");
        for (path, header) in [("/v1/other", "Authorization"), ("/v1/chat", "X-Copy")] {
            let left = world.says(&get(path, header)).await;
            assert!(
                left.contains(PLACEHOLDER) && !left.contains(VALUE),
                "{left}"
            );
        }
        let refused = world
            .says("DELETE /v1/chat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await;
        assert!(refused.starts_with("HTTP/1.1 403"));
        let entries = world.ledger.entries.lock().unwrap();
        let texts = format!("{entries:?} {:?}", world.refusals.borrow());
        assert!(!texts.contains(VALUE), "no record has it");
        let intents: Vec<_> = entries
            .iter()
            .filter(|entry| entry.kind == Kind::Intent)
            .collect();
        assert_eq!(intents[0].detail["secrets"], "key");
        assert_eq!(intents[1].detail["placeholders"], "key");
    });
}

#[test]
fn trailers_carry_no_secret_either_way() {
    run(async {
        let world = World::new(Setup {
            secrets: vec![secret()],
            ..Setup::default()
        })
        .await;
        let io = TokioIo::new(world.tls("api.example", "h2").await.unwrap());
        let made = hyper::client::conn::http2::handshake(Local, io).await;
        let (mut sender, connection) = made.unwrap();
        tokio::task::spawn_local(connection);
        let bearer = || HeaderValue::from_str(&format!("Bearer {PLACEHOLDER}")).unwrap();
        let trailers = HeaderMap::from_iter([(AUTHORIZATION, bearer())]);
        let body = body("hello").with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut request = request(Version::HTTP_2, "POST", "/v1/a", "").map(|_| body);
        request.headers_mut().insert(AUTHORIZATION, bearer());
        let answer = sender.send_request(request).await.unwrap();
        let answer = answer.into_body().collect().await.unwrap();
        let hidden = &answer.trailers().unwrap()["x-echo"];
        assert_eq!(hidden, &bearer(), "the server's trailer is hidden");
        let heard = String::from_utf8(answer.to_bytes().to_vec()).unwrap();
        assert!(heard.contains(&format!("\nauthorization: Bearer {VALUE}\n")));
        let left = format!("\ntrailer authorization: Bearer {PLACEHOLDER}\n");
        assert!(heard.contains(&left), "{heard}");
    });
}

/// A supervisor whose person allows what names none of `denied`, and answers when told to.
fn person(denied: &'static str) -> (Consent, mpsc::Sender<()>, mpsc::Receiver<Question>) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let (answer, told) = mpsc::channel();
    let (asked, questions) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; bulkhead_approval::MAX_MESSAGE_BYTES];
        while let Ok((length @ 1.., _)) = recv(&ours, &mut buffer[..], RecvFlags::empty()) {
            let request: AskedFor = serde_json::from_slice(&buffer[..length]).unwrap();
            let allowed = !request.question.object.contains(denied);
            asked.send(request.question).unwrap();
            if told.recv().is_err() {
                return;
            }
            let answer = Answer {
                id: request.id,
                allowed,
                reason: "a person said so".into(),
            };
            let packet = serde_json::to_vec(&answer).unwrap();
            send(&ours, &packet, SendFlags::NOSIGNAL).unwrap();
        }
    });
    (Consent::start(theirs).unwrap(), answer, questions)
}

#[test]
fn a_request_waits_for_a_person_and_the_others_do_not() {
    run(async {
        let mut asks = narrowed("tcp:api.example:443", &["POST"], &["/v1/**"]);
        asks.approval = true;
        let (consent, answer, questions) = person("/v1/drop");
        let world = World::new(Setup {
            allow: vec![narrowed("tcp:api.example:443", &["GET"], &["/v1/**"]), asks],
            record: true,
            consent,
            ..Setup::default()
        })
        .await;
        for version in VERSIONS {
            let waiting = world.asks(version, request(version, "POST", "/v1/a?x=1", "hello"));
            let others = async {
                let question = loop {
                    match questions.try_recv() {
                        Ok(question) => break question,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                };
                assert_eq!(question.capability, "net.connect");
                assert_eq!(question.object, "POST https://api.example/v1/a?x=1");
                assert!(question.why.contains("net.connect:tcp:api.example:443"));
                let before = world.paths().len();
                let free = world.asks(version, request(version, "GET", "/v1/b", ""));
                assert_eq!(free.await.0, 200, "nobody else waits");
                assert_eq!(world.paths().len(), before + 1, "nothing was sent before");
                answer.send(()).unwrap();
            };
            let ((status, text), ()) = tokio::join!(waiting, others);
            assert_eq!(status, 200, "{text}");
            assert!(text.ends_with("hello"), "{text}");
            answer.send(()).unwrap();
            let denied = world.asks(version, request(version, "POST", "/v1/drop", "x"));
            let (status, text) = denied.await;
            assert_eq!(status, 403, "{text}");
            assert!(text.contains("takes a person's consent"), "{text}");
            assert!(text.contains("a person said so"), "{text}");
            questions.recv().unwrap();
        }
        let paths = ["/v1/b", "/v1/a", "/v1/b", "/v1/a"];
        assert_eq!(world.paths(), paths, "nothing else was sent");
        let entries = world.ledger.entries.lock().unwrap();
        let consents = entries.iter().filter(|entry| {
            let consent = entry.detail.get("consent").map(String::as_str);
            entry.kind == Kind::Intent && consent == Some("a person said so")
        });
        assert_eq!(consents.count(), 2);
    });
}

#[test]
fn a_grant_that_ends_while_a_person_thinks_lets_nothing_through() {
    run(async {
        let seconds = 3;
        let mut asks = narrowed("tcp:api.example:443", &["POST"], &[]);
        (asks.approval, asks.lifetime) = (true, Some(seconds));
        let (consent, answer, questions) = person("nothing");
        let setup = Setup {
            allow: vec![asks],
            consent,
            ..Setup::default()
        };
        let world = World::new(setup).await;
        let version = VERSIONS[0];
        let waiting = world.asks(version, request(version, "POST", "/v1/a", "hello"));
        let others = async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            answer.send(()).unwrap();
        };
        let ((status, text), ()) = tokio::join!(waiting, others);
        assert_eq!(status, 403, "{text}");
        assert!(text.contains("ended before anybody answered"), "{text}");
        questions.recv().expect("a person was asked, in time");
        assert!(world.paths().is_empty());
    });
}

#[test]
fn a_connection_waits_for_a_person() {
    run(async {
        let mut asks: bulkhead_network::Connect = "tcp:api.example:443".parse().unwrap();
        asks.approval = true;
        let setup = |consent| Setup {
            allow: vec![asks.clone()],
            consent,
            tls: false,
            ..Setup::default()
        };
        let text = b"GET /x HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
        let (consent, answer, questions) = person("nothing");
        let world = World::new(setup(consent)).await;
        answer.send(()).unwrap();
        let (guest, _) = world.connect();
        assert!(converse(guest, text).await.starts_with("HTTP/1.1 200"));
        assert_eq!(questions.recv().unwrap().object, "tcp api.example:443");
        let (consent, answer, _questions) = person("api.example");
        let world = World::new(setup(consent)).await;
        answer.send(()).unwrap();
        let (guest, end) = world.connect();
        assert_eq!(converse(guest, text).await, "");
        assert_eq!(end.await.unwrap(), bulkhead_proxy::End::Reset);
        // Where nobody can be asked, nobody consents.
        let world = World::new(setup(Consent::default())).await;
        let (guest, _) = world.connect();
        assert_eq!(converse(guest, text).await, "");
        assert!(world.refusals.borrow()[0].contains("nobody can be asked"));
        assert_eq!(world.accepted.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn nothing_is_sent_that_is_not_on_record() {
    run(async {
        let world = World::new(Setup {
            record: true,
            ..Setup::default()
        })
        .await;
        let text = "GET /v1/a HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
        assert!(world.says(text).await.starts_with("HTTP/1.1 200"));
        world.recorded(2).await;
        world.ledger.full.store(true, Ordering::SeqCst);
        let refused = world.says(text).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert!(refused.contains("the ledger cannot be written"));
        assert_eq!(world.paths(), ["/v1/a"]);
        let entries = world.ledger.entries.lock().unwrap();
        let [intent, outcome] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!(
            (intent.kind, intent.verdict),
            (Kind::Intent, Verdict::Allowed)
        );
        assert_eq!(intent.object, "GET https://api.example/v1/a");
        assert_eq!(intent.reason, "net.connect:tcp:api.example:443");
        assert_eq!((outcome.kind, outcome.intent), (Kind::Outcome, Some(0)));
        assert_eq!(
            (outcome.verdict, outcome.reason.as_str()),
            (Verdict::Done, "200")
        );
        assert!(outcome.detail["received"].parse::<u64>().unwrap() > 10);
    });
}

#[test]
fn an_answer_that_the_guest_cuts_short_is_on_record_as_that() {
    for (alpn, cut) in [
        ("http/1.1", true),
        ("h2", true),
        ("http/1.1", false),
        ("h2", false),
    ] {
        run(async {
            let world = World::new(Setup {
                record: true,
                ..Setup::default()
            })
            .await;
            let io = TokioIo::new(world.tls("api.example", alpn).await.unwrap());
            let request = Request::get("https://api.example/v1/long").header("host", "api.example");
            let request = request.body(body("")).unwrap();
            let (answer, connection) = match alpn {
                "h2" => {
                    let made = hyper::client::conn::http2::handshake(Local, io).await;
                    let (mut sender, connection) = made.unwrap();
                    let connection = spawn_local(async move { drop(connection.await) });
                    (sender.send_request(request).await, connection)
                }
                _ => {
                    let made = hyper::client::conn::http1::handshake(io).await;
                    let (mut sender, connection) = made.unwrap();
                    let connection = spawn_local(async move { drop(connection.await) });
                    (sender.send_request(request).await, connection)
                }
            };
            let mut answer = answer.unwrap().into_body();
            answer.frame().await.unwrap().unwrap();
            if cut {
                drop(answer);
                connection.abort();
            } else {
                answer.collect().await.unwrap();
            }
            world.recorded(2).await;
            let entries = world.ledger.entries.lock().unwrap();
            let outcome = &entries[1];
            let received: usize = outcome.detail["received"].parse().unwrap();
            match cut {
                true => {
                    assert_eq!(outcome.verdict, Verdict::Failed, "{alpn}");
                    assert!(received < LONG, "{alpn}");
                }
                false => {
                    assert_eq!((outcome.verdict, &*outcome.reason), (Verdict::Done, "200"));
                    assert_eq!(received, LONG, "{alpn}");
                }
            }
        });
    }
}

#[test]
fn amounts_run_out() {
    run(async {
        let mut allow = narrowed("tcp:api.example:443", &[], &[]);
        allow.quotas = vec![0];
        let quota = |calls_per_minute, bytes| Quota {
            name: "net.connect:api.example:443".into(),
            calls_per_minute,
            bytes,
        };
        let setup = |quota| Setup {
            allow: vec![allow.clone()],
            quotas: vec![quota],
            ..Setup::default()
        };
        let world = World::new(setup(quota(Some(2), None))).await;
        let text = "GET /v1/a HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n";
        assert!(world.says(text).await.starts_with("HTTP/1.1 200"));
        assert!(world.says(text).await.starts_with("HTTP/1.1 200"));
        let refused = world.says(text).await;
        assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
        assert!(refused.contains("calls per minute"), "{refused}");

        let world = World::new(setup(quota(None, Some(10)))).await;
        let post = "POST /v1/a HTTP/1.1\r\nHost: api.example\r\nContent-Length: 20\r\n\r\n01234567890123456789";
        world
            .says(&post.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
            .await;
        let refused = world.says(text).await;
        assert!(
            refused.starts_with("HTTP/1.1 429") && refused.contains("bytes"),
            "{refused}"
        );
    });
}

#[test]
fn bodies_are_not_gathered() {
    run(async {
        let world = World::new(Setup::default()).await;
        let mut guest = world.tls("api.example", "http/1.1").await.unwrap();
        let head = "POST /v1/a HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        guest.write_all(head.as_bytes()).await.unwrap();
        guest.write_all(b"5\r\nhello\r\n").await.unwrap();
        guest.flush().await.unwrap();
        // The server has the request before its body has ended.
        while world.paths().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        guest.write_all(b"6\r\n world\r\n0\r\n\r\n").await.unwrap();
        let mut heard = vec![0; 4096];
        let mut len = 0;
        while !String::from_utf8_lossy(&heard[..len]).contains("hello world") {
            let count = guest.read(&mut heard[len..]).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&heard[..len]));
            len += count;
        }
    });
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_not_spoken_to() {
    run(async {
        let allow = vec![narrowed("tcp:wrong.example:443", &[], &[])];
        let mut world = World::new(Setup {
            allow,
            ..Setup::default()
        })
        .await;
        world.flow.names = Box::new(["wrong.example".into()]);
        let guest = world.tls("wrong.example", "http/1.1").await.unwrap();
        let text = "GET / HTTP/1.1\r\nHost: wrong.example\r\nConnection: close\r\n\r\n";
        let heard = converse(guest, text.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 502"), "{heard}");
        assert!(heard.contains("cannot agree on TLS"), "{heard}");
        assert!(world.paths().is_empty());
    });
}

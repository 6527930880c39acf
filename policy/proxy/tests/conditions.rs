//! Conditions on what a guest asks of web servers: each request is asked about before it is sent, by
//! what Cedar says of it, and nothing is sent that nobody answers for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod world;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bulkhead_capability::{Capability, Constraints, Grant, http_rule};
use bulkhead_conditions::wire::MAX_REQUEST_BYTES;
use bulkhead_conditions::{
    Act, Asker, DecisionDescription, Denied, Member, Ruling, VERSION, WOULD_DENY, denied,
};
use bulkhead_decision::process::Judge;
use bulkhead_record::Kind;
use hyper::{Request, Version};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use world::{PLACEHOLDER, Setup, World, narrowed, run, secret};

const CONDITIONS: &str = r#"
    @id("all") permit(principal, action, resource);
    @id("reads alone")
    forbid(principal, action == Action::"net.connect", resource in Domain::"example")
    when { context has method && context.method != "GET" };
    @id("no key") forbid(principal, action, resource == Secret::"key") when { context.age > 0 };
"#;

fn pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// What answers for these conditions, on a thread of the test's.
fn conditions(text: &str, learn: bool) -> Arc<Asker> {
    let all = vec!["/**".parse().unwrap()];
    let narrowed = Constraints {
        http: Some(http_rule(Vec::new(), all)),
        ..Constraints::default()
    };
    let capability = |text: &str| text.parse::<Capability>().unwrap();
    let api = Grant::new(capability("net.connect:api.example:443"), narrowed).unwrap();
    let grants = [api, capability("secret.use:key").into()];
    let judge = Judge::new(DecisionDescription {
        version: VERSION,
        system: "sys".to_owned(),
        partition: "web".to_owned(),
        lineage: Vec::new(),
        started: 0,
        text: text.to_owned(),
        learn,
        world: vec![Member {
            name: "web".to_owned(),
            grants: grants.into_iter().collect(),
        }],
        inherited: Vec::new(),
        control: bulkhead_machine::Fd(-1),
        jail: bulkhead_machine::Jail::None,
    });
    let (judge, (ours, theirs)) = (judge.unwrap(), pair());
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        while let Ok((length @ 1.., _)) = recv(&theirs, buffer.as_mut_slice(), RecvFlags::empty()) {
            let answer = judge
                .answer(&buffer[..length], Duration::from_secs(9))
                .unwrap();
            let answer = serde_json::to_vec(&answer).unwrap();
            let _ = send(&theirs, &answer, SendFlags::NOSIGNAL);
        }
    });
    Arc::new(Asker::new(ours).unwrap())
}

async fn world(conditions: Arc<Asker>) -> World {
    World::new(Setup {
        conditions: Some(conditions),
        secrets: vec![secret()],
        record: true,
        ..Setup::default()
    })
    .await
}

fn request(version: Version, method: &str, with_key: bool) -> Request<&'static str> {
    let request = Request::builder().method(method);
    let mut request = match version {
        Version::HTTP_2 => request.uri("https://api.example/v1/x"),
        _ => request.uri("/v1/x").header("host", "api.example"),
    };
    if with_key {
        request = request.header("authorization", format!("Bearer {PLACEHOLDER}"));
    }
    request.body("").unwrap()
}

#[test]
fn each_request_is_asked_about() {
    run(async {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let world = world(conditions(CONDITIONS, false)).await;
            assert_eq!(
                world.asks(version, request(version, "GET", false)).await.0,
                200
            );
            let (status, body) = world.asks(version, request(version, "POST", false)).await;
            assert_eq!(status, 403);
            assert!(
                body.contains("forbidden by condition reads alone"),
                "{body}"
            );
            let (status, body) = world.asks(version, request(version, "GET", true)).await;
            assert_eq!(status, 403);
            assert!(body.contains("forbidden by condition no key"), "{body}");
            assert_eq!(world.seen.borrow().len(), 1, "the server saw the first");
            world.recorded(4).await;
            let entries = world.ledger.entries.lock().unwrap();
            let intents = entries.iter().filter(|entry| entry.kind == Kind::Intent);
            let intents: Vec<_> = intents.map(|entry| &entry.detail["conditions"]).collect();
            assert_eq!(intents, ["permitted by condition all"]);
            let refusals = entries.iter().filter(|entry| entry.kind == Kind::Refusal);
            let reasons: Vec<_> = refusals.map(|entry| entry.reason.as_str()).collect();
            assert_eq!(
                reasons,
                [
                    "forbidden by condition reads alone",
                    "forbidden by condition no key"
                ]
            );
        }
    });
}

#[test]
fn who_learns_sends_it_and_has_on_record_what_would_be_denied() {
    run(async {
        let world = world(conditions(CONDITIONS, true)).await;
        let version = Version::HTTP_11;
        assert_eq!(
            world.asks(version, request(version, "POST", true)).await.0,
            200
        );
        let entries = world.ledger.entries.lock().unwrap();
        let detail = &entries[0].detail;
        assert_eq!(
            detail[WOULD_DENY],
            "forbidden by condition reads alone; forbidden by condition no key"
        );
        let denied = denied(detail).unwrap();
        let forbidden = |by: &str| Ruling::Forbidden(vec![by.to_owned()]);
        assert!(
            matches!(&denied[0].act, Act::Connect { http: Some((method, _)), .. } if method == "POST")
        );
        assert_eq!(denied[0].ruling, forbidden("reads alone"));
        let act = Act::Secret("key".to_owned());
        let ruling = forbidden("no key");
        assert_eq!(denied[1], Denied { act, ruling });
    });
}

#[test]
fn nothing_is_sent_that_nobody_answers_for() {
    run(async {
        for learn in [false, true] {
            let (ours, theirs) = pair();
            match learn {
                // Says what is no answer.
                true => drop(send(&theirs, b"{\"id\":1}", SendFlags::NOSIGNAL).unwrap()),
                false => drop(theirs),
            }
            let world = world(Arc::new(Asker::new(ours).unwrap())).await;
            for _ in 0..2 {
                let version = Version::HTTP_11;
                let asked = request(version, "GET", false);
                let (status, body) = world.asks(version, asked).await;
                assert_eq!(status, 403);
                assert!(body.contains("could not be asked"), "{body}");
            }
            assert_eq!(world.seen.borrow().len(), 0);
        }
    });
}

#[test]
fn a_tunnel_is_asked_about_by_the_server_that_tls_names() {
    run(async {
        let forbids = r#"permit(principal, action, resource);
            @id("not there") forbid(principal, action, resource == Host::"api.example");"#;
        for (text, reaches) in [
            ("permit(principal, action, resource);", true),
            (forbids, false),
        ] {
            let world = World::new(Setup {
                conditions: Some(conditions(text, false)),
                allow: vec![
                    "tcp:api.example:443".parse().unwrap(),
                    narrowed("tcp:other.example:443", &["GET"], &[]),
                ],
                ..Setup::default()
            })
            .await;
            // Ends with the server's own certificate, which the guest does not trust, or before.
            assert!(world.tls("api.example", "http/1.1").await.is_err());
            let accepted = world.accepted.load(std::sync::atomic::Ordering::SeqCst);
            assert_eq!(accepted > 0, reaches);
            assert_eq!(world.refusals.borrow().is_empty(), reaches);
        }
    });
}

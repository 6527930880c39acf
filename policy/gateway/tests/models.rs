//! A guest that calls a model through a real gateway: a name, plain HTTP, a key that it never sees,
//! a budget, and a ledger that hears of it first.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bulkhead_models::{
    Budget, Grant, Key, LimitField, Model, Models, Order, Provider, Spent, Wire,
};
use bulkhead_network::{
    Fd, Jail, MODEL_HOST, MODEL_PORT, ModelAccess, NetworkDescription, SPENT_BYTES, spent,
};
use bulkhead_record::wire::{Answer, MAX_REQUEST_BYTES, Outcome, Request};
use bulkhead_record::{Entry, Kind};
use guest::{Gateway, Guest, MAC, ROUTER, memory_file, start_with};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use smoltcp::socket::tcp;
use smoltcp::wire::IpAddress;

const KEY: &str = "the-key-that-no-guest-sees";
const ANSWER: &str = r#"{"id":"1","model":"u","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":1}}"#;

/// A provider on the host's loopback, and the heads of the requests that it got.
fn provider() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            // The body is one object, and the last thing in the request.
            while !request.ends_with(b"}") {
                let count = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..count]);
            }
            heard
                .lock()
                .unwrap()
                .push(String::from_utf8(request).unwrap());
            let length = ANSWER.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream
                .write_all(format!("{head}{ANSWER}").as_bytes())
                .unwrap();
        }
    });
    (port, seen)
}

/// A ledger that keeps what it is told, until it is told to be gone.
fn ledger() -> (OwnedFd, Arc<Mutex<Vec<Entry>>>) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let entries = Arc::new(Mutex::new(Vec::new()));
    let kept = entries.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        loop {
            let (_, length) = recv(&ours, &mut buffer[..], RecvFlags::empty()).unwrap();
            if length == 0 {
                return;
            }
            let request: Request = serde_json::from_slice(&buffer[..length]).unwrap();
            let mut entries = kept.lock().unwrap();
            let outcome = match request.entry.detail.get("provider").map(String::as_str) {
                Some("unrecordable") => Outcome::NotWritten("full".to_owned()),
                _ => Outcome::Recorded(entries.len() as u64),
            };
            entries.push(request.entry);
            let answer = Answer {
                id: request.id,
                outcome,
            };
            send(
                &ours,
                &serde_json::to_vec(&answer).unwrap(),
                SendFlags::empty(),
            )
            .unwrap();
        }
    });
    (theirs, entries)
}

fn models(port: u16) -> Models {
    Models {
        actor: "s/test".to_owned(),
        order: Order::Priority,
        providers: vec![Provider {
            name: "local".to_owned(),
            wire: Wire::Openai,
            url: format!("http://127.0.0.1:{port}/v1").parse().unwrap(),
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            keys: vec![Key {
                name: "k".to_owned(),
                value: KEY.to_owned().into(),
            }],
            priority: 0,
            requests_per_minute: None,
            tokens_per_minute: None,
            timeout: Duration::from_secs(10),
            limit_field: LimitField::MaxTokens,
            trust_usage: true,
            models: vec![Model {
                name: "small".to_owned(),
                aliases: Vec::new(),
                upstream: "u".to_owned(),
                input: "1".parse().unwrap(),
                output: "1".parse().unwrap(),
                max_tokens: 100,
                cache: false,
                grants: vec![Grant::default()],
            }],
        }],
        budget: Budget {
            tokens: Some(1250),
            money: None,
        },
        spent: Spent::default(),
        requests_per_minute: 50,
    }
}

fn begin(models: &Models, ports: Vec<u16>, ledger: OwnedFd) -> (Gateway, Guest, File) {
    begin_asking(models, ports, ledger, None)
}

/// The same with a way to a person.
fn begin_asking(
    models: &Models,
    ports: Vec<u16>,
    ledger: OwnedFd,
    approvals: Option<OwnedFd>,
) -> (Gateway, Guest, File) {
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    described.models = Some(ModelAccess {
        file: Fd(40),
        ports,
        spent: Fd(42),
    });
    described.ledger = Some(Fd(41));
    let json = serde_json::to_vec(models).unwrap();
    let spent = memory_file(&[0; SPENT_BYTES]);
    let shared = spent.try_clone().unwrap();
    let mut files = vec![
        (memory_file(&json).into(), 40),
        (ledger, 41),
        (spent.into(), 42),
    ];
    if let Some(approvals) = approvals {
        described.approvals = Some(Fd(43));
        files.push((approvals, 43));
    }
    let (gateway, mut guest) = start_with(described, Vec::new(), files);
    guest.configure();
    (gateway, guest, shared)
}

/// Says `text` to the models; all that is answered.
fn says(guest: &mut Guest, text: &str) -> String {
    let handle = guest.connect(1 << 16, ROUTER, MODEL_PORT);
    guest.until("a connection", |guest| {
        guest
            .get::<tcp::Socket<'_>>(handle)
            .may_send()
            .then_some(())
    });
    guest
        .get::<tcp::Socket<'_>>(handle)
        .send_slice(text.as_bytes())
        .unwrap();
    let mut heard = Vec::new();
    guest.until("an end", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (!socket.may_recv() && !socket.can_recv()).then_some(())
    });
    guest.get::<tcp::Socket<'_>>(handle).abort();
    guest.poll();
    guest.sockets.remove(handle);
    String::from_utf8(heard).unwrap()
}

fn asks(guest: &mut Guest, model: &str) -> String {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":50,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let length = body.len();
    says(
        guest,
        &format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {MODEL_HOST}\r\nConnection: close\r\n\
             Authorization: Bearer mine\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn a_person_is_asked_about_a_model_from_inside_the_jail() {
    let ((port, seen), (socket, entries)) = (provider(), ledger());
    let mut described = models(port);
    described.providers[0].models[0].grants[0].approval = true;
    let (person, approvals) = guest::pair();
    let person = thread::spawn(move || {
        let mut buffer = vec![0; bulkhead_approval::MAX_MESSAGE_BYTES];
        for allowed in [false, true] {
            let (_, length) = recv(&person, &mut buffer[..], RecvFlags::empty()).unwrap();
            let request: bulkhead_approval::Request =
                serde_json::from_slice(&buffer[..length]).unwrap();
            let question = request.question;
            assert_eq!(
                (&*question.capability, &*question.object),
                ("model.chat", "small")
            );
            let answer = bulkhead_approval::Answer {
                id: request.id,
                allowed,
                reason: "a person said so".to_owned(),
            };
            let answer = serde_json::to_vec(&answer).unwrap();
            send(&person, &answer, SendFlags::NOSIGNAL).unwrap();
        }
    });
    let (gateway, mut guest, _) = begin_asking(&described, vec![port], socket, Some(approvals));
    let answer = asks(&mut guest, "small");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains("there was none: a person said so"),
        "{answer}"
    );
    assert!(seen.lock().unwrap().is_empty());
    let answer = asks(&mut guest, "small");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    person.join().unwrap();
    gateway.end();
    let entries = entries.lock().unwrap();
    let intents = entries
        .iter()
        .filter_map(|entry| entry.detail.get("consent"));
    assert_eq!(intents.collect::<Vec<_>>(), ["a person said so"]);
}

#[test]
fn a_guest_calls_what_it_was_granted_until_its_budget_is_used_up() {
    let ((port, seen), (socket, entries)) = (provider(), ledger());
    let (gateway, mut guest, spent_file) = begin(&models(port), vec![port], socket);
    assert_eq!(
        guest.resolve(MODEL_HOST).unwrap(),
        [IpAddress::from(ROUTER)]
    );
    let answer = asks(&mut guest, "small");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with(ANSWER), "{answer}");
    let request = seen.lock().unwrap()[0].clone();
    assert!(
        request.contains(&format!("authorization: Bearer {KEY}\r\n")),
        "{request}"
    );
    assert!(!request.contains("mine"), "{request}");
    let answer = asks(&mut guest, "large");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    // 21 are spent; the request may take 1,024, its bytes and 50.
    for _ in 0..10 {
        let answer = asks(&mut guest, "small");
        if answer.starts_with("HTTP/1.1 402 ") {
            assert!(answer.contains("left of the budget of 1250"), "{answer}");
            break;
        }
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let calls = seen.lock().unwrap().len();
    assert!((2..8).contains(&calls), "{calls}");
    let mut kept = [0; SPENT_BYTES];
    spent_file.read_exact_at(&mut kept, 0).unwrap();
    // A token costs a dollar for a million: a hundred millionths of a cent.
    let tokens = 21 * calls as u64;
    assert_eq!(kept, spent(tokens, tokens * 100));
    let entries = entries.lock().unwrap();
    let of = |kind| entries.iter().filter(|entry| entry.kind == kind).count();
    assert_eq!((of(Kind::Intent), of(Kind::Refusal)), (calls, 2));
    assert!(entries.iter().all(|entry| entry.actor == "s/test"));
    assert!(!format!("{entries:?}").contains(KEY));
    let said = gateway.end();
    assert!(said.contains("model.chat \"large\" refused"), "{said}");
    assert!(!said.contains(KEY), "{said}");
}

#[test]
fn nobody_is_asked_whom_the_ledger_does_not_hear_of_first() {
    let ((port, seen), (socket, _)) = (provider(), ledger());
    let mut models = models(port);
    models.providers[0].name = "unrecordable".to_owned();
    let (_gateway, mut guest, _) = begin(&models, vec![port], socket);
    let answer = asks(&mut guest, "small");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("cannot be recorded"), "{answer}");
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn only_the_ports_of_the_providers_can_be_reached() {
    let ((port, seen), (socket, _)) = (provider(), ledger());
    let (_gateway, mut guest, _) = begin(&models(port), Vec::new(), socket);
    let answer = asks(&mut guest, "small");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn what_is_no_request_harms_nobody() {
    let ((port, _), (socket, _)) = (provider(), ledger());
    let (gateway, mut guest, _) = begin(&models(port), vec![port], socket);
    for text in [
        "GET / HTTP/9.9\r\n\r\n",
        "\x16\x03\x01 no HTTP at all\r\n\r\n",
        "POST /v1/messages HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST /v1/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)),
    ] {
        let answer = says(&mut guest, text);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    assert!(asks(&mut guest, "small").starts_with("HTTP/1.1 200 "));
    guest.until("the end of all connections", |_| {
        (gateway.stats().tcp_open == 0).then_some(())
    });
}

//! Conditions on calls of tools: the call and all that it needs are asked about after the grants have
//! allowed it, and before anything is confirmed, backed up or done.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod bench;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use bench::{Bench, Setup};
use bulkhead_capability::Autonomy;
use bulkhead_conditions::wire::{Answer, MAX_REQUEST_BYTES, Request};
use bulkhead_conditions::{Act, Asker, Denied, Ruling, WOULD_DENY, denied};
use bulkhead_record::Kind;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use serde_json::json;
use tools::CallError;

fn pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// Tools whose conditions permit what `permits` does, and what they were asked.
fn bench(
    enforced: bool,
    permits: impl Fn(&Act) -> bool + Send + 'static,
) -> (Bench, Arc<Mutex<Vec<Act>>>) {
    bench_of(Autonomy::default(), enforced, permits)
}

fn bench_of(
    autonomy: Autonomy,
    enforced: bool,
    permits: impl Fn(&Act) -> bool + Send + 'static,
) -> (Bench, Arc<Mutex<Vec<Act>>>) {
    let (ours, theirs) = pair();
    let asked: Arc<Mutex<Vec<Act>>> = Arc::default();
    let heard = asked.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        while let Ok((length @ 1.., _)) = recv(&theirs, buffer.as_mut_slice(), RecvFlags::empty()) {
            let Request { id, act, .. } = serde_json::from_slice(&buffer[..length]).unwrap();
            let by = vec!["night".to_owned()];
            let ruling = match permits(&act) {
                true => Ruling::Permitted(by),
                false => Ruling::Forbidden(by),
            };
            heard.lock().unwrap().push(act);
            let answer = Answer {
                id,
                ruling,
                enforced,
            };
            let _ = send(
                &theirs,
                &serde_json::to_vec(&answer).unwrap(),
                SendFlags::NOSIGNAL,
            );
        }
    });
    let bench = Bench::of(Setup {
        programs: &["/bin/true"],
        conditions: Some(Asker::new(ours).unwrap()),
        autonomy,
        ..Setup::default()
    });
    (bench, asked)
}

#[test]
fn a_call_and_all_that_it_needs_are_asked_about() {
    let (bench, asked) = bench(true, |_| true);
    let (from, to) = (bench.given.join("a"), bench.data.join("b"));
    std::fs::write(&from, "x").unwrap();
    bench
        .call("fs.copy", json!({ "from": from, "to": to }))
        .unwrap();
    bench
        .call(
            "process.run",
            json!({ "program": "/bin/true", "directory": bench.data }),
        )
        .unwrap();
    let file = |path: &std::path::PathBuf, write| Act::File {
        path: path.clone(),
        write,
    };
    let program = "/bin/true".to_owned();
    assert_eq!(
        *asked.lock().unwrap(),
        [
            Act::Tool("fs.copy".to_owned(), vec![from.clone(), to.clone()]),
            file(&from, false),
            file(&to, true),
            Act::Tool("process.run".to_owned(), vec![bench.data.clone()]),
            Act::Exec(program),
            file(&bench.data, false),
        ]
    );
    // What no grant covers nobody is asked about.
    let elsewhere = bench.call("fs.read", json!({ "path": "/etc/hostname" }));
    assert!(elsewhere.is_err());
    assert_eq!(asked.lock().unwrap().len(), 6);
    let entries = bench.ledger.entries.lock().unwrap();
    assert_eq!(
        entries[0].detail["conditions"],
        "permitted by condition night"
    );
}

#[test]
fn what_a_condition_forbids_leaves_no_trace_but_its_refusal() {
    for forbidden in ["tool", "path"] {
        let (bench, _) = bench(true, move |act| match act {
            Act::Tool(..) => forbidden != "tool",
            _ => forbidden != "path",
        });
        bench
            .person
            .allows
            .store(true, std::sync::atomic::Ordering::SeqCst);
        let path = bench.data.join("a");
        let refused = bench.call("fs.write", json!({ "path": path, "content": "x" }));
        let Err(CallError::Condition(why)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(why, "forbidden by condition night");
        assert!(!path.exists());
        assert!(
            bench.person.asked.lock().unwrap().is_empty(),
            "nobody is asked for nothing"
        );
        let entries = bench.ledger.entries.lock().unwrap();
        let [entry] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!(
            (entry.kind, entry.reason.as_str()),
            (Kind::Refusal, why.as_str())
        );
    }
}

#[test]
fn who_learns_does_it_and_has_on_record_what_would_be_denied() {
    let (bench, _) = bench(false, |act| matches!(act, Act::Tool(..)));
    let path = bench.data.join("a");
    bench
        .call("fs.write", json!({ "path": path, "content": "x" }))
        .unwrap();
    let entries = bench.ledger.entries.lock().unwrap();
    let detail = &entries[0].detail;
    assert_eq!(detail[WOULD_DENY], "forbidden by condition night");
    let act = Act::File { path, write: true };
    let ruling = Ruling::Forbidden(vec!["night".to_owned()]);
    assert_eq!(denied(detail), Some(vec![Denied { act, ruling }]));
}

#[test]
fn without_an_answer_no_tool_runs() {
    let (ours, theirs) = pair();
    drop(theirs);
    let bench = Bench::of(Setup {
        conditions: Some(Asker::new(ours).unwrap()),
        ..Setup::default()
    });
    for _ in 0..2 {
        let refused = bench.call("fs.roots", json!({})).unwrap_err();
        assert!(
            refused.to_string().contains("could not be asked"),
            "{refused}"
        );
    }
}

#[test]
fn what_is_forbidden_while_a_person_thinks_is_not_done() {
    let night = Arc::new(std::sync::atomic::AtomicBool::default());
    let falls = night.clone();
    let is_day = move |_: &Act| !night.load(std::sync::atomic::Ordering::SeqCst);
    let (bench, _) = bench_of(Autonomy::Manual, true, is_day);
    (bench.person.allows).store(true, std::sync::atomic::Ordering::SeqCst);
    let happens: Box<dyn FnOnce() + Send> =
        Box::new(move || falls.store(true, std::sync::atomic::Ordering::SeqCst));
    *bench.person.meanwhile.lock().unwrap() = Some(happens);
    let path = bench.data.join("a");
    let refused = bench.call("fs.write", json!({ "path": path, "content": "x" }));
    assert!(
        matches!(refused, Err(CallError::Condition(_))),
        "{refused:?}"
    );
    assert!(!path.exists());
    assert_eq!(bench.kinds(), [Kind::Refusal]);
}

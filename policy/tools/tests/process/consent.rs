//! Calls that wait for a person, whom the test plays at the process's other socket.

use super::*;
use bulkhead_approval::{Answer, MAX_MESSAGE_BYTES, Request};

/// With writes that wait for a person.
fn with_consent() -> Tools {
    Tools::with(&["tool.call:fs.*"], |description| {
        let held = format!("fs.write:{}", description.directories[0].path.display());
        let grants = ["tool.call:fs.*", held.as_str()];
        let grants = grants.map(|grant| grant.parse::<Capability>().unwrap());
        description.grants = grants.into_iter().collect();
        description.limits.confirm = [bulkhead_toolbox::Risk::Write].into();
    })
}

/// What a person is asked next.
fn question(tools: &Tools) -> Request {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let heard = recv(&tools.questions, buffer.as_mut_slice(), RecvFlags::empty());
    serde_json::from_slice(&buffer[..heard.unwrap().0]).unwrap()
}

fn answer(tools: &Tools, id: u64, allowed: bool) {
    let reason = "a person said so".to_owned();
    let answer = Answer {
        id,
        allowed,
        reason,
    };
    let answer = serde_json::to_vec(&answer).unwrap();
    send(&tools.questions, &answer, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn what_takes_consent_waits_for_a_person() {
    let tools = with_consent();
    let path = tools.path("new");
    for (allowed, exists) in [(false, false), (true, true)] {
        let mut guest = tools.guest();
        thread::scope(|scope| {
            let params = writes(&path);
            let called = scope.spawn(move || guest.ask("tools/call", params));
            let request = question(&tools);
            assert!(request.question.object.contains(&path), "{request:?}");
            let there = Path::new(&path).exists();
            assert!(!there, "nothing is done before the answer");
            answer(&tools, request.id, allowed);
            let called = called.join().unwrap().to_string();
            assert_eq!(called.contains("\"isError\":false"), allowed, "{called}");
        });
        assert_eq!(Path::new(&path).exists(), exists);
    }
}

#[test]
fn a_connection_is_a_piece_of_work() {
    let tools = with_consent();
    let (mut first, mut second) = (tools.guest(), tools.guest());
    let task = |guest: &mut Guest| {
        thread::scope(|scope| {
            let params = writes(&tools.path("new"));
            let called = scope.spawn(move || guest.ask("tools/call", params));
            let request = question(&tools);
            answer(&tools, request.id, false);
            called.join().unwrap();
            request.question.task.unwrap()
        })
    };
    let one = task(&mut first);
    assert_ne!(task(&mut second), one);
    assert_eq!(task(&mut first), one);
}

fn writes(path: &str) -> Value {
    json!({ "name": "fs.write", "arguments": { "path": path, "content": "x" } })
}

#[test]
fn what_waits_for_a_person_keeps_no_other_call_waiting() {
    let tools = with_consent();
    let mut other = tools.guest();
    thread::scope(|scope| {
        let waiting: Vec<u64> = (0..tools::pipeline::MAX_CALLS)
            .map(|number| {
                let (mut guest, path) = (tools.guest(), tools.path(&number.to_string()));
                scope.spawn(move || guest.ask("tools/call", writes(&path)));
                question(&tools).id
            })
            .collect();
        other.done("fs.stat", json!({ "path": tools.data }));
        waiting.iter().for_each(|id| answer(&tools, *id, true));
    });
}

//! The pipeline: its order, and that each step that fails keeps the call from having an effect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;

use bench::{Bench, Setup, tree};
use bulkhead_capability::{Autonomy, Capability, Grant};
use bulkhead_record::{Kind, Verdict};
use bulkhead_toolbox::{Limits, Risk};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tools::CallError;

#[test]
fn intent_and_outcome_are_recorded() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    let done = bench
        .call("fs.write", json!({ "path": file, "content": "x" }))
        .unwrap();
    let entries = bench.ledger.entries.lock().unwrap().clone();
    let [intent, outcome] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!(
        (intent.kind, intent.verdict),
        (Kind::Intent, Verdict::Allowed)
    );
    assert_eq!(
        (intent.action.as_str(), intent.object.as_str()),
        ("tool.call", "fs.write")
    );
    assert_eq!(intent.actor, "system/agent");
    assert_eq!(
        intent.detail["objects"],
        format!("fs.write:{}", file.display())
    );
    let arguments = format!("{{\"content\":\"x\",\"path\":{}}}", json!(file));
    let digest = Sha256::digest(arguments.as_bytes());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(intent.detail["arguments"], digest);
    assert_eq!(
        (outcome.kind, outcome.verdict),
        (Kind::Outcome, Verdict::Done)
    );
    assert_eq!(outcome.intent, Some(done.call));
}

#[test]
fn without_a_record_nothing_is_done() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    bench.ledger.room.store(0, Ordering::SeqCst);
    let refused = bench.call("fs.write", json!({ "path": file, "content": "x" }));
    assert!(
        matches!(refused, Err(CallError::NotRecorded(_))),
        "{refused:?}"
    );
    assert!(!file.exists());
    assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 0);
    // Reading is an act too.
    fs::write(bench.given.join("secret"), "s").unwrap();
    let read = bench.call("fs.read", json!({ "path": bench.given.join("secret") }));
    assert!(matches!(read, Err(CallError::NotRecorded(_))), "{read:?}");
}

#[test]
fn without_a_record_of_the_outcome_the_result_is_kept_back() {
    let bench = Bench::new();
    fs::write(bench.given.join("secret"), "s").unwrap();
    bench.ledger.room.store(1, Ordering::SeqCst);
    let read = bench.call("fs.read", json!({ "path": bench.given.join("secret") }));
    assert!(
        matches!(read, Err(CallError::OutcomeNotRecorded(_))),
        "{read:?}"
    );
}

#[test]
fn a_hidden_tool_and_one_that_does_not_exist_look_alike() {
    let bench = Bench::with(Limits::default(), &["fs.read", "fs.l*"], &[]);
    let names: Vec<_> = bench.pipeline.tools().map(|tool| tool.facts.name).collect();
    assert_eq!(names, ["fs.list", "fs.read"]);
    let hidden = bench.call("fs.stat", json!({ "path": "/x" })).unwrap_err();
    let absent = bench.call("fs.star", json!({ "path": "/x" })).unwrap_err();
    assert_eq!(
        hidden.to_string().replace("stat", "star"),
        absent.to_string()
    );
    // Arguments that fit neither change nothing about it.
    let nonsense = bench.call("fs.stat", json!([1])).unwrap_err();
    assert_eq!(nonsense, hidden);
    assert_eq!(bench.kinds(), [Kind::Refusal; 3]);
}

#[test]
fn arguments_are_checked_against_the_schema() {
    let bench = Bench::new();
    let path = bench.data.join("f");
    for arguments in [
        json!(null),
        json!([]),
        json!({}),
        json!({ "path": 1, "content": "" }),
        json!({ "path": path }),
        json!({ "path": path, "content": "", "mode": "777" }),
        json!({ "path": "", "content": "" }),
        json!({ "path": path, "content": { "nested": [] } }),
        json!({ "path": format!("/{}", "a".repeat(5000)), "content": "" }),
    ] {
        let refused = bench.call("fs.write", arguments.clone());
        assert!(
            matches!(refused, Err(CallError::Arguments(_))),
            "{arguments}: {refused:?}"
        );
    }
    assert_eq!(tree(&bench.data).len(), 1);
}

#[test]
fn what_no_grant_covers_is_refused_and_named() {
    let bench = Bench::new();
    fs::write(bench.scratch.path().join("outside"), "o").unwrap();
    let outside = bench.scratch.path().join("outside");
    for (tool, arguments, need) in [
        (
            "fs.read",
            json!({ "path": outside }),
            format!("fs.read:{}", outside.display()),
        ),
        (
            "fs.read",
            json!({ "path": "/etc/passwd" }),
            "fs.read:/etc/passwd".to_owned(),
        ),
        ("fs.list", json!({ "path": "/" }), "fs.read:/".to_owned()),
        (
            "fs.write",
            json!({ "path": bench.given.join("f"), "content": "x" }),
            format!("fs.write:{}", bench.given.join("f").display()),
        ),
        (
            "fs.move",
            json!({ "from": outside, "to": bench.data.join("in") }),
            format!("fs.write:{}", outside.display()),
        ),
        (
            "fs.copy",
            json!({ "from": bench.data.join("f"), "to": outside.with_extension("x") }),
            format!("fs.write:{}.x", outside.display()),
        ),
    ] {
        let refused = bench.call(tool, arguments).unwrap_err();
        assert_eq!(refused, CallError::NotPermitted(need.clone()), "{tool}");
        let entry = bench.last_entry();
        assert_eq!(
            (entry.kind, entry.verdict),
            (Kind::Refusal, Verdict::Denied)
        );
        assert!(entry.reason.contains(&need), "{}", entry.reason);
    }
}

#[test]
fn paths_lead_nowhere_else() {
    let bench = Bench::new();
    let outside = bench.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "o").unwrap();
    fs::write(bench.data.join("f"), "i").unwrap();
    symlink(&outside, bench.data.join("out")).unwrap();
    symlink(outside.join("f"), bench.data.join("link")).unwrap();
    symlink("/proc/self/fd/0", bench.data.join("magic")).unwrap();
    let before = (tree(&outside), tree(&bench.data));
    let data = bench.data.to_str().unwrap();
    let wrong = [
        format!("{data}/../outside/f"),
        format!("{data}/./f"),
        format!("{data}//f"),
        format!("{data}/f/"),
        format!("{data}/out/f"),
        format!("{data}/link"),
        format!("{data}/magic"),
        format!("{data}/f\0"),
        "f".to_owned(),
        "/proc/self/fd/0".to_owned(),
        "-rf".to_owned(),
        "~/f".to_owned(),
    ];
    for path in &wrong {
        let calls: [(&str, Value); 6] = [
            ("fs.read", json!({ "path": path })),
            ("fs.list", json!({ "path": path })),
            ("fs.write", json!({ "path": path, "content": "x" })),
            ("fs.append", json!({ "path": path, "content": "x" })),
            ("fs.chmod", json!({ "path": path, "mode": "777" })),
            (
                "fs.copy",
                json!({ "from": path, "to": format!("{data}/copy") }),
            ),
        ];
        for (tool, arguments) in calls {
            assert!(bench.call(tool, arguments).is_err(), "{tool} {path:?}");
        }
    }
    for path in [format!("{data}/out/new"), format!("{data}/../new")] {
        assert!(bench.call("fs.mkdir", json!({ "path": path })).is_err());
        let call = bench.call(
            "fs.move",
            json!({ "from": format!("{data}/f"), "to": path }),
        );
        assert!(call.is_err());
    }
    assert_eq!((tree(&outside), tree(&bench.data)), before);
    // The root itself is nobody's to remove.
    assert!(bench.call("fs.rmdir", json!({ "path": data })).is_err());
    assert!(
        bench
            .call("fs.chmod", json!({ "path": data, "mode": "000" }))
            .is_err()
    );
}

#[test]
fn a_call_that_fails_changes_nothing_and_is_recorded() {
    let bench = Bench::new();
    fs::write(bench.data.join("f"), "a a").unwrap();
    fs::create_dir(bench.data.join("full")).unwrap();
    fs::write(bench.data.join("full/x"), "").unwrap();
    let before = tree(&bench.data);
    let path = |name: &str| bench.data.join(name);
    for (tool, arguments) in [
        (
            "fs.append",
            json!({ "path": path("absent"), "content": "x" }),
        ),
        ("fs.append", json!({ "path": path("full"), "content": "x" })),
        (
            "fs.edit",
            json!({ "path": path("f"), "old": "a", "new": "b" }),
        ),
        (
            "fs.edit",
            json!({ "path": path("f"), "old": "c", "new": "b" }),
        ),
        (
            "fs.write",
            json!({ "path": path("absent/f"), "content": "x" }),
        ),
        (
            "fs.copy",
            json!({ "from": path("f"), "to": path("full/x") }),
        ),
        ("fs.move", json!({ "from": path("f"), "to": path("full") })),
        (
            "fs.move",
            json!({ "from": path("absent"), "to": path("new") }),
        ),
        (
            "fs.move",
            json!({ "from": path("full"), "to": path("full/in") }),
        ),
        ("fs.delete", json!({ "path": path("full") })),
        ("fs.rmdir", json!({ "path": path("full") })),
        ("fs.mkdir", json!({ "path": path("f") })),
        ("fs.chmod", json!({ "path": path("absent"), "mode": "644" })),
    ] {
        assert!(
            bench.call(tool, arguments.clone()).is_err(),
            "{tool} {arguments}"
        );
        assert_eq!(tree(&bench.data), before, "{tool} {arguments}");
        assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 0, "{tool}");
        assert!(matches!(
            bench.last_entry().verdict,
            Verdict::Denied | Verdict::Failed
        ));
    }
}

#[test]
fn who_has_to_be_asked_is_asked_before_anything_happens() {
    let limits = Limits {
        confirm: [Risk::Destructive].into(),
        ..Limits::default()
    };
    let bench = Bench::with(limits, &["*"], &[]);
    let file = bench.data.join("f");
    fs::write(&file, "x").unwrap();
    let denied = bench.call("fs.delete", json!({ "path": file }));
    assert!(
        matches!(denied, Err(CallError::NotConfirmed(_))),
        "{denied:?}"
    );
    assert!(file.exists());
    assert_eq!(bench.kinds(), [Kind::Refusal]);
    let asked = bench.person.asked.lock().unwrap().clone();
    assert_eq!(asked, [format!("fs.delete fs.write:{}", file.display())]);
    bench.person.allows.store(true, Ordering::SeqCst);
    bench.call("fs.delete", json!({ "path": file })).unwrap();
    assert!(!file.exists());
    let intent = bench.ledger.entries.lock().unwrap()[1].clone();
    assert_eq!(
        intent.reason,
        "granted by tool.call:*, and allowed by operator"
    );
    // Other risks are not asked about.
    bench
        .call("fs.write", json!({ "path": file, "content": "x" }))
        .unwrap();
    assert_eq!(bench.person.asked.lock().unwrap().len(), 2);
}

#[test]
fn each_level_of_autonomy_asks_about_its_risks() {
    for (autonomy, asking) in [
        (Autonomy::Full, &[][..]),
        (Autonomy::Supervised, &["fs.delete"]),
        (Autonomy::Manual, &["fs.write", "fs.delete"]),
    ] {
        let bench = Bench::of(Setup {
            autonomy,
            ..Setup::default()
        });
        let (new, old) = (bench.data.join("new"), bench.data.join("old"));
        fs::write(&old, "x").unwrap();
        let cases = [
            ("fs.stat", json!({ "path": old })),
            ("fs.write", json!({ "path": new, "content": "x" })),
            ("fs.delete", json!({ "path": old })),
        ];
        for (tool, arguments) in &cases {
            let done = bench.call(tool, arguments.clone());
            match asking.contains(tool) {
                true => assert!(matches!(done, Err(CallError::NotConfirmed(_))), "{tool}"),
                false => assert!(done.is_ok(), "{autonomy:?} {tool}: {done:?}"),
            }
        }
        assert_eq!(new.exists(), autonomy != Autonomy::Manual);
        assert_eq!(old.exists(), autonomy != Autonomy::Full);
        let asked = bench.person.asked.lock().unwrap().len();
        assert_eq!(asked, asking.len(), "{autonomy:?}");
        bench.person.allows.store(true, Ordering::SeqCst);
        for (tool, arguments) in &cases {
            if asking.contains(tool) {
                bench.call(tool, arguments.clone()).unwrap();
            }
        }
        assert!(new.exists() && !old.exists());
    }
}

#[test]
fn files_are_read_in_parts_that_end_between_characters() {
    let bench = Bench::new();
    let file = bench.given.join("f");
    fs::write(&file, "aé€").unwrap();
    let read = |offset: u64, length: u64| {
        let arguments = json!({ "path": file, "offset": offset, "length": length });
        bench.call("fs.read", arguments).map(|done| done.result)
    };
    assert_eq!(read(0, 6).unwrap(), json!({ "content": "aé€", "size": 6 }));
    assert_eq!(
        read(0, 2).unwrap(),
        json!({ "content": "a", "size": 6, "next": 1 })
    );
    assert_eq!(
        read(1, 4).unwrap(),
        json!({ "content": "é", "size": 6, "next": 3 })
    );
    assert_eq!(read(9, 4).unwrap(), json!({ "content": "", "size": 6 }));
    // Not even one character: no part would ever come.
    assert!(read(2, 1).is_err());
    assert!(read(3, 1).is_err());
}

#[test]
fn searches_find_lines_and_follow_no_link() {
    let bench = Bench::new();
    let outside = bench.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "needle").unwrap();
    fs::create_dir(bench.given.join("deep")).unwrap();
    fs::write(bench.given.join("deep/f"), "hay\nNeedle (1)\nneedle [2]\n").unwrap();
    fs::write(
        bench.given.join("binary"),
        [0xff, b'n', b'e', b'e', b'd', b'l', b'e'],
    )
    .unwrap();
    symlink(&outside, bench.given.join("out")).unwrap();
    let search = |pattern: Value| {
        let mut arguments = pattern;
        arguments["path"] = json!(bench.given);
        let found = bench.call("fs.search", arguments).map(|done| done.result);
        found.map(|found| {
            let lines = found["matches"].as_array().unwrap().iter();
            let lines = lines.map(|found| found["line"].as_u64().unwrap());
            lines.collect::<Vec<_>>()
        })
    };
    assert_eq!(search(json!({ "pattern": "needle" })).unwrap(), [3]);
    assert_eq!(
        search(json!({ "pattern": "needle", "ignore_case": true })).unwrap(),
        [2, 3]
    );
    assert_eq!(search(json!({ "pattern": "(1)" })).unwrap(), [2]);
    assert_eq!(
        search(json!({ "pattern": "^[nN]eedle .\\d", "regex": true })).unwrap(),
        [2, 3]
    );
    assert!(search(json!({ "pattern": "(", "regex": true })).is_err());
    let huge = "(a{1000}){1000}";
    assert!(search(json!({ "pattern": huge, "regex": true })).is_err());
}

#[test]
fn grants_of_the_network_can_be_asked_for() {
    let more = [
        "net.connect:*.example.org:80-443",
        "net.connect:udp:10.0.0.0/8:53",
        "console",
    ];
    let more = more.map(|grant| Grant::from(grant.parse::<Capability>().unwrap()));
    let bench = Bench::with_grants(Limits::default(), &["*"], &[], more.to_vec());
    let listed = bench.call("net.grants", json!({})).unwrap().result;
    let grants = [
        "net.connect:tcp:*.example.org:80-443",
        "net.connect:udp:10.0.0.0/8:53",
    ];
    assert_eq!(listed, json!({ "grants": grants, "denied": [] }));
    let allowed = |arguments: Value| {
        let result = bench.call("net.allowed", arguments).unwrap().result;
        result["allowed"].as_bool().unwrap()
    };
    assert!(allowed(json!({ "host": "api.example.org", "port": 443 })));
    assert!(!allowed(json!({ "host": "api.example.org", "port": 444 })));
    assert!(!allowed(json!({ "host": "example.com", "port": 443 })));
    assert!(allowed(
        json!({ "host": "10.1.2.3", "port": 53, "protocol": "udp" })
    ));
    assert!(!allowed(json!({ "host": "10.1.2.3", "port": 53 })));
    let odd = bench.call("net.allowed", json!({ "host": "a:1,b", "port": 1 }));
    assert!(matches!(odd, Err(CallError::Arguments(_))), "{odd:?}");
}

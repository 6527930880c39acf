//! Each tool that says that it can be taken back: what it does, and that afterwards everything is as
//! it was, byte for byte, with modes and with what did not exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use bench::{Bench, set_mode, tree};
use serde_json::{Value, json};
use tools::backups::{MAX_FILE, MAX_KEPT};
use tools::{CallError, Registry};

/// What every case finds.
fn prepare(data: &Path) {
    fs::write(data.join("file"), "first\nsecond\n").unwrap();
    set_mode(&data.join("file"), 0o600);
    fs::write(data.join("binary"), [0, 159, 146, 150]).unwrap();
    fs::create_dir(data.join("full")).unwrap();
    fs::write(data.join("full/inner"), "inner").unwrap();
    fs::create_dir(data.join("empty")).unwrap();
    set_mode(&data.join("empty"), 0o700);
    symlink("file", data.join("link")).unwrap();
}

/// A tool, its arguments on the directory, and what shows that it worked.
type Case = (&'static str, fn(&str) -> Value, fn(&Path) -> bool);

const CASES: &[Case] = &[
    (
        "fs.write",
        |data| json!({ "path": format!("{data}/file"), "content": "new" }),
        |data| fs::read(data.join("file")).unwrap() == b"new",
    ),
    (
        "fs.write",
        |data| json!({ "path": format!("{data}/new"), "content": "" }),
        |data| fs::read(data.join("new")).unwrap().is_empty(),
    ),
    (
        "fs.write",
        |data| json!({ "path": format!("{data}/binary"), "content": "text" }),
        |data| fs::read(data.join("binary")).unwrap() == b"text",
    ),
    (
        "fs.append",
        |data| json!({ "path": format!("{data}/file"), "content": "third\n" }),
        |data| fs::read(data.join("file")).unwrap() == b"first\nsecond\nthird\n",
    ),
    (
        "fs.edit",
        |data| json!({ "path": format!("{data}/file"), "old": "first", "new": "1st" }),
        |data| fs::read(data.join("file")).unwrap() == b"1st\nsecond\n",
    ),
    (
        "fs.copy",
        |data| json!({ "from": format!("{data}/binary"), "to": format!("{data}/full/copy") }),
        |data| fs::read(data.join("full/copy")).unwrap() == [0, 159, 146, 150],
    ),
    (
        "fs.move",
        |data| json!({ "from": format!("{data}/full"), "to": format!("{data}/empty/full") }),
        |data| data.join("empty/full/inner").exists() && !data.join("full").exists(),
    ),
    (
        "fs.move",
        |data| json!({ "from": format!("{data}/link"), "to": format!("{data}/link2") }),
        |data| fs::read_link(data.join("link2")).unwrap() == Path::new("file"),
    ),
    (
        "fs.delete",
        |data| json!({ "path": format!("{data}/file") }),
        |data| !data.join("file").exists(),
    ),
    (
        "fs.delete",
        |data| json!({ "path": format!("{data}/link") }),
        |data| data.join("link").symlink_metadata().is_err() && data.join("file").exists(),
    ),
    (
        "fs.mkdir",
        |data| json!({ "path": format!("{data}/full/new") }),
        |data| data.join("full/new").is_dir(),
    ),
    (
        "fs.rmdir",
        |data| json!({ "path": format!("{data}/empty") }),
        |data| !data.join("empty").exists(),
    ),
    (
        "fs.chmod",
        |data| json!({ "path": format!("{data}/file"), "mode": "644" }),
        |data| data.join("file").metadata().unwrap().permissions().mode() & 0o7777 == 0o644,
    ),
    (
        "fs.chmod",
        |data| json!({ "path": format!("{data}/full"), "mode": "500" }),
        |data| data.join("full").metadata().unwrap().permissions().mode() & 0o7777 == 0o500,
    ),
];

#[test]
fn what_can_be_taken_back_is_taken_back_whole() {
    for (tool, arguments, worked) in CASES {
        let bench = Bench::new();
        prepare(&bench.data);
        let before = tree(&bench.data);
        let arguments = arguments(bench.data.to_str().unwrap());
        let done = bench.call(tool, arguments.clone());
        let done = done.unwrap_or_else(|error| panic!("{tool} {arguments}: {error}"));
        assert!(done.reversible, "{tool}");
        assert!(worked(&bench.data), "{tool} {arguments}");
        assert_ne!(tree(&bench.data), before, "{tool}");
        let back = bench.call("tool.rollback", json!({ "call": done.call }));
        back.unwrap_or_else(|error| panic!("{tool} {arguments} is not taken back: {error}"));
        assert_eq!(tree(&bench.data), before, "{tool} {arguments}");
        // Nothing of it is left, so it cannot be taken back twice.
        assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 0, "{tool}");
        assert!(
            bench
                .call("tool.rollback", json!({ "call": done.call }))
                .is_err()
        );
    }
}

#[test]
fn every_reversible_tool_of_the_family_has_a_case() {
    let registry = Registry::new().unwrap();
    let reversible = registry.iter().filter(|tool| tool.facts.rollback.is_some());
    let reversible = reversible.map(|tool| tool.facts.name);
    // Those of the family git are in `git.rs`.
    let reversible: BTreeSet<_> = reversible.filter(|name| name.starts_with("fs.")).collect();
    let cases: BTreeSet<_> = CASES.iter().map(|(tool, ..)| *tool).collect();
    assert_eq!(cases, reversible);
}

#[test]
fn several_calls_are_taken_back_one_after_the_other() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    let write = |content: &str| {
        let call = bench.call("fs.write", json!({ "path": file, "content": content }));
        call.unwrap().call
    };
    let calls = [write("one"), write("two"), write("three")];
    let listed = bench.call("tool.calls", json!({})).unwrap().result;
    let listed = listed["calls"].as_array().unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|call| call["call"].as_u64().unwrap())
        .collect();
    assert_eq!(listed, calls);
    let back = |call| bench.call("tool.rollback", json!({ "call": call }));
    back(calls[2]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"two");
    back(calls[1]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"one");
    back(calls[0]).unwrap();
    assert!(!file.exists());
}

#[test]
fn what_somebody_changed_since_is_only_replaced_by_force() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    fs::write(&file, "before").unwrap();
    let done = bench.call("fs.write", json!({ "path": file, "content": "tool" }));
    let call = done.unwrap().call;
    fs::write(&file, "guest").unwrap();
    let refused = bench
        .call("tool.rollback", json!({ "call": call }))
        .unwrap_err();
    assert!(
        refused.to_string().contains("was changed since"),
        "{refused}"
    );
    assert_eq!(fs::read(&file).unwrap(), b"guest");
    bench
        .call("tool.rollback", json!({ "call": call, "force": true }))
        .unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"before");
}

#[test]
fn only_so_much_is_kept() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    for number in 0..=MAX_KEPT {
        let content = number.to_string();
        bench
            .call("fs.write", json!({ "path": file, "content": content }))
            .unwrap();
    }
    let listed = bench.call("tool.calls", json!({})).unwrap().result;
    assert_eq!(listed["calls"].as_array().unwrap().len(), MAX_KEPT);
    // A description and one file for each: the first, whose file did not exist, is gone.
    assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 2 * MAX_KEPT);
}

#[test]
fn what_is_too_large_to_be_backed_up_is_not_touched() {
    let bench = Bench::new();
    let file = bench.data.join("large");
    let large = fs::File::create(&file).unwrap();
    large.set_len(MAX_FILE + 1).unwrap();
    let refused = bench
        .call("fs.delete", json!({ "path": file }))
        .unwrap_err();
    assert!(matches!(refused, CallError::NotBackedUp(_)), "{refused}");
    assert_eq!(file.metadata().unwrap().len(), MAX_FILE + 1);
    assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_too_large_to_be_read_is_told_by_when_it_was_changed() {
    let bench = Bench::new();
    let (from, to) = (bench.data.join("large"), bench.data.join("moved"));
    // Reading it would take longer than anybody waits.
    let large = fs::File::create(&from).unwrap();
    large.set_len(1 << 42).unwrap();
    let moves = || {
        let arguments = json!({ "from": from, "to": to });
        bench.call("fs.move", arguments).unwrap().call
    };
    let back = |call| bench.call("tool.rollback", json!({ "call": call }));
    back(moves()).unwrap();
    assert!(from.exists() && !to.exists());
    let call = moves();
    large.write_at(b"x", 0).unwrap();
    let refused = back(call).unwrap_err().to_string();
    assert!(refused.contains("was changed since"), "{refused}");
    // One that was small when the call left it.
    let file = bench.data.join("grown");
    let written = json!({ "path": file, "content": "small" });
    let call = bench.call("fs.write", written).unwrap().call;
    large_file(&file);
    let refused = back(call).unwrap_err().to_string();
    assert!(refused.contains("was changed since"), "{refused}");
}

fn large_file(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(1 << 42).unwrap();
}

#[test]
fn back_ups_outlive_the_process_and_leftovers_do_not() {
    let bench = Bench::new();
    let file = bench.data.join("f");
    fs::write(&file, "before").unwrap();
    let done = bench.call("fs.write", json!({ "path": file, "content": "after" }));
    let call = done.unwrap().call;
    for name in ["draft-7", "new", "99-0", "nonsense.json", "12.json"] {
        fs::write(bench.backups.join(name), "{}").unwrap();
    }
    let again = tools::backups::Backups::open(bench::directory(&bench.backups)).unwrap();
    assert_eq!(fs::read_dir(&bench.backups).unwrap().count(), 2);
    let root = tools::directories::Root {
        path: bench.data.clone(),
        file: bench::directory(&bench.data),
        write: true,
    };
    let directories = tools::directories::Directories::new(vec![root]);
    again.roll_back(&directories, call, false).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"before");
}

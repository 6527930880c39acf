//! The host's git on repositories that a hostile guest has prepared, and on honest ones: what it does
//! is taken back whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bench::{Bench, Setup, set_mode, tree};
use serde_json::{Value, json};
use tools::CallError;

const GIT: &str = "/usr/bin/git";

/// A repository with a commit on `main`, another on `other`, and something not added yet.
fn repository(path: &Path) {
    fs::create_dir(path).unwrap();
    git(path, &["init", "--quiet", "--initial-branch=main"]);
    fs::write(path.join("f"), "one\n").unwrap();
    fs::create_dir(path.join("dir")).unwrap();
    fs::write(path.join("dir/g"), "g\n").unwrap();
    git(path, &["add", "."]);
    git(path, &["commit", "--quiet", "-m", "first"]);
    git(path, &["checkout", "--quiet", "-b", "other"]);
    fs::write(path.join("f"), "two\n").unwrap();
    fs::create_dir(path.join("new")).unwrap();
    fs::write(path.join("new/h"), "h\n").unwrap();
    fs::remove_file(path.join("dir/g")).unwrap();
    git(path, &["add", "--all", "."]);
    git(path, &["commit", "--quiet", "-m", "second"]);
    git(path, &["checkout", "--quiet", "main"]);
}

fn git(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new(GIT)
        .current_dir(path)
        .env_clear()
        .envs([("HOME", "/nonexistent"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "safe.directory=*",
        ])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All but the store of objects, to which git only adds.
fn state(path: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = tree(path);
    all.retain(|found, _| !found.starts_with(path.join(".git/objects")));
    all
}

fn bench() -> Option<(Bench, PathBuf)> {
    assert!(Path::new(GIT).exists(), "install git");
    let bench = Bench::with_programs(&[GIT]);
    let path = bench.data.join("repository");
    repository(&path);
    Some((bench, path))
}

fn on(path: &Path, more: Value) -> Value {
    let mut arguments = more;
    arguments["repository"] = json!(path);
    arguments
}

#[test]
fn what_git_does_is_shown() {
    let (bench, path) = bench().unwrap();
    fs::write(path.join("f"), "changed\n").unwrap();
    fs::write(path.join("untracked"), "u\n").unwrap();
    let call = |tool: &str, more: Value| {
        let done = bench.call(tool, on(&path, more));
        let result = done
            .unwrap_or_else(|error| panic!("{tool}: {error}"))
            .result;
        result["output"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        call("git.status", json!({})),
        "## main\n M f\n?? untracked\n"
    );
    assert!(call("git.diff", json!({})).contains("-one\n+changed\n"));
    assert_eq!(call("git.diff", json!({ "staged": true })), "");
    let log = call("git.log", json!({ "revision": "other" }));
    assert!(log.contains("first") && log.contains("second"), "{log}");
    let log = call("git.log", json!({ "revision": "other", "count": 1 }));
    assert!(!log.contains("first") && log.contains("second"), "{log}");
    assert!(call("git.show", json!({ "revision": "other" })).contains("+two"));
}

#[test]
fn what_git_changes_is_taken_back_whole() {
    let staged = |path: &Path| {
        fs::write(path.join("f"), "changed\n").unwrap();
        git(path, &["add", "f"]);
    };
    type Case = (&'static str, fn(&Path), Value, fn(&Path) -> bool);
    let cases: [Case; 6] = [
        (
            "git.add",
            |path| fs::write(path.join("-u"), "u\n").unwrap(),
            json!({ "paths": ["-u"] }),
            |path| git(path, &["status", "--porcelain"]) == "A  -u\n",
        ),
        (
            "git.commit",
            staged,
            json!({ "message": "-m\n# not a comment\n" }),
            |path| git(path, &["log", "--format=%B", "-1"]).contains("# not a comment"),
        ),
        (
            "git.commit",
            |path| {
                git(path, &["checkout", "--quiet", "--orphan", "fresh/start"]);
            },
            json!({ "message": "root" }),
            |path| git(path, &["rev-list", "--count", "HEAD"]) == "1\n",
        ),
        (
            "git.branch",
            |_| {},
            json!({ "branch": "feature/deep/x" }),
            |path| git(path, &["branch", "--list"]).contains("feature/deep/x"),
        ),
        (
            "git.checkout",
            |_| {},
            json!({ "branch": "other" }),
            |path| path.join("new/h").exists() && !path.join("dir").exists(),
        ),
        (
            "git.checkout",
            |path| {
                git(path, &["branch", "same"]);
            },
            json!({ "branch": "same" }),
            |path| git(path, &["symbolic-ref", "HEAD"]) == "refs/heads/same\n",
        ),
    ];
    for (tool, prepare, arguments, worked) in cases {
        let (bench, path) = bench().unwrap();
        prepare(&path);
        let before = state(&path);
        let done = bench.call(tool, on(&path, arguments.clone()));
        let done = done.unwrap_or_else(|error| panic!("{tool} {arguments}: {error}"));
        assert!(done.reversible, "{tool}");
        // Looking with git refreshes its index.
        let left = state(&path);
        let copy = bench.scratch.path().join("copy");
        let copied = Command::new("cp")
            .args(["-a"])
            .args([&path, &copy])
            .status();
        assert!(copied.unwrap().success());
        assert!(worked(&copy), "{tool} {arguments}");
        assert_ne!(left, before, "{tool}");
        let back = bench.call("tool.rollback", json!({ "call": done.call }));
        back.unwrap_or_else(|error| panic!("{tool} {arguments} is not taken back: {error}"));
        let after = state(&path);
        let differ = before.keys().chain(after.keys());
        let differ: Vec<_> = differ
            .filter(|path| before.get(*path) != after.get(*path))
            .collect();
        assert!(differ.is_empty(), "{tool} {arguments}: {differ:?}");
    }
}

#[test]
fn a_checkout_that_might_lose_something_is_refused() {
    let (bench, path) = bench().unwrap();
    fs::write(path.join("f"), "changed\n").unwrap();
    let before = state(&path);
    let refused = bench.call("git.checkout", on(&path, json!({ "branch": "other" })));
    assert!(
        matches!(refused, Err(CallError::NotBackedUp(_))),
        "{refused:?}"
    );
    assert_eq!(state(&path), before);
    fs::write(path.join("f"), "one\n").unwrap();
    // Not tracked, and in the way of what comes.
    fs::create_dir(path.join("new")).unwrap();
    fs::write(path.join("new/h"), "mine\n").unwrap();
    let refused = bench.call("git.checkout", on(&path, json!({ "branch": "other" })));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(fs::read(path.join("new/h")).unwrap(), b"mine\n");
    assert_eq!(fs::read(path.join("f")).unwrap(), b"one\n");
}

#[test]
fn arguments_are_no_options() {
    let (bench, path) = bench().unwrap();
    let marker = path.join("marker");
    let output = format!("--output={}", marker.display());
    for (tool, more) in [
        ("git.log", json!({ "revision": output })),
        ("git.log", json!({ "revision": "--all" })),
        ("git.show", json!({ "revision": output })),
        ("git.show", json!({ "revision": "HEAD:f" })),
        ("git.show", json!({ "revision": "main..other" })),
        ("git.branch", json!({ "branch": "-D" })),
        ("git.branch", json!({ "branch": "../../../x" })),
        ("git.branch", json!({ "branch": "a..b" })),
        ("git.branch", json!({ "branch": "x.lock" })),
        ("git.checkout", json!({ "branch": "--orphan" })),
        ("git.checkout", json!({ "branch": "f" })),
        ("git.add", json!({ "paths": ["../outside"] })),
        ("git.add", json!({ "paths": ["/etc/passwd"] })),
        ("git.add", json!({ "paths": [":/"] })),
        ("git.add", json!({ "paths": ["a\0b"] })),
        ("git.add", json!({ "paths": ["--pathspec-from-file=f"] })),
    ] {
        let before = state(&path);
        assert!(
            bench.call(tool, on(&path, more.clone())).is_err(),
            "{tool} {more}"
        );
        assert_eq!(state(&path), before, "{tool} {more}");
    }
    assert!(!marker.exists());
}

/// A program that leaves a mark.
fn trap(path: &Path, marker: &Path) -> String {
    let script = format!("#!/bin/sh\necho trapped >> '{}'\ncat\n", marker.display());
    fs::write(path, script).unwrap();
    set_mode(path, 0o755);
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_configuration_that_names_a_program_is_refused() {
    let (bench, path) = bench().unwrap();
    let marker = path.join("marker");
    let trap = trap(&path.join("trap"), &marker);
    fs::write(path.join(".gitattributes"), "* filter=t diff=t merge=t\n").unwrap();
    let config = path.join(".git/config");
    let honest = fs::read_to_string(&config).unwrap();
    for (key, value) in [
        ("core.fsmonitor", trap.as_str()),
        ("core.hooksPath", "."),
        ("core.worktree", "/"),
        ("core.pager", &trap),
        ("core.sshCommand", &trap),
        ("core.gitProxy", &trap),
        ("diff.external", &trap),
        ("diff.t.textconv", &trap),
        ("diff.t.command", &trap),
        ("filter.t.clean", &trap),
        ("filter.t.smudge", &trap),
        ("filter.t.process", &trap),
        ("merge.t.driver", &trap),
        ("gpg.program", &trap),
        ("gpg.ssh.program", &trap),
        ("include.path", "/etc/gitconfig"),
        ("includeIf.gitdir:/.path", "/etc/gitconfig"),
        ("extensions.worktreeConfig", "true"),
        ("remote.o.promisor", "true"),
        ("trailer.x.command", &trap),
        ("interactive.diffFilter", &trap),
        ("sequence.editor", &trap),
        ("submodule.s.update", "!sh"),
    ] {
        fs::write(&config, &honest).unwrap();
        git(&path, &["config", "--file", ".git/config", key, value]);
        for (tool, more) in [
            ("git.status", json!({})),
            ("git.diff", json!({})),
            ("git.log", json!({})),
            ("git.add", json!({ "paths": ["f"] })),
            ("git.commit", json!({ "message": "m" })),
            ("git.checkout", json!({ "branch": "other" })),
        ] {
            let refused = bench.call(tool, on(&path, more)).unwrap_err().to_string();
            assert!(
                refused.contains("not known to be harmless"),
                "{key} {tool}: {refused}"
            );
        }
    }
    assert!(!marker.exists());
}

#[test]
fn a_repository_that_leads_elsewhere_shows_nothing_of_it() {
    let (bench, path) = bench().unwrap();
    let outside = bench.scratch.path().join("outside");
    repository(&outside);
    fs::write(outside.join("secret"), "s").unwrap();
    git(&outside, &["add", "secret"]);
    git(&outside, &["commit", "--quiet", "-m", "secret"]);
    git(&outside, &["branch", "secret"]);
    let refused = |path: &Path| {
        let status = bench.call("git.status", on(path, json!({})));
        let status = status.map(|done| done.result.to_string());
        assert!(status.is_err(), "{status:?}");
    };
    // A file, or a link, in the place of .git, and of its configuration.
    let file = bench.data.join("file");
    fs::create_dir(&file).unwrap();
    fs::write(
        file.join(".git"),
        format!("gitdir: {}/.git", outside.display()),
    )
    .unwrap();
    refused(&file);
    let link = bench.data.join("link");
    fs::create_dir(&link).unwrap();
    symlink(outside.join(".git"), link.join(".git")).unwrap();
    refused(&link);
    let config = path.join(".git/config");
    fs::remove_file(&config).unwrap();
    symlink(outside.join(".git/config"), &config).unwrap();
    refused(&path);
    // What says that a part of it is elsewhere, within the directory too, where git could read it.
    for (name, leads) in [
        ("commondir", "../w/.git"),
        ("config.worktree", ""),
        ("objects/info/alternates", "../../w/.git/objects"),
        ("objects/info/http-alternates", ""),
    ] {
        let other = bench.data.join(name.replace('/', "-"));
        repository(&other);
        repository(&other.join("w"));
        fs::create_dir_all(other.join(".git/objects/info")).unwrap();
        fs::write(other.join(".git").join(name), leads).unwrap();
        let status = bench.call("git.status", on(&other, json!({})));
        let refused = status.unwrap_err().to_string();
        assert!(refused.contains("leads elsewhere"), "{name}: {refused}");
    }
    // Deeper ones lead out of the jail, where nothing can be read.
    for name in ["HEAD", "refs", "objects", "commondir", "index"] {
        let other = bench.data.join(format!("deep-{name}"));
        repository(&other);
        let inner = other.join(".git").join(name);
        let _ = fs::remove_file(&inner);
        let _ = fs::remove_dir_all(&inner);
        match name {
            "commondir" => fs::write(&inner, outside.join(".git").to_str().unwrap()).unwrap(),
            _ => symlink(outside.join(".git").join(name), &inner).unwrap(),
        }
        for (tool, more) in [
            ("git.status", json!({})),
            ("git.log", json!({})),
            ("git.log", json!({ "revision": "secret" })),
            ("git.show", json!({})),
            ("git.diff", json!({ "staged": true })),
        ] {
            let shown = bench
                .call(tool, on(&other, more))
                .map(|done| done.result.to_string());
            let shown = shown.unwrap_or_default();
            assert!(!shown.contains("secret"), "{name} {tool}: {shown}");
        }
    }
}

#[test]
fn a_common_directory_that_appears_while_calls_run_is_not_gone_to() {
    let (bench, path) = bench().unwrap();
    let within = path.join("w");
    repository(&within);
    git(&within, &["checkout", "--quiet", "-b", "elsewhere"]);
    git(
        &within,
        &["commit", "--quiet", "--allow-empty", "-m", "elsewhere"],
    );
    let over = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (over, common) = (over.clone(), path.join(".git/commondir"));
        thread::spawn(move || {
            for pause in (0..40).cycle().map(Duration::from_millis) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let _ = fs::remove_file(&common);
                thread::sleep(pause);
                let _ = fs::write(&common, "../w/.git");
                thread::sleep(pause);
            }
        })
    };
    let mut looked = 0;
    for _ in 0..120 {
        let log = bench.call("git.log", on(&path, json!({ "revision": "elsewhere" })));
        let refused = log.unwrap_err().to_string();
        looked += usize::from(refused.contains("git refused"));
    }
    over.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert_ne!(looked, 0, "it was there whenever it was looked for");
}

#[test]
fn before_a_call_is_on_record_git_can_only_read() {
    let programs = tempfile::tempdir().unwrap();
    let (seen, launcher) = (
        programs.path().join("seen"),
        programs.path().join("launcher"),
    );
    let script = format!(
        "#!/bin/sh\necho \"$3\" >> '{}'\nexec '{}' \"$@\"\n",
        seen.display(),
        env!("CARGO_BIN_EXE_bulkhead-tools")
    );
    fs::write(&launcher, script).unwrap();
    set_mode(&launcher, 0o755);
    for (tool, more) in [
        ("git.add", json!({ "paths": ["f"] })),
        ("git.commit", json!({ "message": "m" })),
        ("git.branch", json!({ "branch": "new" })),
        ("git.checkout", json!({ "branch": "other" })),
    ] {
        let bench = Bench::of(Setup {
            programs: &[GIT],
            launcher: launcher.clone(),
            ..Setup::default()
        });
        let path = bench.data.join("repository");
        repository(&path);
        if tool == "git.commit" {
            fs::write(path.join("f"), "changed\n").unwrap();
            git(&path, &["add", "f"]);
        }
        let _ = fs::remove_file(&seen);
        // A ledger without room ends the call where its intent would be on record.
        bench.ledger.room.store(0, Ordering::SeqCst);
        let refused = bench.call(tool, on(&path, more.clone())).unwrap_err();
        assert!(matches!(refused, CallError::NotRecorded(_)), "{refused:?}");
        let launched = fs::read_to_string(&seen).unwrap_or_default();
        assert!(!launched.contains("\"write\":true"), "{tool}: {launched}");
        bench.ledger.room.store(u64::MAX, Ordering::SeqCst);
        bench.call(tool, on(&path, more)).unwrap();
        let launched = fs::read_to_string(&seen).unwrap();
        assert!(launched.contains("\"write\":true"), "{tool}: {launched}");
    }
}

#[test]
fn hooks_and_filters_do_not_run() {
    let (bench, path) = bench().unwrap();
    let marker = path.join("marker");
    for hook in [
        "pre-commit",
        "prepare-commit-msg",
        "commit-msg",
        "post-commit",
        "post-checkout",
        "post-index-change",
        "reference-transaction",
        "pre-auto-gc",
        "fsmonitor-watchman",
    ] {
        trap(&path.join(".git/hooks").join(hook), &marker);
    }
    fs::write(path.join("f"), "changed\n").unwrap();
    bench
        .call("git.add", on(&path, json!({ "paths": ["f"] })))
        .unwrap();
    bench
        .call("git.commit", on(&path, json!({ "message": "m" })))
        .unwrap();
    bench
        .call("git.branch", on(&path, json!({ "branch": "b" })))
        .unwrap();
    bench
        .call("git.checkout", on(&path, json!({ "branch": "other" })))
        .unwrap();
    bench.call("git.status", on(&path, json!({}))).unwrap();
    assert!(!marker.exists());
}

#[test]
fn a_configuration_that_changes_while_calls_run_makes_git_execute_nothing() {
    let (bench, path) = bench().unwrap();
    let marker = path.join("marker");
    let trap = trap(&path.join("trap"), &marker);
    fs::write(path.join(".gitattributes"), "* filter=t\n").unwrap();
    let config = path.join(".git/config");
    let honest = fs::read_to_string(&config).unwrap();
    let hostile = format!(
        "{honest}[filter \"t\"]\n\tclean = {trap}\n\tsmudge = {trap}\n[core]\n\tfsmonitor = {trap}\n"
    );
    let over = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (over, new) = (over.clone(), path.join(".git/new"));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for text in [&honest, &hostile] {
                    fs::write(&new, text).unwrap();
                    fs::rename(&new, &config).unwrap();
                }
            }
        })
    };
    let mut done = 0;
    for number in 0..40 {
        fs::write(path.join("f"), format!("{number}\n")).unwrap();
        let added = bench.call("git.add", on(&path, json!({ "paths": ["f"] })));
        done += usize::from(added.is_ok());
    }
    over.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(!marker.exists(), "after {done} that worked");
}

#[test]
fn every_reversible_tool_of_the_family_has_a_case() {
    let registry = tools::Registry::new().unwrap();
    let reversible = registry.iter().filter(|tool| tool.facts.rollback.is_some());
    let names = reversible.map(|tool| tool.facts.name);
    let names: Vec<_> = names.filter(|name| name.starts_with("git.")).collect();
    assert_eq!(
        names,
        ["git.add", "git.branch", "git.checkout", "git.commit"]
    );
}

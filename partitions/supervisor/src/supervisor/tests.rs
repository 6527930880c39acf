//! Systems from start to end, with shell scripts in the place of the VMM: no KVM is needed.
//!
//! A script finds its control socket in the description that it inherits, as a VMM does, and
//! speaks by `printf`: one write is one packet. It is for bash, since a plain shell redirects only to
//! descriptors below ten.

use super::*;
use crate::control::status;
use crate::down::down;
use crate::end::STATUS_STOPPED;
use crate::state_dir::Standing;
use bulkhead_machine::control::Ended;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

/// Longest wait for something that takes milliseconds: it tells a hang from a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Finds the descriptors of a VMM in its description.
const PRELUDE: &str = r#"#!/bin/bash
text=$(cat /proc/self/fd/$2)
number() { echo "$text" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
control=$(number control) output=$(number output)
running() { printf '{"event":"running","jail_gaps":["x"]}' >&"$control"; }
ended() { printf '{"event":"ended","how":{"how":"exit","status":%d}}' "$1" >&"$control"; }
"#;

struct House {
    dir: TempDir,
    library: Library,
    root: StateRoot,
}

impl House {
    /// A library whose VMM is `script`.
    fn new(script: &str) -> Self {
        let dir = tempdir().unwrap();
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        let mut options = File::options();
        let vmm = options.write(true).create(true).mode(0o755);
        let mut vmm = vmm.open(lib.join("bulkhead-vmm")).unwrap();
        vmm.write_all(format!("{PRELUDE}{script}\n").as_bytes())
            .unwrap();
        for name in ["kernel", "linux-personality"] {
            fs::write(lib.join(name), "x").unwrap();
        }
        let library = Library::at(&lib).unwrap();
        // The socket's path has to be short, whatever the place of temporary files is.
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        Self { dir, library, root }
    }

    fn start(&self, names: &[&str], keep_logs: bool) -> Supervisor {
        let mut text = "name = \"test\"\n".to_owned();
        for name in names {
            text += &format!(
                "[[partition]]\nname = \"{name}\"\nkernel = \"linux-abi\"\n\
                 command = [\"/x\"]\ngrants = [\"console\"]\n"
            );
        }
        let system = bulkhead_manifest::parse(text.as_bytes(), Path::new("system.toml")).unwrap();
        let kvm = File::open("/dev/null").unwrap();
        let options = Options {
            consoles: Consoles::Logged,
            jail: Jail::None,
            keep_logs,
            gdb: None,
        };
        Supervisor::start_on(&kvm, None, &system, &self.root, &self.library, options).unwrap()
    }

    fn log(&self, partition: &str) -> String {
        let path = self.dir.path().join(format!("s/test/{partition}.log"));
        fs::read_to_string(path).unwrap()
    }

    fn is_clean(&self) -> bool {
        !self.dir.path().join("s").exists()
    }
}

/// Waits for the system without ever sending it a signal.
fn wait(supervisor: Supervisor) -> Outcome {
    let (signals, _silent) = io::pipe().unwrap();
    supervisor.wait(signals, || {}).unwrap()
}

fn ends(outcome: &Outcome) -> Vec<u8> {
    outcome.ends.iter().map(|(_, end)| end.status()).collect()
}

#[test]
fn statuses_and_output_arrive_and_nothing_stays() {
    let house = House::new("running; echo hello >&$output; ended 7");
    let outcome = wait(house.start(&["a", "b"], false));
    assert_eq!((ends(&outcome), outcome.cause), (vec![7, 7], None));
    assert!(house.is_clean());
}

#[test]
fn logs_are_kept_when_asked_for() {
    let house = House::new("running; echo hello >&$output; ended 7");
    let _ = wait(house.start(&["a", "b"], true));
    assert_eq!(house.log("a"), "hello\n");
    let found = house.root.find("test").unwrap();
    assert_eq!(found.standing, Standing::Finished);
    let record = status(&found);
    assert!(record.finished);
    let partition = &record.partitions[1];
    assert_eq!(
        (partition.state, partition.status),
        (State::Terminated, Some(7))
    );
    assert_eq!(partition.jail_gaps, ["x"]);
    down(&house.root, &found).unwrap();
    assert!(house.is_clean());
}

#[test]
fn a_failure_before_the_guest_runs_ends_the_whole_system() {
    let failed = r#"{"event":"failed","code":"kernel-truncated","message":"two\nlines"}"#;
    let script = format!(
        "case \"$text\" in *'\"name\":\"a\"'*) printf '%s' '{failed}' >&\"$control\"; exit 125;; esac\n\
         running; exec sleep 1000"
    );
    let house = House::new(&script);
    let outcome = wait(house.start(&["a", "b"], true));
    assert_eq!(outcome.cause, Some(Cause::Incomplete));
    assert_eq!(
        outcome.ends[0].1,
        End::Failed {
            code: "kernel-truncated".to_owned(),
            message: "two".to_owned()
        }
    );
    assert_eq!(outcome.ends[1].1, End::Ended(Ended::Stopped));
    assert!(house.is_clean());
}

#[test]
fn a_vmm_that_dies_without_a_word_is_told() {
    let house = House::new("running; echo last words >&2; kill -9 $$");
    let outcome = wait(house.start(&["a"], false));
    let told = End::Vanished("was killed by signal 9: last words".to_owned());
    assert_eq!(outcome.ends, [("a".to_owned(), told)]);
    assert_eq!(ends(&outcome), [125]);
}

#[test]
fn nonsense_on_the_control_socket_is_no_word() {
    let house = House::new("printf nonsense >&\"$control\"; running; ended 0; exit 5");
    let outcome = wait(house.start(&["a"], false));
    assert!(matches!(&outcome.ends[0].1, End::Vanished(how) if how == "exited with status 5"));
}

#[test]
fn a_vmm_that_says_it_ended_and_stays_is_killed() {
    let house = House::new("running; ended 3; exec sleep 1000");
    let begun = Instant::now();
    assert_eq!(ends(&wait(house.start(&["a"], false))), [3]);
    assert!(begun.elapsed() < PATIENCE);
}

/// Starts a system that would run for ever, and gives back how it ended once `act` has acted.
fn ended_by(house: &House, act: impl FnOnce(&House, &mut dyn Write)) -> Outcome {
    let supervisor = house.start(&["a", "b"], true);
    let (signals, mut send) = io::pipe().unwrap();
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let waiting = scope.spawn(move || {
            supervisor
                .wait(signals, move || ready.send(()).unwrap())
                .unwrap()
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        act(house, &mut send);
        waiting.join().unwrap()
    })
}

#[test]
fn a_signal_ends_a_vmm_that_does_not_listen() {
    let house = House::new("trap '' TERM INT; running; exec sleep 1000");
    let begun = Instant::now();
    let outcome = ended_by(&house, |_, signals| signals.write_all(&[15]).unwrap());
    assert_eq!(outcome.cause, Some(Cause::Signal(15)));
    assert_eq!(ends(&outcome), [STATUS_STOPPED; 2]);
    assert!(begun.elapsed() < PATIENCE);
    assert!(house.is_clean(), "what was stopped leaves no logs");
}

#[test]
fn down_ends_a_system_from_outside() {
    let house = House::new("running; exec sleep 1000");
    let outcome = ended_by(&house, |house, _| {
        let found = house.root.find("test").unwrap();
        assert_eq!(found.standing, Standing::Live);
        let record = status(&found);
        assert!(
            record
                .partitions
                .iter()
                .all(|partition| partition.state == State::Running)
        );
        // This process is the supervisor: it answers, and has to be given time, not killed.
        let socket = std::os::unix::net::UnixStream::connect(found.socket()).unwrap();
        (&socket).write_all(b"{\"request\":\"down\"}\n").unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Request));
    assert!(house.is_clean());
}

#[test]
fn nonsense_on_the_systems_socket_is_ignored() {
    let house = House::new("running; exec sleep 1000");
    let outcome = ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        for text in ["", "\n", "nonsense\n", "{\"request\":\"explode\"}\n", "{"] {
            let mut socket = std::os::unix::net::UnixStream::connect(found.socket()).unwrap();
            socket.write_all(text.as_bytes()).unwrap();
        }
        assert!(
            status(&found)
                .partitions
                .iter()
                .all(|partition| partition.status.is_none())
        );
        signals.write_all(&[2]).unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Signal(2)));
}

#[test]
fn a_second_system_of_the_same_name_is_refused_and_harms_nobody() {
    let house = House::new("running; exec sleep 1000");
    let first = house.start(&["a"], false);
    let pid = first.members[0].vmm.process.pid();
    assert_eq!(
        house.root.create("test").unwrap_err().code(),
        "already-running"
    );
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(first);
    assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    assert!(house.is_clean());
}

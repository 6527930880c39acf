//! The emergency stop: everything of a partition stands still, whether it helps or not, and goes on.

use super::*;
use crate::control::{Request, ask};
use crate::record::SystemRecord;

/// This process is the supervisor, so it is asked as `halt_all` asks, and never killed.
fn request(house: &House, request: &Request) -> SystemRecord {
    let found = house.root.find("test").unwrap();
    ask(&found, request, PATIENCE).unwrap()
}

/// `T` while a process is stopped.
fn is_frozen(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.starts_with('T')
}

/// Waits until signals that were sent have been taken.
fn expect_frozen(pids: &[u32], frozen: bool) {
    let end = Instant::now() + PATIENCE;
    while pids.iter().any(|pid| is_frozen(*pid) != frozen) {
        assert!(Instant::now() < end, "{pids:?} should be frozen: {frozen}");
        thread::sleep(Duration::from_millis(2));
    }
}

const GATEWAY: &str = "grants = [\"net.connect:a.org:80\"]\ntransport = \"pci\"";

/// A partition with a gateway, and the processes of both.
fn with_gateway(script: &str) -> (House, Supervisor, Vec<u32>) {
    let house = House::new(script);
    let gateway = house.library.path().join("bulkhead-gateway");
    program(&gateway, "#!/bin/sh\nexec sleep 1000\n");
    let supervisor = house.start_linux(GATEWAY, false);
    let member = &supervisor.members[0];
    let backends = member.backends.iter().map(|backend| backend.process.pid());
    let pids = backends.chain([member.vmm.process.pid()]).collect();
    (house, supervisor, pids)
}

#[test]
fn everything_stands_still_and_goes_on() {
    let (house, supervisor, pids) = with_gateway(
        "running; request >$0.1; reply 1 '{\"reply\":\"done\"}'; \
         request >$0.2; reply 2 '{\"reply\":\"done\"}'; exec sleep 1000",
    );
    assert_eq!(pids.len(), 2);
    let outcome = watched(&house, supervisor, |house, signals| {
        house.root.halt().unwrap();
        let record = request(house, &Request::Halt);
        assert!(record.halted);
        assert_eq!(record.partitions[0].state, State::Suspended);
        expect_frozen(&pids, true);
        // A second time it is so already.
        assert!(request(house, &Request::Halt).halted);
        let found = house.root.find("test").unwrap();
        for what in [Act::Resume, Act::Stats, Act::Attach(NewDevice::default())] {
            let Answer::Refused { code, .. } = act(&found, "a", what).unwrap() else {
                panic!("while everything is halted nothing is done")
            };
            assert_eq!(code, "halted");
        }
        let error = house.try_start("name = \"other\"\n[[partition]]\nname = \"a\"\nkernel = \"linux-abi\"\ncommand = [\"/x\"]\n", false);
        assert_eq!(error.unwrap_err().code(), "halted");
        house.root.go_on().unwrap();
        assert!(!request(house, &Request::GoOn).halted);
        expect_frozen(&pids, false);
        let end = Instant::now() + PATIENCE;
        while status(&found).partitions[0].state != State::Running {
            assert!(Instant::now() < end, "it does not go on");
            thread::sleep(Duration::from_millis(2));
        }
        signals.write_all(&[2]).unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Signal(2)));
    let asked = |number: u32| {
        let path = house.library.path().join(format!("bulkhead-vmm.{number}"));
        fs::read_to_string(path).unwrap()
    };
    assert_eq!(asked(1), r#"{"id":1,"command":"pause"}"#);
    assert_eq!(asked(2), r#"{"id":2,"command":"resume"}"#);
    assert!(house.is_clean());
}

/// A process that has ended, or is about to.
fn expect_gone(pid: u32) {
    let end = Instant::now() + PATIENCE;
    // What was killed may not have been waited for.
    let goes_on = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    while goes_on() {
        assert!(Instant::now() < end, "{pid} goes on");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn programs_that_tools_started_are_ended_and_the_tools_go_on() {
    let house = House::new("running; while :; do :; done");
    let tools = house.library.path().join("bulkhead-gateway");
    program(
        &tools,
        "#!/bin/bash\nsleep 1000 & echo $! >$0.new; mv $0.new $0.child\n\
         wait; touch $0.told; exec sleep 1000\n",
    );
    let mut supervisor = house.start_linux(GATEWAY, false);
    let backend = &mut supervisor.members[0].backends[0];
    backend.kind = crate::backend::Kind::Tools;
    let pid = backend.process.pid();
    let (child, told) = ["child", "told"]
        .map(|name| tools.with_extension(name))
        .into();
    watched(&house, supervisor, |house, signals| {
        let end = Instant::now() + PATIENCE;
        while !child.exists() {
            assert!(Instant::now() < end, "it does not start");
            thread::sleep(Duration::from_millis(2));
        }
        let child: u32 = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
        assert!(!is_frozen(child) && !is_frozen(pid));
        request(house, &Request::Halt);
        expect_gone(child);
        assert!(is_frozen(pid) && !told.exists());
        request(house, &Request::GoOn);
        while !told.exists() {
            assert!(Instant::now() < end, "it does not go on");
            thread::sleep(Duration::from_millis(2));
        }
        signals.write_all(&[2]).unwrap();
    });
}

#[test]
fn a_vmm_that_does_not_answer_is_frozen_all_the_same() {
    let (house, supervisor, pids) = with_gateway("running; while :; do :; done");
    let outcome = watched(&house, supervisor, |house, signals| {
        let record = request(house, &Request::Halt);
        assert!(record.halted);
        assert_eq!(
            record.partitions[0].state,
            State::Running,
            "it never said that it paused"
        );
        expect_frozen(&pids, true);
        request(house, &Request::GoOn);
        expect_frozen(&pids, false);
        request(house, &Request::Halt);
        expect_frozen(&pids, true);
        // What is frozen can be ended.
        signals.write_all(&[2]).unwrap();
    });
    assert_eq!(ends(&outcome), [STATUS_STOPPED]);
    assert!(house.is_clean());
}

#[test]
fn a_partition_that_was_paused_stays_so() {
    let (house, supervisor, pids) = with_gateway(
        "running; request >/dev/null; reply 1 '{\"reply\":\"done\"}'; request >$0.2; exec sleep 1000",
    );
    watched(&house, supervisor, |house, signals| {
        let found = house.root.find("test").unwrap();
        act(&found, "a", Act::Pause).unwrap();
        request(house, &Request::Halt);
        expect_frozen(&pids, true);
        let record = request(house, &Request::GoOn);
        expect_frozen(&pids, false);
        assert_eq!(record.partitions[0].state, State::Suspended);
        signals.write_all(&[2]).unwrap();
    });
    let asked = fs::read_to_string(house.library.path().join("bulkhead-vmm.2")).unwrap();
    assert!(!asked.contains("resume"), "{asked}");
}

#[test]
fn a_partition_that_does_not_run_yet_does_not_begin_to() {
    let house = House::new("while ! test -e $0.go; do sleep 0.01; done; running; ended 4");
    let supervisor = house.start(&["a"], false);
    let pid = supervisor.members[0].vmm.process.pid();
    let (signals, _silent) = io::pipe().unwrap();
    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(move || supervisor.wait(signals, || {}).unwrap());
        let record = request(&house, &Request::Halt);
        assert_eq!(record.partitions[0].state, State::Isolated);
        expect_frozen(&[pid], true);
        fs::write(house.library.path().join("bulkhead-vmm.go"), "").unwrap();
        thread::sleep(Duration::from_millis(100));
        let found = house.root.find("test").unwrap();
        assert_eq!(status(&found).partitions[0].state, State::Isolated);
        request(&house, &Request::GoOn);
        waiting.join().unwrap()
    });
    assert_eq!(ends(&outcome), [4]);
}

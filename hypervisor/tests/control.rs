//! The control socket of the built VMM, on this machine's KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use bulkhead_machine::Fd;
use bulkhead_machine::control::{Command, Ended, Event, Reply, Resize, Stats};
use harness::{Vmm, chatterbox, counter};

/// Long enough for a guest that runs to say something.
const A_WHILE: Duration = Duration::from_millis(100);

tests! {
    "true":
    a_file_that_cannot_hold_a_dump_changes_nothing
    a_dump_of_a_running_guest_is_answered_late_and_a_stop_does_not_wait_for_it
    a_paused_guest_is_silent_and_goes_on
    a_guest_without_exits_is_paused_and_stopped
    output_that_nobody_reads_refuses_a_pause_and_changes_nothing
    requests_are_answered_in_their_order
    what_is_not_there_is_refused_and_garbage_with_a_number_is_answered
    descriptors_beyond_what_is_allowed_are_refused_and_do_no_harm
    garbage_without_a_number_ends_the_partition_with_its_code
    a_supervisor_that_leaves_a_paused_partition_ends_it
}

fn stats(vmm: &mut Vmm) -> Stats {
    match vmm.request(Command::Stats, &[]) {
        Reply::Stats(stats) => stats,
        other => panic!("{other:?}"),
    }
}

fn code(reply: Reply) -> String {
    match reply {
        Reply::Refused { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn a_paused_guest_is_silent_and_goes_on() {
    let mut vmm = Vmm::start(&chatterbox(), |_| {});
    for _ in 0..3 {
        vmm.read_console(1000);
        vmm.demand(Command::Pause);
        vmm.demand(Command::Pause);
        vmm.drain_console();
        assert!(!vmm.has_output(A_WHILE), "it says something while paused");
        let before = stats(&mut vmm);
        assert!(before.paused);
        assert_eq!(stats(&mut vmm), before, "nothing moves");
        vmm.demand(Command::Resume);
        vmm.demand(Command::Resume);
        vmm.read_console(1000);
        let after = stats(&mut vmm);
        assert!(!after.paused);
        assert!(after.vcpu_exits[0] > before.vcpu_exits[0] + 900);
    }
    vmm.stop();
}

fn a_guest_without_exits_is_paused_and_stopped() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    vmm.read_console(1);
    vmm.demand(Command::Pause);
    vmm.demand(Command::Resume);
    vmm.demand(Command::Pause);
    vmm.stop();
}

fn output_that_nobody_reads_refuses_a_pause_and_changes_nothing() {
    let mut vmm = Vmm::start(&chatterbox(), |_| {});
    // The pipe is full when the guest makes no more exits.
    let mut before = stats(&mut vmm).vcpu_exits;
    loop {
        std::thread::sleep(A_WHILE);
        let now = stats(&mut vmm).vcpu_exits;
        if now == before && now[0] > 0 {
            break;
        }
        before = now;
    }
    assert_eq!(code(vmm.request(Command::Pause, &[])), "vcpu-busy");
    assert!(!stats(&mut vmm).paused);
    vmm.read_console(200_000);
    vmm.stop();
}

fn requests_are_answered_in_their_order() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    let mut asked = Vec::new();
    for round in 0..100 {
        let command = match round % 3 {
            0 => Command::Pause,
            1 => Command::Stats,
            _ => Command::Resume,
        };
        asked.push(vmm.ask(command, &[]));
    }
    for want in asked {
        match vmm.event() {
            Event::Reply { id, .. } => assert_eq!(id, want),
            other => panic!("{other:?}"),
        }
    }
    vmm.stop();
}

fn what_is_not_there_is_refused_and_garbage_with_a_number_is_answered() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    for resize in [
        Resize::Balloon { target_mib: 1 },
        Resize::Memory { pluggable_mib: 1 },
        Resize::Block {
            name: "none".into(),
        },
        Resize::Console {
            columns: 80,
            rows: 25,
        },
    ] {
        let reply = vmm.request(Command::Resize(resize), &[]);
        assert_eq!(code(reply), "device-unknown");
    }
    for text in [&br#"{"id":77,"command":"fly"}"#[..], br#"{"id":77}"#] {
        vmm.send(text, &[]);
        match vmm.event() {
            Event::Reply { id: 77, outcome } => assert_eq!(code(outcome), "command-invalid"),
            other => panic!("{other:?}"),
        }
    }
    vmm.demand(Command::Pause);
    vmm.stop();
}

fn descriptors_beyond_what_is_allowed_are_refused_and_do_no_harm() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    let null = File::open("/dev/null").unwrap();
    for count in [1, 64, 80] {
        for _ in 0..10 {
            let fds = vec![null.as_fd(); count];
            // Whether so many fit or not, there is an answer, and nothing stays open.
            vmm.request(Command::Stats, &fds);
        }
    }
    let open = format!("/proc/{}/fd", vmm.child.id());
    let nulls = std::fs::read_dir(open)
        .map(|all| {
            all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .filter(|target| target.as_os_str() == "/dev/null")
                .count()
        })
        .unwrap_or(0);
    assert!(nulls <= 1, "{nulls} stay open");
    vmm.stop();
}

fn garbage_without_a_number_ends_the_partition_with_its_code() {
    for text in [&b"\xff\xfe"[..], b"[]", &vec![b' '; 70_000]] {
        let vmm = Vmm::start(&counter(), |_| {});
        vmm.send(text, &[]);
        match vmm.end() {
            (Event::Failed { code, .. }, status) => {
                assert_eq!(
                    (code.as_str(), status.code()),
                    ("control-invalid", Some(125))
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

fn a_supervisor_that_leaves_a_paused_partition_ends_it() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    vmm.demand(Command::Pause);
    rustix::net::shutdown(&vmm.control, rustix::net::Shutdown::Write).unwrap();
    let how = Ended::Stopped;
    assert_eq!(vmm.end().0, Event::Ended { how });
}

fn a_file_that_cannot_hold_a_dump_changes_nothing() {
    let mut vmm = Vmm::start(&counter(), |_| {});
    let null = File::open("/dev/null").unwrap();
    let command = Command::Dump { file: Fd(0) };
    let reply = vmm.request(command.clone(), &[null.as_fd()]);
    assert_eq!(code(reply), "dump-failed");
    assert_eq!(code(vmm.request(command, &[])), "descriptor-closed");
    assert!(!stats(&mut vmm).paused);
    vmm.stop();
}

fn a_dump_of_a_running_guest_is_answered_late_and_a_stop_does_not_wait_for_it() {
    let mut vmm = Vmm::start(&counter(), |description| description.memory.mib = 4096);
    let dump = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let fds = [dump.as_file().as_fd()];
    let command = Command::Dump { file: Fd(0) };
    let asked = vmm.ask(command.clone(), &fds);
    assert_eq!(code(vmm.request(command, &fds)), "dump-running");
    vmm.demand(Command::Pause);
    match vmm.event() {
        Event::Reply {
            id,
            outcome: Reply::Dumped { vcpus, .. },
        } => assert_eq!((id, vcpus.len()), (asked, 1)),
        other => panic!("{other:?}"),
    }
    assert!(stats(&mut vmm).paused);
    vmm.ask(Command::Dump { file: Fd(0) }, &fds);
    vmm.stop();
}

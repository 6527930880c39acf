//! A stock gdb on the built VMM, on this machine's KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command as Process;

use bulkhead_machine::Fd;
use bulkhead_machine::control::{Command, Ended, Event, Reply};
use harness::{CODE, Vmm, counter, guest, inherit};

tests! {
    "gdb":
    a_dump_is_a_sparse_core_file_for_gdb
    a_debugger_steps_breaks_and_lets_the_guest_end
    a_debugger_interrupts_a_guest_that_makes_no_exits
    a_debugger_that_detaches_lets_the_guest_go_on
    a_debugger_that_kills_stops_the_partition
    the_guest_stands_still_until_the_debugger_comes
    a_pause_holds_while_a_debugger_says_go
}

/// Counts `ecx` to 3, one instruction a step, then ends with the status 7.
fn three_rounds() -> Vec<u8> {
    guest(&[
        0x31, 0xc9, // 0: xor ecx, ecx
        0x41, // 2: inc ecx
        0x83, 0xf9, 0x03, // 3: cmp ecx, 3
        0x75, 0xfa, // 6: jne 2
        0x66, 0xba, 0xf4, 0x00, // 8: mov dx, EXIT_PORT
        0xb0, 0x07, // c: mov al, 7
        0xee, // e: out dx, al
        0xeb, 0xfe, // f: jmp $
    ])
}

struct Debugged {
    vmm: Vmm,
    socket: vmm_sys_util::tempfile::TempFile,
}

fn debugged(kernel: &[u8]) -> Debugged {
    let socket = vmm_sys_util::tempfile::TempFile::new().unwrap();
    std::fs::remove_file(socket.as_path()).unwrap();
    let listener = inherit(UnixListener::bind(socket.as_path()).unwrap());
    let fd = Fd(listener.as_raw_fd());
    let vmm = Vmm::start(kernel, |description| description.gdb = Some(fd));
    Debugged { vmm, socket }
}

impl Debugged {
    /// Runs gdb with `commands`; what it says.
    fn gdb(&self, commands: &[&str]) -> String {
        let remote = format!("target remote {}", self.socket.as_path().display());
        let mut gdb = Process::new("timeout");
        gdb.args([
            "60",
            "gdb",
            "-q",
            "-nx",
            "-batch",
            "-ex",
            "set arch i386:x86-64",
        ]);
        gdb.args(["-ex", &remote]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let output = gdb.output().expect("gdb; apt-get install gdb");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[track_caller]
fn expect(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else {
            panic!("{part:?} is not where it should be in:\n{text}");
        };
        rest = &rest[at + part.len()..];
    }
}

fn a_debugger_steps_breaks_and_lets_the_guest_end() {
    let debugged = debugged(&three_rounds());
    let at = |offset: u64| format!("pc={:#x}", CODE + offset);
    let breakpoint = format!("break *{:#x}", CODE + 6);
    let (pc, rcx) = (r#"printf "pc=%#lx\n", $pc"#, r#"printf "rcx=%ld\n", $rcx"#);
    let text = debugged.gdb(&[
        pc,
        "stepi",
        "stepi",
        pc,
        rcx,
        &breakpoint,
        "continue",
        pc,
        "continue",
        rcx,
        "set $rcx = 2",
        &format!("set *(unsigned char *){:#x} = 9", CODE + 13),
        "delete",
        "info threads",
        "monitor registers",
        "monitor what",
        "x/4xb 0x80000000",
        "continue",
    ]);
    let at = [at(0), at(3), at(6)];
    expect(
        &text,
        &[
            &at[0],
            &at[1],
            "rcx=1",
            "Breakpoint 1",
            &at[2],
            "Breakpoint 1",
            "rcx=2",
            "Thread 1.1",
            "exited with code 011",
        ],
    );
    let rest = ["vcpu0: cr0=0x11", "control registers"];
    expect(&text, &rest);
    expect(&text, &["Cannot access memory"]);
    let how = Ended::Exit { status: 9 };
    assert_eq!(debugged.vmm.end().0, Event::Ended { how });
}

fn a_debugger_interrupts_a_guest_that_makes_no_exits() {
    // Ctrl-C as gdb sends it: on a terminal that a test has not.
    let debugged = debugged(&harness::counter());
    let mut gdb = UnixStream::connect(debugged.socket.as_path()).unwrap();
    gdb.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    for _ in 0..3 {
        gdb.write_all(b"$c#63").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        gdb.write_all(&[3]).unwrap();
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains("T02thread:") {
            let mut byte = [0];
            gdb.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        gdb.write_all(b"+").unwrap();
    }
    drop(gdb);
    debugged.vmm.stop();
}

fn a_debugger_that_detaches_lets_the_guest_go_on() {
    let mut debugged = debugged(&harness::chatterbox());
    for _ in 0..3 {
        let text = debugged.gdb(&["stepi", "hbreak *0x100006", "continue", "detach"]);
        expect(&text, &["Breakpoint 1", "detached"]);
        // A breakpoint that stayed would leave silence after the first.
        debugged.vmm.read_console(100_000);
    }
    debugged.vmm.stop();
}

fn a_debugger_that_kills_stops_the_partition() {
    let debugged = debugged(&harness::counter());
    debugged.gdb(&["stepi", "kill"]);
    let how = Ended::Stopped;
    assert_eq!(debugged.vmm.end().0, Event::Ended { how });
}

fn the_guest_stands_still_until_the_debugger_comes() {
    let mut debugged = debugged(&harness::counter());
    assert!(
        !debugged
            .vmm
            .has_output(std::time::Duration::from_millis(200))
    );
    // Meanwhile the supervisor is served, and a stop works.
    debugged.vmm.demand(Command::Pause);
    debugged.vmm.demand(Command::Resume);
    assert!(
        !debugged
            .vmm
            .has_output(std::time::Duration::from_millis(200))
    );
    debugged.vmm.stop();
}

fn a_pause_holds_while_a_debugger_says_go() {
    let mut debugged = debugged(&harness::counter());
    debugged.vmm.demand(Command::Pause);
    debugged.gdb(&["detach"]);
    assert!(
        !debugged
            .vmm
            .has_output(std::time::Duration::from_millis(200))
    );
    debugged.vmm.demand(Command::Resume);
    debugged.vmm.read_console(1);
    debugged.vmm.stop();
}

fn a_dump_is_a_sparse_core_file_for_gdb() {
    let mut vmm = Vmm::start(&counter(), |description| description.memory.mib = 300);
    vmm.read_console(1);
    let dump = vmm_sys_util::tempfile::TempFile::new().unwrap();
    vmm.demand(Command::Pause);
    let fds = [dump.as_file().as_fd()];
    let command = Command::Dump { file: Fd(0) };
    let Reply::Dumped { regions, vcpus } = vmm.request(command, &fds) else {
        panic!("no dump");
    };
    bulkhead_dump::finish(dump.as_file(), &regions, &vcpus).unwrap();
    vmm.demand(Command::Resume);
    let metadata = dump.as_file().metadata().unwrap();
    assert!(metadata.len() > 300 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "holes");
    let mut gdb = Process::new("gdb");
    gdb.args(["-q", "-nx", "-batch", "-ex", "set arch i386:x86-64", "-ex"]);
    gdb.arg(format!("target core {}", dump.as_path().display()));
    gdb.args(["-ex", "info registers rip", "-ex", "info threads"]);
    gdb.args(["-ex", "x/4xb 0x100000", "-ex", "x/1xb 0x12bfffff"]);
    let output = gdb.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [
        "0x10000",
        "0x66\t0xba\t0xf8\t0x03",
        "0x12bfffff:\t0x00",
        "* 1",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    vmm.stop();
}

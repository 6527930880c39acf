//! The jail of `bulkhead-gateway`, from inside: each test starts this program again, which enters the
//! jail and dies of what it may not do. A harness of its own: see the subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../hypervisor/tests/subject/mod.rs"]
mod subject;

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use bulkhead_network::{Fd, Jail, Loopback, NetworkDescription, Protocol};
use gateway::jail;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use subject::{Subject, case, check, dies, say};

fn main() -> ExitCode {
    match case() {
        Some(case) => inside(&case),
        None => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// Enters the jail of a gateway for the port behind the act's name, then acts.
fn inside(case: &str) -> ExitCode {
    let (act, port) = case.rsplit_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();
    let mut description = NetworkDescription::new("test", Fd(-1), [2, 0, 0, 0, 0, 1], Jail::Full);
    description.loopback = vec![Loopback {
        protocol: Protocol::Tcp,
        port: 80,
        host_port: port,
    }];
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other_port = other.local_addr().unwrap().port();
    // SAFETY: this asks for the newest ABI and touches no memory.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    let parent = i64::from(rustix::process::getppid().unwrap().as_raw_pid());
    if let Err(error) = jail::enter(&description).and_then(jail::seal) {
        say("error", error);
        return ExitCode::SUCCESS;
    }
    let reaches = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    match act {
        "nothing" => {}
        "connect" => {
            say("port", reaches(port));
            // Landlock knows TCP ports from ABI 4 on.
            say("other", abi >= 4 && reaches(other_port));
        }
        "datagram" => call(libc::SYS_socket, [2, 2, 0, 0]),
        "open" => drop(std::fs::File::open("/")),
        "local socket" => drop(UnixDatagram::unbound()),
        "raw socket" => call(libc::SYS_socket, [2, 3, 1, 0]),
        "listen" => drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))),
        "bind" => drop(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))),
        "option" => call(libc::SYS_setsockopt, [0, 1, libc::SO_MARK.into(), 0]),
        "exec" => drop(Command::new("/bin/true").exec()),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        "kill" => call(libc::SYS_kill, [parent, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent, 0, 0]),
        "unshare" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]),
        "map code" => {
            let code = libc::PROT_READ | libc::PROT_EXEC;
            call(libc::SYS_mmap, [0, 4096, code.into(), 0x22]);
        }
        other => panic!("no act {other}"),
    }
    say("survived", 1);
    ExitCode::SUCCESS
}

fn call(number: i64, [a, b, c, d]: [i64; 4]) {
    // SAFETY: none of the calls above reads or writes memory of this process.
    unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
}

fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::ignorable_test("a gateway reaches the ports of its rules alone", || {
            on_a_port("connect", |case| {
                let facts = [("port", "true"), ("other", "false"), ("survived", "1")];
                Subject::start(case, None).expect(&facts)
            })
        }),
        Trial::ignorable_test("a gateway may send datagrams", || {
            on_a_port("datagram", survives)
        }),
    ];
    for act in [
        "open",
        "local socket",
        "raw socket",
        "listen",
        "bind",
        "option",
        "exec",
        "thread",
        "kill",
        "ptrace",
        "unshare",
        "map code",
    ] {
        let title = format!("a gateway dies of {act}");
        trials.push(Trial::ignorable_test(title, move || on_a_port(act, dies)));
    }
    trials
}

fn survives(case: &str) -> Result<(), Failed> {
    Subject::start(case, None).expect(&[("survived", "1")])
}

/// Tries `act` where the jail can be whole, with a port of the host to connect to.
fn on_a_port(
    act: &str,
    test: impl FnOnce(&str) -> Result<(), Failed>,
) -> Result<Completion, Failed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let nothing = Subject::start(&format!("nothing {port}"), None);
    if let Some(reason) = nothing.facts.get("error") {
        return Ok(Completion::ignored_with(reason.clone()));
    }
    nothing.expect(&[("survived", "1")])?;
    check(nothing.end().success(), "the subject failed")?;
    test(&format!("{act} {port}"))?;
    Ok(Completion::Completed)
}

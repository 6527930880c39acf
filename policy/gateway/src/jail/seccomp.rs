//! The seccomp filter: the system calls of the event loop, and why; anything else kills the
//! process. docs/network.md shows this table, and a test fails where the two differ.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// One allowed system call.
#[cfg_attr(not(test), expect(dead_code, reason = "the table shows the rest"))]
struct Rule {
    /// Its constant in libc.
    constant: &'static str,
    number: i64,
    /// What it may be called with; any of these, and anything where there is none.
    alternatives: &'static [&'static [Argument]],
    reason: &'static str,
}

/// A condition on an argument, counted from 0, as 32 bits.
#[cfg_attr(not(test), expect(dead_code, reason = "the table shows the rest"))]
struct Argument {
    index: u8,
    /// As the table shows it.
    shown: &'static str,
    /// The bits that are compared.
    mask: u64,
    value: u64,
}

const fn is(index: u8, shown: &'static str, value: i32) -> Argument {
    Argument {
        index,
        shown,
        mask: u32::MAX as u64,
        value: value as u64,
    }
}

const ANY: &[&[Argument]] = &[];
/// Without `PROT_EXEC`.
const NO_CODE: &[&[Argument]] = &[&[Argument {
    index: 2,
    shown: "no PROT_EXEC",
    mask: libc::PROT_EXEC as u64,
    value: 0,
}]];
/// The socket's type without its flags.
const fn kind(shown: &'static str, value: i32) -> Argument {
    Argument {
        index: 1,
        shown,
        mask: 0xf,
        value: value as u64,
    }
}
const INTERNET: &[&[Argument]] = &[
    &[
        is(0, "AF_INET", libc::AF_INET),
        kind("SOCK_STREAM", libc::SOCK_STREAM),
    ],
    &[
        is(0, "AF_INET", libc::AF_INET),
        kind("SOCK_DGRAM", libc::SOCK_DGRAM),
    ],
    &[
        is(0, "AF_INET6", libc::AF_INET6),
        kind("SOCK_STREAM", libc::SOCK_STREAM),
    ],
    &[
        is(0, "AF_INET6", libc::AF_INET6),
        kind("SOCK_DGRAM", libc::SOCK_DGRAM),
    ],
];
const SETTINGS: &[&[Argument]] = &[
    &[
        is(1, "IPPROTO_TCP", libc::IPPROTO_TCP),
        is(2, "TCP_NODELAY", libc::TCP_NODELAY),
    ],
    &[
        is(1, "SOL_SOCKET", libc::SOL_SOCKET),
        is(2, "SO_LINGER", libc::SO_LINGER),
    ],
];
const OUTCOME: &[&[Argument]] = &[&[
    is(1, "SOL_SOCKET", libc::SOL_SOCKET),
    is(2, "SO_ERROR", libc::SO_ERROR),
]];
const ABORT: &[&[Argument]] = &[&[is(1, "SIGABRT", libc::SIGABRT)]];
const ABORT_THREAD: &[&[Argument]] = &[&[is(2, "SIGABRT", libc::SIGABRT)]];
const LOOKED: &[&[Argument]] = &[
    &[is(1, "F_GETFD", libc::F_GETFD)],
    &[is(1, "F_GETFL", libc::F_GETFL)],
];
/// A pair of streams, which reach nobody else.
const PAIR: &[&[Argument]] = &[&[
    is(0, "AF_UNIX", libc::AF_UNIX),
    kind("SOCK_STREAM", libc::SOCK_STREAM),
]];

macro_rules! rules {
    ($($number:ident $alternatives:ident $reason:literal)*) => {
        const RULES: &[Rule] = &[$(Rule {
            constant: stringify!($number),
            number: libc::$number,
            alternatives: $alternatives,
            reason: $reason,
        }),*];
    };
}

rules! {
    SYS_epoll_wait      ANY          "waiting, by musl"
    SYS_epoll_pwait     ANY          "waiting, by glibc"
    SYS_epoll_pwait2    ANY          "waiting, with a finer timeout"
    SYS_epoll_ctl       ANY          "waiting for a new socket"
    SYS_recvfrom        ANY          "frames, streams, datagrams, commands"
    SYS_sendto          ANY          "frames, streams, datagrams, events"
    SYS_sendmsg         ANY          "a connection for the partition's tools"
    SYS_socket          INTERNET     "a flow of the guest"
    SYS_connect         ANY          "a flow of the guest"
    SYS_accept4         ANY          "a forwarded connection"
    SYS_shutdown        ANY          "the guest has ended its direction"
    SYS_setsockopt      SETTINGS     "no delay of our own; ending with a reset"
    SYS_getsockopt      OUTCOME      "whether a connection was accepted"
    SYS_getpeername     ANY          "whether a connection is still being made"
    SYS_close           ANY          "a flow's end"
    SYS_fcntl           LOOKED       "debug builds look at a descriptor before they use or close it"
    SYS_socketpair      PAIR         "a connection that the proxy takes"
    SYS_read            ANY          "the proxy's streams, and its alarm"
    SYS_readv           ANY          "the proxy's streams"
    SYS_write           ANY          "a line about a refusal, a panic's message, the proxy's streams"
    SYS_writev          ANY          "the proxy's streams"
    SYS_pwrite64        ANY          "what was spent on models and used of amounts"
    SYS_getrandom       ANY          "sequence numbers, DNS ids, seeds of hash maps"
    SYS_clock_gettime   ANY          "the clock, where the vDSO does not serve it"

    SYS_mmap            NO_CODE      "the allocator"
    SYS_mprotect        NO_CODE      "the allocator of glibc"
    SYS_mremap          ANY          "the allocator, for large vectors"
    SYS_munmap          ANY          "the allocator"
    SYS_madvise         ANY          "the allocator"
    SYS_brk             ANY          "the allocator"

    SYS_futex           ANY          "locks, and threads that wait for each other"
    SYS_sched_yield     ANY          "channels, while another thread is about to be done with them"
    SYS_restart_syscall ANY          "the kernel, after a stop interrupted a timed wait"
    SYS_rt_sigaction    ANY          "abort restores the default action"
    SYS_rt_sigprocmask  ANY          "abort"
    SYS_sigaltstack     ANY          "the standard library, at the end"
    SYS_getpid          ANY          "abort"
    SYS_gettid          ANY          "abort"
    SYS_tkill           ABORT        "abort, by musl"
    SYS_tgkill          ABORT_THREAD "abort, by glibc"
    SYS_exit_group      ANY          "the end"
}

/// The filter.
///
/// # Errors
/// The rules contradict themselves; a test keeps that from happening.
pub(super) fn compile() -> Result<BpfProgram, BackendError> {
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in RULES {
        let entry = allowed.entry(rule.number).or_default();
        for arguments in rule.alternatives {
            let conditions: Result<_, _> = arguments.iter().map(condition).collect();
            entry.push(SeccompRule::new(conditions?)?);
        }
    }
    let filter = SeccompFilter::new(
        allowed,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    BpfProgram::try_from(filter)
}

fn condition(argument: &Argument) -> Result<SeccompCondition, BackendError> {
    let operator = SeccompCmpOp::MaskedEq(argument.mask);
    SeccompCondition::new(
        argument.index,
        SeccompCmpArgLen::Dword,
        operator,
        argument.value,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- gateway seccomp: begin -->\n";
    const END: &str = "<!-- gateway seccomp: end -->\n";

    fn table() -> String {
        let mut table = String::from("| call | only with | for |\n|---|---|---|\n");
        for rule in RULES {
            let alternatives = rule.alternatives.iter();
            let shown: Vec<_> = alternatives
                .map(|all| all.iter().map(|a| a.shown).collect::<Vec<_>>().join(" "))
                .collect();
            let name = rule.constant.trim_start_matches("SYS_");
            let shown = shown.join(" or ");
            table += &format!("| `{name}` | {shown} | {} |\n", rule.reason);
        }
        table
    }

    #[test]
    fn the_book_shows_the_rules() {
        let book = include_str!("../../../../docs/network.md");
        let after = book.split_once(BEGIN).map(|(_, after)| after);
        let shown = after.and_then(|after| after.split_once(END));
        let shown = shown.map_or("", |(table, _)| table);
        assert!(
            shown == table(),
            "put this between the markers:\n{}",
            table()
        );
    }

    #[test]
    fn the_filter_compiles_and_no_call_is_there_twice() {
        assert!(compile().is_ok());
        let mut numbers: Vec<_> = RULES.iter().map(|rule| rule.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), RULES.len());
    }
}

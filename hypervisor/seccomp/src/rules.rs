//! The system calls each kind of thread may make, and why. docs/security.md shows this table,
//! and a test fails where the two differ.

use super::Thread;

/// One allowed system call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its constant in libc: its name behind `SYS_`.
    pub constant: &'static str,
    /// Its number.
    pub number: i64,
    /// The threads that may make it.
    pub threads: &'static [Thread],
    /// What it may be called with.
    pub argument: Argument,
    /// What it is needed for.
    pub reason: &'static str,
}

/// A condition on one of a system call's arguments, as 32 bits; `index` counts from 0.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// No condition.
    Any,
    /// One of `values`.
    OneOf {
        /// Which argument.
        index: u8,
        /// Names and values.
        values: &'static [(&'static str, u64)],
    },
    /// None of the bits of `mask`.
    Without {
        /// Which argument.
        index: u8,
        /// The bits' name.
        name: &'static str,
        /// The bits.
        mask: u64,
    },
}

const ANY: Argument = Argument::Any;

/// Every kind of thread.
pub const ALL: &[Thread] = &[
    Thread::EventLoop,
    Thread::Vcpu,
    Thread::Debugger,
    Thread::Worker,
];
const BOTH: &[Thread] = &[Thread::EventLoop, Thread::Vcpu];
const DISK: &[Thread] = &[Thread::EventLoop, Thread::Worker];
const LOOP: &[Thread] = &[Thread::EventLoop];
const VCPU: &[Thread] = &[Thread::Vcpu];
const OTHERS: &[Thread] = &[Thread::Vcpu, Thread::Debugger, Thread::Worker];
const GDB: &[Thread] = &[Thread::Debugger];

/// `_IO(KVMIO, 0x80)`: `KVM_RUN`.
const KVM_RUN: (&str, u64) = ("KVM_RUN", 0xae80);
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`: `KVM_GET_REGS`.
const KVM_GET_REGS: (&str, u64) = ("KVM_GET_REGS", 0x8090_ae81);
/// `_IOR(KVMIO, 0x83, struct kvm_sregs)`: `KVM_GET_SREGS`.
const KVM_GET_SREGS: (&str, u64) = ("KVM_GET_SREGS", 0x8138_ae83);
/// `_IO(KVMIO, 0xad)`: `KVM_KVMCLOCK_CTRL`.
const KVM_KVMCLOCK_CTRL: (&str, u64) = ("KVM_KVMCLOCK_CTRL", 0xaead);
/// `_IOW(KVMIO, 0xa5, struct kvm_msi)`: `KVM_SIGNAL_MSI`.
const KVM_SIGNAL_MSI: (&str, u64) = ("KVM_SIGNAL_MSI", 0x4020_aea5);

/// `_IOW('T', 208, unsigned int)`: `TUNSETOFFLOAD`.
const TUNSETOFFLOAD: (&str, u64) = ("TUNSETOFFLOAD", 0x4004_54d0);
/// `_IOR('T', 210, unsigned int)`: `TUNGETIFF`.
const TUNGETIFF: (&str, u64) = ("TUNGETIFF", 0x8004_54d2);
/// `_IOW('T', 216, int)`: `TUNSETVNETHDRSZ`.
const TUNSETVNETHDRSZ: (&str, u64) = ("TUNSETVNETHDRSZ", 0x4004_54d8);

/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`: `KVM_IOEVENTFD`.
const KVM_IOEVENTFD: (&str, u64) = ("KVM_IOEVENTFD", 0x4040_ae79);

const VCPU_CALLS: Argument = Argument::OneOf {
    index: 1,
    values: &[
        KVM_RUN,
        KVM_GET_REGS,
        KVM_KVMCLOCK_CTRL,
        KVM_SIGNAL_MSI,
        KVM_IOEVENTFD,
    ],
};
const GDB_CALLS: Argument = Argument::OneOf {
    index: 1,
    values: &[
        KVM_GET_REGS,
        // `_IOW(KVMIO, 0x82, struct kvm_regs)` and what follows it in linux/kvm.h.
        ("KVM_SET_REGS", 0x4090_ae82),
        KVM_GET_SREGS,
        ("KVM_TRANSLATE", 0xc018_ae85),
        ("KVM_GET_FPU", 0x81a0_ae8c),
        ("KVM_SET_FPU", 0x41a0_ae8d),
        ("KVM_SET_GUEST_DEBUG", 0x4048_ae9b),
    ],
};
const LOOP_CALLS: Argument = Argument::OneOf {
    index: 1,
    values: &[
        KVM_SIGNAL_MSI,
        KVM_IOEVENTFD,
        TUNSETOFFLOAD,
        TUNGETIFF,
        TUNSETVNETHDRSZ,
        KVM_GET_REGS,
        KVM_GET_SREGS,
    ],
};
const GETFD: Argument = Argument::OneOf {
    index: 1,
    values: &[("F_GETFD", libc::F_GETFD as u64)],
};
const FLAGS: Argument = Argument::OneOf {
    index: 1,
    values: &[
        ("F_GETFD", libc::F_GETFD as u64),
        ("F_GETFL", libc::F_GETFL as u64),
        ("F_SETFL", libc::F_SETFL as u64),
    ],
};
const NO_CODE: Argument = Argument::Without {
    index: 2,
    name: "PROT_EXEC",
    mask: libc::PROT_EXEC as u64,
};

/// Signals that threads send. The C libraries number the first real-time signal differently.
const SIGNALS: &[(&str, u64)] = &[
    ("SIGABRT", 6),
    ("SIGRTMIN (glibc)", 34),
    ("SIGRTMIN (musl)", 35),
];
const TKILL: Argument = Argument::OneOf {
    index: 1,
    values: SIGNALS,
};
const TGKILL: Argument = Argument::OneOf {
    index: 2,
    values: SIGNALS,
};

macro_rules! rules {
    ($($number:ident $threads:ident $argument:ident $reason:literal)*) => {
        /// Every allowed call.
        pub const RULES: &[Rule] = &[$(Rule {
            constant: stringify!($number),
            number: libc::$number,
            threads: $threads,
            argument: $argument,
            reason: $reason,
        }),*];
    };
}

rules! {
    SYS_read            ALL  ANY        "eventfds, and console input"
    SYS_write           ALL  ANY        "eventfds, console output, and a panic's message"
    SYS_ppoll           ALL  ANY        "a console stream that may block; the answer of a vhost-user back end"
    SYS_close           ALL  ANY        "descriptors dropped at the end"
    SYS_fcntl           OTHERS GETFD      "debug builds look at a descriptor before they close it"
    SYS_fcntl           LOOP FLAGS      "as there; how descriptors of a device plugged in were opened, and that they do not block"
    SYS_futex           ALL  ANY        "locks, parking and joining threads"
    SYS_sched_yield     ALL  ANY        "contended locks"
    SYS_clock_gettime   ALL  ANY        "the clock, where the vDSO does not serve it"

    SYS_mmap            ALL  NO_CODE    "the allocator"
    SYS_mprotect        ALL  NO_CODE    "the allocator of glibc"
    SYS_mremap          ALL  ANY        "the allocator, for large vectors"
    SYS_munmap          ALL  ANY        "the allocator; guest memory and stacks at the end"
    SYS_madvise         ALL  ANY        "the allocator; glibc, for the stack of a thread that ends"
    SYS_brk             ALL  ANY        "the allocator"

    SYS_rt_sigaction    ALL  ANY        "abort restores the default action"
    SYS_rt_sigprocmask  ALL  ANY        "abort, and the end of a thread"
    SYS_rt_sigreturn    ALL  ANY        "return from the handler of the stop signal"
    SYS_restart_syscall ALL  ANY        "the kernel, after a signal interrupted a timed wait"
    SYS_sigaltstack     ALL  ANY        "the standard library, at the end of a thread"
    SYS_getpid          ALL  ANY        "abort"
    SYS_gettid          ALL  ANY        "abort"
    SYS_tkill           ALL  TKILL      "the stop signal and abort, by musl"
    SYS_tgkill          ALL  TGKILL     "the stop signal and abort, by glibc"
    SYS_exit            ALL  ANY        "the end of a thread"
    SYS_exit_group      ALL  ANY        "the end of the process"

    SYS_ioctl           VCPU VCPU_CALLS "the guest, where it failed, and that it was paused; a message or doorbell that a guest unmasks or moves"
    SYS_ioctl           LOOP LOOP_CALLS "interrupts sent as messages; doorbells of a device plugged in; what the driver lets a tap do, and how one plugged in is; registers for a dump"
    SYS_ioctl           GDB  GDB_CALLS  "registers, addresses, steps and breakpoints for a debugger"
    SYS_accept4         GDB  ANY        "a debugger that comes"

    SYS_epoll_wait      LOOP ANY        "the event loop, by musl"
    SYS_epoll_pwait     LOOP ANY        "the event loop, by glibc"
    SYS_epoll_ctl       LOOP ANY        "devices that begin or cease to wait for a stream"
    SYS_eventfd2        LOOP ANY        "doorbells of a device plugged in"
    SYS_timerfd_create  LOOP ANY        "its rate limits"
    SYS_getsockopt      LOOP ANY        "the kind of its socket"
    SYS_recvmsg         LOOP ANY        "commands on the control socket, and descriptors; data to the guest of virtio-vsock"
    SYS_recvfrom        BOTH ANY        "answers of vhost-user back ends"
    SYS_sendmsg         BOTH ANY        "requests to vhost-user back ends, with descriptors; data from the guest of virtio-vsock"
    SYS_shutdown        BOTH ANY        "a vhost-user back end that failed; the end of what a guest sends on virtio-vsock"
    SYS_sendto          LOOP ANY        "events on the control socket; what virtio-vsock asks the supervisor"
    SYS_readv           LOOP ANY        "frames to the guest of virtio-net"
    SYS_writev          LOOP ANY        "frames from the guest of virtio-net"
    SYS_accept4         LOOP ANY        "host processes that connect to virtio-vsock"
    SYS_io_uring_enter  LOOP ANY        "virtio-blk; each ring is restricted to the files of its disk"
    SYS_preadv          DISK ANY        "reads of virtio-blk"
    SYS_pwritev         DISK ANY        "writes of virtio-blk"
    SYS_fdatasync       DISK ANY        "flushes of virtio-blk"
    SYS_fallocate       DISK ANY        "discards of virtio-blk"
    SYS_pread64         DISK ANY        "tables of disk images"
    SYS_pwrite64        DISK ANY        "maps of overlays; dumps"
    SYS_ftruncate       DISK ANY        "maps of overlays that are new, or whose disk has grown; dumps"
    SYS_statx           DISK ANY        "lengths of maps; alignment of a disk that is attached"
    SYS_lseek           DISK ANY        "lengths of disks that are resized or attached, and of images; in dumps, where memory has no pages"
    SYS_getrandom       LOOP ANY        "virtio-rng; seeds of hash maps"
    SYS_timerfd_settime LOOP ANY        "the timer of a device's rate limit"
    SYS_nanosleep       LOOP ANY        "waiting for vCPUs to stop, by musl"
    SYS_clock_nanosleep LOOP ANY        "waiting for vCPUs to stop, by glibc"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Lines between which docs/security.md holds the table.
    const BEGIN: &str = "<!-- seccomp rules: begin -->\n";
    const END: &str = "<!-- seccomp rules: end -->\n";

    fn condition(argument: Argument) -> String {
        let position = |index: u8| format!("argument {}", index + 1);
        match argument {
            Argument::Any => String::new(),
            Argument::OneOf { index, values } => {
                let names: Vec<_> = values.iter().map(|(name, _)| format!("`{name}`")).collect();
                format!("{} is {}", position(index), names.join(" or "))
            }
            Argument::Without { index, name, .. } => {
                format!("{} without `{name}`", position(index))
            }
        }
    }

    fn table() -> String {
        let mut table = String::from(
            "| call | event loop | vCPU | debugger | worker | only if | for |\n|---|---|---|---|---|---|---|\n",
        );
        for rule in RULES {
            let name = rule.constant.trim_start_matches("SYS_");
            let mark = |thread| {
                if rule.threads.contains(&thread) {
                    "yes"
                } else {
                    ""
                }
            };
            table += &format!(
                "| `{name}` | {} | {} | {} | {} | {} | {} |\n",
                mark(Thread::EventLoop),
                mark(Thread::Vcpu),
                mark(Thread::Debugger),
                mark(Thread::Worker),
                condition(rule.argument),
                rule.reason
            );
        }
        table
    }

    #[test]
    fn the_book_shows_the_rules() {
        let book = include_str!("../../../docs/security.md");
        let shown = book
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END));
        let shown = shown.map_or("", |(table, _)| table);
        assert!(
            shown == table(),
            "put this between the markers:\n{}",
            table()
        );
    }

    #[test]
    fn no_thread_has_two_rules_for_a_call() {
        for thread in ALL {
            let mut numbers: Vec<_> = RULES
                .iter()
                .filter(|rule| rule.threads.contains(thread))
                .map(|rule| rule.number)
                .collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(
                numbers.len(),
                count,
                "the second would be ignored by a reader"
            );
        }
    }

    #[test]
    fn kvm_numbers_are_those_of_the_headers() {
        let code = |direction: u64, nr: u64, size: usize| {
            direction << 30 | (size as u64) << 16 | 0xae << 8 | nr
        };
        use kvm_bindings::{kvm_ioeventfd, kvm_msi, kvm_regs, kvm_sregs};
        assert_eq!(KVM_RUN.1, code(0, 0x80, 0));
        assert_eq!(KVM_KVMCLOCK_CTRL.1, code(0, 0xad, 0));
        assert_eq!(KVM_GET_REGS.1, code(2, 0x81, size_of::<kvm_regs>()));
        assert_eq!(KVM_GET_SREGS.1, code(2, 0x83, size_of::<kvm_sregs>()));
        assert_eq!(KVM_SIGNAL_MSI.1, code(1, 0xa5, size_of::<kvm_msi>()));
        let ioeventfd = code(1, 0x79, size_of::<kvm_ioeventfd>());
        assert_eq!(KVM_IOEVENTFD.1, ioeventfd);
        let tun = |nr: u64| 1 << 30 | 4 << 16 | u64::from(b'T') << 8 | nr;
        assert_eq!(TUNSETOFFLOAD.1, tun(208));
        assert_eq!(TUNGETIFF.1, libc::TUNGETIFF);
        assert_eq!(TUNSETVNETHDRSZ.1, libc::TUNSETVNETHDRSZ);
    }
}

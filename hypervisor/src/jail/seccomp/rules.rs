//! The system calls each kind of thread may make, and why. docs/threat-model.md shows this table,
//! and a test fails where the two differ.

use super::Thread;

/// One allowed system call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// The threads that may make it.
    pub threads: &'static [Thread],
    /// What it may be called with.
    pub argument: Argument,
    /// What it is needed for.
    pub reason: &'static str,
}

/// A condition on a system call's arguments.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// None.
    Any,
    /// Argument number `index` (from 0), as 32 bits, is one of `values`.
    OneOf {
        /// Which argument.
        index: u8,
        /// Names and values.
        values: &'static [(&'static str, u64)],
    },
}

/// Both kinds.
const BOTH: &[Thread] = &[Thread::EventLoop, Thread::Vcpu];
/// The event loop alone.
const LOOP: &[Thread] = &[Thread::EventLoop];
/// vCPUs alone.
const VCPU: &[Thread] = &[Thread::Vcpu];

/// `KVM_RUN`, `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `KVM_GET_REGS`, `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// `KVM_SIGNAL_MSI`, `_IOW(KVMIO, 0xa5, struct kvm_msi)`.
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
/// `F_GETFD`; the standard library checks descriptors it drops in debug builds.
const F_GETFD: u64 = libc::F_GETFD as u64;

macro_rules! rule {
    ($name:ident, $number:ident, $threads:expr, $argument:expr, $reason:literal) => {
        Rule {
            name: stringify!($name),
            number: libc::$number,
            threads: $threads,
            argument: $argument,
            reason: $reason,
        }
    };
}

/// Every allowed call.
pub const RULES: &[Rule] = &[
    rule!(
        read,
        SYS_read,
        BOTH,
        Argument::Any,
        "eventfds, and console input"
    ),
    rule!(
        write,
        SYS_write,
        BOTH,
        Argument::Any,
        "eventfds, console output, and a panic's message"
    ),
    rule!(
        close,
        SYS_close,
        BOTH,
        Argument::Any,
        "descriptors dropped at the end"
    ),
    rule!(
        poll,
        SYS_poll,
        BOTH,
        Argument::Any,
        "readiness of a console stream that may block"
    ),
    rule!(mmap, SYS_mmap, BOTH, Argument::Any, "the allocator"),
    rule!(
        mprotect,
        SYS_mprotect,
        BOTH,
        Argument::Any,
        "glibc's allocator, in test builds"
    ),
    rule!(
        munmap,
        SYS_munmap,
        BOTH,
        Argument::Any,
        "the allocator, guest memory at the end, a joined thread's stack"
    ),
    rule!(brk, SYS_brk, BOTH, Argument::Any, "the allocator"),
    rule!(
        mremap,
        SYS_mremap,
        BOTH,
        Argument::Any,
        "the allocator, for large vectors"
    ),
    rule!(
        madvise,
        SYS_madvise,
        BOTH,
        Argument::Any,
        "the allocator, and glibc for the stack of a thread that ends"
    ),
    rule!(
        rt_sigaction,
        SYS_rt_sigaction,
        BOTH,
        Argument::Any,
        "abort restores the default action"
    ),
    rule!(
        rt_sigprocmask,
        SYS_rt_sigprocmask,
        BOTH,
        Argument::Any,
        "raise, and the end of a thread"
    ),
    rule!(
        rt_sigreturn,
        SYS_rt_sigreturn,
        BOTH,
        Argument::Any,
        "return from the stop signal's handler"
    ),
    rule!(
        sigaltstack,
        SYS_sigaltstack,
        BOTH,
        Argument::Any,
        "the standard library at the end of a thread"
    ),
    rule!(
        restart_syscall,
        SYS_restart_syscall,
        BOTH,
        Argument::Any,
        "the kernel itself, after a signal interrupted a timed wait"
    ),
    rule!(
        futex,
        SYS_futex,
        BOTH,
        Argument::Any,
        "locks, parking and joining threads"
    ),
    rule!(
        sched_yield,
        SYS_sched_yield,
        BOTH,
        Argument::Any,
        "contended locks"
    ),
    rule!(
        clock_gettime,
        SYS_clock_gettime,
        BOTH,
        Argument::Any,
        "the clock, where the vDSO does not serve it"
    ),
    rule!(
        nanosleep,
        SYS_nanosleep,
        LOOP,
        Argument::Any,
        "waiting for vCPU threads to stop (musl)"
    ),
    rule!(
        clock_nanosleep,
        SYS_clock_nanosleep,
        LOOP,
        Argument::Any,
        "waiting for vCPU threads to stop (glibc)"
    ),
    rule!(getpid, SYS_getpid, BOTH, Argument::Any, "raise and abort"),
    rule!(gettid, SYS_gettid, BOTH, Argument::Any, "raise and abort"),
    rule!(
        tkill,
        SYS_tkill,
        BOTH,
        Argument::Any,
        "musl's raise and pthread_kill: the stop signal, abort"
    ),
    rule!(
        tgkill,
        SYS_tgkill,
        BOTH,
        Argument::Any,
        "glibc's raise and pthread_kill: the stop signal, abort"
    ),
    rule!(exit, SYS_exit, BOTH, Argument::Any, "the end of a thread"),
    rule!(
        exit_group,
        SYS_exit_group,
        BOTH,
        Argument::Any,
        "the end of the process"
    ),
    rule!(
        fcntl,
        SYS_fcntl,
        BOTH,
        Argument::OneOf {
            index: 1,
            values: &[("F_GETFD", F_GETFD)]
        },
        "debug builds of the standard library check a descriptor before closing it"
    ),
    rule!(
        ioctl,
        SYS_ioctl,
        VCPU,
        Argument::OneOf {
            index: 1,
            values: &[
                ("KVM_RUN", KVM_RUN),
                ("KVM_GET_REGS", KVM_GET_REGS),
                ("KVM_SIGNAL_MSI", KVM_SIGNAL_MSI),
            ],
        },
        "running the guest, telling where it failed, and raising the console's vector"
    ),
    rule!(
        ioctl,
        SYS_ioctl,
        LOOP,
        Argument::OneOf {
            index: 1,
            values: &[("KVM_SIGNAL_MSI", KVM_SIGNAL_MSI)]
        },
        "raising the console's vector"
    ),
    rule!(
        epoll_wait,
        SYS_epoll_wait,
        LOOP,
        Argument::Any,
        "the event loop (musl)"
    ),
    rule!(
        epoll_pwait,
        SYS_epoll_pwait,
        LOOP,
        Argument::Any,
        "the event loop"
    ),
    rule!(
        epoll_ctl,
        SYS_epoll_ctl,
        LOOP,
        Argument::Any,
        "devices that start and stop waiting for their streams"
    ),
    rule!(preadv, SYS_preadv, LOOP, Argument::Any, "virtio-blk reads"),
    rule!(
        pwritev,
        SYS_pwritev,
        LOOP,
        Argument::Any,
        "virtio-blk writes"
    ),
    rule!(
        fdatasync,
        SYS_fdatasync,
        LOOP,
        Argument::Any,
        "virtio-blk flushes"
    ),
    rule!(getrandom, SYS_getrandom, LOOP, Argument::Any, "virtio-rng"),
    rule!(
        recvfrom,
        SYS_recvfrom,
        LOOP,
        Argument::Any,
        "commands on the control socket"
    ),
    rule!(
        sendto,
        SYS_sendto,
        LOOP,
        Argument::Any,
        "events on the control socket"
    ),
];

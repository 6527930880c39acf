//! The system calls the process may make, and why. docs/shared-directories.md shows this table, and
//! a test fails where the two differ.

use bulkhead_seccomp::rules::{Argument, Rule};

const ANY: Argument = Argument::Any;
const DUPLICATE: Argument = Argument::OneOf {
    index: 1,
    values: &[
        ("F_GETFD", libc::F_GETFD as u64),
        ("F_SETFD", libc::F_SETFD as u64),
        ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as u64),
    ],
};
const NO_CODE: Argument = Argument::Without {
    index: 2,
    name: "PROT_EXEC",
    mask: libc::PROT_EXEC as u64,
};
const THREAD: Argument = Argument::OneOf {
    index: 0,
    values: &[
        ("PR_SET_NAME", libc::PR_SET_NAME as u64),
        ("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS as u64),
    ],
};
const TKILL: Argument = Argument::OneOf {
    index: 1,
    values: &[("SIGABRT", 6)],
};
const TGKILL: Argument = Argument::OneOf {
    index: 2,
    values: &[("SIGABRT", 6)],
};

/// Calls that are taken away again once the threads run and the connection is accepted.
pub const ONCE: [i64; 4] = [
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_accept4,
    libc::SYS_seccomp,
];

macro_rules! rules {
    ($($number:ident $argument:ident $reason:literal)*) => {
        /// Every allowed call.
        pub const RULES: &[Rule] = &[$(Rule {
            constant: stringify!($number),
            number: libc::$number,
            threads: &[],
            argument: $argument,
            reason: $reason,
        }),*];
    };
}

rules! {
    SYS_openat          ANY     "contents of files, and new files"
    SYS_openat2         ANY     "finding a name, beneath its directory"
    SYS_close           ANY     "what the guest forgets and closes"
    SYS_fstat           ANY     "attributes"
    SYS_newfstatat      ANY     "attributes, on kernels without fstat of an empty path"
    SYS_fstatfs         ANY     "the filesystem's free space"
    SYS_readlinkat      ANY     "targets of symbolic links"
    SYS_getdents64      ANY     "directories"
    SYS_lseek           ANY     "directories; data and holes"
    SYS_pread64         ANY     "reads"
    SYS_pwrite64        ANY     "writes"
    SYS_copy_file_range ANY     "copies inside the host"
    SYS_ftruncate       ANY     "sizes"
    SYS_fallocate       ANY     "allocation, and holes"
    SYS_fsync           ANY     "fsync in the guest"
    SYS_fdatasync       ANY     "fdatasync in the guest"
    SYS_syncfs          ANY     "sync in the guest"
    SYS_fchmodat        ANY     "modes"
    SYS_fchownat        ANY     "owners"
    SYS_utimensat       ANY     "times"
    SYS_mkdirat         ANY     "new directories"
    SYS_mknodat         ANY     "new files, FIFOs and sockets"
    SYS_symlinkat       ANY     "new symbolic links"
    SYS_linkat          ANY     "new links"
    SYS_unlinkat        ANY     "removal"
    SYS_renameat        ANY     "renaming"
    SYS_renameat2       ANY     "renaming without replacing, and exchanging"
    SYS_fgetxattr       ANY     "extended attributes"
    SYS_fsetxattr       ANY     "extended attributes"
    SYS_flistxattr      ANY     "extended attributes"
    SYS_fremovexattr    ANY     "extended attributes"
    SYS_geteuid         ANY     "who exports"
    SYS_getegid         ANY     "who exports"
    SYS_setresuid       ANY     "creating in the name of the guest's user"
    SYS_setresgid       ANY     "creating in the name of the guest's group"
    SYS_capget          ANY     "acting as the guest's user"
    SYS_capset          ANY     "acting as the guest's user; writes that take set-id bits away"
    SYS_recvmsg         ANY     "messages of the front end, with descriptors"
    SYS_recvfrom        ANY     "messages of the front end"
    SYS_sendmsg         ANY     "replies to the front end"
    SYS_sendto          ANY     "the event on the control socket"
    SYS_shutdown        ANY     "the end of the connection"
    SYS_accept4         ANY     "the connection; taken away afterwards"
    SYS_read            ANY     "doorbells"
    SYS_write           ANY     "interrupts, and a last message on standard error"
    SYS_writev          ANY     "a last message on standard error"
    SYS_epoll_create1   ANY     "the worker's event loop"
    SYS_epoll_ctl       ANY     "queues that start and stop"
    SYS_epoll_wait      ANY     "the worker's event loop, by musl"
    SYS_epoll_pwait     ANY     "the worker's event loop, by glibc"
    SYS_eventfd2        ANY     "waking the worker"
    SYS_clone           ANY     "two threads, by musl; taken away afterwards"
    SYS_clone3          ANY     "two threads, by glibc; taken away afterwards"
    SYS_set_robust_list ANY     "the start of a thread, by glibc"
    SYS_rseq            ANY     "the start of a thread, by glibc"
    SYS_prctl           THREAD  "names of threads; before the last filter"
    SYS_seccomp         ANY     "the last filter; taken away by it"
    SYS_sched_getaffinity ANY   "the start of a thread, by glibc"
    SYS_futex           ANY     "locks, and joining threads"
    SYS_sched_yield     ANY     "contended locks"
    SYS_clock_gettime   ANY     "the clock, where the vDSO does not serve it"
    SYS_mmap            NO_CODE "guest memory, and the allocator"
    SYS_munmap          ANY     "guest memory, and the allocator"
    SYS_mprotect        NO_CODE "stacks' guard pages, and the allocator of glibc"
    SYS_mremap          ANY     "the allocator, for large vectors"
    SYS_madvise         ANY     "the allocator; the stack of a thread that ends"
    SYS_brk             ANY     "the allocator"
    SYS_getrandom       ANY     "seeds of hash maps"
    SYS_fcntl           DUPLICATE "a second handle of the connection and of events; checks of debug builds"
    SYS_rt_sigaction    ANY     "abort restores the default action"
    SYS_rt_sigprocmask  ANY     "starting and ending threads"
    SYS_rt_sigreturn    ANY     "return from a signal's handler"
    SYS_restart_syscall ANY     "the kernel, after a signal interrupted a wait"
    SYS_sigaltstack     ANY     "the start and end of a thread"
    SYS_getpid          ANY     "abort"
    SYS_gettid          ANY     "abort"
    SYS_tkill           TKILL   "abort, by musl"
    SYS_tgkill          TGKILL  "abort, by glibc"
    SYS_exit            ANY     "the end of a thread"
    SYS_exit_group      ANY     "the end of the process"
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- seccomp rules: begin -->\n";
    const END: &str = "<!-- seccomp rules: end -->\n";

    fn table() -> String {
        let mut table = String::from("| call | only if | for |\n|---|---|---|\n");
        for rule in RULES {
            let name = rule.constant.trim_start_matches("SYS_");
            let condition = match rule.argument {
                Argument::Any => String::new(),
                Argument::OneOf { index, values } => {
                    let names: Vec<_> = values.iter().map(|(n, _)| format!("`{n}`")).collect();
                    format!("argument {} is {}", index + 1, names.join(" or "))
                }
                Argument::Without { index, name, .. } => {
                    format!("argument {} without `{name}`", index + 1)
                }
            };
            table += &format!("| `{name}` | {condition} | {} |\n", rule.reason);
        }
        table
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let text = include_str!("../../../../docs/shared-directories.md");
        let (_, rest) = text.split_once(BEGIN).unwrap();
        let (documented, _) = rest.split_once(END).unwrap();
        assert!(
            documented == table(),
            "docs/shared-directories.md needs this table:\n{}",
            table()
        );
    }

    #[test]
    fn calls_are_listed_once_and_compile() {
        let mut numbers: Vec<i64> = RULES.iter().map(|rule| rule.number).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert!(bulkhead_seccomp::allow(RULES.iter()).is_ok());
        assert!(ONCE.iter().all(|call| numbers.contains(call)));
    }
}

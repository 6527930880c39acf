//! The jail: how the process gives up everything but its sockets, before it reads the conditions.
//! docs/policy.md has the table of its system calls, and a test fails where the two differ.

pub use bulkhead_confined::JailError;
use bulkhead_confined::Kept;
use bulkhead_machine::Jail;

/// Locks the process in: nothing is left but the sockets that it has.
///
/// # Errors
/// See [`JailError`].
pub fn enter(jail: Jail) -> Result<Vec<String>, JailError> {
    let filter = bulkhead_seccomp::allow(RULES.iter()).map_err(JailError::filter)?;
    bulkhead_confined::enter(jail, &Kept::NOTHING)?.seal(&filter)
}

bulkhead_confined::rules! {
    SYS_ppoll           ANY          "waiting for questions"
    SYS_recvfrom        ANY          "questions"
    SYS_recvmsg         ANY          "new askers, with their sockets"
    SYS_sendto          ANY          "answers; events on the control socket"
    SYS_pread64         ANY          "other conditions, from the file that comes with them"
    SYS_close           ANY          "askers that are gone"
    SYS_fcntl           GETFD        "debug builds look at a descriptor before they close it"
    SYS_write           ANY          "a line on standard error"
    SYS_clock_gettime   ANY          "the clock, where the vDSO does not serve it"
    SYS_getrandom       ANY          "seeds of hash maps"

    SYS_mmap            NO_CODE      "the allocator; stack for deep conditions"
    SYS_mprotect        NO_CODE      "the allocator of glibc; that stack"
    SYS_mremap          ANY          "the allocator, for large vectors"
    SYS_munmap          ANY          "the allocator; that stack"
    SYS_madvise         ANY          "the allocator"
    SYS_brk             ANY          "the allocator"

    SYS_futex           ANY          "the lock of standard error"
    SYS_restart_syscall ANY          "the kernel, after a stop interrupted a wait"
    SYS_rt_sigaction    ANY          "abort restores the default action"
    SYS_rt_sigprocmask  ANY          "abort"
    SYS_sigaltstack     ANY          "the standard library, at the end"
    SYS_getpid          ANY          "abort"
    SYS_gettid          ANY          "abort"
    SYS_tkill           ABORT        "abort, by musl"
    SYS_tgkill          ABORT_THREAD "abort, by glibc"
    SYS_exit_group      ANY          "the end"
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- decision seccomp: begin -->\n";
    const END: &str = "<!-- decision seccomp: end -->\n";

    #[test]
    fn the_book_shows_the_rules() {
        let book = include_str!("../../../../docs/policy.md");
        let after = book.split_once(BEGIN).map(|(_, after)| after);
        let shown = after.and_then(|after| after.split_once(END));
        let shown = shown.map_or("", |(table, _)| table);
        let table = bulkhead_confined::table(RULES);
        assert!(shown == table, "put this between the markers:\n{table}");
    }

    #[test]
    fn calls_are_listed_once_and_compile() {
        let mut numbers: Vec<i64> = RULES.iter().map(|rule| rule.number).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert!(bulkhead_seccomp::allow(RULES.iter()).is_ok());
    }
}

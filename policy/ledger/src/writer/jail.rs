//! The jail: how the process gives up everything but the ledger's directory and its sockets, before it
//! takes the first request. docs/ledger.md has the table of its system calls, and a test fails where the two
//! differ.

use std::os::fd::{AsFd, OwnedFd};

pub use bulkhead_confined::JailError;
use bulkhead_confined::Kept;
use bulkhead_machine::Jail;
use landlock::AccessFs;

/// Locks the process in; what it opens from then on is in `directory`. The user stays who it was: the files
/// are that user's.
///
/// # Errors
/// See [`JailError`].
pub fn enter(jail: Jail, directory: &OwnedFd) -> Result<Vec<String>, JailError> {
    let allowed = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    let kept = Kept {
        directory: Some((directory.as_fd(), allowed)),
        user: true,
        ..Kept::NOTHING
    };
    let filter = bulkhead_seccomp::allow(RULES.iter()).map_err(JailError::filter)?;
    bulkhead_confined::enter(jail, &kept)?.seal(&filter)
}

bulkhead_confined::rules! {
    SYS_ppoll           ANY          "waiting for requests"
    SYS_recvfrom        ANY          "requests"
    SYS_recvmsg         ANY          "new clients, with their sockets"
    SYS_sendto          ANY          "answers; the event on the control socket"
    SYS_pwrite64        ANY          "records, checkpoints"
    SYS_fdatasync       ANY          "making a commit durable"
    SYS_fstat           ANY          "whether others have added something"
    SYS_flock           ANY          "the ledger's lock"
    SYS_fcntl           GETFD        "debug builds look at a descriptor before they close it"
    SYS_pread64         ANY          "what others have added"
    SYS_openat          ANY          "segments"
    SYS_write           ANY          "the header of a segment; a line on standard error"
    SYS_renameat        ANY          "the name of a new segment"
    SYS_renameat2       ANY          "the same, by other libraries"
    SYS_fsync           ANY          "making that name durable"
    SYS_ftruncate       ANY          "taking back a commit that was not finished"
    SYS_close           ANY          "segments, and clients that are gone"
    SYS_clock_gettime   ANY          "the clock, where the vDSO does not serve it"

    SYS_mmap            NO_CODE      "the allocator"
    SYS_mprotect        NO_CODE      "the allocator of glibc"
    SYS_mremap          ANY          "the allocator, for large vectors"
    SYS_munmap          ANY          "the allocator"
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

    const BEGIN: &str = "<!-- ledger seccomp: begin -->\n";
    const END: &str = "<!-- ledger seccomp: end -->\n";

    #[test]
    fn the_book_shows_the_rules() {
        let book = include_str!("../../../../docs/ledger.md");
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

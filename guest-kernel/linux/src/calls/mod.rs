//! The system calls: one table of number, name and handler, one room for each family. The table of
//! docs/linux-abi.md is held against this one by a test.

mod descriptor;
mod file;
mod identity;
mod io;
mod memory;
mod path;
mod process;
mod signal;
pub(crate) mod terminal;
mod time;

use crate::errno::Errno;
use crate::memory::UserPtr;
use crate::process::Process;

/// First number that is no system call here.
pub const LIMIT: usize = 512;

/// What a handler answers: the value of `rax`.
pub type Outcome = Result<u64, Errno>;

/// Arguments of a system call.
#[derive(Clone, Copy, Debug)]
pub struct Args([u64; 6]);

impl Args {
    /// From `rdi, rsi, rdx, r10, r8, r9`.
    pub const fn new(registers: [u64; 6]) -> Self {
        Self(registers)
    }

    /// Argument `index`, 0 to 5.
    pub fn get(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    /// As `int`, descriptors among them: the upper half is not looked at.
    pub(crate) fn int(&self, index: usize) -> i32 {
        self.get(index) as i32
    }

    /// As `unsigned int`.
    pub(crate) fn uint(&self, index: usize) -> u32 {
        self.get(index) as u32
    }

    /// As a pointer.
    pub(crate) fn pointer<T>(&self, index: usize) -> UserPtr<T> {
        UserPtr::new(self.get(index))
    }
}

/// One system call.
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: &'static str,
    /// How many arguments it has.
    pub arguments: usize,
    /// What serves it.
    pub(crate) handler: fn(&mut Process<'_>, Args) -> Outcome,
}

/// The call with that number.
pub fn find(number: u64) -> Option<&'static Entry> {
    let index = *INDEX.get(usize::try_from(number).ok()?)?;
    TABLE.get(usize::from(index))
}

/// Number to position in the table; `u8::MAX` for none.
static INDEX: [u8; LIMIT] = {
    assert!(TABLE.len() < u8::MAX as usize);
    let mut index = [u8::MAX; LIMIT];
    let mut position = 0;
    while position < TABLE.len() {
        index[TABLE[position].number as usize] = position as u8;
        position += 1;
    }
    index
};

macro_rules! table {
    ($($number:literal $name:ident($arguments:literal) => $handler:path, $honoured:literal, $limits:literal;)*) => {
        static TABLE: &[Entry] = &[$(Entry {
            number: $number,
            name: stringify!($name),
            arguments: $arguments,
            handler: $handler,
        }),*];

        /// Number, name, what is honoured, what is not.
        #[cfg(test)]
        const COVERAGE: &[(u64, &str, &str, &str)] =
            &[$(($number, stringify!($name), $honoured, $limits)),*];
    };
}

table! {
    0 read(3) => io::read, "files, directories refused, console, devices", "console input waits even with `O_NONBLOCK`";
    1 write(3) => io::write, "files, console, devices; `O_APPEND`", "";
    2 open(3) => path::open, "as `openat`", "as `openat`";
    3 close(1) => descriptor::close, "all", "";
    4 stat(2) => file::stat, "all", "one device number for everything; access and change time are the modification time";
    5 fstat(2) => file::fstat, "all", "as `stat`";
    6 lstat(2) => file::lstat, "all", "as `stat`";
    7 poll(3) => descriptor::poll, "readiness of files and console; time-out", "console input always counts as ready";
    8 lseek(3) => io::lseek, "`SEEK_SET`, `SEEK_CUR`, `SEEK_END`, `SEEK_DATA`, `SEEK_HOLE`", "";
    9 mmap(6) => memory::mmap, "anonymous; private files (copied at once); shared read-only files; hints, `MAP_FIXED`, `MAP_FIXED_NOREPLACE`", "shared writable files (`ENODEV`); shared mappings do not follow the file; touched memory stays readable under `PROT_NONE`";
    10 mprotect(3) => memory::mprotect, "all", "touched memory stays readable under `PROT_NONE`";
    11 munmap(2) => memory::munmap, "all", "";
    12 brk(1) => memory::brk, "all", "the heap's unused end, up to 2 MiB, does not fault";
    13 rt_sigaction(4) => signal::rt_sigaction, "recorded", "handlers are not run";
    14 rt_sigprocmask(4) => signal::rt_sigprocmask, "recorded", "nothing is ever pending";
    16 ioctl(3) => terminal::ioctl, "`TCGETS`, `TCSETS*`, `TIOCGWINSZ`, `TIOCGPGRP`, `TIOCSPGRP` on a terminal; `FIONBIO`, `FIOCLEX`, `FIONCLEX`", "terminal settings are recorded, not applied; the window size is unknown (0 by 0)";
    17 pread64(4) => io::pread64, "all", "";
    18 pwrite64(4) => io::pwrite64, "all", "";
    19 readv(3) => io::readv, "all", "";
    20 writev(3) => io::writev, "all; one console operation for all parts", "";
    21 access(2) => path::access, "all", "everything runs as root";
    24 sched_yield(0) => process::sched_yield, "all", "";
    25 mremap(5) => memory::mremap, "shrinking, growing in place, `MREMAP_MAYMOVE` of writable memory", "`MREMAP_FIXED`, `MREMAP_DONTUNMAP` (`EINVAL`)";
    28 madvise(3) => memory::madvise, "`MADV_DONTNEED` zeroes writable memory", "other advice is accepted and ignored; memory is not given back";
    32 dup(1) => descriptor::dup, "all", "";
    33 dup2(2) => descriptor::dup2, "all", "";
    35 nanosleep(2) => time::nanosleep, "all", "";
    39 getpid(0) => identity::getpid, "1", "";
    40 sendfile(4) => io::sendfile, "all", "";
    59 execve(3) => process::execve, "static programs and `#!` scripts", "dynamically linked programs (`ENOEXEC`)";
    60 exit(1) => process::exit, "ends the partition", "";
    62 kill(2) => signal::kill, "itself: default action", "handlers are not run; other processes do not exist (`ESRCH`)";
    63 uname(1) => identity::uname, "`Linux`, release `6.1.0-bulkhead`", "";
    72 fcntl(3) => descriptor::fcntl, "`F_DUPFD`, `F_DUPFD_CLOEXEC`, `F_GETFD`, `F_SETFD`, `F_GETFL`, `F_SETFL`", "locks, leases, pipe sizes (`EINVAL`)";
    74 fsync(1) => io::fsync, "nothing to do", "";
    75 fdatasync(1) => io::fsync, "nothing to do", "";
    76 truncate(2) => path::truncate, "all", "";
    77 ftruncate(2) => io::ftruncate, "all", "";
    79 getcwd(2) => path::getcwd, "all", "";
    80 chdir(1) => path::chdir, "all", "";
    81 fchdir(1) => path::fchdir, "all", "";
    82 rename(2) => path::rename, "all", "";
    83 mkdir(2) => path::mkdir, "all", "";
    84 rmdir(1) => path::rmdir, "all", "a directory that is open (`EBUSY`)";
    85 creat(2) => path::creat, "as `openat`", "";
    86 link(2) => path::link, "all", "";
    87 unlink(1) => path::unlink, "all", "";
    88 symlink(2) => path::symlink, "all", "";
    89 readlink(3) => path::readlink, "all; `/proc/self/exe`", "";
    90 chmod(2) => path::chmod, "all", "";
    91 fchmod(2) => path::fchmod, "all", "";
    95 umask(1) => path::umask, "all", "";
    96 gettimeofday(2) => time::gettimeofday, "with the `time` grant", "without it `EINVAL`, and zeros";
    97 getrlimit(2) => identity::getrlimit, "stack, descriptors, no core files; all else unlimited", "";
    98 getrusage(2) => process::getrusage, "elapsed time as user time", "all other fields are 0";
    99 sysinfo(1) => identity::sysinfo, "uptime, memory", "free memory is given as all memory";
    100 times(1) => process::times, "elapsed time", "no process times (`EINVAL` unless the buffer is null)";
    102 getuid(0) => identity::root, "0", "";
    104 getgid(0) => identity::root, "0", "";
    105 setuid(1) => identity::set_id, "0", "other users (`EPERM`)";
    106 setgid(1) => identity::set_id, "0", "other groups (`EPERM`)";
    107 geteuid(0) => identity::root, "0", "";
    108 getegid(0) => identity::root, "0", "";
    109 setpgid(2) => identity::setpgid, "itself", "";
    110 getppid(0) => identity::root, "0: nobody is above", "";
    111 getpgrp(0) => identity::getpid, "1", "";
    112 setsid(0) => identity::setsid, "`EPERM`: it leads its session already", "";
    115 getgroups(2) => identity::root, "none", "";
    121 getpgid(1) => identity::getpgid, "1", "";
    124 getsid(1) => identity::getpgid, "1", "";
    131 sigaltstack(2) => signal::sigaltstack, "recorded", "never used";
    137 statfs(2) => file::statfs, "a `tmpfs`", "";
    138 fstatfs(2) => file::fstatfs, "a `tmpfs`", "";
    157 prctl(5) => process::prctl, "`PR_SET_NAME`, `PR_GET_NAME`", "all others (`EINVAL`)";
    158 arch_prctl(2) => process::arch_prctl, "`ARCH_SET_FS`, `ARCH_GET_FS`, `ARCH_SET_GS`, `ARCH_GET_GS`", "all others (`EINVAL`)";
    160 setrlimit(2) => identity::setrlimit, "accepted, not enforced", "";
    162 sync(0) => process::sched_yield, "nothing to do", "";
    186 gettid(0) => identity::getpid, "1", "";
    200 tkill(2) => signal::tkill, "as `kill`", "as `kill`";
    201 time(1) => time::time, "with the `time` grant", "without it `EINVAL`, and zero";
    202 futex(6) => process::futex, "`FUTEX_WAKE` wakes nobody; `FUTEX_WAIT` with a time-out", "one thread only: a wait that nobody can end ends the partition with a message";
    204 sched_getaffinity(3) => process::sched_getaffinity, "one CPU", "";
    217 getdents64(3) => file::getdents64, "all", "";
    218 set_tid_address(1) => identity::getpid, "accepted", "never written: there is one thread";
    228 clock_gettime(2) => time::clock_gettime, "`CLOCK_MONOTONIC*`, `CLOCK_BOOTTIME`, CPU-time clocks as elapsed time; `CLOCK_REALTIME*`, `CLOCK_TAI` with the `time` grant", "without the grant `EINVAL`, and zeros";
    229 clock_getres(2) => time::clock_getres, "1 ns", "";
    230 clock_nanosleep(4) => time::clock_nanosleep, "relative and `TIMER_ABSTIME`", "";
    231 exit_group(1) => process::exit, "ends the partition", "";
    234 tgkill(3) => signal::tgkill, "as `kill`", "as `kill`";
    257 openat(4) => path::openat, "`O_RDONLY`, `O_WRONLY`, `O_RDWR`, `O_CREAT`, `O_EXCL`, `O_TRUNC`, `O_APPEND`, `O_CLOEXEC`, `O_DIRECTORY`, `O_NOFOLLOW`; written files live in memory", "`O_PATH`, `O_TMPFILE` (`EOPNOTSUPP`); other flags are ignored";
    258 mkdirat(3) => path::mkdirat, "all", "";
    262 newfstatat(4) => file::newfstatat, "`AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`", "as `stat`";
    263 unlinkat(3) => path::unlinkat, "`AT_REMOVEDIR`", "";
    264 renameat(4) => path::renameat, "all", "";
    265 linkat(5) => path::linkat, "`AT_SYMLINK_FOLLOW`", "`AT_EMPTY_PATH` (`EINVAL`)";
    266 symlinkat(3) => path::symlinkat, "all", "";
    267 readlinkat(4) => path::readlinkat, "all", "";
    268 fchmodat(3) => path::fchmodat, "all", "";
    269 faccessat(3) => path::faccessat, "all", "everything runs as root";
    271 ppoll(5) => descriptor::ppoll, "as `poll`", "the signal mask is ignored";
    273 set_robust_list(2) => process::sched_yield, "accepted", "never walked: there is one thread";
    280 utimensat(4) => file::utimensat, "modification time", "access time is not kept";
    292 dup3(3) => descriptor::dup3, "all", "";
    302 prlimit64(4) => identity::prlimit64, "reads as `getrlimit`; new limits are accepted", "not enforced";
    316 renameat2(5) => path::renameat2, "`RENAME_NOREPLACE`", "`RENAME_EXCHANGE`, `RENAME_WHITEOUT` (`EINVAL`)";
    318 getrandom(3) => process::getrandom, "ChaCha20, seeded by the host, with the `entropy` grant", "without it `ENOSYS`";
    332 statx(5) => file::statx, "basic fields", "no birth time";
    439 faccessat2(4) => path::faccessat2, "`AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`", "everything runs as root";
}

#[cfg(test)]
mod tests;

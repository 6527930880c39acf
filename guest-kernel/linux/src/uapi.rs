//! Structures of the Linux user-space ABI, x86-64, in the shape the program sees them. The numbers
//! that go with them come from `linux_raw_sys`; a test holds the sizes against it.
#![allow(missing_docs, reason = "fields are named as Linux names them")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! uapi {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

uapi! {
    /// `struct stat`.
    struct Stat {
        dev: u64,
        ino: u64,
        nlink: u64,
        mode: u32,
        uid: u32,
        gid: u32,
        pad0: u32,
        rdev: u64,
        size: i64,
        blksize: i64,
        blocks: i64,
        atime: u64,
        atime_nsec: u64,
        mtime: u64,
        mtime_nsec: u64,
        ctime: u64,
        ctime_nsec: u64,
        unused: [u64; 3],
    }

    /// `struct statx_timestamp`.
    struct StatxTimestamp {
        sec: i64,
        nsec: u32,
        reserved: i32,
    }

    /// `struct statx`.
    struct Statx {
        mask: u32,
        blksize: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: StatxTimestamp,
        btime: StatxTimestamp,
        ctime: StatxTimestamp,
        mtime: StatxTimestamp,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        spare: [u64; 14],
    }

    /// `struct iovec`.
    struct Iovec {
        base: u64,
        len: u64,
    }

    /// `struct timespec`.
    struct Timespec {
        sec: i64,
        nsec: i64,
    }

    /// `struct timeval`.
    struct Timeval {
        sec: i64,
        usec: i64,
    }

    /// `struct timezone`.
    struct Timezone {
        minutes_west: i32,
        dst_time: i32,
    }

    /// `struct pollfd`.
    struct PollFd {
        fd: i32,
        events: i16,
        revents: i16,
    }

    /// `struct rlimit64`.
    struct Rlimit {
        current: u64,
        max: u64,
    }

    /// `struct winsize`.
    struct Winsize {
        rows: u16,
        columns: u16,
        x_pixels: u16,
        y_pixels: u16,
    }

    /// `struct termios` of the kernel (not that of the C library).
    struct Termios {
        iflag: u32,
        oflag: u32,
        cflag: u32,
        lflag: u32,
        line: u8,
        cc: [u8; 19],
    }

    /// `struct new_utsname`.
    struct Utsname {
        sysname: [u8; 65],
        nodename: [u8; 65],
        release: [u8; 65],
        version: [u8; 65],
        machine: [u8; 65],
        domainname: [u8; 65],
    }

    /// `struct sysinfo`.
    struct Sysinfo {
        uptime: i64,
        loads: [u64; 3],
        totalram: u64,
        freeram: u64,
        sharedram: u64,
        bufferram: u64,
        totalswap: u64,
        freeswap: u64,
        procs: u16,
        pad: u16,
        pad2: u32,
        totalhigh: u64,
        freehigh: u64,
        mem_unit: u32,
        pad3: u32,
    }

    /// `struct sigaction` of the kernel.
    struct SigAction {
        handler: u64,
        flags: u64,
        restorer: u64,
        mask: u64,
    }

    /// `stack_t`.
    struct SigAltStack {
        sp: u64,
        flags: i32,
        pad: u32,
        size: u64,
    }

    /// `struct statfs`.
    struct Statfs {
        kind: i64,
        bsize: i64,
        blocks: i64,
        bfree: i64,
        bavail: i64,
        files: i64,
        ffree: i64,
        fsid: [i32; 2],
        namelen: i64,
        frsize: i64,
        flags: i64,
        spare: [i64; 4],
    }

    /// `struct rusage`.
    struct Rusage {
        utime: Timeval,
        stime: Timeval,
        rest: [i64; 14],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_raw_sys::{general as raw, system};

    #[test]
    fn sizes_are_those_of_linux() {
        let pairs = [
            (size_of::<Stat>(), size_of::<raw::stat>()),
            (size_of::<Statx>(), size_of::<raw::statx>()),
            (size_of::<Iovec>(), size_of::<raw::iovec>()),
            (size_of::<Timespec>(), size_of::<raw::timespec>()),
            (size_of::<Timeval>(), size_of::<raw::timeval>()),
            (size_of::<PollFd>(), size_of::<raw::pollfd>()),
            (size_of::<Rlimit>(), size_of::<raw::rlimit64>()),
            (size_of::<Winsize>(), size_of::<raw::winsize>()),
            (size_of::<Termios>(), size_of::<raw::termios>()),
            (size_of::<Utsname>(), size_of::<system::new_utsname>()),
            (size_of::<Sysinfo>(), size_of::<system::sysinfo>()),
            (size_of::<SigAction>(), size_of::<raw::kernel_sigaction>()),
            (size_of::<SigAltStack>(), size_of::<raw::sigaltstack>()),
            (size_of::<Statfs>(), size_of::<raw::statfs>()),
            (size_of::<Rusage>(), size_of::<raw::rusage>()),
        ];
        for (index, (ours, linux)) in pairs.into_iter().enumerate() {
            assert_eq!(ours, linux, "pair {index}");
        }
    }
}

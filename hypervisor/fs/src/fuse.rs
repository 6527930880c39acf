//! The FUSE protocol, version 7.31, as virtio-fs uses it: numbers and structures of
//! `include/uapi/linux/fuse.h`, little-endian as on the guest. Used by the server, and by whoever
//! plays a guest in tests.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version.
pub const MAJOR: u32 = 7;
/// Minor version whose structures these are; later ones are negotiated flag by flag.
pub const MINOR: u32 = 31;
/// Node id of the exported directory.
pub const ROOT_ID: u64 = 1;

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* #[allow(missing_docs)] pub const $name: u32 = $value;)*
    };
}

/// `enum fuse_opcode`.
pub mod opcode {
    numbers! {
        LOOKUP = 1; FORGET = 2; GETATTR = 3; SETATTR = 4; READLINK = 5; SYMLINK = 6; MKNOD = 8;
        MKDIR = 9; UNLINK = 10; RMDIR = 11; RENAME = 12; LINK = 13; OPEN = 14; READ = 15;
        WRITE = 16; STATFS = 17; RELEASE = 18; FSYNC = 20; SETXATTR = 21; GETXATTR = 22;
        LISTXATTR = 23; REMOVEXATTR = 24; FLUSH = 25; INIT = 26; OPENDIR = 27; READDIR = 28;
        RELEASEDIR = 29; FSYNCDIR = 30; CREATE = 35; INTERRUPT = 36; DESTROY = 38;
        BATCH_FORGET = 42; FALLOCATE = 43; READDIRPLUS = 44; RENAME2 = 45; LSEEK = 46;
        COPY_FILE_RANGE = 47; SYNCFS = 50;
    }
}

/// Flags of `INIT`, those that the server knows.
pub mod init {
    numbers! {
        ASYNC_READ = 1 << 0;
        ATOMIC_O_TRUNC = 1 << 3;
        BIG_WRITES = 1 << 5;
        AUTO_INVAL_DATA = 1 << 12;
        DO_READDIRPLUS = 1 << 13;
        READDIRPLUS_AUTO = 1 << 14;
        PARALLEL_DIROPS = 1 << 18;
        MAX_PAGES = 1 << 22;
        HANDLE_KILLPRIV_V2 = 1 << 28;
    }
}

/// Flags of `SETATTR`: which fields count.
pub mod setattr {
    numbers! {
        MODE = 1 << 0; UID = 1 << 1; GID = 1 << 2; SIZE = 1 << 3; ATIME = 1 << 4; MTIME = 1 << 5;
        FH = 1 << 6; ATIME_NOW = 1 << 7; MTIME_NOW = 1 << 8; KILL_SUIDGID = 1 << 11;
    }
}

numbers! {
    /// `GETATTR`: the handle counts.
    GETATTR_FH = 1 << 0;
    /// `OPEN` and `CREATE`: truncation takes the set-id bits away.
    OPEN_KILL_SUIDGID = 1 << 0;
    /// `WRITE`: it takes the set-id bits away.
    WRITE_KILL_SUIDGID = 1 << 2;
    /// `FSYNC`: data only.
    FSYNC_FDATASYNC = 1 << 0;
}

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* })*
    };
}

structures! {
    /// Head of each request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Head of each reply; `error` is 0 or a negative errno.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// Attributes.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// A directory entry's node.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// Reply to `GETATTR` and `SETATTR`.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `GETATTR`.
    GetattrIn { flags: u32, dummy: u32, fh: u64 }
    /// `SETATTR`.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64,
        ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    /// `MKNOD`; a name follows.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `MKDIR`; a name follows.
    MkdirIn { mode: u32, umask: u32 }
    /// `RENAME`; the old and the new name follow.
    RenameIn { newdir: u64 }
    /// `RENAME2`; the old and the new name follow.
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `LINK`; a name follows.
    LinkIn { oldnodeid: u64 }
    /// `OPEN` and `OPENDIR`.
    OpenIn { flags: u32, open_flags: u32 }
    /// `CREATE`; a name follows.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// Reply to `OPEN`, `OPENDIR` and, behind an entry, `CREATE`.
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    /// `RELEASE` and `RELEASEDIR`.
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `FLUSH`.
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `READ`, `READDIR` and `READDIRPLUS`.
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// `WRITE`; the data follow.
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// Reply to `WRITE` and `COPY_FILE_RANGE`.
    WriteOut { size: u32, padding: u32 }
    /// Reply to `STATFS`.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `FSYNC` and `FSYNCDIR`.
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    /// `SETXATTR`; a name and the value follow.
    SetxattrIn { size: u32, flags: u32 }
    /// `GETXATTR`, where a name follows, and `LISTXATTR`; and the reply to either for size 0.
    GetxattrIn { size: u32, padding: u32 }
    /// `INIT`, its part that every version has.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// Reply to `INIT`.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// `BATCH_FORGET`; `count` [`ForgetOne`] follow.
    BatchForgetIn { count: u32, dummy: u32 }
    /// `FORGET` takes `nlookup` alone.
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `FALLOCATE`.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// Head of a directory entry; the name follows, padded to 8 bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// `LSEEK`.
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// Reply to `LSEEK`.
    LseekOut { offset: u64 }
    /// `COPY_FILE_RANGE`.
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
}

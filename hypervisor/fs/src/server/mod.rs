//! The FUSE server: bytes of a request in, bytes of a reply out. Called by the device, and by the
//! tests and the fuzz target that play a guest.
//!
//! A node is an `O_PATH` descriptor that was found from its directory's descriptor by one name
//! that holds no `/` and is neither `.` nor `..`, without following a symbolic link or entering
//! another filesystem. So no request names anything outside of the exported directory, whatever
//! the tree looks like; the jail is what holds if that is wrong. Contents are reached by opening
//! the node again through `/proc/self/fd`, and only where it is a regular file or a directory: a
//! FIFO would block, a device would be the host's.

mod attributes;
mod contents;
mod directories;
mod entries;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bulkhead_share::Ownership;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use crate::credentials;
use crate::fuse::{self, InHeader, InitIn, InitOut, init, opcode};
use crate::inodes::{Inode, Inodes};
use wire::{Args, Reply};

/// Most bytes of file contents in one request or reply.
pub const MAX_DATA: usize = 1 << 20;
/// Longest request and longest reply in bytes: contents, and what stands before them.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
/// How long the guest may rely on a name or on attributes, in seconds, before it asks again: what
/// others change on the host shows in the guest after no more than that.
const VALID_S: u64 = 1;
/// What the server offers where the guest's kernel knows it.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2;
/// Requests that change the directory.
const CHANGES: [u32; 16] = [
    opcode::SETATTR,
    opcode::SYMLINK,
    opcode::MKNOD,
    opcode::MKDIR,
    opcode::UNLINK,
    opcode::RMDIR,
    opcode::RENAME,
    opcode::RENAME2,
    opcode::LINK,
    opcode::WRITE,
    opcode::SETXATTR,
    opcode::REMOVEXATTR,
    opcode::CREATE,
    opcode::FALLOCATE,
    opcode::COPY_FILE_RANGE,
    opcode::SYNCFS,
];

/// How a directory is served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nothing changes.
    pub read_only: bool,
    /// Whose files they are.
    pub ownership: Ownership,
    /// Most nodes the guest may know, each an open descriptor.
    pub max_nodes: usize,
    /// Most files and directories the guest may have open.
    pub max_handles: usize,
}

/// What a guest has open.
#[derive(Debug)]
enum Handle {
    File(OwnedFd),
    Directory(OwnedFd),
}

/// One request.
struct Call<'a> {
    header: InHeader,
    args: Args<'a>,
}

/// The server of one directory to one guest.
#[derive(Debug)]
pub struct Server {
    options: Options,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    inodes: Inodes,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    /// The guest has mounted it.
    initialized: bool,
    /// User and group of the process: the owner with [`Ownership::Exporter`].
    exporter: (u32, u32),
}

impl Server {
    /// Serves `root`, an `O_PATH` descriptor; `descriptors` is one of `/proc/self/fd`.
    ///
    /// # Errors
    /// What the host says of `root`.
    pub fn new(root: OwnedFd, descriptors: OwnedFd, options: Options) -> Result<Self> {
        let stat = fstat(&root)?;
        Ok(Self {
            options,
            descriptors,
            inodes: Inodes::new(root, &stat, options.max_nodes),
            handles: HashMap::new(),
            next_handle: 1,
            initialized: false,
            exporter: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        })
    }

    /// Back to the state at construction: the guest has unmounted, or is another one now.
    pub fn reset(&mut self) {
        self.initialized = false;
        self.handles.clear();
        self.inodes.clear();
    }

    /// Serves `request`, and writes the reply to the front of `reply`, which is as long as what the
    /// guest can take. Returns the reply's length: 0 where none is due, or where none fits.
    pub fn handle(&mut self, request: &[u8], reply: &mut [u8]) -> usize {
        let mut args = Args::new(request);
        let Ok(header) = args.take::<InHeader>() else {
            return 0;
        };
        let Some(mut reply) = Reply::new(reply) else {
            // Nothing can be said; what needs no answer is done nevertheless.
            if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
                self.forget(&header, args);
            }
            return 0;
        };
        let outcome = if usize::try_from(header.len) == Ok(request.len()) {
            self.dispatch(&mut Call { header, args }, &mut reply)
        } else {
            Err(Errno::IO)
        };
        match (header.opcode, outcome) {
            (opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT, _) => 0,
            (_, Ok(())) => reply.finish(header.unique),
            (_, Err(errno)) => reply.fail(header.unique, errno),
        }
    }

    fn dispatch(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let code = call.header.opcode;
        if !self.initialized && code != opcode::INIT {
            return Err(Errno::IO);
        }
        if self.options.read_only && CHANGES.contains(&code) {
            return Err(Errno::ROFS);
        }
        match code {
            opcode::INIT => self.init(call, reply),
            opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            opcode::FORGET | opcode::BATCH_FORGET => {
                self.forget(&call.header, call.args);
                Ok(())
            }
            // Requests are served one after another: there is none left to interrupt.
            opcode::INTERRUPT => Ok(()),
            opcode::LOOKUP => self.lookup(call, reply),
            opcode::MKNOD => self.mknod(call, reply),
            opcode::MKDIR => self.mkdir(call, reply),
            opcode::SYMLINK => self.symlink(call, reply),
            opcode::LINK => self.link(call, reply),
            opcode::UNLINK => self.unlink(call, rustix::fs::AtFlags::empty()),
            opcode::RMDIR => self.unlink(call, rustix::fs::AtFlags::REMOVEDIR),
            opcode::RENAME => self.rename(call),
            opcode::RENAME2 => self.rename2(call),
            opcode::READLINK => self.readlink(call, reply),
            opcode::GETATTR => self.getattr(call, reply),
            opcode::SETATTR => self.setattr(call, reply),
            opcode::STATFS => self.statfs(call, reply),
            opcode::GETXATTR => self.getxattr(call, reply),
            opcode::LISTXATTR => self.listxattr(call, reply),
            opcode::SETXATTR => self.setxattr(call),
            opcode::REMOVEXATTR => self.removexattr(call),
            opcode::CREATE => self.create(call, reply),
            opcode::OPEN => self.open(call, reply),
            opcode::READ => self.read(call, reply),
            opcode::WRITE => self.write(call, reply),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(call),
            opcode::SYNCFS => self.syncfs(),
            opcode::FALLOCATE => self.fallocate(call),
            opcode::LSEEK => self.lseek(call, reply),
            opcode::COPY_FILE_RANGE => self.copy_file_range(call, reply),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(call),
            opcode::OPENDIR => self.opendir(call, reply),
            opcode::READDIR => self.readdir(call, reply, false),
            opcode::READDIRPLUS => self.readdir(call, reply, true),
            // Among them FLUSH: the guest's kernel then spares us one for each close.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: InitIn = call.args.take()?;
        let mut out = InitOut {
            major: fuse::MAJOR,
            minor: fuse::MINOR,
            ..InitOut::default()
        };
        if arg.major < fuse::MAJOR || (arg.major == fuse::MAJOR && arg.minor < fuse::MINOR) {
            return Err(Errno::PROTO);
        }
        if arg.major == fuse::MAJOR {
            self.reset();
            self.initialized = true;
            out.max_readahead = arg.max_readahead;
            out.flags = arg.flags & FEATURES;
            out.max_background = 64;
            out.congestion_threshold = 48;
            out.max_write = MAX_DATA as u32;
            out.max_pages = (MAX_DATA / 4096) as u16;
            out.time_gran = 1;
        }
        reply.put(&out)
    }

    fn forget(&mut self, header: &InHeader, mut args: Args<'_>) {
        if header.opcode == opcode::FORGET {
            if let Ok(count) = args.take::<u64>() {
                self.inodes.forget(header.nodeid, count);
            }
            return;
        }
        let count = args.take().map_or(0, |arg: fuse::BatchForgetIn| arg.count);
        for _ in 0..count {
            let Ok(one) = args.take::<fuse::ForgetOne>() else {
                return;
            };
            self.inodes.forget(one.nodeid, one.nlookup);
        }
    }

    /// Runs `act`, which creates something, in the name of who asked.
    fn creating<T>(&self, header: &InHeader, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.options.ownership {
            Ownership::Guest => credentials::acting_as(header.uid, header.gid, act),
            Ownership::Exporter { .. } => act(),
        }
    }

    /// Runs `act`, which takes set-id bits away where `kill`.
    fn killing<T>(&self, kill: bool, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.options.ownership {
            Ownership::Guest if kill => credentials::killing_set_ids(act),
            // Without CAP_FSETID the host does it always.
            Ownership::Guest | Ownership::Exporter { .. } => act(),
        }
    }

    /// Opens the contents of `inode`.
    fn reopen(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd> {
        match inode.kind {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        openat(&self.descriptors, number(inode), flags, Mode::empty())
    }

    fn add_handle(&mut self, handle: Handle) -> Result<u64> {
        if self.handles.len() >= self.options.max_handles {
            return Err(Errno::NFILE);
        }
        let id = self.next_handle;
        self.next_handle = id.wrapping_add(1);
        self.handles.insert(id, handle);
        Ok(id)
    }

    /// The open file `id`.
    fn file(&self, id: u64) -> Result<BorrowedFd<'_>> {
        match self.handles.get(&id) {
            Some(Handle::File(fd)) => Ok(fd.as_fd()),
            _ => Err(Errno::BADF),
        }
    }

    /// `stat` as the guest sees it.
    fn attr(&self, stat: &Stat) -> fuse::Attr {
        let (uid, gid) = match self.options.ownership {
            Ownership::Guest => (stat.st_uid, stat.st_gid),
            Ownership::Exporter { uid, gid } => (
                present(stat.st_uid, self.exporter.0, uid),
                present(stat.st_gid, self.exporter.1, gid),
            ),
        };
        fuse::Attr {
            ino: stat.st_ino,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime as u64,
            mtime: stat.st_mtime as u64,
            ctime: stat.st_ctime as u64,
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid,
            gid,
            // Device numbers are the host's business.
            rdev: 0,
            blksize: stat.st_blksize as u32,
            flags: 0,
        }
    }
}

/// The id the guest sees for `owner`.
fn present(owner: u32, exporter: u32, shown: u32) -> u32 {
    /// `nobody`, the overflow id.
    const NOBODY: u32 = 65_534;
    if owner == exporter { shown } else { NOBODY }
}

/// The name of `inode` in `/proc/self/fd`.
fn number(inode: &Inode) -> DecInt {
    DecInt::new(inode.as_fd().as_raw_fd())
}

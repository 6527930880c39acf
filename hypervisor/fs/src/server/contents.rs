//! Requests about the contents of files.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, FileType, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek,
    syncfs,
};
use rustix::io::{Errno, Result, pread, pwrite};

use super::wire::Reply;
use super::{Call, Handle, MAX_DATA, Server};
use crate::fuse::{self, ROOT_ID};

/// Most bytes of one copy inside the host: the guest asks again for the rest.
const MAX_COPY: u64 = 16 << 20;
/// `SEEK_DATA` and `SEEK_HOLE`; the guest's kernel serves the others itself.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Server {
    pub(super) fn open(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::OpenIn = call.args.take()?;
        let kill = arg.open_flags & fuse::OPEN_KILL_SUIDGID != 0;
        let file = self.open_file(call.header.nodeid, open_flags(arg.flags), kill)?;
        let fh = self.add_handle(Handle::File(file))?;
        reply.put(&fuse::OpenOut {
            fh,
            ..fuse::OpenOut::default()
        })
    }

    /// Opens the regular file `node`; truncating it takes set-id bits away where `kill`.
    pub(super) fn open_file(&self, node: u64, flags: OFlags, kill: bool) -> Result<OwnedFd> {
        let inode = self.inodes.get(node)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let changes = flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC);
        if self.options.read_only && changes {
            return Err(Errno::ROFS);
        }
        self.killing(kill, || self.reopen(inode, flags))
    }

    pub(super) fn read(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::ReadIn = call.args.take()?;
        let file = self.file(arg.fh)?;
        let len = (arg.size as usize).min(MAX_DATA).min(reply.room());
        reply.fill(len, |room| pread(file, room, arg.offset))
    }

    pub(super) fn write(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::WriteIn = call.args.take()?;
        let data = call.args.bytes(arg.size)?;
        let file = self.file(arg.fh)?;
        let kill = arg.write_flags & fuse::WRITE_KILL_SUIDGID != 0;
        let written = self.killing(kill, || pwrite(file, data, arg.offset))?;
        reply.put(&fuse::WriteOut {
            size: written as u32,
            padding: 0,
        })
    }

    pub(super) fn fsync(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::FsyncIn = call.args.take()?;
        let fd = match self.handles.get(&arg.fh).ok_or(Errno::BADF)? {
            Handle::File(fd) | Handle::Directory(fd) => fd.as_fd(),
        };
        if arg.flags & fuse::FSYNC_FDATASYNC != 0 {
            fdatasync(fd)
        } else {
            fsync(fd)
        }
    }

    pub(super) fn syncfs(&self) -> Result<()> {
        let root = self.inodes.get(ROOT_ID)?;
        syncfs(self.reopen(root, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    pub(super) fn fallocate(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::FallocateIn = call.args.take()?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let flags = FallocateFlags::from_bits(arg.mode)
            .filter(|flags| known.contains(*flags))
            .ok_or(Errno::OPNOTSUPP)?;
        fallocate(self.file(arg.fh)?, flags, arg.offset, arg.length)
    }

    pub(super) fn lseek(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::LseekIn = call.args.take()?;
        let to = match arg.whence {
            SEEK_DATA => SeekFrom::Data(arg.offset),
            SEEK_HOLE => SeekFrom::Hole(arg.offset),
            _ => return Err(Errno::INVAL),
        };
        let offset = seek(self.file(arg.fh)?, to)?;
        reply.put(&fuse::LseekOut { offset })
    }

    pub(super) fn copy_file_range(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<()> {
        let mut arg: fuse::CopyFileRangeIn = call.args.take()?;
        if arg.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.file(arg.fh_in)?, self.file(arg.fh_out)?);
        let len = arg.len.min(MAX_COPY) as usize;
        let (offset_in, offset_out) = (Some(&mut arg.off_in), Some(&mut arg.off_out));
        let copied = copy_file_range(from, offset_in, to, offset_out, len)?;
        reply.put(&fuse::WriteOut {
            size: copied as u32,
            padding: 0,
        })
    }

    pub(super) fn release(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::ReleaseIn = call.args.take()?;
        self.handles.remove(&arg.fh).map(drop).ok_or(Errno::BADF)
    }
}

/// What of the guest's flags counts on the host. `O_DIRECT` does not: the guest's buffers are not
/// the host's.
pub(super) fn open_flags(flags: u32) -> OFlags {
    let passed = OFlags::RWMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::DSYNC | OFlags::SYNC;
    OFlags::from_bits_retain(flags) & passed
}

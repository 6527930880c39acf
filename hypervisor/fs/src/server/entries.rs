//! Requests about names in directories: finding, making, moving and removing them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, fstat, linkat, mkdirat, mknodat,
    openat, openat2, renameat_with, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use super::wire::Reply;
use super::{Call, Handle, Server, VALID_S, number};
use crate::fuse;

impl Server {
    pub(super) fn lookup(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let name = call.args.name()?;
        self.reply_entry(call.header.nodeid, name, reply)
    }

    pub(super) fn mknod(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::MknodIn = call.args.take()?;
        let name = call.args.name()?;
        let kind = FileType::from_raw_mode(arg.mode);
        // A device node would be one of the host's devices.
        if !matches!(
            kind,
            FileType::RegularFile | FileType::Fifo | FileType::Socket
        ) {
            return Err(Errno::PERM);
        }
        let parent = self.inodes.get(call.header.nodeid)?;
        self.creating(&call.header, || {
            mknodat(parent, name, kind, mode(arg.mode), 0)
        })?;
        self.reply_entry(call.header.nodeid, name, reply)
    }

    pub(super) fn mkdir(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::MkdirIn = call.args.take()?;
        let name = call.args.name()?;
        let parent = self.inodes.get(call.header.nodeid)?;
        self.creating(&call.header, || mkdirat(parent, name, mode(arg.mode)))?;
        self.reply_entry(call.header.nodeid, name, reply)
    }

    pub(super) fn symlink(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let name = call.args.name()?;
        // Never followed here: it may say anything.
        let target = call.args.string()?;
        let parent = self.inodes.get(call.header.nodeid)?;
        self.creating(&call.header, || symlinkat(target, parent, name))?;
        self.reply_entry(call.header.nodeid, name, reply)
    }

    pub(super) fn link(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::LinkIn = call.args.take()?;
        let name = call.args.name()?;
        let inode = self.inodes.get(arg.oldnodeid)?;
        let parent = self.inodes.get(call.header.nodeid)?;
        // Follows the link in /proc to the node itself, symbolic link or not.
        linkat(
            &self.descriptors,
            number(inode),
            parent,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.reply_entry(call.header.nodeid, name, reply)
    }

    pub(super) fn unlink(&mut self, call: &mut Call<'_>, flags: AtFlags) -> Result<()> {
        let name = call.args.name()?;
        unlinkat(self.inodes.get(call.header.nodeid)?, name, flags)
    }

    pub(super) fn rename(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::RenameIn = call.args.take()?;
        self.rename_with(call, arg.newdir, RenameFlags::empty())
    }

    pub(super) fn rename2(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::Rename2In = call.args.take()?;
        let flags = RenameFlags::from_bits(arg.flags).ok_or(Errno::INVAL)?;
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        self.rename_with(call, arg.newdir, flags)
    }

    fn rename_with(&self, call: &mut Call<'_>, to: u64, flags: RenameFlags) -> Result<()> {
        let (old, new) = (call.args.name()?, call.args.name()?);
        let from = self.inodes.get(call.header.nodeid)?;
        renameat_with(from, old, self.inodes.get(to)?, new, flags)
    }

    pub(super) fn create(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::CreateIn = call.args.take()?;
        let name = call.args.name()?;
        let flags = super::contents::open_flags(arg.flags);
        let parent = self.inodes.get(call.header.nodeid)?;
        // With O_EXCL, because without it an existing FIFO or device would be opened.
        let new = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.creating(&call.header, || openat(parent, name, new, mode(arg.mode)));
        let exclusive = OFlags::from_bits_retain(arg.flags).contains(OFlags::EXCL);
        let (entry, file) = match made {
            Ok(file) => {
                let node = openat(
                    &self.descriptors,
                    DecInt::from_fd(&file),
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                (self.entry(node)?, file)
            }
            Err(Errno::EXIST) if !exclusive => {
                let entry = self.entry(find(parent, name)?)?;
                let kill = arg.open_flags & fuse::OPEN_KILL_SUIDGID != 0;
                (entry, self.open_file(entry.nodeid, flags, kill)?)
            }
            Err(error) => return Err(error),
        };
        let fh = self.add_handle(Handle::File(file))?;
        reply.put(&entry)?;
        reply.put(&fuse::OpenOut {
            fh,
            ..fuse::OpenOut::default()
        })
    }

    fn reply_entry(&mut self, parent: u64, name: &CStr, reply: &mut Reply<'_>) -> Result<()> {
        let node = find(self.inodes.get(parent)?, name)?;
        reply.put(&self.entry(node)?)
    }

    /// Counts a lookup of `node`, and describes it.
    pub(super) fn entry(&mut self, node: OwnedFd) -> Result<fuse::EntryOut> {
        let stat = fstat(&node)?;
        Ok(fuse::EntryOut {
            nodeid: self.inodes.look_up(node, &stat)?,
            entry_valid: VALID_S,
            attr_valid: VALID_S,
            attr: self.attr(&stat),
            ..fuse::EntryOut::default()
        })
    }
}

/// The node called `name` in `directory`, which is a single component.
pub(super) fn find(directory: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    openat2(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Permission bits of `mode`.
fn mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

//! Requests about what a node is: attributes, extended attributes, the target of a symbolic link,
//! the filesystem it lies on.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_share::Ownership;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    XattrFlags, chmodat, chownat, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, fstatvfs,
    ftruncate, utimensat,
};
use rustix::io::{Errno, Result};

use super::wire::Reply;
use super::{Call, Server, VALID_S, number};
use crate::fuse::{self, setattr};
use crate::inodes::Inode;

/// Longest value and longest list of extended attributes in bytes (`XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 * 1024;
/// Extended attributes that are the guest's: those of other prefixes mean something to the host.
const XATTR_PREFIX: &[u8] = b"user.";

impl Server {
    pub(super) fn getattr(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::GetattrIn = call.args.take()?;
        let stat = if arg.flags & fuse::GETATTR_FH != 0 {
            fstat(self.file(arg.fh)?)?
        } else {
            fstat(self.inodes.get(call.header.nodeid)?)?
        };
        self.reply_attributes(&stat, reply)
    }

    pub(super) fn setattr(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::SetattrIn = call.args.take()?;
        let inode = self.inodes.get(call.header.nodeid)?;
        let is = |flag| arg.valid & flag != 0;
        if is(setattr::MODE) {
            let mode = Mode::from_raw_mode(arg.mode & 0o7777);
            chmodat(&self.descriptors, number(inode), mode, AtFlags::empty())?;
        }
        if is(setattr::UID) || is(setattr::GID) {
            let uid = is(setattr::UID).then_some(arg.uid);
            let gid = is(setattr::GID).then_some(arg.gid);
            self.change_owner(inode, uid, gid)?;
        }
        if is(setattr::SIZE) {
            let truncate = |file: &dyn AsFd| {
                let kill = is(setattr::KILL_SUIDGID);
                self.killing(kill, || ftruncate(file.as_fd(), arg.size))
            };
            match inode.kind {
                FileType::RegularFile if is(setattr::FH) => truncate(&self.file(arg.fh)?)?,
                FileType::RegularFile => truncate(&self.reopen(inode, OFlags::WRONLY)?)?,
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
        }
        if is(setattr::ATIME) || is(setattr::MTIME) {
            let time = |given, now, seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: seconds as i64,
                tv_nsec: match (given, now) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => nanoseconds.into(),
                },
            };
            let (atime, atime_now) = (is(setattr::ATIME), is(setattr::ATIME_NOW));
            let (mtime, mtime_now) = (is(setattr::MTIME), is(setattr::MTIME_NOW));
            let times = Timestamps {
                last_access: time(atime, atime_now, arg.atime, arg.atimensec),
                last_modification: time(mtime, mtime_now, arg.mtime, arg.mtimensec),
            };
            utimensat(&self.descriptors, number(inode), &times, AtFlags::empty())?;
        }
        let stat = fstat(inode)?;
        self.reply_attributes(&stat, reply)
    }

    fn change_owner(&self, inode: &Inode, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        if let Ownership::Exporter { .. } = self.options.ownership {
            let now = self.attr(&fstat(inode)?);
            let same = uid.is_none_or(|uid| uid == now.uid) && gid.is_none_or(|gid| gid == now.gid);
            return if same { Ok(()) } else { Err(Errno::PERM) };
        }
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        chownat(inode, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    fn reply_attributes(&self, stat: &Stat, reply: &mut Reply<'_>) -> Result<()> {
        reply.put(&fuse::AttrOut {
            attr_valid: VALID_S,
            attr: self.attr(stat),
            ..fuse::AttrOut::default()
        })
    }

    pub(super) fn readlink(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let inode = self.inodes.get(call.header.nodeid)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(inode, c"", Vec::new())?;
        reply.put(target.to_bytes())
    }

    pub(super) fn statfs(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let stat = fstatvfs(self.inodes.get(call.header.nodeid)?)?;
        reply.put(&fuse::StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: stat.f_bsize as u32,
            namelen: stat.f_namemax as u32,
            frsize: stat.f_frsize as u32,
            ..fuse::StatfsOut::default()
        })
    }

    pub(super) fn getxattr(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::GetxattrIn = call.args.take()?;
        let name = call.args.string()?;
        let file = self.open_for_xattr(call.header.nodeid, name)?;
        let mut value = vec![0; XATTR_MAX];
        let len = fgetxattr(&file, name, &mut value[..])?;
        reply_sized(arg.size, value.get(..len).unwrap_or_default(), reply)
    }

    pub(super) fn listxattr(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let arg: fuse::GetxattrIn = call.args.take()?;
        let inode = self.inodes.get(call.header.nodeid)?;
        let mut names = vec![0; XATTR_MAX];
        let len = match self.reopen(inode, OFlags::RDONLY) {
            Ok(file) => flistxattr(&file, &mut names[..])?,
            // Nothing else can have attributes of users.
            Err(Errno::LOOP | Errno::NXIO) => 0,
            Err(error) => return Err(error),
        };
        let ours: Vec<u8> = names
            .get(..len)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| name.starts_with(XATTR_PREFIX))
            .flatten()
            .copied()
            .collect();
        reply_sized(arg.size, &ours, reply)
    }

    pub(super) fn setxattr(&mut self, call: &mut Call<'_>) -> Result<()> {
        let arg: fuse::SetxattrIn = call.args.take()?;
        let name = call.args.string()?;
        let value = call.args.bytes(arg.size)?;
        let flags = XattrFlags::from_bits(arg.flags).ok_or(Errno::INVAL)?;
        let file = self.open_for_xattr(call.header.nodeid, name)?;
        fsetxattr(&file, name, value, flags)
    }

    pub(super) fn removexattr(&mut self, call: &mut Call<'_>) -> Result<()> {
        let name = call.args.string()?;
        fremovexattr(&self.open_for_xattr(call.header.nodeid, name)?, name)
    }

    fn open_for_xattr(&self, node: u64, name: &CStr) -> Result<OwnedFd> {
        let inode = self.inodes.get(node)?;
        if !name.to_bytes().starts_with(XATTR_PREFIX) {
            return Err(Errno::OPNOTSUPP);
        }
        self.reopen(inode, OFlags::RDONLY)
            .map_err(|error| match error {
                Errno::LOOP | Errno::NXIO => Errno::PERM,
                other => other,
            })
    }
}

/// Replies `value`, or its size to a guest that asked with size 0.
fn reply_sized(size: u32, value: &[u8], reply: &mut Reply<'_>) -> Result<()> {
    let len = value.len() as u32;
    match size {
        0 => reply.put(&fuse::GetxattrIn {
            size: len,
            padding: 0,
        }),
        size if size < len => Err(Errno::RANGE),
        _ => reply.put(value),
    }
}

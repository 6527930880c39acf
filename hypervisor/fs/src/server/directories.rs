//! Requests about the contents of directories.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::{Errno, Result};

use super::entries::find;
use super::wire::Reply;
use super::{Call, Handle, Server};
use crate::fuse::{self, Dirent};

/// What is read from the host at a time, in bytes; more than an entry with the longest name.
const BUFFER: usize = 32 * 1024;

impl Server {
    pub(super) fn opendir(&mut self, call: &mut Call<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let inode = self.inodes.get(call.header.nodeid)?;
        if inode.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let directory = self.reopen(inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let fh = self.add_handle(Handle::Directory(directory))?;
        reply.put(&fuse::OpenOut {
            fh,
            ..fuse::OpenOut::default()
        })
    }

    /// Entries from the guest's offset on, with their nodes where `plus`.
    pub(super) fn readdir(
        &mut self,
        call: &mut Call<'_>,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<()> {
        let arg: fuse::ReadIn = call.args.take()?;
        // Out of the table meanwhile, because entries change the other table.
        let directory = match self.handles.remove(&arg.fh) {
            Some(Handle::Directory(directory)) => directory,
            Some(file) => {
                self.handles.insert(arg.fh, file);
                return Err(Errno::NOTDIR);
            }
            None => return Err(Errno::BADF),
        };
        let limit = (arg.size as usize).min(reply.room());
        let keep = reply.room().saturating_sub(limit);
        let outcome = self.list(directory.as_fd(), arg.offset, keep, reply, plus);
        self.handles.insert(arg.fh, Handle::Directory(directory));
        outcome
    }

    /// Lists until `keep` bytes of room are left.
    fn list(
        &mut self,
        directory: BorrowedFd<'_>,
        offset: u64,
        keep: usize,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<()> {
        seek(directory, SeekFrom::Start(offset))?;
        let empty = reply.room();
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What comes first arrives first; the guest asks again and sees the error.
                Err(_) if reply.room() < empty => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            let len = name.count_bytes();
            let padded = len.next_multiple_of(8);
            let head = if plus { size_of::<fuse::EntryOut>() } else { 0 };
            if head + size_of::<Dirent>() + padded > reply.room().saturating_sub(keep) {
                break;
            }
            if plus {
                reply.put(&self.node_of(directory, name))?;
            }
            reply.put(&Dirent {
                ino: entry.ino(),
                off: entry.next_entry_cookie(),
                namelen: len as u32,
                kind: match entry.file_type() {
                    FileType::Unknown => 0,
                    known => known.as_raw_mode() >> 12,
                },
            })?;
            reply.put(name.to_bytes())?;
            reply.put([0u8; 8].get(..padded - len).unwrap_or_default())?;
        }
        Ok(())
    }

    /// The node of an entry; node 0, which means none, for the directory itself and its parent,
    /// for what has just gone, and where the guest knows too many.
    fn node_of(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> fuse::EntryOut {
        if name == c"." || name == c".." {
            return fuse::EntryOut::default();
        }
        find(directory, name)
            .and_then(|node| self.entry(node))
            .unwrap_or_default()
    }
}

//! The table of nodes the guest knows: each an `O_PATH` descriptor, counted by the guest's lookups.
//! Used by the server alone.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, Result};

use crate::fuse::ROOT_ID;

/// What tells files of a host apart while one of their descriptors is open.
type Key = (u64, u64);

/// A node.
#[derive(Debug)]
pub(crate) struct Inode {
    fd: OwnedFd,
    key: Key,
    /// Never changes for an inode.
    pub(crate) kind: FileType,
    lookups: u64,
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Inodes {
    by_id: HashMap<u64, Inode>,
    by_key: HashMap<Key, u64>,
    next: u64,
    limit: usize,
}

impl Inodes {
    /// A table of at most `limit` nodes that holds the root.
    pub(crate) fn new(root: OwnedFd, stat: &Stat, limit: usize) -> Self {
        let mut inodes = Self {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT_ID,
            limit,
        };
        inodes.add(root, stat);
        inodes
    }

    /// The node `id`.
    ///
    /// # Errors
    /// `ESTALE` for one the guest does not know (any more).
    pub(crate) fn get(&self, id: u64) -> Result<&Inode> {
        self.by_id.get(&id).ok_or(Errno::STALE)
    }

    /// Counts a lookup of the file behind `fd`, whose status is `stat`; returns its id.
    ///
    /// # Errors
    /// `ENFILE` when the guest holds as many nodes as it may.
    pub(crate) fn look_up(&mut self, fd: OwnedFd, stat: &Stat) -> Result<u64> {
        if let Some(id) = self.by_key.get(&key(stat))
            && let Some(inode) = self.by_id.get_mut(id)
        {
            inode.lookups = inode.lookups.saturating_add(1);
            return Ok(*id);
        }
        if self.by_id.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        Ok(self.add(fd, stat))
    }

    fn add(&mut self, fd: OwnedFd, stat: &Stat) -> u64 {
        let id = self.next;
        // 2^64 lookups take longer than any partition lives.
        self.next = self.next.wrapping_add(1);
        let inode = Inode {
            fd,
            key: key(stat),
            kind: FileType::from_raw_mode(stat.st_mode),
            lookups: 1,
        };
        self.by_key.insert(inode.key, id);
        self.by_id.insert(id, inode);
        id
    }

    /// Takes back `count` lookups of node `id`; the root stays.
    pub(crate) fn forget(&mut self, id: u64, count: u64) {
        let Some(inode) = self.by_id.get_mut(&id).filter(|_| id != ROOT_ID) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups == 0 {
            let key = inode.key;
            self.by_id.remove(&id);
            self.by_key.remove(&key);
        }
    }

    /// Forgets all but the root, as at an unmount.
    pub(crate) fn clear(&mut self) {
        self.by_id.retain(|id, _| *id == ROOT_ID);
        self.by_key.retain(|_, id| *id == ROOT_ID);
    }

    /// Nodes in the table.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

fn key(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, fstat, open};

    fn path(name: &str) -> (OwnedFd, Stat) {
        let fd = open(name, OFlags::PATH, Mode::empty()).unwrap();
        let stat = fstat(&fd).unwrap();
        (fd, stat)
    }

    fn look_up(inodes: &mut Inodes, name: &str) -> Result<u64> {
        let (fd, stat) = path(name);
        inodes.look_up(fd, &stat)
    }

    #[test]
    fn one_file_is_one_node_until_it_is_forgotten() {
        let (root, stat) = path("/");
        let mut inodes = Inodes::new(root, &stat, 3);
        assert_eq!(look_up(&mut inodes, "/"), Ok(ROOT_ID));
        let proc = look_up(&mut inodes, "/proc").unwrap();
        assert_eq!(look_up(&mut inodes, "/proc/"), Ok(proc));
        look_up(&mut inodes, "/dev").unwrap();
        assert_eq!(look_up(&mut inodes, "/etc"), Err(Errno::NFILE));
        inodes.forget(proc, 1);
        assert!(inodes.get(proc).is_ok());
        inodes.forget(proc, 7);
        assert_eq!(inodes.get(proc).unwrap_err(), Errno::STALE);
        inodes.forget(proc, 1);
        inodes.forget(ROOT_ID, u64::MAX);
        assert!(inodes.get(ROOT_ID).is_ok());
        let again = look_up(&mut inodes, "/proc").unwrap();
        assert_ne!(again, proc, "an id is never used twice");
        inodes.clear();
        assert_eq!(inodes.len(), 1);
        assert_eq!(inodes.get(again).unwrap_err(), Errno::STALE);
    }
}

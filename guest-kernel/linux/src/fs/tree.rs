//! Nodes of the file system and how they come and go. File contents of the initramfs are borrowed
//! from the archive until somebody writes to them.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use linux_raw_sys::general as raw;

use super::node::{Contents, Directory, Kind, Node, NodeId, ROOT};
use crate::cpio;
use crate::errno::Errno;

/// Most bytes that all written files may hold together.
pub const OVERLAY_BYTES: usize = 64 * 1024 * 1024;
/// Most nodes, those of the archive included.
pub const MAX_NODES: usize = 2 * cpio::MAX_ENTRIES;

/// All nodes.
#[derive(Debug)]
pub struct Tree<'a> {
    nodes: Vec<Option<Node<'a>>>,
    free: Vec<NodeId>,
    /// Bytes in overlay files.
    overlay_bytes: usize,
}

impl<'a> Tree<'a> {
    /// A root directory alone.
    pub fn empty() -> Self {
        let root = Directory {
            entries: BTreeMap::new(),
            parent: ROOT,
        };
        Self {
            nodes: alloc::vec![Some(Node::new(Kind::Directory(root), 0o755))],
            free: Vec::new(),
            overlay_bytes: 0,
        }
    }

    /// The node.
    pub fn get(&self, id: NodeId) -> Option<&Node<'a>> {
        self.nodes.get(id)?.as_ref()
    }

    /// The node, to change it.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node<'a>> {
        self.nodes.get_mut(id)?.as_mut()
    }

    /// The directory.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn directory(&self, id: NodeId) -> Result<&Directory<'a>, Errno> {
        match self.get(id).map(|node| &node.kind) {
            Some(Kind::Directory(directory)) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Result<&mut Directory<'a>, Errno> {
        match self.get_mut(id).map(|node| &mut node.kind) {
            Some(Kind::Directory(directory)) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Finds `name`, which may be `.` or `..`.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT`.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<NodeId, Errno> {
        let entries = self.directory(directory)?;
        match name {
            b"." => Ok(directory),
            b".." => Ok(entries.parent),
            name => entries.entries.get(name).copied().ok_or(Errno::ENOENT),
        }
    }

    /// Adds a node under a new name.
    ///
    /// # Errors
    /// `EEXIST`, `ENOTDIR`, `ENOSPC`, `ENAMETOOLONG`.
    pub fn add(
        &mut self,
        directory: NodeId,
        name: Cow<'a, [u8]>,
        node: Node<'a>,
    ) -> Result<NodeId, Errno> {
        if name.len() > raw::NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let full = self.free.is_empty() && self.nodes.len() >= MAX_NODES;
        if full {
            return Err(Errno::ENOSPC);
        }
        let id = self.free.last().copied().unwrap_or(self.nodes.len());
        let entries = &mut self.directory_mut(directory)?.entries;
        if entries.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        entries.insert(name, id);
        match self.free.pop().and_then(|id| self.nodes.get_mut(id)) {
            Some(slot) => *slot = Some(node),
            None => self.nodes.push(Some(node)),
        }
        Ok(id)
    }

    /// Adds an empty directory.
    ///
    /// # Errors
    /// As [`Tree::add`].
    pub fn add_directory(
        &mut self,
        parent: NodeId,
        name: Cow<'a, [u8]>,
        permissions: u32,
    ) -> Result<NodeId, Errno> {
        let directory = Directory {
            entries: BTreeMap::new(),
            parent,
        };
        self.add(
            parent,
            name,
            Node::new(Kind::Directory(directory), permissions),
        )
    }

    /// Gives a node one more name.
    ///
    /// # Errors
    /// `EPERM` for directories, `EEXIST`, `ENOTDIR`.
    pub fn link(
        &mut self,
        directory: NodeId,
        name: Cow<'a, [u8]>,
        node: NodeId,
    ) -> Result<(), Errno> {
        if self.directory(node).is_ok() {
            return Err(Errno::EPERM);
        }
        if name.len() > raw::NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let entries = &mut self.directory_mut(directory)?.entries;
        if entries.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        entries.insert(name, node);
        if let Some(node) = self.get_mut(node) {
            node.links += 1;
        }
        Ok(())
    }

    /// Takes away a name that is no directory's.
    ///
    /// # Errors
    /// `EISDIR`, `ENOENT`, `ENOTDIR`.
    pub fn unlink(&mut self, directory: NodeId, name: &[u8]) -> Result<(), Errno> {
        let id = *self
            .directory(directory)?
            .entries
            .get(name)
            .ok_or(Errno::ENOENT)?;
        if self.directory(id).is_ok() {
            return Err(Errno::EISDIR);
        }
        self.directory_mut(directory)?.entries.remove(name);
        if let Some(node) = self.get_mut(id) {
            node.links = node.links.saturating_sub(1);
        }
        self.forget_unused(id);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EBUSY` for one that is in use.
    pub fn remove_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<(), Errno> {
        let id = *self
            .directory(parent)?
            .entries
            .get(name)
            .ok_or(Errno::ENOENT)?;
        if !self.directory(id)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        if self.get(id).is_some_and(|node| node.opened > 0) {
            return Err(Errno::EBUSY);
        }
        self.directory_mut(parent)?.entries.remove(name);
        if let Some(node) = self.get_mut(id) {
            node.links = 0;
        }
        self.forget_unused(id);
        Ok(())
    }

    /// Moves a name, over what is there.
    ///
    /// # Errors
    /// `EINVAL` for a directory into itself, and as `rename(2)` has them.
    pub fn rename(
        &mut self,
        from: (NodeId, &[u8]),
        to: (NodeId, Cow<'a, [u8]>),
    ) -> Result<(), Errno> {
        let id = *self
            .directory(from.0)?
            .entries
            .get(from.1)
            .ok_or(Errno::ENOENT)?;
        let is_directory = self.directory(id).is_ok();
        let mut above = to.0;
        while above != ROOT && is_directory {
            if above == id {
                return Err(Errno::EINVAL);
            }
            above = self.directory(above)?.parent;
        }
        match self.directory(to.0)?.entries.get(&to.1).copied() {
            Some(there) if there == id => return Ok(()),
            Some(there) => match (is_directory, self.directory(there).is_ok()) {
                (true, true) => self.remove_directory(to.0, &to.1)?,
                (false, false) => self.unlink(to.0, &to.1)?,
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
            },
            None if to.1.len() > raw::NAME_MAX as usize => return Err(Errno::ENAMETOOLONG),
            None => {}
        }
        self.directory_mut(from.0)?.entries.remove(from.1);
        self.directory_mut(to.0)?.entries.insert(to.1, id);
        if let Ok(directory) = self.directory_mut(id) {
            directory.parent = to.0;
        }
        Ok(())
    }

    /// An open description refers to the node from now on.
    pub fn opened(&mut self, id: NodeId) {
        if let Some(node) = self.get_mut(id) {
            node.opened += 1;
        }
    }

    /// An open description is gone.
    pub fn closed(&mut self, id: NodeId) {
        if let Some(node) = self.get_mut(id) {
            node.opened = node.opened.saturating_sub(1);
        }
        self.forget_unused(id);
    }

    fn forget_unused(&mut self, id: NodeId) {
        let unused = |node: &Node<'_>| node.links == 0 && node.opened == 0;
        if self.get(id).is_some_and(unused)
            && let Some(node) = self.nodes.get_mut(id).and_then(Option::take)
        {
            self.free.push(id);
            if let Kind::File(Contents::Overlay(bytes)) = node.kind {
                self.overlay_bytes -= bytes.len();
            }
        }
    }

    /// The bytes of a regular file, `len` long, to write to: grown with zeros or cut as needed.
    ///
    /// # Errors
    /// `EINVAL` for other kinds, `ENOSPC` when the overlay or the partition's memory is full.
    pub fn resize(&mut self, id: NodeId, len: u64, now_ns: u64) -> Result<&mut Vec<u8>, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
        let held = self.overlay_bytes;
        let node = self
            .nodes
            .get_mut(id)
            .and_then(Option::as_mut)
            .ok_or(Errno::ENOENT)?;
        let Kind::File(contents) = &mut node.kind else {
            return Err(Errno::EINVAL);
        };
        let (own, kept) = match contents {
            Contents::Archive(_) => (0, contents.bytes().len().min(len)),
            Contents::Overlay(bytes) => (bytes.len(), 0),
        };
        if held - own + len > OVERLAY_BYTES {
            return Err(Errno::ENOSPC);
        }
        if let Contents::Archive(bytes) = contents {
            let mut copy = Vec::new();
            copy.try_reserve_exact(len).map_err(|_| Errno::ENOSPC)?;
            copy.extend_from_slice(bytes.get(..kept).unwrap_or_default());
            *contents = Contents::Overlay(copy);
        }
        let Contents::Overlay(bytes) = contents else {
            return Err(Errno::EINVAL);
        };
        // Fails instead of aborting: the amount is the program's choice.
        bytes
            .try_reserve(len.saturating_sub(bytes.len()))
            .map_err(|_| Errno::ENOSPC)?;
        bytes.resize(len, 0);
        self.overlay_bytes = held - own + len;
        node.modified_ns = now_ns;
        Ok(bytes)
    }

    /// Absolute path of a directory.
    pub fn path_of(&self, directory: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = directory;
        while at != ROOT {
            let Ok(parent) = self.directory(at).map(|d| d.parent) else {
                break;
            };
            let named = self.directory(parent).ok().and_then(|d| {
                d.entries
                    .iter()
                    .find(|(_, id)| **id == at)
                    .map(|(name, _)| name.as_ref())
            });
            let Some(name) = named else { break };
            names.push(name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::build::archive;
    use crate::platform::Settings;

    #[test]
    fn the_overlay_copies_on_write_and_has_an_end() {
        let bytes = archive(&[("f", 0o100644, b"abc")]);
        let mut tree = Tree::new(Some(&bytes), &Settings::default()).unwrap();
        let f = tree.lookup(ROOT, b"f").unwrap();
        assert_eq!(tree.resize(f, 5, 9).unwrap(), b"abc\0\0");
        assert_eq!(tree.resize(f, 1, 9).unwrap(), b"a");
        assert_eq!(
            tree.resize(f, OVERLAY_BYTES as u64 + 1, 9),
            Err(Errno::ENOSPC)
        );
        assert_eq!(tree.resize(f, u64::MAX, 9), Err(Errno::ENOSPC));
        assert_eq!(tree.overlay_bytes, 1);
        assert!(bytes.windows(3).any(|w| w == b"abc"));
    }

    #[test]
    fn an_unlinked_file_lives_while_it_is_open() {
        let mut tree = Tree::new(None, &Settings::default()).unwrap();
        let node = Node::new(Kind::File(Contents::Archive(b"")), 0o644);
        let id = tree.add(ROOT, Cow::Borrowed(b"x"), node).unwrap();
        tree.opened(id);
        tree.resize(id, 10, 0).unwrap();
        tree.unlink(ROOT, b"x").unwrap();
        assert!(tree.get(id).is_some());
        tree.closed(id);
        assert!(tree.get(id).is_none());
        assert_eq!(tree.overlay_bytes, 0);
    }

    #[test]
    fn renames_keep_the_tree_a_tree() {
        let mut tree = Tree::new(None, &Settings::default()).unwrap();
        let a = tree
            .add_directory(ROOT, Cow::Borrowed(b"a"), 0o755)
            .unwrap();
        let b = tree.add_directory(a, Cow::Borrowed(b"b"), 0o755).unwrap();
        assert_eq!(
            tree.rename((ROOT, b"a"), (b, Cow::Borrowed(b"x"))),
            Err(Errno::EINVAL)
        );
        tree.rename((a, b"b"), (ROOT, Cow::Borrowed(b"c"))).unwrap();
        assert_eq!(tree.path_of(b), b"/c");
        assert_eq!(tree.lookup(b, b".."), Ok(ROOT));
        assert_eq!(tree.remove_directory(ROOT, b"dev"), Err(Errno::ENOTEMPTY));
    }
}

//! Open file descriptions and the descriptor table.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;

use super::node::NodeId;
use super::tree::Tree;
use crate::errno::Errno;

/// Most descriptors (`RLIMIT_NOFILE`).
pub const MAX_FILES: usize = 1024;

/// An open file description (`open(2)`): what `dup` shares.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub node: NodeId,
    /// Position in bytes; for directories, behind the last inode number that was listed.
    pub offset: Cell<u64>,
    /// Access mode and status flags (`O_*`).
    pub flags: Cell<u32>,
}

impl OpenFile {
    /// Opened for reading.
    pub fn readable(&self) -> bool {
        matches!(self.flags.get() & 3, 0 | 2)
    }

    /// Opened for writing.
    pub fn writable(&self) -> bool {
        matches!(self.flags.get() & 3, 1 | 2)
    }
}

#[derive(Clone, Debug)]
struct Descriptor {
    file: Rc<OpenFile>,
    close_on_exec: bool,
}

/// The descriptor table.
#[derive(Debug, Default)]
pub struct FileTable {
    descriptors: Vec<Option<Descriptor>>,
}

impl FileTable {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            descriptors: Vec::new(),
        }
    }

    /// The description behind `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Rc<OpenFile>, Errno> {
        self.slot(fd).map(|d| Rc::clone(&d.file))
    }

    fn slot(&self, fd: i32) -> Result<&Descriptor, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.descriptors
            .get(index)
            .and_then(Option::as_ref)
            .ok_or(Errno::EBADF)
    }

    /// Opens `node` at the lowest free descriptor.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open(
        &mut self,
        tree: &mut Tree<'_>,
        node: NodeId,
        flags: u32,
        close_on_exec: bool,
    ) -> Result<i32, Errno> {
        let file = Rc::new(OpenFile {
            node,
            offset: Cell::new(0),
            flags: Cell::new(flags),
        });
        let fd = self.place(
            0,
            Descriptor {
                file,
                close_on_exec,
            },
        )?;
        tree.opened(node);
        Ok(fd)
    }

    /// Another descriptor for the same description, at least `lowest`.
    ///
    /// # Errors
    /// `EBADF`, `EMFILE`, `EINVAL` for a `lowest` out of range.
    pub fn duplicate(&mut self, fd: i32, lowest: i32, close_on_exec: bool) -> Result<i32, Errno> {
        let file = self.get(fd)?;
        let lowest = usize::try_from(lowest).map_err(|_| Errno::EINVAL)?;
        if lowest >= MAX_FILES {
            return Err(Errno::EINVAL);
        }
        self.place(
            lowest,
            Descriptor {
                file,
                close_on_exec,
            },
        )
    }

    /// `dup2`: the same description at `to`, which is closed first.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn duplicate_to(
        &mut self,
        tree: &mut Tree<'_>,
        fd: i32,
        to: i32,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        let file = self.get(fd)?;
        let index = usize::try_from(to).map_err(|_| Errno::EBADF)?;
        if index >= MAX_FILES {
            return Err(Errno::EBADF);
        }
        let _ = self.close(tree, to);
        self.put(
            index,
            Descriptor {
                file,
                close_on_exec,
            },
        );
        Ok(())
    }

    fn place(&mut self, lowest: usize, descriptor: Descriptor) -> Result<i32, Errno> {
        let free = |index: &usize| self.descriptors.get(*index).is_none_or(Option::is_none);
        let index = (lowest..MAX_FILES).find(free).ok_or(Errno::EMFILE)?;
        self.put(index, descriptor);
        i32::try_from(index).map_err(|_| Errno::EMFILE)
    }

    fn put(&mut self, index: usize, descriptor: Descriptor) {
        if self.descriptors.len() <= index {
            self.descriptors.resize(index + 1, None);
        }
        if let Some(slot) = self.descriptors.get_mut(index) {
            *slot = Some(descriptor);
        }
    }

    /// Closes a descriptor; the description goes with its last one.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close(&mut self, tree: &mut Tree<'_>, fd: i32) -> Result<(), Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self.descriptors.get_mut(index).ok_or(Errno::EBADF)?;
        let closed = slot.take().ok_or(Errno::EBADF)?;
        if let Some(file) = Rc::into_inner(closed.file) {
            tree.closed(file.node);
        }
        Ok(())
    }

    /// `FD_CLOEXEC`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool, Errno> {
        self.slot(fd).map(|d| d.close_on_exec)
    }

    /// Sets `FD_CLOEXEC`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_close_on_exec(&mut self, fd: i32, value: bool) -> Result<(), Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self
            .descriptors
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(Errno::EBADF)?;
        slot.close_on_exec = value;
        Ok(())
    }

    /// Closes what `execve` closes.
    pub fn close_for_exec(&mut self, tree: &mut Tree<'_>) {
        for fd in 0..self.descriptors.len() as i32 {
            if self.close_on_exec(fd) == Ok(true) {
                let _ = self.close(tree, fd);
            }
        }
    }
}

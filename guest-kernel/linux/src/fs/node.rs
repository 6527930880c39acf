//! What the file system consists of: directories, files, symbolic links, devices.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use linux_raw_sys::general as raw;

use crate::platform::Stream;

/// Index of a node; its inode number is one more.
pub type NodeId = usize;
/// The root directory.
pub const ROOT: NodeId = 0;

/// Devices that are always there, or come with a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `/dev/null`.
    Null,
    /// `/dev/zero`.
    Zero,
    /// `/dev/full`.
    Full,
    /// `/dev/random`, `/dev/urandom`, with the `entropy` grant.
    Random,
    /// The console, with the `console` grant; written to on this stream.
    Console(Stream),
}

impl Device {
    /// Linux's number for it (`Documentation/admin-guide/devices.txt`), as `st_rdev` has it.
    pub fn number(self) -> (u32, u32) {
        match self {
            Self::Null => (1, 3),
            Self::Zero => (1, 5),
            Self::Full => (1, 7),
            Self::Random => (1, 9),
            Self::Console(_) => (5, 1),
        }
    }
}

/// Bytes of a regular file.
#[derive(Debug)]
pub enum Contents<'a> {
    /// In the archive.
    Archive(&'a [u8]),
    /// Written.
    Overlay(Vec<u8>),
}

impl Contents<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Archive(bytes) => bytes,
            Self::Overlay(bytes) => bytes,
        }
    }
}

/// A directory.
#[derive(Debug)]
pub struct Directory<'a> {
    /// Name to node, without `.` and `..`.
    pub entries: BTreeMap<Cow<'a, [u8]>, NodeId>,
    /// `..`; the root is its own.
    pub parent: NodeId,
}

/// What a node is.
#[derive(Debug)]
pub enum Kind<'a> {
    /// A directory.
    Directory(Directory<'a>),
    /// A regular file.
    File(Contents<'a>),
    /// A symbolic link.
    Symlink(Cow<'a, [u8]>),
    /// A character device.
    Device(Device),
}

/// A file of any kind.
#[derive(Debug)]
pub struct Node<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// Permissions, the lower 12 bits of `st_mode`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, in nanoseconds since 1970; 0 without the `time` grant.
    pub modified_ns: u64,
    /// Names it has.
    pub links: u32,
    /// Open descriptions that refer to it.
    pub opened: u32,
}

impl<'a> Node<'a> {
    /// A node with one name.
    pub fn new(kind: Kind<'a>, permissions: u32) -> Self {
        Self {
            kind,
            permissions,
            uid: 0,
            gid: 0,
            modified_ns: 0,
            links: 1,
            opened: 0,
        }
    }

    /// `st_mode`.
    pub fn mode(&self) -> u32 {
        self.permissions
            | match self.kind {
                Kind::Directory(_) => raw::S_IFDIR,
                Kind::File(_) => raw::S_IFREG,
                Kind::Symlink(_) => raw::S_IFLNK,
                Kind::Device(_) => raw::S_IFCHR,
            }
    }

    /// `st_size`.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Directory(directory) => 64 + 32 * directory.entries.len() as u64,
            Kind::File(contents) => contents.bytes().len() as u64,
            Kind::Symlink(target) => target.len() as u64,
            Kind::Device(_) => 0,
        }
    }
}

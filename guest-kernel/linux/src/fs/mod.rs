//! The file system of a Linux-ABI partition: the initramfs where it lies, and an overlay in the
//! personality's memory for what the program changes. [`tree`] holds the nodes, [`path`] finds
//! them, [`open`] is what descriptors refer to.

pub mod open;
pub mod path;
pub mod tree;

pub use open::{FileTable, OpenFile};
pub use tree::{Contents, Device, Kind, Node, NodeId, Tree};

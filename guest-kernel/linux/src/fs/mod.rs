//! The file system of a Linux-ABI partition: the initramfs where it lies, and an overlay in the
//! personality's memory for what the program changes. [`node`] says what there is, [`tree`] how it
//! comes and goes, [`populate`](mod@populate) what is there at first; [`path`] finds nodes, [`open`] is what
//! descriptors refer to.

pub mod node;
pub mod open;
pub mod path;
pub mod populate;
pub mod tree;

pub use node::{Contents, Device, Kind, Node, NodeId};
pub use open::{FileTable, OpenFile};
pub use tree::Tree;

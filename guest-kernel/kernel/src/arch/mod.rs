//! What is particular to one architecture. The rest of the kernel sees only what is re-exported
//! here.

mod x86_64;

pub(crate) use x86_64::{end_partition, ring_console, write_mailbox};

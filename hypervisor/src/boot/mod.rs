//! From files to guest memory: one room for each boot protocol, and what they share.
//!
//! A loader checks its files, writes guest memory, and says which registers a CPU starts with; it
//! knows nothing of KVM. The machine calls loaders before any vCPU runs.

pub mod bulkhead;
pub mod linux;
pub mod page_tables;
pub mod pvh;
pub mod ram;
pub mod segments;
#[cfg(test)]
pub(crate) mod testing;

//! The VMM: one process, one partition.

pub mod devices;

//! The VMM: one process, one partition.
#![forbid(unsafe_code)]

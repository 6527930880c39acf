//! Starts, watches and stops partitions.
#![forbid(unsafe_code)]

pub mod host;

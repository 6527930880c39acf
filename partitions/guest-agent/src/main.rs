//! PID 1 of Linux partitions that run one command.
#![forbid(unsafe_code)]

fn main() {}

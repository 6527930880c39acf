//! Benchmarks, each beside a peer or the raw floor.
#![forbid(unsafe_code)]

fn main() {}

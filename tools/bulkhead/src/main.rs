//! The command line of Bulkhead.
#![forbid(unsafe_code)]

fn main() {}

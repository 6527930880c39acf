//! The capability microkernel.
#![forbid(unsafe_code)]

fn main() {}

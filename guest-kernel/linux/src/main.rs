//! The initial program of a Linux-ABI partition.
fn main() {}

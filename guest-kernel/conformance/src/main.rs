//! A native program that tries every promise of the kernel from inside a partition.
fn main() {}

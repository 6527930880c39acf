//! A native partition's program that says hello.
#![forbid(unsafe_code)]

fn main() {}

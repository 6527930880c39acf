//! An ordinary Linux program that says hello.
#![forbid(unsafe_code)]

fn main() {}

//! The VMM binary.

fn main() {}

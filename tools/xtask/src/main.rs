//! The repository's own chores: setup, build, test, lab, run.
#![forbid(unsafe_code)]

fn main() {}

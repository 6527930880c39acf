//! A tiny PVH guest that finds out what kind of KVM it runs on.
#![forbid(unsafe_code)]

fn main() {}

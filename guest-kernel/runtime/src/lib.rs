//! The user library of native programs.
#![forbid(unsafe_code)]

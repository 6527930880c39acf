//! The Linux personality: runs unmodified Linux ELF binaries in restricted mode.
#![forbid(unsafe_code)]

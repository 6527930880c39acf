//! What a person writes: system.toml and its checked form.
#![forbid(unsafe_code)]

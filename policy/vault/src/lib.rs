//! Secrets sealed at rest.
#![forbid(unsafe_code)]

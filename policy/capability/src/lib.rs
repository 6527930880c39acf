//! The one model of a grant.
#![forbid(unsafe_code)]

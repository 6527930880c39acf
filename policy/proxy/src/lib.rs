//! HTTP and TLS between a partition and the hosts it was granted.
#![forbid(unsafe_code)]

pub mod client_hello;

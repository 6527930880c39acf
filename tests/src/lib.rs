//! End-to-end suites through the front door.
#![forbid(unsafe_code)]

//! What policy says of an act: tables compiled from grants, and Cedar for conditions.
#![forbid(unsafe_code)]

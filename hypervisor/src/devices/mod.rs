//! The devices of a partition.

pub mod virtio;

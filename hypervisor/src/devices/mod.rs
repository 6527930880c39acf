//! The devices of a partition.
//!
//! Devices that a vCPU thread serves on its own exits live here, one file each; they implement
//! [`BusDevice`](crate::machine::bus::BusDevice). Virtio devices, served by the event loop, live in
//! [`virtio`]; [`rate_limiter`] serves those of them that can be held back.

pub mod exit;
pub mod ged;
pub mod mailbox;
pub mod pci;
pub mod pit;
pub mod pvpanic;
pub mod rate_limiter;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod streams;
pub mod virtio;
pub mod watchdog;

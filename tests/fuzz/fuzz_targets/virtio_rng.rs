//! A hostile driver of virtio-rng.
#![no_main]

mod driver;

use driver::{Script, drive};
use hypervisor::devices::virtio::rng::Entropy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drive(Box::new(Entropy::new()), Script(bytes)));

//! What the processes of a partition tell one another: descriptions and messages that somebody forged.
//! What is accepted says the same again when it is passed on.
#![no_main]

use std::fmt::Debug;

use bulkhead_machine::MachineDescription;
use bulkhead_machine::control::vsock::{Connect, Connected};
use bulkhead_machine::control::{Event, Reply, Request};
use bulkhead_network::NetworkDescription;
use bulkhead_share::FsDescription;
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};

fn read<T: for<'de> Deserialize<'de> + Serialize + PartialEq + Debug>(text: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(text).ok()?;
    let again = serde_json::to_vec(&read).expect("written");
    let same: T = serde_json::from_slice(&again).expect("what we wrote is accepted");
    assert_eq!(same, read);
    Some(read)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    match kind {
        b'm' => {
            let Some(machine) = read::<MachineDescription>(text) else {
                return;
            };
            for device in &machine.devices {
                assert!(device.kind.descriptors().len() <= text.len());
            }
        }
        b'f' => drop(read::<FsDescription>(text)),
        b'n' => drop(read::<NetworkDescription>(text)),
        b'e' => drop(read::<Event>(text)),
        b'q' => drop(read::<Request>(text)),
        b'a' => drop(read::<Reply>(text)),
        b'v' => drop((read::<Connect>(text), read::<Connected>(text))),
        _ => (),
    }
});

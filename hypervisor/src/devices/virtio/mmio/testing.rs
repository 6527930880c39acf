//! A driver's side of the transport, for tests.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use super::super::testing::{SIZE, ring_addresses};
use super::*;

pub(super) const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub(super) const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
pub(super) const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
pub(super) const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
pub(super) const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
pub(super) const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// The one feature a driver must accept.
pub(in crate::devices::virtio) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

pub(in crate::devices::virtio) fn get(transport: &MmioTransport, register: u32) -> u32 {
    let mut data = [0xee; 4];
    transport.read(register.into(), &mut data);
    u32::from_le_bytes(data)
}

pub(in crate::devices::virtio) fn set(transport: &MmioTransport, register: u32, value: u32) {
    transport.write(register.into(), &value.to_le_bytes());
}

pub(in crate::devices::virtio) fn accept_features(transport: &MmioTransport, features: u64) {
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        set(transport, VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        set(transport, VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
}

pub(in crate::devices::virtio) fn place_queue(transport: &MmioTransport, index: usize) {
    let [table, avail, used] = ring_addresses(index).map(|address| address.0 as u32);
    set(transport, VIRTIO_MMIO_QUEUE_SEL, index as u32);
    set(transport, VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
    set(transport, VIRTIO_MMIO_QUEUE_DESC_LOW, table);
    set(transport, VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail);
    set(transport, VIRTIO_MMIO_QUEUE_USED_LOW, used);
    set(transport, VIRTIO_MMIO_QUEUE_READY, 1);
}

/// Brings the device up as section 3.1.1 says, with no feature that is not needed.
pub(in crate::devices::virtio) fn bring_up(transport: &MmioTransport, queues: usize) {
    bring_up_with(transport, queues, VERSION_1);
}

/// As [`bring_up`], with these features.
pub(in crate::devices::virtio) fn bring_up_with(
    transport: &MmioTransport,
    queues: usize,
    features: u64,
) {
    set(transport, VIRTIO_MMIO_STATUS, 0);
    set(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    set(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    accept_features(transport, features);
    set(
        transport,
        VIRTIO_MMIO_STATUS,
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
    );
    assert_ne!(get(transport, VIRTIO_MMIO_STATUS) & FEATURES_OK, 0);
    for index in 0..queues {
        place_queue(transport, index);
        assert_eq!(get(transport, VIRTIO_MMIO_QUEUE_READY), 1);
    }
    set(
        transport,
        VIRTIO_MMIO_STATUS,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
    );
    assert_ne!(get(transport, VIRTIO_MMIO_STATUS) & DRIVER_OK, 0);
}

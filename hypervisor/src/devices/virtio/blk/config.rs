//! The block device's configuration space and features (virtio 1.2, sections 5.2.3 and 5.2.4).
//! Used by the block device alone.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::{Disk, SECTOR_BYTES};
use super::{SEG_MAX, SIZE_MAX};

/// Ranges of a discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// Sectors of one range: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// What hosts' storage works with inside, whatever block size it takes.
const PHYSICAL_BLOCK: u64 = 4096;
/// Offset of the field `writeback`.
pub(super) const WRITEBACK: u64 = 32;
/// Length of `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
pub(super) const CONFIG_BYTES: usize = 60;

/// Device features of a disk with `queues` queues.
pub(super) fn features(disk: &Disk, queues: u16) -> u64 {
    let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH;
    if queues > 1 {
        features |= 1 << VIRTIO_BLK_F_MQ;
    }
    features
        | if disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_CONFIG_WCE
                | 1 << VIRTIO_BLK_F_DISCARD
                | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
}

/// The configuration space.
pub(super) fn space(disk: &Disk, queues: u16, writeback: bool) -> [u8; CONFIG_BYTES] {
    let block = disk.block();
    let physical = PHYSICAL_BLOCK.max(block);
    let granularity = disk.granularity();
    let discard_alignment = (granularity / SECTOR_BYTES) as u32;
    let max_ranges = MAX_RANGES.to_le_bytes();
    let max_sectors = MAX_RANGE_SECTORS.to_le_bytes();
    let fields: [(usize, &[u8]); 15] = [
        (0, &(disk.bytes() / SECTOR_BYTES).to_le_bytes()),
        (8, &SIZE_MAX.to_le_bytes()),
        (12, &SEG_MAX.to_le_bytes()),
        (20, &(block as u32).to_le_bytes()),
        (24, &[(physical / block).trailing_zeros() as u8]),
        (26, &((physical / block) as u16).to_le_bytes()),
        (28, &((granularity / block) as u32).to_le_bytes()),
        (WRITEBACK as usize, &[writeback.into()]),
        (34, &queues.to_le_bytes()),
        (36, &max_sectors),
        (40, &max_ranges),
        (44, &discard_alignment.to_le_bytes()),
        (48, &max_sectors),
        (52, &max_ranges),
        (56, &[1]),
    ];
    let mut config = [0; CONFIG_BYTES];
    for (at, bytes) in fields {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    config
}

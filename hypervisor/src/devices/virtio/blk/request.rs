//! What a block request asks for (virtio 1.2, section 5.2.6), checked against the disk before
//! anything moves. Used by the block device alone.
//!
//! The driver may cut header, data and status into descriptors as it likes (section 2.7.4.3): the
//! header is the first 16 readable bytes, the status the last writable byte, data what is between.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestMemoryMmap;

use super::disk::SECTOR_BYTES;
use super::{DeviceError, MAX_REQUEST_BYTES};
use crate::devices::virtio::queue::Chain;

/// Length of `virtio_blk_req`'s header: type, reserved, sector.
pub(super) const HEADER_BYTES: u64 = 16;
/// Length of the device's serial.
pub(super) const ID_BYTES: u64 = VIRTIO_BLK_ID_BYTES as u64;

/// A request that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill `len` writable bytes.
    Read { sector: u64, len: u64 },
    /// Store `len` readable bytes after the header.
    Write { sector: u64, len: u64 },
    /// Make writes durable.
    Flush,
    /// Put the serial into the first `len` writable bytes, at most [`ID_BYTES`].
    GetId { len: u64 },
}

/// The disk as far as a request depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Capacity.
    pub(super) sectors: u64,
    /// Writes are refused.
    pub(super) read_only: bool,
}

/// Reads the request of `chain`. The inner error is the status to answer with.
///
/// # Errors
/// The chain has no status byte, or no header.
pub(super) fn parse(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    limits: Limits,
) -> Result<Result<Request, u8>, DeviceError> {
    if chain.writable.is_empty() {
        return Err(DeviceError::Unanswerable);
    }
    let mut header = [0; HEADER_BYTES as usize];
    if chain.readable.len() < HEADER_BYTES {
        return Ok(Err(VIRTIO_BLK_S_IOERR as u8));
    }
    chain.readable.read_at(memory, 0, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let data_out = chain.readable.len() - HEADER_BYTES;
    let data_in = chain.writable.len() - 1;
    Ok(match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN if data_out == 0 => {
            in_range(sector, data_in, limits).map(|()| Request::Read {
                sector,
                len: data_in,
            })
        }
        VIRTIO_BLK_T_OUT if data_in == 0 && !limits.read_only => in_range(sector, data_out, limits)
            .map(|()| Request::Write {
                sector,
                len: data_out,
            }),
        VIRTIO_BLK_T_FLUSH if data_out == 0 && data_in == 0 => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if data_out == 0 => Ok(Request::GetId {
            len: data_in.min(ID_BYTES),
        }),
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID => {
            Err(VIRTIO_BLK_S_IOERR as u8)
        }
        _ => Err(VIRTIO_BLK_S_UNSUPP as u8),
    })
}

fn in_range(sector: u64, len: u64, limits: Limits) -> Result<(), u8> {
    let fits = len.is_multiple_of(SECTOR_BYTES)
        && len <= MAX_REQUEST_BYTES
        && sector
            .checked_add(len / SECTOR_BYTES)
            .is_some_and(|end| end <= limits.sectors);
    if fits && len > 0 {
        Ok(())
    } else {
        Err(VIRTIO_BLK_S_IOERR as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_at_the_disk_and_at_the_cap() {
        let small = Limits {
            sectors: 4,
            read_only: false,
        };
        let large = Limits {
            sectors: 1 << 40,
            read_only: false,
        };
        let cap = MAX_REQUEST_BYTES;
        for (sector, len, limits, fits) in [
            (0, 512, small, true),
            (0, 2048, small, true),
            (3, 512, small, true),
            (0, 2560, small, false),
            (4, 512, small, false),
            (0, 0, small, false),
            (0, 1, small, false),
            (0, 511, small, false),
            (u64::MAX, 512, small, false),
            ((1 << 40) - 1, 512, large, true),
            (1 << 40, 512, large, false),
            (0, cap, large, true),
            (0, cap + 512, large, false),
        ] {
            assert_eq!(
                in_range(sector, len, limits).is_ok(),
                fits,
                "{len} bytes at {sector}"
            );
        }
    }
}

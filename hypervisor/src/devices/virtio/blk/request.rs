//! What a block request asks for (virtio 1.2, section 5.2.6), checked against the disk before
//! anything moves. Used by the block device alone.
//!
//! The driver may cut header, data and status into descriptors as it likes (section 2.7.4.3): the
//! header is the first 16 readable bytes, the status the last writable byte, data what is between.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;

use super::config::{MAX_RANGE_SECTORS, MAX_RANGES};
use super::disk::{Operation, SECTOR_BYTES};
use super::{DeviceError, MAX_REQUEST_BYTES};
use crate::devices::virtio::queue::Chain;

/// Length of `virtio_blk_req`'s header: type, reserved, sector.
pub(super) const HEADER_BYTES: u64 = 16;
/// Length of the device's serial.
pub(super) const ID_BYTES: u64 = VIRTIO_BLK_ID_BYTES as u64;
/// Length of `virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE_BYTES: u64 = 16;

const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Something the disk does: the first operation, and those after it, last first.
    Disk(Operation, Vec<Operation>),
    /// Put the serial into the first `len` writable bytes, at most [`ID_BYTES`].
    GetId { len: u64 },
}

/// The disk as far as a request depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Capacity.
    pub(super) bytes: u64,
    /// What offset and length of a request have to be multiples of.
    pub(super) block: u64,
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
        return Ok(Err(IOERR));
    }
    chain.readable.read_at(memory, 0, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let data_out = chain.readable.len() - HEADER_BYTES;
    let data_in = chain.writable.len() - 1;
    let one = |operation| Request::Disk(operation, Vec::new());
    Ok(match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN if data_out == 0 => transfer(sector, data_in, limits)
            .map(|(offset, len)| one(Operation::Read { offset, len })),
        VIRTIO_BLK_T_OUT if data_in == 0 && !limits.read_only => transfer(sector, data_out, limits)
            .map(|(offset, len)| one(Operation::Write { offset, len })),
        VIRTIO_BLK_T_FLUSH if data_out == 0 && data_in == 0 => Ok(one(Operation::Flush)),
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES)
            if data_in == 0 && !limits.read_only =>
        {
            ranges(kind, chain, memory, data_out, limits)?
        }
        VIRTIO_BLK_T_GET_ID if data_out == 0 => Ok(Request::GetId {
            len: data_in.min(ID_BYTES),
        }),
        VIRTIO_BLK_T_IN
        | VIRTIO_BLK_T_OUT
        | VIRTIO_BLK_T_FLUSH
        | VIRTIO_BLK_T_DISCARD
        | VIRTIO_BLK_T_WRITE_ZEROES
        | VIRTIO_BLK_T_GET_ID => Err(IOERR),
        _ => Err(UNSUPP),
    })
}

/// Offset and length in bytes of a read or write of `len` bytes.
fn transfer(sector: u64, len: u64, limits: Limits) -> Result<(u64, u64), u8> {
    if len > MAX_REQUEST_BYTES {
        return Err(IOERR);
    }
    in_range(sector, len, limits)
}

fn in_range(sector: u64, len: u64, limits: Limits) -> Result<(u64, u64), u8> {
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(IOERR)?;
    let end = offset.checked_add(len).ok_or(IOERR)?;
    let fits = len > 0
        && end <= limits.bytes
        && offset.is_multiple_of(limits.block)
        && len.is_multiple_of(limits.block);
    if fits { Ok((offset, len)) } else { Err(IOERR) }
}

/// The ranges of a discard or of write-zeroes, all of them checked before the first is acted on.
fn ranges(
    kind: u32,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    len: u64,
    limits: Limits,
) -> Result<Result<Request, u8>, DeviceError> {
    let count = len / RANGE_BYTES;
    if !len.is_multiple_of(RANGE_BYTES) || count == 0 || count > u64::from(MAX_RANGES) {
        return Ok(Err(IOERR));
    }
    let mut operations = Vec::with_capacity(count as usize);
    for index in (0..count).rev() {
        let mut range = [0; RANGE_BYTES as usize];
        let at = HEADER_BYTES + index * RANGE_BYTES;
        chain.readable.read_at(memory, at, &mut range)?;
        match operation(kind, range, limits) {
            Ok(operation) => operations.push(operation),
            Err(status) => return Ok(Err(status)),
        }
    }
    let first = operations.pop();
    Ok(first.map_or(Err(IOERR), |first| Ok(Request::Disk(first, operations))))
}

fn operation(
    kind: u32,
    range: [u8; RANGE_BYTES as usize],
    limits: Limits,
) -> Result<Operation, u8> {
    let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = range;
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    // Section 5.2.6.2: unknown flags, and a discard with "unmap", are not supported.
    let known = match kind {
        VIRTIO_BLK_T_WRITE_ZEROES => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        _ => 0,
    };
    if flags & !known != 0 {
        return Err(UNSUPP);
    }
    if sectors > MAX_RANGE_SECTORS {
        return Err(IOERR);
    }
    let len = u64::from(sectors) * SECTOR_BYTES;
    let (offset, len) = in_range(u64::from_le_bytes(sector), len, limits)?;
    Ok(match kind {
        VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes {
            offset,
            len,
            unmap: flags != 0,
        },
        _ => Operation::Discard { offset, len },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_at_the_disk_and_at_the_cap() {
        let disk = |sectors: u64, block| Limits {
            bytes: sectors * SECTOR_BYTES,
            block,
            read_only: false,
        };
        let (small, large, coarse) = (disk(4, 512), disk(1 << 40, 512), disk(16, 4096));
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
            (u64::MAX / 512, 512, small, false),
            ((1 << 40) - 1, 512, large, true),
            (1 << 40, 512, large, false),
            (0, cap, large, true),
            (0, cap + 512, large, false),
            (8, 4096, coarse, true),
            (4, 4096, coarse, false),
            (8, 512, coarse, false),
        ] {
            assert_eq!(
                transfer(sector, len, limits).is_ok(),
                fits,
                "{len} bytes at {sector}"
            );
        }
    }

    #[test]
    fn ranges_to_discard_and_zero() {
        let limits = Limits {
            bytes: 1 << 40,
            block: 512,
            read_only: false,
        };
        let (discard, zero) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
        let max = MAX_RANGE_SECTORS;
        for (kind, sector, sectors, flags, want) in [
            (discard, 0, 1, 0, Ok(())),
            (discard, 0, max, 0, Ok(())),
            (discard, 0, max + 1, 0, Err(IOERR)),
            (discard, 0, 0, 0, Err(IOERR)),
            (discard, 1 << 31, 1, 0, Err(IOERR)),
            (discard, u64::MAX, 1, 0, Err(IOERR)),
            (discard, 0, 1, 1, Err(UNSUPP)),
            (zero, 0, 1, 0, Ok(())),
            (zero, 0, 1, 1, Ok(())),
            (zero, 0, 1, 2, Err(UNSUPP)),
            (zero, 0, 1, u32::MAX, Err(UNSUPP)),
        ] {
            let mut range = [0; 16];
            range[..8].copy_from_slice(&u64::to_le_bytes(sector));
            range[8..12].copy_from_slice(&u32::to_le_bytes(sectors));
            range[12..].copy_from_slice(&u32::to_le_bytes(flags));
            let got = operation(kind, range, limits);
            assert_eq!(got.map(drop), want, "{kind} {sectors} at {sector}, {flags}");
        }
    }
}

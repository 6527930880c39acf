//! virtio-blk (virtio 1.2, section 5.2): one request queue over a raw disk of fixed size.
//!
//! Requests are served in order, on the event loop's thread. A request is checked as a whole
//! before the disk or guest memory is touched; what it asks wrongly is answered with
//! `VIRTIO_BLK_S_IOERR` or `VIRTIO_BLK_S_UNSUPP`, and a chain that cannot even hold that answer
//! stops the device until it is reset.

mod disk;
mod request;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use vm_memory::GuestMemoryMmap;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Progress, TURN_BYTES, TURN_TIME, VirtioDevice,
    read_config_bytes,
};
pub use disk::DiskError;
use disk::{Disk, SECTOR_BYTES};
use request::{HEADER_BYTES, ID_BYTES, Limits, Request};

/// Entries of the request queue.
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: the queue's size less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of a segment.
const SIZE_MAX: u32 = 64 * 1024;
/// Most data bytes of a request, which is what the two limits above allow: a little under 16 MiB.
/// A longer one is answered with an error.
pub const MAX_REQUEST_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// What a request counts at least against a turn's [`TURN_BYTES`].
const REQUEST_COST: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// Name, padded with zeros: what `VIRTIO_BLK_T_GET_ID` answers.
    serial: [u8; ID_BYTES as usize],
    config: [u8; 24],
    /// The driver did not negotiate `VIRTIO_BLK_F_FLUSH` and relies on write-through
    /// (section 5.2.6.2).
    write_through: bool,
    /// [`TURN_TIME`]; tests set another.
    turn_time: Duration,
}

impl Block {
    /// A device over `file`, a raw image or block device, whose length is the capacity.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn new(name: &str, file: OwnedFd, read_only: bool) -> Result<Self, DiskError> {
        let mut serial = [0; ID_BYTES as usize];
        match serial.get_mut(..name.len()) {
            Some(start) => start.copy_from_slice(name.as_bytes()),
            None => return Err(DiskError::LongName { name: name.into() }),
        }
        let disk = Disk::new(name, file, read_only)?;
        let config = config_space(disk.sectors());
        Ok(Self {
            disk,
            serial,
            config,
            write_through: true,
            turn_time: TURN_TIME,
        })
    }

    /// Carries a request out; the bytes written to the data buffers, or the status of its failure.
    fn serve(&self, chain: &Chain, memory: &GuestMemoryMmap, request: Request) -> Result<u64, u8> {
        let outcome = match request {
            Request::Read { sector, len } => chain
                .writable
                .slices(memory, 0, len)
                .and_then(|slices| self.disk.read(sector, &slices))
                .map(|()| len),
            Request::Write { sector, len } => chain
                .readable
                .slices(memory, HEADER_BYTES, len)
                .and_then(|slices| self.disk.write(sector, &slices))
                .and_then(|()| {
                    if self.write_through {
                        self.disk.flush()
                    } else {
                        Ok(())
                    }
                })
                .map(|()| 0),
            Request::Flush => self.disk.flush().map(|()| 0),
            Request::GetId { len } => {
                let id = self.serial.get(..len as usize).unwrap_or(&self.serial);
                chain.writable.write_at(memory, 0, id).map(|()| len)
            }
        };
        outcome.map_err(|_| VIRTIO_BLK_S_IOERR as u8)
    }

    /// Serves one chain; the bytes to report in the used ring, and what it costs of a turn.
    fn answer(&self, chain: &Chain, memory: &GuestMemoryMmap) -> Result<(u32, u64), DeviceError> {
        let limits = Limits {
            sectors: self.disk.sectors(),
            read_only: self.disk.read_only(),
        };
        let request = request::parse(chain, memory, limits)?;
        let cost = match request {
            Ok(Request::Read { len, .. } | Request::Write { len, .. }) => len.max(REQUEST_COST),
            _ => REQUEST_COST,
        };
        let outcome = request.and_then(|request| self.serve(chain, memory, request));
        let status_at = chain.writable.len() - 1;
        let (status, data) = match outcome {
            Ok(data) => (VIRTIO_BLK_S_OK as u8, data),
            Err(status) => (status, 0),
        };
        chain.writable.write_at(memory, status_at, &[status])?;
        // Section 2.7.8.2: only bytes written without a gap from the first on may be counted.
        let written = if data == status_at { data + 1 } else { data };
        Ok((written as u32, cost))
    }
}

/// `struct virtio_blk_config` up to `blk_size` (section 5.2.4).
fn config_space(sectors: u64) -> [u8; 24] {
    let mut config = [0; 24];
    let fields: [(usize, &[u8]); 4] = [
        (0, &sectors.to_le_bytes()),
        (8, &SIZE_MAX.to_le_bytes()),
        (12, &SEG_MAX.to_le_bytes()),
        (20, &(SECTOR_BYTES as u32).to_le_bytes()),
    ];
    for (at, bytes) in fields {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | read_only
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        self.write_through = activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let Some(queue) = io.queues.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        let begin = Instant::now();
        let mut spent = 0;
        loop {
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            let (written, cost) = self.answer(&chain, io.memory)?;
            queue.push(io.memory, &chain, written)?;
            spent += cost;
            // A flush, or a read that no cache holds, takes milliseconds whatever it moves.
            if spent >= TURN_BYTES || begin.elapsed() >= self.turn_time {
                return Ok(Progress::More);
            }
        }
    }

    fn reset(&mut self) {
        self.write_through = true;
    }
}

#[cfg(test)]
mod tests;

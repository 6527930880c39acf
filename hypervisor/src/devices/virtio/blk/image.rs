//! A disk without a device before it: what fuzz targets take the parsers of disk formats by.

use std::fs::File;
use std::io;

use bulkhead_machine::device::ImageFormat;
use vm_memory::VolatileSlice;

use super::disk::{Disk, DiskError, Files, Operation};

/// See the module.
pub struct Image(Disk);

impl Image {
    /// The disk in `file`, with `overlay` (a map and bases) the one above them.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(
        file: File,
        overlay: Option<(File, Vec<(File, ImageFormat)>)>,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        Disk::new("image", Files { file, overlay }, read_only).map(Self)
    }

    /// Fills `bytes` from `offset` on; whole blocks inside the disk.
    ///
    /// # Errors
    /// The host's, or the format is broken there.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        let operation = Operation::Read { offset, len };
        self.0.execute(operation, &[VolatileSlice::from(bytes)])
    }

    /// Stores `bytes` from `offset` on; whole blocks inside the disk.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        let mut bytes = bytes.to_vec();
        let slice = VolatileSlice::from(bytes.as_mut_slice());
        self.0.execute(Operation::Write { offset, len }, &[slice])
    }

    /// Makes writes durable.
    ///
    /// # Errors
    /// The host's.
    pub fn flush(&self) -> io::Result<()> {
        self.0.execute(Operation::Flush, &[])
    }
}

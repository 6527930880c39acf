//! Opens disks, and makes the tops of copy-on-write disks.
//!
//! Every lock lives as long as its descriptor, also in the VMM: a disk has one writer, or any
//! number of readers.

use crate::error::Error;
use crate::files::{describe, open};
use crate::initramfs::memory_file;
use bulkhead_machine::device::ImageFormat;
use bulkhead_manifest::Disk;
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
/// What a file that is memory is a multiple of.
const PMEM_STEP: u64 = 2 * 1024 * 1024;
/// Magic number of a qcow2 image, and where its header has the length of the disk (QEMU,
/// docs/interop/qcow2.txt).
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
const QCOW2_SIZE_AT: u64 = 24;

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Open {
        what: "disk",
        path: path.to_owned(),
        source,
    }
}

/// Opens a raw disk image or block device.
pub(crate) fn open_disk(path: &Path, write: bool, direct: bool) -> Result<File, Error> {
    let mut file = open_locked(path, write, direct)?;
    raw_length(path, &mut file)?;
    Ok(file)
}

/// Opens the image that a disk with an overlay is based on; read through the page cache, whatever
/// the top is.
pub(crate) fn open_base(disk: &Disk) -> Result<File, Error> {
    let mut file = open_locked(&disk.path, false, false)?;
    virtual_length(disk, &mut file)?;
    Ok(file)
}

/// Opens an image that another is based on.
pub(crate) fn open_backing(path: &Path) -> Result<File, Error> {
    open_locked(path, false, false)
}

/// Opens the top of a disk with an overlay and the map that belongs to it, and makes both where
/// there is neither. A disk that is only read, of a format that is not raw, gets an empty one in
/// memory.
pub(crate) fn open_overlay(disk: &Disk) -> Result<(File, File), Error> {
    let length = || {
        let mut base = open_locked(&disk.path, false, false)?;
        virtual_length(disk, &mut base)
    };
    let Some(top) = &disk.overlay else {
        let top = memory_file(c"top")?;
        top.set_len(length()?).map_err(failed(&disk.path))?;
        return Ok((top, memory_file(c"map")?));
    };
    let map = map_path(top);
    // The map first: an empty one without a top is what a start that was cut short leaves.
    let has_top = top.exists();
    let map_length = std::fs::metadata(&map).ok().map(|metadata| metadata.len());
    match (has_top, map_length) {
        (true, Some(_)) => {}
        (false, None | Some(0)) => {
            let length = length()?;
            if map_length.is_none() {
                create(&map)?;
            }
            create(top)?.set_len(length).map_err(failed(top))?;
        }
        (true, None) => return Err(Error::OverlayIncomplete(map)),
        (false, Some(_)) => return Err(Error::OverlayIncomplete(top.clone())),
    }
    Ok((
        open_disk(top, true, disk.direct)?,
        open_locked(&map, true, false)?,
    ))
}

/// Opens a file that is memory of a guest.
pub(crate) fn open_pmem(path: &Path, write: bool) -> Result<File, Error> {
    let mut file = open_locked(path, write, false)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed(path))?;
    if bytes == 0 || !bytes.is_multiple_of(PMEM_STEP) {
        return Err(Error::PmemSize {
            path: path.to_owned(),
            bytes,
        });
    }
    Ok(file)
}

/// Where the map of a top is.
fn map_path(top: &Path) -> PathBuf {
    let mut path = top.as_os_str().to_owned();
    path.push(".map");
    path.into()
}

fn create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.map_err(failed(path))
}

fn open_locked(path: &Path, write: bool, direct: bool) -> Result<File, Error> {
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let file = open(path, write, flags).map_err(failed(path))?;
    let kind = file.metadata().map_err(failed(path))?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(Error::FileKind {
            what: "disk",
            path: path.to_owned(),
            found: describe(kind),
        });
    }
    let lock = if write {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match flock(&file, lock) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::DiskBusy(path.to_owned())),
        Err(errno) => Err(failed(path)(errno.into())),
    }
}

/// Length of a raw disk in bytes.
fn raw_length(path: &Path, file: &mut File) -> Result<u64, Error> {
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed(path))?;
    whole(path, bytes)
}

fn whole(path: &Path, bytes: u64) -> Result<u64, Error> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(Error::DiskSize {
            path: path.to_owned(),
            bytes,
        });
    }
    Ok(bytes)
}

/// Length in bytes of the disk that an image holds.
fn virtual_length(disk: &Disk, file: &mut File) -> Result<u64, Error> {
    if disk.format == ImageFormat::Raw {
        return raw_length(&disk.path, file);
    }
    let mut header = [0; 8];
    let mut magic = [0; 4];
    let read = file
        .read_exact_at(&mut magic, 0)
        .and_then(|()| file.read_exact_at(&mut header, QCOW2_SIZE_AT));
    if read.is_err() || magic != QCOW2_MAGIC {
        return Err(Error::DiskFormat(disk.path.clone()));
    }
    whole(&disk.path, u64::from_be_bytes(header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn disk(path: &Path, overlay: Option<&Path>, format: ImageFormat) -> Disk {
        Disk {
            path: path.to_owned(),
            write: overlay.is_some(),
            format,
            backing: Vec::new(),
            overlay: overlay.map(Path::to_owned),
            direct: false,
            queues: 1,
            rate: Default::default(),
        }
    }

    #[test]
    fn the_top_and_its_map_are_made_once_and_belong_together() {
        let dir = tempdir().unwrap();
        let [base, top] = ["base", "top"].map(|name| dir.path().join(name));
        std::fs::write(&base, vec![1; 1024]).unwrap();
        let disk = disk(&base, Some(&top), ImageFormat::Raw);
        let (file, map) = open_overlay(&disk).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1024);
        assert_eq!(map.metadata().unwrap().len(), 0);
        assert_eq!(open_overlay(&disk).unwrap_err().code(), "disk-busy");
        file.write_all_at(b"x", 0).unwrap();
        drop((file, map));
        let (file, map) = open_overlay(&disk).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, *b"x", "a second start finds what the first wrote");
        drop((file, map));
        std::fs::remove_file(map_path(&top)).unwrap();
        assert_eq!(
            open_overlay(&disk).unwrap_err().code(),
            "overlay-incomplete"
        );
        std::fs::write(map_path(&top), "x").unwrap();
        std::fs::remove_file(&top).unwrap();
        assert_eq!(
            open_overlay(&disk).unwrap_err().code(),
            "overlay-incomplete"
        );
        std::fs::write(map_path(&top), "").unwrap();
        assert!(open_overlay(&disk).is_ok(), "cut short between the two");
    }

    #[test]
    fn a_qcow2_image_is_as_long_as_it_says() {
        let dir = tempdir().unwrap();
        let base = dir.path().join("base");
        let mut image = vec![0; 104];
        image[..4].copy_from_slice(&QCOW2_MAGIC);
        image[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        std::fs::write(&base, &image).unwrap();
        let disk = disk(&base, None, ImageFormat::Qcow2);
        let (top, map) = open_overlay(&disk).unwrap();
        assert_eq!(top.metadata().unwrap().len(), 1 << 20);
        assert_eq!(map.metadata().unwrap().len(), 0);
        for (bytes, code) in [
            (&image[..31], "disk-format"),
            (b"raw", "disk-format"),
            (&[0; 512], "disk-format"),
        ] {
            std::fs::write(&base, bytes).unwrap();
            assert_eq!(open_base(&disk).unwrap_err().code(), code);
        }
        image[31] = 1;
        std::fs::write(&base, &image).unwrap();
        assert_eq!(open_base(&disk).unwrap_err().code(), "disk-size");
    }

    #[test]
    fn disks_are_whole_sectors() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("disk.img");
        for (bytes, code) in [(0, "disk-empty"), (511, "disk-size"), (513, "disk-size")] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            assert_eq!(
                open_disk(&path, false, false).unwrap_err().code(),
                code,
                "{bytes}"
            );
        }
        std::fs::write(&path, vec![0; 1024]).unwrap();
        assert!(open_disk(&path, true, false).is_ok());
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![0; 512]).unwrap();
        let reader = open_disk(&path, false, false).unwrap();
        assert!(open_disk(&path, false, false).is_ok());
        assert_eq!(
            open_disk(&path, true, false).unwrap_err().code(),
            "disk-busy"
        );
        drop(reader);
        let _writer = open_disk(&path, true, false).unwrap();
        assert_eq!(
            open_disk(&path, false, false).unwrap_err().code(),
            "disk-busy"
        );
    }
}

//! Opens the files that partitions name, and refuses what is not what it should be.
//!
//! A path may lead to anything (a FIFO would block, a directory opens happily), so every file is
//! opened without blocking and looked at before it is handed on.

use crate::error::Error;
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

const SECTOR: u64 = 512;

fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
}

/// What a file that is not regular is, with its article.
fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "no regular file"
    }
}

/// Opens a regular file for reading. `what` it is goes into the message: "kernel image".
pub(crate) fn open_regular(what: &'static str, path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Open {
        what,
        path: path.to_owned(),
        source,
    };
    let file = open(path, false).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        Err(Error::FileKind {
            what,
            path: path.to_owned(),
            found: describe(kind),
        })
    }
}

/// Opens a raw disk image or block device. The lock it takes lives as long as the descriptor,
/// also in the VMM: one writer, or any number of readers.
pub(crate) fn open_disk(path: &Path, write: bool) -> Result<File, Error> {
    let failed = |source| Error::Open {
        what: "disk",
        path: path.to_owned(),
        source,
    };
    let mut file = open(path, write).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::FileKind {
            what: "disk",
            path: path.to_owned(),
            found: describe(kind),
        });
    }
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if bytes == 0 || bytes % SECTOR != 0 {
        return Err(Error::DiskSize {
            path: path.to_owned(),
            bytes,
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
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn only_regular_files_open_as_files() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        assert!(open_regular("kernel", &file).is_ok());
        let code = |path: &Path| open_regular("kernel", path).unwrap_err().code();
        assert_eq!(code(&dir.path().join("absent")), "file-not-found");
        assert_eq!(code(dir.path()), "file-kind");
        assert_eq!(code(Path::new("/dev/null")), "file-kind");
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(code(&fifo), "file-kind");
    }

    #[test]
    fn disks_are_whole_sectors() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("disk.img");
        for (bytes, code) in [(0, "disk-empty"), (511, "disk-size"), (513, "disk-size")] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            assert_eq!(open_disk(&path, false).unwrap_err().code(), code, "{bytes}");
        }
        std::fs::write(&path, vec![0; 1024]).unwrap();
        assert!(open_disk(&path, true).is_ok());
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![0; 512]).unwrap();
        let reader = open_disk(&path, false).unwrap();
        assert!(open_disk(&path, false).is_ok());
        assert_eq!(open_disk(&path, true).unwrap_err().code(), "disk-busy");
        drop(reader);
        let _writer = open_disk(&path, true).unwrap();
        assert_eq!(open_disk(&path, false).unwrap_err().code(), "disk-busy");
    }
}

//! Opens the files that partitions name, and refuses what is not what it should be.
//!
//! A path may lead to anything (a FIFO would block, a directory opens happily), so every file is
//! opened without blocking and looked at before it is handed on.

use crate::error::Error;
use rustix::fs::OFlags;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens without waiting for anybody; `more` flags beside.
pub(crate) fn open(path: &Path, write: bool, more: OFlags) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | more;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
}

/// What a file that is not regular is, with its article.
pub(crate) fn describe(kind: FileType) -> &'static str {
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
    let file = open(path, false, OFlags::empty()).map_err(failed)?;
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
}

//! Opens the files that partitions name, and refuses what is not what it should be.
//!
//! A path may lead to anything (a FIFO would block, a directory opens happily), so every file is
//! opened without blocking and looked at before it is handed on.

use crate::error::Error;
use bulkhead_manifest::Partition;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// What was opened by a name in a partition's manifest is what that name led to when the manifest was
/// judged. Links that were changed since then may lead to what it could never have been granted, and whoever
/// may write beside a file can change them.
pub(crate) fn is_as_judged(
    partition: &Partition,
    name: &Path,
    opened: impl AsFd,
) -> Result<(), Error> {
    let mandate = partition.mandate.as_ref();
    let Some(judged) = mandate.and_then(|mandate| mandate.leads.get(name)) else {
        return Ok(());
    };
    let link = format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd());
    let found = fs::read_link(link).map_err(Error::system("look where a file is"))?;
    match found == *judged {
        true => Ok(()),
        false => Err(Error::LeadsElsewhere {
            path: name.to_owned(),
            judged: judged.clone(),
            found,
        }),
    }
}

/// Opens what a name leads to, to be looked at and to be held while it is walked through by the path
/// that is returned with it.
pub(crate) fn hold(partition: &Partition, name: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let held = openat(CWD, name, flags, Mode::empty()).map_err(|errno| Error::Open {
        what: "file",
        path: name.to_owned(),
        source: errno.into(),
    })?;
    is_as_judged(partition, name, &held)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    Ok((held, path))
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

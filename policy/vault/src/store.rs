//! The vault's files: private, read as a whole, replaced as a whole.

use crate::error::VaultError;
use crate::format::MAX_FILE_BYTES;
use crate::secret::Secret;
use bulkhead_places::Place;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FILE: &str = "secrets";
const NEW_FILE: &str = "secrets.new";
const LOCK_FILE: &str = "lock";

/// Where a vault is.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    place: Place,
}

/// Held by whoever changes the vault; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    /// The vault in `place`, a directory of its own.
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
        }
    }

    /// The vault's file.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path().join(FILE)
    }

    /// The file's bytes, if there is a vault.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, VaultError> {
        if self.place.existing()?.is_none() {
            return Ok(None);
        }
        // Sealed bytes are no secret; the type is for its bounds and checks.
        let bytes = read_private(&self.path(), "read the vault", MAX_FILE_BYTES)?;
        Ok(bytes.map(|bytes| bytes.expose().to_vec()))
    }

    /// Waits for its turn to change the vault. Makes the directory if need be.
    pub(crate) fn lock(&self) -> Result<Lock, VaultError> {
        let path = self.place.make()?.join(LOCK_FILE);
        let failed = failed("lock the vault with", &path);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Replaces the file: whoever reads sees the old one or the new one, and so does whoever comes
    /// after a crash. The lock is proof that nobody else does the same.
    pub(crate) fn replace(&self, _lock: &Lock, bytes: &[u8]) -> Result<(), VaultError> {
        let directory = self.place.make()?;
        let new = directory.join(NEW_FILE);
        let written = write_new(&new, bytes)
            .and_then(|()| fs::rename(&new, directory.join(FILE)))
            .and_then(|()| File::open(directory)?.sync_all());
        written.map_err(|error| {
            // What is left of it would only be in the way; the next change removes it as well.
            let _ = fs::remove_file(&new);
            failed("write the vault", &self.path())(error)
        })
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a file of this user's that nobody else can read or write; nothing if there is none.
pub(crate) fn read_private(
    path: &Path,
    act: &'static str,
    most: usize,
) -> Result<Option<Secret>, VaultError> {
    let failed = failed(act, path);
    let wrong = |problem| VaultError::Unsafe {
        path: path.to_owned(),
        problem,
    };
    // Without O_NONBLOCK a pipe somebody put there would be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = file.metadata().map_err(&failed)?;
    if !metadata.is_file() {
        return Err(wrong("is no regular file"));
    }
    let user = rustix::process::getuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(wrong("belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(wrong("is open to other users"));
    }
    let length = usize::try_from(metadata.len())
        .ok()
        .filter(|length| *length <= most);
    let length = length.ok_or_else(|| wrong("is too long"))?;
    // One byte more than there are, so that the buffer does not grow: it would leave a copy behind.
    let mut bytes = Vec::with_capacity(length + 1);
    let read = file.take(length as u64).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    read.map_err(failed)?;
    Ok(Some(bytes))
}

fn failed(act: &'static str, path: &Path) -> impl Fn(io::Error) -> VaultError {
    let path = path.to_owned();
    move |source| VaultError::Io {
        act,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::tempdir;

    #[test]
    fn a_file_is_replaced_whole_whatever_was_left() {
        let dir = tempdir().unwrap();
        let store = Store::new(&Place::at(&dir.path().join("vault")).unwrap());
        assert_eq!(store.read().unwrap(), None);
        let lock = store.lock().unwrap();
        assert_eq!(store.read().unwrap(), None);
        store.replace(&lock, b"one").unwrap();
        let new = dir.path().join("vault").join(NEW_FILE);
        // What an interrupted change leaves, however far it came: half a file, or a trap.
        fs::write(&new, "t").unwrap();
        assert_eq!(store.read().unwrap().unwrap(), b"one");
        store.replace(&lock, b"two").unwrap();
        symlink(store.path(), &new).unwrap();
        store.replace(&lock, b"three").unwrap();
        assert_eq!(store.read().unwrap().unwrap(), b"three");
        assert!(!new.exists());
        assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_is() {
        let dir = tempdir().unwrap();
        let store = Store::new(&Place::at(&dir.path().join("vault")).unwrap());
        let lock = store.lock().unwrap();
        store.replace(&lock, b"one").unwrap();
        // A directory with something in it can neither be removed nor written.
        fs::create_dir_all(dir.path().join("vault").join(NEW_FILE).join("x")).unwrap();
        assert_eq!(
            store.replace(&lock, b"two").unwrap_err().code(),
            "vault-unusable"
        );
        assert_eq!(store.read().unwrap().unwrap(), b"one");
    }

    #[test]
    fn a_file_that_others_reach_is_not_read() {
        let dir = tempdir().unwrap();
        let store = Store::new(&Place::at(&dir.path().join("vault")).unwrap());
        let lock = store.lock().unwrap();
        store.replace(&lock, b"one").unwrap();
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(store.read().unwrap_err().code(), "vault-unsafe");
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o600)).unwrap();
        File::options()
            .write(true)
            .open(store.path())
            .unwrap()
            .set_len(MAX_FILE_BYTES as u64 + 1)
            .unwrap();
        assert_eq!(store.read().unwrap_err().code(), "vault-unsafe");
        fs::set_permissions(dir.path().join("vault"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(store.read().unwrap_err().code(), "place-unsafe");
        assert_eq!(
            store.replace(&lock, b"two").unwrap_err().code(),
            "place-unsafe"
        );
    }
}

//! The ledger's key pair in the directory of keys: `ledger.key`, which is secret, and `ledger.pub`. Made
//! when a ledger is written for the first time. An operator's keys have names without a dot.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, RenameFlags, fstat, renameat, renameat_with, unlinkat};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::LogError;
use crate::note::{NoteError, Signer, Verifier};
use crate::place::{existing, open};

/// The secret half.
const SECRET: &str = "ledger.key";
/// The other half, for whoever verifies.
pub const PUBLIC: &str = "ledger.pub";
/// Most bytes of a key's file.
const MAX_KEY_BYTES: u64 = 1024;

/// The key in `keys`; a new one, if there is none.
///
/// # Errors
/// It cannot be read, or cannot be made.
pub fn signer(keys: &OwnedFd) -> Result<Signer, LogError> {
    let signer = match load(keys)? {
        Some(signer) => signer,
        None => make(keys)?,
    };
    let public = signer.verifier().to_text();
    let known =
        match existing(keys, PUBLIC).map_err(LogError::io("open the ledger's public key"))? {
            Some(file) => text(file)?,
            None => String::new(),
        };
    if known != public {
        let temporary = format!(".{PUBLIC}.{}", std::process::id());
        write(keys, &temporary, &public)
            .and_then(|()| Ok(renameat(keys, &temporary, keys, PUBLIC)?))
            .map_err(LogError::io("write the ledger's public key"))?;
    }
    Ok(signer)
}

/// The public key in `keys`.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn verifier(keys: &OwnedFd) -> Result<Verifier, LogError> {
    let file = open(keys, PUBLIC, OFlags::RDONLY);
    let file = file.map_err(LogError::io("open the ledger's public key"))?;
    Verifier::from_text(&text(file)?).map_err(LogError::Key)
}

fn load(keys: &OwnedFd) -> Result<Option<Signer>, LogError> {
    let file = existing(keys, SECRET).map_err(LogError::io("open the ledger's key"))?;
    let Some(file) = file else {
        return Ok(None);
    };
    let status =
        fstat(&file).map_err(|errno| LogError::io("open the ledger's key")(errno.into()))?;
    if status.st_mode & 0o077 != 0 {
        return Err(LogError::KeyOpen);
    }
    Signer::from_text(&text(file)?)
        .map(Some)
        .map_err(LogError::Key)
}

fn make(keys: &OwnedFd) -> Result<Signer, LogError> {
    let failed = LogError::io("make the ledger's key");
    let mut seed = [0; 32];
    let mut made = || -> io::Result<Signer> {
        getrandom(&mut seed, GetRandomFlags::empty())?;
        let signer = Signer::new(&seed);
        let temporary = format!(".{SECRET}.{}", std::process::id());
        write(keys, &temporary, &signer.to_text())?;
        let moved = renameat_with(keys, &temporary, keys, SECRET, RenameFlags::NOREPLACE);
        if moved.is_err() {
            let _ = unlinkat(keys, &temporary, rustix::fs::AtFlags::empty());
        }
        moved?;
        rustix::fs::fsync(keys)?;
        Ok(signer)
    };
    match made() {
        // Another writer was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            load(keys)?.ok_or(LogError::Key(NoteError::Key))
        }
        made => made.map_err(failed),
    }
}

fn write(keys: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY;
    let mut file = open(keys, name, flags)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn text(file: File) -> Result<String, LogError> {
    let mut text = String::new();
    let read = file.take(MAX_KEY_BYTES).read_to_string(&mut text);
    read.map_err(LogError::io("read the ledger's key"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::directory;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::tempdir;

    #[test]
    fn a_key_is_made_once_and_is_secret() {
        let dir = tempdir().unwrap();
        let keys = directory(dir.path()).unwrap();
        assert!(verifier(&keys).is_err());
        let first = signer(&keys).unwrap();
        let again = signer(&keys).unwrap();
        assert_eq!(first.verifier(), again.verifier());
        assert_eq!(&verifier(&keys).unwrap(), first.verifier());
        let secret = dir.path().join(SECRET);
        let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // The public half can be made again, and only the secret one can be trusted.
        std::fs::write(dir.path().join(PUBLIC), "nonsense").unwrap();
        assert!(verifier(&keys).is_err());
        assert_eq!(signer(&keys).unwrap().verifier(), first.verifier());
        assert_eq!(&verifier(&keys).unwrap(), first.verifier());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(signer(&keys).unwrap_err().code(), "ledger-key");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&secret, "nonsense").unwrap();
        assert_eq!(signer(&keys).unwrap_err().code(), "ledger-key");
    }
}

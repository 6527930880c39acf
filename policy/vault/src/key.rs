//! What the operator brings to open the vault: a passphrase or 32 random bytes, from a file, the
//! kernel's keyrings, or wherever the command line has it from.

use crate::error::VaultError;
use crate::format::Cost;
use crate::secret::Secret;
use crate::store;
use linux_keyutils::{KeyError, KeyRing, KeyRingIdentifier};
use std::path::Path;

/// Name of the entry, of type `user`, that is looked for in the keyrings of session and user.
pub const KEYRING_ENTRY: &str = "bulkhead:vault";
/// Bytes of a key that is no passphrase.
const RANDOM_BYTES: usize = 32;
/// Shortest passphrase of a new vault, in bytes.
const MIN_PASSPHRASE: usize = 12;
/// Longest of any, in bytes.
const MAX_PASSPHRASE: usize = 1024;

/// What the vault's key is derived from.
#[derive(Debug)]
pub struct KeyMaterial {
    bytes: Secret,
    /// It is no passphrase, but random.
    random: bool,
}

impl KeyMaterial {
    /// A passphrase, or 32 random bytes: text is a passphrase, and what ends its line does not
    /// belong to it. `from` says in an error where it was read.
    ///
    /// # Errors
    /// It is neither.
    pub fn new(mut bytes: Secret, from: &str) -> Result<Self, VaultError> {
        let no_key = |problem: &str| VaultError::NoKey {
            from: from.to_owned(),
            problem: problem.to_owned(),
        };
        let line = bytes.expose();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let length = line.len();
        let text = str::from_utf8(line);
        let random = !text.is_ok_and(|text| !text.contains(char::is_control));
        if random && bytes.expose().len() != RANDOM_BYTES {
            return Err(no_key("it is neither one line of text nor 32 bytes long"));
        }
        if !random {
            bytes.truncate(length);
        }
        match bytes.expose().len() {
            0 => Err(no_key("it is empty")),
            1..=MAX_PASSPHRASE => Ok(Self { bytes, random }),
            _ => Err(no_key("it is longer than 1024 bytes")),
        }
    }

    /// Reads a key file, which has to be private.
    ///
    /// # Errors
    /// It cannot be read, others can read it, or it holds no key.
    pub fn from_file(path: &Path) -> Result<Self, VaultError> {
        let bytes = store::read_private(path, "read the key file", MAX_PASSPHRASE + 2)?;
        let name = format!("the key file `{}`", path.display());
        let bytes = bytes.ok_or_else(|| VaultError::NoKey {
            from: name.clone(),
            problem: "it does not exist".to_owned(),
        })?;
        Self::new(bytes, &name)
    }

    /// Reads [`KEYRING_ENTRY`] of the session's keyring, else of the user's; nothing where neither
    /// has it, or the kernel has no keyrings.
    ///
    /// # Errors
    /// There is one, but it cannot be read or holds no key.
    pub fn from_keyring() -> Result<Option<Self>, VaultError> {
        let name = format!("the keyring's entry `{KEYRING_ENTRY}`");
        let rings = [
            KeyRingIdentifier::Session,
            KeyRingIdentifier::User,
            KeyRingIdentifier::UserSession,
        ];
        let search = |ring| KeyRing::from_special_id(ring, false)?.search(KEYRING_ENTRY);
        let Some(key) = rings.into_iter().find_map(|ring| search(ring).ok()) else {
            return Ok(None);
        };
        let no_key = |problem: String| VaultError::NoKey {
            from: name.clone(),
            problem,
        };
        let mut bytes = vec![0; MAX_PASSPHRASE + 2];
        let read = key.read(&mut bytes);
        let mut bytes = Secret::new(bytes);
        let length =
            read.map_err(|error: KeyError| no_key(format!("it cannot be read ({error:?})")))?;
        if length > bytes.expose().len() {
            return Err(no_key("it is longer than 1024 bytes".to_owned()));
        }
        bytes.truncate(length);
        Self::new(bytes, &name).map(Some)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        self.bytes.expose()
    }

    /// What it costs to derive a new vault's key from it.
    ///
    /// # Errors
    /// It is soon guessed whatever that costs.
    pub(crate) fn cost(&self) -> Result<Cost, VaultError> {
        let bytes = self.bytes.expose().len();
        match self.random {
            true => Ok(Cost::RANDOM),
            false if bytes < MIN_PASSPHRASE => Err(VaultError::ShortPassphrase { bytes }),
            false => Ok(Cost::PASSPHRASE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_keyutils::KeyRing;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::tempdir;

    fn material(bytes: &[u8]) -> Result<KeyMaterial, VaultError> {
        KeyMaterial::new(Secret::new(bytes.to_vec()), "standard input")
    }

    #[test]
    fn text_is_a_passphrase_and_32_other_bytes_are_a_key() {
        for (bytes, key) in [
            (&b"correct horse battery"[..], &b"correct horse battery"[..]),
            (b"correct horse battery\n", b"correct horse battery"),
            (b"correct horse battery\r\n", b"correct horse battery"),
            ("schlüssel\n".as_bytes(), "schlüssel".as_bytes()),
            // 31 letters and the end of their line.
            (
                b"abcdefghijklmnopqrstuvwxyzabcde\n",
                b"abcdefghijklmnopqrstuvwxyzabcde",
            ),
            (&[0xff; 32], &[0xff; 32]),
            (&[b'\n'; 32], &[b'\n'; 32]),
        ] {
            assert_eq!(material(bytes).unwrap().expose(), key);
        }
        for bytes in [
            &b""[..],
            b"\n",
            b"\r\n",
            b"two\nlines\n",
            &[0xff; 31],
            &[0xff; 33],
            &[b'x'; 1025],
        ] {
            assert_eq!(material(bytes).unwrap_err().code(), "vault-no-key");
        }
        assert_eq!(material(&[0xff; 32]).unwrap().cost().unwrap(), Cost::RANDOM);
        assert_eq!(
            material(&[b'x'; 32]).unwrap().cost().unwrap(),
            Cost::PASSPHRASE
        );
        assert!(material(&[b'x'; 12]).unwrap().cost().is_ok());
        assert_eq!(
            material(&[b'x'; 11]).unwrap().cost().unwrap_err().code(),
            "passphrase-short"
        );
    }

    #[test]
    fn a_key_file_is_private() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("key");
        let code = |path: &Path| KeyMaterial::from_file(path).unwrap_err().code();
        assert_eq!(code(&path), "vault-no-key");
        fs::write(&path, "correct horse battery\n").unwrap();
        for (mode, private) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(KeyMaterial::from_file(&path).is_ok(), private, "{mode:o}");
        }
        assert_eq!(code(&path), "vault-unsafe");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(
            KeyMaterial::from_file(&link).is_ok(),
            "people link to where keys are kept"
        );
        assert_eq!(code(dir.path()), "vault-unsafe");
        fs::write(&path, [b'x'; 4096]).unwrap();
        assert_eq!(code(&path), "vault-unsafe");
    }

    #[test]
    fn the_keyrings_are_asked() {
        // A thread's keyring is searched with the process's, and nobody else sees it.
        let Ok(ring) = KeyRing::from_special_id(KeyRingIdentifier::Session, false) else {
            eprintln!("this kernel has no keyrings: from_keyring says that there is no key");
            assert!(KeyMaterial::from_keyring().unwrap().is_none());
            return;
        };
        if ring.search(KEYRING_ENTRY).is_ok() {
            eprintln!("the entry is in use; it is only read");
            assert!(KeyMaterial::from_keyring().unwrap().is_some());
            return;
        }
        assert!(KeyMaterial::from_keyring().unwrap().is_none());
        let key = ring
            .add_key(KEYRING_ENTRY, "correct horse battery")
            .unwrap();
        let read = KeyMaterial::from_keyring();
        key.update(&[0xff_u8; 8]).unwrap();
        let unfit = KeyMaterial::from_keyring();
        key.invalidate().unwrap();
        assert_eq!(read.unwrap().unwrap().expose(), b"correct horse battery");
        assert_eq!(unfit.unwrap_err().code(), "vault-no-key");
    }
}

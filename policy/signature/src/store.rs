//! The store of an operator: private keys in `keys/`, the public keys of those who are trusted in
//! `trust/`, both in the directory of what operators configure.
//!
//! Whoever can write there can grant anything, so each directory and file has to be this user's alone.

use crate::key::{KeyError, MAX_TEXT, PrivateKey, PublicKey, PublicKeyFile, Trust, check_comment};
use bulkhead_places::{Place, PlaceError};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest name of a key.
const MAX_NAME: usize = 40;
/// Ending of the names of public keys' files.
const PUBLIC: &str = "pub";

/// Why the store does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A name that could not be a file's.
    #[error("`{}` is no name of a key", .0.escape_debug())]
    Name(String),
    /// There is one of that name.
    #[error("there is {what} `{name}` already")]
    Exists {
        /// A private or a trusted key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The key is trusted under another name.
    #[error("the key is trusted already, as `{0}`")]
    TrustedAs(String),
    /// There is none of that name.
    #[error("there is no {what} `{name}`")]
    Absent {
        /// A private or a trusted key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A file is no key, or has an impossible comment.
    #[error("`{}` is no key: {source}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// A key that cannot be made.
    #[error(transparent)]
    Make(#[from] KeyError),
    /// A file is open to others, or no file.
    #[error("the key file `{}` {problem}", path.display())]
    Unsafe {
        /// Which file.
        path: PathBuf,
        /// What is wrong, as a clause.
        problem: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot use the key file `{}`: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::Name(_) => "key-name",
            Self::Exists { .. } | Self::TrustedAs(_) => "key-exists",
            Self::Absent { .. } => "no-such-key",
            Self::Key { .. } | Self::Make(_) => "key-invalid",
            Self::Unsafe { .. } => "key-unsafe",
            Self::Io { .. } => "key-unusable",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Name(_) => Some(format!(
                "a name is 1 to {MAX_NAME} of a-z, 0-9 and -, and does not start with -"
            )),
            Self::Absent { .. } => Some("list them with `bulkhead key ls`".to_owned()),
            Self::TrustedAs(name) => Some(format!("`bulkhead key distrust {name}` ends that")),
            _ => None,
        }
    }
}

/// A public key whose owner is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// What it is called here.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// Whose it is, in words.
    pub comment: String,
    /// It counts as a second person's approval.
    pub approves: bool,
}

impl Trusted {
    /// The key of `file`, under `name`; nothing when the file does not say that it is trusted.
    pub fn new(name: &str, file: &PublicKeyFile) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            key: file.key,
            comment: file.comment.clone(),
            approves: file.trust? == Trust::SignAndApprove,
        })
    }
}

/// A key of the store, for a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// Whose it is, in words.
    pub comment: String,
    /// The private key is here.
    pub own: bool,
    /// What it is trusted with, if it is.
    pub trust: Option<Trust>,
}

/// The keys of one operator.
#[derive(Clone, Debug)]
pub struct KeyStore {
    keys: Place,
    trust: Place,
}

impl KeyStore {
    /// The store in the directory of what operators configure.
    pub fn new(config: &Place) -> Self {
        Self {
            keys: config.below("keys"),
            trust: config.below("trust"),
        }
    }

    /// Makes a key pair named `name` and keeps its private key.
    ///
    /// # Errors
    /// The name is taken or none, or the file cannot be written.
    pub fn create(&self, name: &str, comment: &str) -> Result<PublicKeyFile, StoreError> {
        check_name(name)?;
        check_comment(comment)?;
        let key = PrivateKey::generate()?;
        let path = self.keys.make()?.join(name);
        let text = key.to_text(comment);
        write_new(&path, text.as_bytes(), ("a private key", name))?;
        Ok(PublicKeyFile {
            key: key.public(),
            comment: comment.to_owned(),
            trust: None,
        })
    }

    /// The private key named `name`, and its comment.
    ///
    /// # Errors
    /// There is none, or others could have read it.
    pub fn private(&self, name: &str) -> Result<(PrivateKey, String), StoreError> {
        check_name(name)?;
        let absent = || StoreError::Absent {
            what: "private key",
            name: name.to_owned(),
        };
        let path = self.keys.existing()?.ok_or_else(absent)?.join(name);
        let text = read(&path)?.ok_or_else(absent)?;
        let key = PrivateKey::from_text(&text);
        key.map_err(|source| StoreError::Key { path, source })
    }

    /// The public key of the private key named `name`, for handing out.
    ///
    /// # Errors
    /// As [`KeyStore::private`].
    pub fn export(&self, name: &str) -> Result<PublicKeyFile, StoreError> {
        let (key, comment) = self.private(name)?;
        Ok(PublicKeyFile {
            key: key.public(),
            comment,
            trust: None,
        })
    }

    /// Trusts a key under `name`.
    ///
    /// # Errors
    /// The name is taken or none, the key is trusted already, or the file cannot be written.
    pub fn trust(&self, name: &str, file: &PublicKeyFile, as_: Trust) -> Result<(), StoreError> {
        check_name(name)?;
        let same = |trusted: &Trusted| trusted.key == file.key;
        if let Some(other) = self.trusted()?.into_iter().find(same) {
            return Err(StoreError::TrustedAs(other.name));
        }
        let directory = self.trust.make()?;
        let path = directory.join(name).with_extension(PUBLIC);
        let file = PublicKeyFile {
            trust: Some(as_),
            ..file.clone()
        };
        write_new(&path, file.to_string().as_bytes(), ("a trusted key", name))
    }

    /// Trusts the key named `name` no longer.
    ///
    /// # Errors
    /// There is none, or its file cannot be removed.
    pub fn distrust(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        let absent = || StoreError::Absent {
            what: "trusted key",
            name: name.to_owned(),
        };
        let directory = self.trust.existing()?.ok_or_else(absent)?;
        let path = directory.join(name).with_extension(PUBLIC);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(absent()),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// All trusted keys, by name.
    ///
    /// # Errors
    /// A file cannot be read, is no trusted key, or others could have written it.
    pub fn trusted(&self) -> Result<Vec<Trusted>, StoreError> {
        let mut trusted = Vec::new();
        for (name, path) in files(&self.trust, Some(PUBLIC))? {
            let Some(text) = read(&path)? else { continue };
            let file: Result<PublicKeyFile, KeyError> = text.parse();
            let key = file.and_then(|file| {
                let untrusted = KeyError::Form("it does not say what it may do");
                Trusted::new(&name, &file).ok_or(untrusted)
            });
            trusted.push(key.map_err(|source| StoreError::Key { path, source })?);
        }
        Ok(trusted)
    }

    /// Every key of the store, by name; one that is both private and trusted under one name stands
    /// once.
    ///
    /// # Errors
    /// As [`KeyStore::trusted`] and [`KeyStore::private`].
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut all: BTreeMap<(String, [u8; 32]), Listed> = BTreeMap::new();
        for (name, _) in files(&self.keys, None)? {
            let file = self.export(&name)?;
            let listed = Listed {
                name: name.clone(),
                key: file.key,
                comment: file.comment,
                own: true,
                trust: None,
            };
            all.insert((name, file.key.to_bytes()), listed);
        }
        for trusted in self.trusted()? {
            let trust = match trusted.approves {
                true => Trust::SignAndApprove,
                false => Trust::Sign,
            };
            let place = (trusted.name.clone(), trusted.key.to_bytes());
            let listed = all.entry(place).or_insert(Listed {
                name: trusted.name,
                key: trusted.key,
                comment: trusted.comment,
                own: false,
                trust: None,
            });
            listed.trust = Some(trust);
        }
        Ok(all.into_values().collect())
    }
}

/// Names become file names, so they are plain.
fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('-');
    match fits && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(StoreError::Name(name.to_owned())),
    }
}

/// The files of a directory whose names are those of keys, with the given ending: names and paths,
/// sorted.
fn files(place: &Place, ending: Option<&str>) -> Result<BTreeMap<String, PathBuf>, StoreError> {
    let Some(directory) = place.existing()? else {
        return Ok(BTreeMap::new());
    };
    let failed = |source| StoreError::Io {
        path: directory.to_owned(),
        source,
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let has_ending = path.extension().and_then(|e| e.to_str()) == ending;
        let name = path.file_stem().and_then(|name| name.to_str());
        // Whatever else lies there is nobody's key.
        if let Some(name) = name.filter(|name| has_ending && check_name(name).is_ok()) {
            found.insert(name.to_owned(), path);
        }
    }
    Ok(found)
}

/// The text of a key's file, if there is one: this user's alone, and no link to another's.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, StoreError> {
    let failed = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    let problem = if !metadata.is_file() {
        Some("is no file")
    } else if metadata.uid() != rustix::process::getuid().as_raw() {
        Some("belongs to another user")
    } else if metadata.mode() & 0o077 != 0 {
        Some("is open to other users (chmod 600 would close it)")
    } else if metadata.len() > MAX_TEXT as u64 {
        Some("is too long for a key")
    } else {
        None
    };
    if let Some(problem) = problem {
        let path = path.to_owned();
        return Err(StoreError::Unsafe { path, problem });
    }
    // Room from the start: a longer string would be copied, and the copy left in memory.
    let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT + 1));
    let mut limited = (&mut file).take(MAX_TEXT as u64);
    limited.read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Writes a file that is not there yet, durably.
fn write_new(path: &Path, bytes: &[u8], whose: (&'static str, &str)) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::EXIST) => {
            let (what, name) = (whose.0, whose.1.to_owned());
            return Err(StoreError::Exists { what, name });
        }
        Err(errno) => return Err(failed(errno.into())),
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Half a key would be in the way of a whole one.
        let _ = fs::remove_file(path);
        return Err(failed(source));
    }
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|source| StoreError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::{TempDir, tempdir};

    fn store() -> (TempDir, KeyStore) {
        let dir = tempdir().unwrap();
        let place = Place::at(&dir.path().join("config")).unwrap();
        (dir, KeyStore::new(&place))
    }

    #[test]
    fn a_key_is_made_handed_out_trusted_and_distrusted() {
        let (_dir, store) = store();
        assert!(store.list().unwrap().is_empty());
        let made = store.create("alice", "alice's laptop").unwrap();
        let exported = store.export("alice").unwrap();
        assert_eq!(exported, made);
        assert!(store.trusted().unwrap().is_empty());
        store.trust("alice", &exported, Trust::Sign).unwrap();
        let again = store.trust("alice-2", &exported, Trust::SignAndApprove);
        assert_eq!(again.unwrap_err().code(), "key-exists");
        let bob = PrivateKey::from_seed(&[2; 32]).public();
        let bob = PublicKeyFile {
            key: bob,
            comment: "bob".to_owned(),
            trust: None,
        };
        store.trust("bob", &bob, Trust::SignAndApprove).unwrap();
        let list: Vec<(String, bool, Option<Trust>)> = (store.list().unwrap().into_iter())
            .map(|key| (key.name, key.own, key.trust))
            .collect();
        assert_eq!(
            list,
            [
                ("alice".to_owned(), true, Some(Trust::Sign)),
                ("bob".to_owned(), false, Some(Trust::SignAndApprove)),
            ]
        );
        let approve: Vec<bool> = (store.trusted().unwrap().iter())
            .map(|key| key.approves)
            .collect();
        assert_eq!(approve, [false, true]);
        store.distrust("alice").unwrap();
        assert_eq!(store.distrust("alice").unwrap_err().code(), "no-such-key");
        assert_eq!(store.trusted().unwrap().len(), 1);
        let (key, comment) = store.private("alice").unwrap();
        assert_eq!(
            (key.public(), comment.as_str()),
            (made.key, "alice's laptop")
        );
    }

    #[test]
    fn names_are_plain_and_used_once() {
        let (_dir, store) = store();
        store.create("a", "").unwrap();
        assert_eq!(store.create("a", "").unwrap_err().code(), "key-exists");
        let long = "x".repeat(41);
        for name in ["", "-a", "../a", "a/b", "A", "a.pub", ".", &long] {
            for code in [
                store.create(name, "").map(drop).unwrap_err().code(),
                store.private(name).map(drop).unwrap_err().code(),
                store.distrust(name).unwrap_err().code(),
            ] {
                assert_eq!(code, "key-name", "{name}");
            }
        }
        assert_eq!(store.private("b").unwrap_err().code(), "no-such-key");
    }

    #[test]
    fn keys_that_others_could_read_or_write_are_not_used() {
        let (dir, store) = store();
        let made = store.create("a", "").unwrap();
        store.trust("a", &made, Trust::Sign).unwrap();
        let key = dir.path().join("config/keys/a");
        let trusted = dir.path().join("config/trust/a.pub");
        for path in [&key, &trusted] {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(store.private("a").unwrap_err().code(), "key-unsafe");
        fs::set_permissions(&trusted, fs::Permissions::from_mode(0o602)).unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "key-unsafe");
        // A link leads to a file whose directory nobody checked.
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&trusted, &elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&elsewhere, &trusted).unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "key-unusable");
        fs::remove_file(&trusted).unwrap();
        fs::create_dir(&trusted).unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "key-unsafe");
        fs::remove_dir(&trusted).unwrap();
        fs::set_permissions(
            dir.path().join("config/trust"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "place-unsafe");
    }

    #[test]
    fn a_key_that_only_lies_there_is_not_trusted() {
        let (dir, store) = store();
        let made = store.create("a", "").unwrap();
        store.trust("a", &made, Trust::Sign).unwrap();
        let trusted = dir.path().join("config/trust/a.pub");
        // As its owner hands it out: whoever copied it there has not said what it may do.
        fs::write(&trusted, made.to_string()).unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "key-invalid");
        fs::write(&trusted, "x".repeat(2000)).unwrap();
        assert_eq!(store.trusted().unwrap_err().code(), "key-unsafe");
    }
}

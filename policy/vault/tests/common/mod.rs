//! What the suites share: a vault in a directory of its own, and a ledger that remembers.
#![allow(dead_code)] // Each suite uses its part.

use bulkhead_places::Place;
use bulkhead_record::{Entry, RecordError, Recorder};
use bulkhead_vault::{Editor, KeyMaterial, Secret, SecretName, Vault, VaultError};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use tempfile::TempDir;

/// A ledger in memory.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) entries: Mutex<Vec<Entry>>,
    /// From this index on nothing is recorded.
    pub(crate) full_at: Option<usize>,
}

impl Recorder for Ledger {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        let mut entries = self.entries.lock().unwrap();
        if self.full_at.is_some_and(|full_at| entries.len() >= full_at) {
            return Err(RecordError::NotWritten("no space".to_owned()));
        }
        entries.push(entry.clone());
        Ok(entries.len() as u64 - 1)
    }
}

/// A vault for a test.
pub(crate) struct Scratch {
    pub(crate) dir: TempDir,
    pub(crate) place: Place,
    pub(crate) ledger: Ledger,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Vault::place(&Place::at(&dir.path().join("data")).unwrap());
        Self {
            dir,
            place,
            ledger: Ledger::default(),
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.place.path().join("secrets")
    }

    pub(crate) fn open(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.place, &key(1))
    }

    pub(crate) fn editor(&self) -> Result<Editor<'_>, VaultError> {
        Editor::open_or_new(&self.place, &key(1), &self.ledger)
    }

    pub(crate) fn set(&self, secret: &str, value: &str) {
        self.editor()
            .unwrap()
            .set(&name(secret), value_of(value))
            .unwrap();
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        fs::write(self.file(), bytes).unwrap();
    }
}

/// A random key, as a key file has one; cheap to derive from.
pub(crate) fn key(seed: u8) -> KeyMaterial {
    KeyMaterial::new(Secret::new(vec![0x80 | seed; 32]), "a test").unwrap()
}

pub(crate) fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

pub(crate) fn value_of(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

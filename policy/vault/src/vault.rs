//! The vault as whoever has its key sees it: names, versions, times, and values one at a time.

use crate::cipher::VaultKey;
use crate::error::VaultError;
use crate::format::{Header, Index, IndexEntry, Sealed};
use crate::key::KeyMaterial;
use crate::secret::{Secret, SecretName, random};
use crate::store::Store;
use bulkhead_places::Place;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// An open vault. Its values stay sealed until one is asked for.
pub struct Vault {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    pub(crate) key: VaultKey,
    pub(crate) index: Index,
    /// In the order of the index.
    pub(crate) values: Vec<Vec<u8>>,
}

/// What there is to know about a secret beside its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: SecretName,
    /// 1 when it was set, and one more with each rotation.
    pub version: u32,
    /// When it was set, in seconds since 1970.
    pub created: u64,
    /// When its value was.
    pub changed: u64,
}

impl Vault {
    /// Where a data directory has its vault.
    pub fn place(data: &Place) -> Place {
        data.below("vault")
    }

    /// True when there is a vault in `place`, whatever opens it.
    ///
    /// # Errors
    /// The place is not private, or cannot be read.
    pub fn exists(place: &Place) -> Result<bool, VaultError> {
        Ok(Store::new(place).read()?.is_some())
    }

    /// Opens the vault in `place`. It is a copy: later changes are not in it.
    ///
    /// # Errors
    /// There is none, it is damaged, or the key is another.
    pub fn open(place: &Place, material: &KeyMaterial) -> Result<Self, VaultError> {
        let store = Store::new(place);
        let file = store.read()?;
        let file = file.ok_or_else(|| VaultError::Absent(store.path()))?;
        Self::from_file(store.path(), &file, material)
    }

    pub(crate) fn from_file(
        path: PathBuf,
        file: &[u8],
        material: &KeyMaterial,
    ) -> Result<Self, VaultError> {
        let damaged = |problem| VaultError::Damaged {
            path: path.clone(),
            problem,
        };
        let sealed = Sealed::parse(file).map_err(damaged)?;
        let key = VaultKey::derive(material.expose(), &sealed.header)?;
        let what = index_label(&sealed.header);
        let index = key.open(&what, sealed.index_nonce, sealed.index);
        let index = index.map_err(|_| VaultError::WrongKey(path.clone()))?;
        let index = Index::parse(index.expose()).map_err(damaged)?;
        let values = index.split(sealed.values).map_err(damaged)?;
        let vault = Self {
            header: sealed.header,
            key,
            values: values.into_iter().map(<[u8]>::to_vec).collect(),
            index,
            path: path.clone(),
        };
        // A value that does not open now would only be missed when it is needed.
        for entry in &vault.index.entries {
            vault.get(&entry.name)?;
        }
        Ok(vault)
    }

    /// A vault without secrets, which nobody has written yet.
    pub(crate) fn empty(path: PathBuf, material: &KeyMaterial) -> Result<Self, VaultError> {
        let header = Header {
            cost: material.cost()?,
            salt: *random()?,
        };
        Ok(Self {
            key: VaultKey::derive(material.expose(), &header)?,
            header,
            path,
            index: Index::default(),
            values: Vec::new(),
        })
    }

    /// How often it has been changed. The ledger says which generation was the last: a lower one is
    /// an old copy.
    pub fn generation(&self) -> u64 {
        self.index.generation
    }

    /// Its secrets by name, without their values.
    pub fn list(&self) -> Vec<Listed> {
        let listed = |entry: &IndexEntry| Listed {
            name: entry.name.clone(),
            version: entry.version,
            created: entry.created,
            changed: entry.changed,
        };
        self.index.entries.iter().map(listed).collect()
    }

    /// Where `name` stands, or would.
    pub(crate) fn position(&self, name: &SecretName) -> Result<usize, usize> {
        self.index
            .entries
            .binary_search_by(|entry| entry.name.cmp(name))
    }

    /// Opens one value.
    ///
    /// # Errors
    /// There is no such secret.
    pub fn get(&self, name: &SecretName) -> Result<Secret, VaultError> {
        let at = self.position(name).ok();
        let found = at.and_then(|at| Some((self.index.entries.get(at)?, self.values.get(at)?)));
        let (entry, sealed) = found.ok_or_else(|| VaultError::NoSuchSecret(name.clone()))?;
        let what = value_label(name, entry.version);
        let value = self.key.open(&what, entry.nonce, sealed);
        value.map_err(|_| VaultError::Damaged {
            path: self.path.clone(),
            problem: "a value is not what was sealed for its name",
        })
    }

    /// The file of this state.
    pub(crate) fn to_file(&self) -> Result<Vec<u8>, VaultError> {
        let index = serde_json::to_vec(&self.index);
        let index = index.map_err(|error| VaultError::Io {
            act: "describe",
            path: self.path.clone(),
            source: error.into(),
        })?;
        let (index_nonce, index) = self.key.seal(&index_label(&self.header), &index)?;
        let sealed = Sealed {
            header: self.header,
            index_nonce,
            index: &index,
            values: &self.values.concat(),
        };
        Ok(sealed.to_bytes())
    }
}

/// Whatever the key could be read from does not print.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What the index is sealed as.
fn index_label(header: &Header) -> Vec<u8> {
    [&b"bulkhead vault index\0"[..], &header.to_bytes()].concat()
}

/// What a value is sealed as.
pub(crate) fn value_label(name: &SecretName, version: u32) -> Vec<u8> {
    let version = version.to_le_bytes();
    [
        &b"bulkhead vault value\0"[..],
        &version,
        name.as_str().as_bytes(),
    ]
    .concat()
}

//! Changing the vault: one at a time, each change recorded before it is made and after.

use crate::error::VaultError;
use crate::format::{IndexEntry, MAX_SECRETS};
use crate::key::KeyMaterial;
use crate::secret::{Secret, SecretName};
use crate::store::{Lock, Store};
use crate::vault::{Vault, value_label};
use bulkhead_places::Place;
use bulkhead_record::{Entry, Kind, Recorder, Verdict};
use std::time::{SystemTime, UNIX_EPOCH};

/// A vault whose lock we hold: nobody else changes it meanwhile. It is good for one change.
pub struct Editor<'a> {
    vault: Vault,
    store: Store,
    lock: Lock,
    recorder: &'a dyn Recorder,
}

impl<'a> Editor<'a> {
    /// Opens the vault in `place` once nobody else changes it.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn open(
        place: &Place,
        material: &KeyMaterial,
        recorder: &'a dyn Recorder,
    ) -> Result<Self, VaultError> {
        // Without this, looking for a vault would make its directory.
        if !Vault::exists(place)? {
            return Err(VaultError::Absent(Store::new(place).path()));
        }
        Self::open_or_new(place, material, recorder)
    }

    /// The same; where there is no vault, the first change makes one that `material` opens.
    ///
    /// # Errors
    /// As [`Vault::open`]; or a passphrase that is too short for a new vault.
    pub fn open_or_new(
        place: &Place,
        material: &KeyMaterial,
        recorder: &'a dyn Recorder,
    ) -> Result<Self, VaultError> {
        let store = Store::new(place);
        let lock = store.lock()?;
        let vault = match store.read()? {
            Some(file) => Vault::from_file(store.path(), &file, material)?,
            None => Vault::empty(store.path(), material)?,
        };
        Ok(Self {
            vault,
            store,
            lock,
            recorder,
        })
    }

    /// The vault as it is now.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Keeps a secret of a new name.
    ///
    /// # Errors
    /// The name is taken, the value empty or too long, the vault full; or it could not be recorded
    /// or written.
    pub fn set(self, name: &SecretName, value: Secret) -> Result<(), VaultError> {
        let value = value.checked()?;
        let Err(at) = self.vault.position(name) else {
            return Err(VaultError::Exists(name.clone()));
        };
        if self.vault.index.entries.len() >= MAX_SECRETS {
            return Err(VaultError::Full(MAX_SECRETS));
        }
        let now = now();
        let entry = IndexEntry {
            name: name.clone(),
            version: 1,
            created: now,
            changed: now,
            length: 0,
            nonce: [0; 12],
        };
        self.change("secret.set", name.as_str(), 1, |vault| {
            let (entry, sealed) = seal(vault, entry, &value)?;
            vault.index.entries.insert(at, entry);
            vault.values.insert(at, sealed);
            Ok(())
        })
    }

    /// Gives a secret another value, as its next version. The old one is gone.
    ///
    /// # Errors
    /// There is none of that name; otherwise as [`Editor::set`].
    pub fn rotate(self, name: &SecretName, value: Secret) -> Result<(), VaultError> {
        let value = value.checked()?;
        let (at, mut entry) = self.existing(name)?;
        entry.version = entry.version.saturating_add(1);
        entry.changed = now();
        self.change("secret.rotate", name.as_str(), entry.version, |vault| {
            let (entry, sealed) = seal(vault, entry, &value)?;
            replace(&mut vault.index.entries, at, entry);
            replace(&mut vault.values, at, sealed);
            Ok(())
        })
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// There is none of that name; or it could not be recorded or written.
    pub fn remove(self, name: &SecretName) -> Result<(), VaultError> {
        let (at, entry) = self.existing(name)?;
        self.change("secret.remove", name.as_str(), entry.version, |vault| {
            vault.index.entries.remove(at);
            vault.values.remove(at);
            Ok(())
        })
    }

    /// Seals everything anew, with another key and another salt.
    ///
    /// # Errors
    /// A passphrase that is too short; or it could not be recorded or written.
    pub fn rekey(self, material: &KeyMaterial) -> Result<(), VaultError> {
        let mut new = Vault::empty(self.vault.path.clone(), material)?;
        new.index.generation = self.vault.index.generation;
        for entry in &self.vault.index.entries {
            let value = self.vault.get(&entry.name)?;
            let (entry, sealed) = seal(&new, entry.clone(), &value)?;
            new.index.entries.push(entry);
            new.values.push(sealed);
        }
        self.change("secret.rekey", "vault", 0, |vault| {
            *vault = new;
            Ok(())
        })
    }

    fn existing(&self, name: &SecretName) -> Result<(usize, IndexEntry), VaultError> {
        let at = self.vault.position(name).ok();
        let found = at.and_then(|at| Some((at, self.vault.index.entries.get(at)?.clone())));
        found.ok_or_else(|| VaultError::NoSuchSecret(name.clone()))
    }

    /// Records that a change is made, makes it, and records how that went.
    fn change(
        mut self,
        action: &str,
        object: &str,
        version: u32,
        make: impl FnOnce(&mut Vault) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let generation = self.vault.index.generation.saturating_add(1);
        let entry = |verdict, reason: &str, intent| Entry {
            kind: Kind::Policy,
            actor: "operator".to_owned(),
            action: action.to_owned(),
            object: object.to_owned(),
            verdict,
            reason: reason.to_owned(),
            intent,
            detail: [
                ("generation".to_owned(), generation.to_string()),
                ("version".to_owned(), version.to_string()),
            ]
            .into(),
        };
        let intent = self.recorder.record(&entry(
            Verdict::Allowed,
            "whoever has the vault's key",
            None,
        ))?;
        let made = make(&mut self.vault).and_then(|()| {
            self.vault.index.generation = generation;
            let file = self.vault.to_file()?;
            self.store.replace(&self.lock, &file)
        });
        let outcome = match &made {
            Ok(()) => entry(Verdict::Done, "", Some(intent)),
            Err(error) => entry(Verdict::Failed, &error.to_string(), Some(intent)),
        };
        let recorded = self.recorder.record(&outcome);
        made?;
        recorded.map(|_| ()).map_err(VaultError::Unrecorded)
    }
}

fn seal(
    vault: &Vault,
    entry: IndexEntry,
    value: &Secret,
) -> Result<(IndexEntry, Vec<u8>), VaultError> {
    let what = value_label(&entry.name, entry.version);
    let (nonce, sealed) = vault.key.seal(&what, value.expose())?;
    let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
    Ok((
        IndexEntry {
            nonce,
            length,
            ..entry
        },
        sealed,
    ))
}

fn replace<T>(all: &mut [T], at: usize, with: T) {
    if let Some(old) = all.get_mut(at) {
        *old = with;
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

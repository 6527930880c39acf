//! What a partition gets of the vault: a placeholder for each secret that it is granted, and for
//! its gateway the value behind it.

use crate::error::VaultError;
use crate::issued::Issued;
use crate::secret::{Secret, SecretName};
use crate::vault::Vault;

/// A secret that a partition asks for. Where it goes (host, header, path) is `T`, which the vault
/// hands through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding<T> {
    /// Which.
    pub name: SecretName,
    /// Not kept in the vault, but made for this start of the partition, and void when it ends.
    pub ephemeral: bool,
    /// Where the gateway may put it.
    pub target: T,
}

/// A secret that a partition has.
#[derive(Debug)]
pub struct Bound<T> {
    /// Which.
    pub name: SecretName,
    /// What the guest gets: random, another one at every start.
    pub placeholder: String,
    /// What the gateway puts in its place.
    pub value: Secret,
    /// Where.
    pub target: T,
}

impl Vault {
    /// Resolves what a partition asks for: all of it, or nothing. `granted` says whether it holds
    /// `secret.use` of a name, `owner` is its name among the systems of this user, and `vault` is
    /// there if there is one.
    ///
    /// # Errors
    /// A secret that is not granted and one that does not exist are the same error, and both are
    /// looked up.
    pub fn resolve<T>(
        vault: Option<&Self>,
        issued: &mut Issued,
        owner: &str,
        granted: impl Fn(&SecretName) -> bool,
        bindings: impl IntoIterator<Item = Binding<T>>,
    ) -> Result<Vec<Bound<T>>, VaultError> {
        let mut accepted = Vec::new();
        for binding in bindings {
            let exists = vault.is_some_and(|vault| vault.position(&binding.name).is_ok());
            // Not `&&`: an answer that comes sooner would tell what it is not to tell.
            if !(granted(&binding.name) & (exists | binding.ephemeral)) {
                return Err(VaultError::Unavailable(binding.name));
            }
            accepted.push(binding);
        }
        let mut bound = Vec::with_capacity(accepted.len());
        for Binding {
            name,
            ephemeral,
            target,
        } in accepted
        {
            let value = match vault {
                _ if ephemeral => issued.issue(owner, &name)?,
                Some(vault) => vault.get(&name)?,
                None => return Err(VaultError::Unavailable(name)),
            };
            bound.push(Bound {
                placeholder: placeholder()?,
                name,
                value,
                target,
            });
        }
        Ok(bound)
    }
}

/// A text that stands for a secret and says nothing about it: 128 random bits.
fn placeholder() -> Result<String, VaultError> {
    let random = Secret::random_hex::<16>()?;
    let digits = random.expose().iter().copied().map(char::from);
    Ok("bulkhead-secret-".chars().chain(digits).collect())
}

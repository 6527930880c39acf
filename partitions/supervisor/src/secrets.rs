//! Secrets, seen from a supervisor: resolved when a partition starts, handed to its gateway, and to
//! its guest as placeholders.

use crate::control::TokenOwner;
use crate::error::Error;
use crate::initramfs::memory_file;
use bulkhead_capability::Capability;
use bulkhead_manifest::{Partition, SecretBinding};
use bulkhead_vault::{Binding, Bound, Issued, Secret, SecretName, Vault, VaultError};
use std::fmt;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where the secrets of a system's partitions come from.
#[derive(Default)]
pub struct Secrets {
    vault: Option<Vault>,
    /// What was made for one start of a partition.
    issued: Mutex<Issued>,
}

/// A secret of a partition, and where it goes.
pub(crate) type PartitionSecret = Bound<SecretBinding>;

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// From this vault. Without one there are those that are made for one start alone.
    pub fn new(vault: Option<Vault>) -> Self {
        let issued = Mutex::default();
        Self { vault, issued }
    }

    fn issued(&self) -> MutexGuard<'_, Issued> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a partition that starts has of what its manifest asks for: all of it.
    ///
    /// # Errors
    /// Something is not granted to it, or does not exist.
    pub(crate) fn resolve(
        &self,
        system: &str,
        partition: &Partition,
    ) -> Result<Vec<PartitionSecret>, Error> {
        let mandate = partition.mandate.as_ref();
        let mut bindings = Vec::new();
        for binding in mandate.map_or(&[][..], |mandate| &mandate.secrets) {
            bindings.push(Binding {
                name: binding.name.parse().map_err(Error::Secret)?,
                ephemeral: binding.ephemeral,
                target: binding.clone(),
            });
        }
        let granted = |name: &SecretName| {
            let wanted = Capability::SecretUse(name.as_str().to_owned());
            partition.grants.capabilities().any(|held| *held == wanted)
        };
        let owner = owner(system, &partition.name);
        // One that starts again has no use for what it had before.
        let mut issued = self.issued();
        issued.end(&owner);
        let vault = self.vault.as_ref();
        Vault::resolve(vault, &mut issued, &owner, granted, bindings).map_err(Error::Secret)
    }

    /// The value of a secret that no partition has, but a provider of models.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn of_provider(&self, name: &str) -> Result<Secret, Error> {
        let name: SecretName = name.parse().map_err(Error::Secret)?;
        let found = match &self.vault {
            Some(vault) => vault.get(&name),
            None => Err(VaultError::NoSuchSecret(name)),
        };
        found.map_err(Error::Secret)
    }

    /// A partition has ended, and with it what was made for it.
    pub(crate) fn end(&self, system: &str, partition: &str) {
        self.issued().end(&owner(system, partition));
    }

    /// The partition and the name of the secret that `token` was made for, while it is good.
    pub(crate) fn whose(&self, token: &str) -> Option<TokenOwner> {
        let issued = self.issued();
        let (owner, name) = issued.find(token.as_bytes())?;
        Some(TokenOwner {
            partition: owner.to_owned(),
            secret: name.to_string(),
        })
    }
}

fn owner(system: &str, partition: &str) -> String {
    format!("{system}/{partition}")
}

/// `env` with the placeholders that the guest has instead of its secrets.
pub(crate) fn with_placeholders(mut env: Vec<String>, secrets: &[PartitionSecret]) -> Vec<String> {
    for secret in secrets {
        if let Some(variable) = &secret.target.env {
            let own = format!("{variable}=");
            env.retain(|other| !other.starts_with(&own));
            env.push(format!("{own}{}", secret.placeholder));
        }
    }
    env
}

/// The value, in a file without a name that the gateway reads once.
pub(crate) fn file(secret: &PartitionSecret) -> Result<OwnedFd, Error> {
    let mut file = memory_file(c"secret")?;
    let written = file
        .write_all(secret.value.expose())
        .and_then(|()| file.rewind());
    written.map_err(Error::system("hand a secret over"))?;
    Ok(file.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compile::tests::partition;
    use bulkhead_manifest::{Lifetime, Mandate};

    pub(crate) fn binding(name: &str, ephemeral: bool) -> SecretBinding {
        SecretBinding {
            name: name.to_owned(),
            host: "api.example.com".to_owned(),
            port: 443,
            header: "authorization".to_owned(),
            path: None,
            env: Some("TOKEN".to_owned()),
            ephemeral,
        }
    }

    pub(crate) fn agent(grants: &str, secrets: Vec<SecretBinding>) -> Partition {
        let mut agent = partition(&format!(
            "kernel = \"linux\"\ncommand = [\"/x\"]\ngrants = [{grants}]\n"
        ));
        agent.mandate = Some(Mandate {
            role: "agent".to_owned(),
            owner: None,
            parent: None,
            lifetime: Lifetime::Seconds(60),
            secrets,
            tool_limits: None,
            spawn: Default::default(),
            budget: Default::default(),
            document: Vec::new(),
            lineage: Vec::new(),
            leads: std::collections::BTreeMap::new(),
        });
        agent
    }

    #[test]
    fn what_is_made_for_a_start_is_good_until_the_end() {
        let secrets = Secrets::default();
        let agent = agent("\"secret.use:peer\"", vec![binding("peer", true)]);
        let first = secrets.resolve("web", &agent).unwrap();
        let token = |bound: &[PartitionSecret]| {
            String::from_utf8(bound[0].value.expose().to_vec()).unwrap()
        };
        let whose = Some(TokenOwner {
            partition: format!("web/{}", agent.name),
            secret: "peer".to_owned(),
        });
        assert_eq!(secrets.whose(&token(&first)), whose);
        let second = secrets.resolve("web", &agent).unwrap();
        assert_eq!(secrets.whose(&token(&first)), None, "it has started again");
        assert_eq!(secrets.whose(&token(&second)), whose);
        secrets.end("web", &agent.name);
        assert_eq!(secrets.whose(&token(&second)), None);
    }

    #[test]
    fn a_guest_gets_placeholders_and_the_gateway_values() {
        let secrets = Secrets::default();
        let agent = agent("\"secret.use:peer\"", vec![binding("peer", true)]);
        let bound = secrets.resolve("web", &agent).unwrap();
        let env = with_placeholders(
            vec!["A=b".into(), "TOKEN=old".into(), "TOKENS=c".into()],
            &bound,
        );
        assert_eq!(
            env,
            [
                "A=b".to_owned(),
                "TOKENS=c".into(),
                format!("TOKEN={}", bound[0].placeholder)
            ]
        );
        let mut read = Vec::new();
        let mut file = std::fs::File::from(file(&bound[0]).unwrap());
        std::io::Read::read_to_end(&mut file, &mut read).unwrap();
        assert_eq!(read, bound[0].value.expose());
        assert!(!env.concat().contains(str::from_utf8(&read).unwrap()));
    }

    #[test]
    fn what_is_not_granted_or_not_there_starts_nothing() {
        let secrets = Secrets::default();
        for (grants, ephemeral) in [
            ("", true),
            ("\"secret.use:peer\"", false),
            ("\"secret.use:peers\"", true),
        ] {
            let agent = agent(grants, vec![binding("peer", ephemeral)]);
            let error = secrets.resolve("web", &agent).unwrap_err();
            assert_eq!(error.code(), "secret-unavailable", "{grants}");
        }
        assert!(
            secrets
                .resolve("web", &agent("", Vec::new()))
                .unwrap()
                .is_empty()
        );
    }
}

//! Credentials that are made for one start of a partition and end with it. What accepts them asks
//! whether one is still alive; nothing of them is kept but a digest.

use crate::error::VaultError;
use crate::secret::{Secret, SecretName};
use sha2::{Digest, Sha256};

/// The tokens that are alive.
#[derive(Debug, Default)]
pub struct Issued {
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    digest: [u8; 32],
    owner: String,
    name: SecretName,
}

impl Issued {
    /// Makes a token of 256 random bits for `owner`.
    pub(crate) fn issue(&mut self, owner: &str, name: &SecretName) -> Result<Secret, VaultError> {
        let token = Secret::random_hex::<32>()?;
        self.tokens.push(Token {
            digest: Sha256::digest(token.expose()).into(),
            owner: owner.to_owned(),
            name: name.clone(),
        });
        Ok(token)
    }

    /// Ends all tokens of `owner`.
    pub fn end(&mut self, owner: &str) {
        self.tokens.retain(|token| token.owner != owner);
    }

    /// Whose token it is and for which secret, if it is alive. Digests are compared, so how long it
    /// takes says nothing about a token.
    pub fn find(&self, token: &[u8]) -> Option<(&str, &SecretName)> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let found = self.tokens.iter().find(|known| known.digest == digest);
        found.map(|token| (token.owner.as_str(), &token.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_with_its_owner() {
        let mut issued = Issued::default();
        let name: SecretName = "peer".parse().unwrap();
        let a = issued.issue("web/a", &name).unwrap();
        let again = issued.issue("web/a", &name).unwrap();
        let b = issued.issue("web/b", &name).unwrap();
        assert!(a != again && a != b && a.expose().len() == 64);
        assert_eq!(issued.find(a.expose()), Some(("web/a", &name)));
        assert_eq!(issued.find(b"other"), None);
        issued.end("web/a");
        assert_eq!(issued.find(a.expose()), None);
        assert_eq!(issued.find(again.expose()), None);
        assert_eq!(issued.find(b.expose()), Some(("web/b", &name)));
    }
}

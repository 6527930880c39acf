//! Deriving the vault's key, sealing and opening.

use crate::error::VaultError;
use crate::format::{Cost, Header, Nonce, TAG_BYTES};
use crate::secret::{Secret, random};
use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

/// The key of one vault's file, as the cipher holds it. It is wiped when it is dropped.
pub(crate) struct VaultKey(Box<Aes256Gcm>);

/// The seal was broken, or belongs to something else.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotSealed;

impl VaultKey {
    /// Derives it from what the operator brings.
    pub(crate) fn derive(material: &[u8], header: &Header) -> Result<Self, VaultError> {
        let failed = |error: argon2::Error| VaultError::Derivation(error.to_string());
        let Cost {
            memory_kib,
            passes,
            lanes,
        } = header.cost;
        let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
        let count = params.block_count();
        let mut blocks = Zeroizing::new(Vec::new());
        // A file may ask for a lot: a host that does not have it says so, and nothing aborts.
        (blocks.try_reserve_exact(count))
            .map_err(|error| VaultError::Derivation(error.to_string()))?;
        blocks.resize(count, Block::new());
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut key = Zeroizing::new([0; 32]);
        let blocks: &mut [Block] = &mut blocks;
        argon
            .hash_password_into_with_memory(material, &header.salt, &mut *key, blocks)
            .map_err(failed)?;
        let key: &[u8; 32] = &key;
        Ok(Self(Box::new(Aes256Gcm::new(key.into()))))
    }

    /// Seals `plain` under a fresh nonce, so that it opens as `what` alone.
    pub(crate) fn seal(&self, what: &[u8], plain: &[u8]) -> Result<(Nonce, Vec<u8>), VaultError> {
        let nonce: Nonce = *random()?;
        let mut buffer = Zeroizing::new(Vec::with_capacity(plain.len() + TAG_BYTES));
        buffer.extend_from_slice(plain);
        let sealed = self.0.encrypt_in_place(&nonce.into(), what, &mut *buffer);
        sealed.map_err(|_| VaultError::Value { bytes: plain.len() })?;
        Ok((nonce, std::mem::take(&mut *buffer)))
    }

    /// Opens what was sealed as `what`.
    pub(crate) fn open(
        &self,
        what: &[u8],
        nonce: Nonce,
        sealed: &[u8],
    ) -> Result<Secret, NotSealed> {
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let opened = self.0.decrypt_in_place(&nonce.into(), what, &mut *buffer);
        opened.map_err(|_| NotSealed)?;
        Ok(Secret::new(std::mem::take(&mut *buffer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header {
        cost: Cost {
            memory_kib: 8,
            passes: 1,
            lanes: 1,
        },
        salt: [9; 16],
    };

    #[test]
    fn each_part_of_the_header_makes_another_key() {
        let (nonce, sealed) = VaultKey::derive(b"key", &HEADER)
            .unwrap()
            .seal(b"x", b"value")
            .unwrap();
        let opens = |material: &[u8], header: &Header| {
            let key = VaultKey::derive(material, header).unwrap();
            key.open(b"x", nonce, &sealed).is_ok()
        };
        assert!(opens(b"key", &HEADER));
        assert!(!opens(b"kez", &HEADER));
        assert!(!opens(
            b"key",
            &Header {
                salt: [8; 16],
                ..HEADER
            }
        ));
        for cost in [
            Cost {
                memory_kib: 9,
                ..HEADER.cost
            },
            Cost {
                passes: 2,
                ..HEADER.cost
            },
            Cost {
                memory_kib: 16,
                lanes: 2,
                ..HEADER.cost
            },
        ] {
            assert!(!opens(b"key", &Header { cost, ..HEADER }), "{cost:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_as_itself_alone(
            plain in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8u32
        ) {
            let key = VaultKey::derive(b"key", &HEADER).unwrap();
            let (nonce, sealed) = key.seal(b"this", &plain).unwrap();
            let opened = key.open(b"this", nonce, &sealed).unwrap();
            prop_assert_eq!(opened.expose(), &plain[..]);
            prop_assert_eq!(key.open(b"that", nonce, &sealed), Err(NotSealed));
            let (other, _) = key.seal(b"this", &plain).unwrap();
            prop_assert_eq!(key.open(b"this", other, &sealed), Err(NotSealed));
            let mut changed = sealed.clone();
            *at.get_mut(&mut changed[..]) ^= 1 << bit;
            prop_assert_eq!(key.open(b"this", nonce, &changed), Err(NotSealed));
            prop_assert_eq!(key.open(b"this", nonce, &sealed[1..]), Err(NotSealed));
        }
    }
}

//! A secret's name and its value. Values are wiped when they are dropped, and do not print.

use crate::error::VaultError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// Most bytes of a value.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;
/// Most bytes of a name.
const MAX_NAME_BYTES: usize = 64;

/// A secret's name, as `secret.use` has it for its object: 1 to 64 letters, digits, `.`, `_` and
/// `-`, a letter or digit first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// The name as people write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric();
        let first = text.bytes().next().is_some_and(plain);
        let rest = text
            .bytes()
            .all(|byte| plain(byte) || b"._-".contains(&byte));
        match first && rest && text.len() <= MAX_NAME_BYTES {
            true => Ok(Self(text.to_owned())),
            false => Err(VaultError::Name(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = VaultError;

    fn try_from(text: String) -> Result<Self, VaultError> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that nobody is to see: wiped when dropped, printed as `Secret`.
///
/// It is made of a buffer that never grows, since a buffer that grows leaves its old bytes behind.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; the caller's buffer is theirs no more.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// An empty one, to which at most `capacity` bytes can be added.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    /// Adds a byte, while there is room: the buffer does not grow.
    pub fn push(&mut self, byte: u8) {
        if self.0.len() < self.0.capacity() {
            self.0.push(byte);
        }
    }

    /// `N` random bytes in hexadecimal digits.
    pub(crate) fn random_hex<const N: usize>() -> Result<Self, VaultError> {
        let bytes = random::<N>()?;
        let mut text = Vec::with_capacity(2 * N);
        for byte in bytes.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(if digit < 10 {
                    b'0' + digit
                } else {
                    b'a' + digit - 10
                });
            }
        }
        Ok(Self::new(text))
    }

    /// A value that may be stored: 1 to [`MAX_VALUE_BYTES`] bytes.
    ///
    /// # Errors
    /// It is empty, or longer.
    pub fn checked(self) -> Result<Self, VaultError> {
        match self.0.len() {
            1..=MAX_VALUE_BYTES => Ok(self),
            bytes => Err(VaultError::Value { bytes }),
        }
    }

    /// The bytes, for whoever has to use them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Wipes the end of it, from `length` on.
    pub fn truncate(&mut self, length: usize) {
        if let Some(rest) = self.0.get_mut(length..) {
            rest.zeroize();
        }
        self.0.truncate(length);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Random bytes of the kernel's.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, VaultError> {
    let mut bytes = Zeroizing::new([0; N]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(VaultError::Random(errno.into())),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "0", "GITHUB_TOKEN", "a_b-c.9", &"x".repeat(64)] {
            assert_eq!(good.parse::<SecretName>().unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a\n", "é", &"x".repeat(65)] {
            assert_eq!(
                bad.parse::<SecretName>().unwrap_err().code(),
                "secret-name",
                "{bad}"
            );
        }
    }

    #[test]
    fn values_have_bounds_and_do_not_print() {
        for (bytes, fits) in [
            (0, false),
            (1, true),
            (MAX_VALUE_BYTES, true),
            (MAX_VALUE_BYTES + 1, false),
        ] {
            assert_eq!(
                Secret::new(vec![7; bytes]).checked().is_ok(),
                fits,
                "{bytes}"
            );
        }
        let mut secret = Secret::new(b"hunter2\n".to_vec());
        secret.truncate(7);
        assert_eq!(secret.expose(), b"hunter2");
        assert_eq!(
            format!("{secret:?} {:?}", Some(&secret)),
            "Secret Some(Secret)"
        );
    }

    #[test]
    fn random_text_is_hexadecimal_and_new_each_time() {
        let (a, b) = (
            Secret::random_hex::<16>().unwrap(),
            Secret::random_hex::<16>().unwrap(),
        );
        assert_eq!(a.expose().len(), 32);
        assert!(a.expose().iter().all(u8::is_ascii_hexdigit));
        assert_ne!(a, b);
    }
}

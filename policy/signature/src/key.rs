//! Ed25519 keys and the text they are written as.
//!
//! A public key is a few lines that people can send each other; its id, the SHA-256 of the key, is in
//! them so that it can be compared by eye. A private key leaves this crate only into its file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Longest text of a key in bytes.
pub(crate) const MAX_TEXT: usize = 1024;
/// Longest comment in bytes.
const MAX_COMMENT: usize = 100;
const PUBLIC: &str = "bulkhead-public-key 1";
const PRIVATE: &str = "bulkhead-private-key 1";
const PREFIX: &str = "ed25519:";

/// Why a text is no key, or a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has another form.
    #[error("{0}")]
    Form(&'static str),
    /// The bytes are no point of the curve, or one that signs anything.
    #[error("the key is weak or no key at all")]
    Weak,
    /// The id written beside a key is another key's.
    #[error("the id in the file is not that of the key in it")]
    Id,
    /// A comment that is too long or not plain text.
    #[error("a comment is at most {MAX_COMMENT} bytes of text on one line")]
    Comment,
    /// The operating system has no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(rustix::io::Errno),
}

/// SHA-256 of a public key: what it is called where its bytes would be too long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A public key: neither weak nor written in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key with these bytes (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    /// They are no key that says who signed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        let canonical = key.to_edwards().compress().to_bytes() == *bytes;
        if key.is_weak() || !canonical {
            return Err(KeyError::Weak);
        }
        Ok(Self(key))
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        KeyId(Sha256::digest(self.0.as_bytes()).into())
    }

    /// True when `signature` is one of `message` by this key, and no other key's.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

/// A private key. It is cleared from memory when it is dropped.
pub struct PrivateKey(SigningKey);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public().id())
    }
}

impl PrivateKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        let mut filled = 0;
        while let Some(rest) = seed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match getrandom(rest, GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(KeyError::Random(errno)),
            }
        }
        Ok(Self::from_seed(&seed))
    }

    /// The key with this seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The text of its file.
    pub(crate) fn to_text(&self, comment: &str) -> Zeroizing<String> {
        let seed = Zeroizing::new(STANDARD.encode(self.0.as_bytes()));
        let (prefix, seed) = (PREFIX, seed.as_str());
        Zeroizing::new(format!(
            "{PRIVATE}\nkey {prefix}{seed}\ncomment {comment}\n"
        ))
    }

    /// Reads the text of its file: the key and its comment.
    pub(crate) fn from_text(text: &str) -> Result<(Self, String), KeyError> {
        let mut lines = Lines::new(text, PRIVATE)?;
        let seed = Zeroizing::new(lines.key()?);
        let comment = lines.comment()?;
        lines.end()?;
        Ok((Self::from_seed(&seed), comment))
    }
}

/// A public key as it is handed around: with a comment, and with what its truster lets it do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeyFile {
    /// The key.
    pub key: PublicKey,
    /// Whose it is, in words: nobody checks them.
    pub comment: String,
    /// Where it is trusted: whether it approves what takes a second person. A key that somebody
    /// hands out says nothing about that.
    pub trust: Option<Trust>,
}

/// What a trusted key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Sign manifests.
    Sign,
    /// Sign manifests, and approve what takes a second signature.
    SignAndApprove,
}

impl Trust {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sign => "sign",
            Self::SignAndApprove => "sign, approve",
        }
    }
}

impl fmt::Display for PublicKeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = STANDARD.encode(self.key.to_bytes());
        writeln!(f, "{PUBLIC}\nkey {PREFIX}{bytes}\nid {}", self.key.id())?;
        writeln!(f, "comment {}", self.comment)?;
        match self.trust {
            Some(trust) => writeln!(f, "may {}", trust.as_str()),
            None => Ok(()),
        }
    }
}

impl FromStr for PublicKeyFile {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut lines = Lines::new(text, PUBLIC)?;
        let key = PublicKey::from_bytes(&lines.key()?)?;
        let id = lines.value("id ", "its third line is not `id HEX`")?;
        if id != key.id().to_string() {
            return Err(KeyError::Id);
        }
        let comment = lines.comment()?;
        let may = lines.0.next().map(|line| match line.strip_prefix("may ") {
            Some("sign") => Ok(Trust::Sign),
            Some("sign, approve") => Ok(Trust::SignAndApprove),
            _ => Err(KeyError::Form("it has a line that no key has")),
        });
        let trust = may.transpose()?;
        lines.end()?;
        Ok(Self {
            key,
            comment,
            trust,
        })
    }
}

/// True when `comment` can stand in a key's file.
pub(crate) fn check_comment(comment: &str) -> Result<(), KeyError> {
    let plain = !comment.chars().any(char::is_control);
    match comment.len() <= MAX_COMMENT && plain {
        true => Ok(()),
        false => Err(KeyError::Comment),
    }
}

/// The lines of a key's text.
struct Lines<'t>(std::str::Lines<'t>);

impl<'t> Lines<'t> {
    fn new(text: &'t str, first: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_TEXT {
            return Err(KeyError::Form("it is too long for a key"));
        }
        let mut lines = text.lines();
        match lines.next() == Some(first) {
            true => Ok(Self(lines)),
            false if first == PUBLIC => Err(KeyError::Form(
                "its first line is not `bulkhead-public-key 1`",
            )),
            false => Err(KeyError::Form(
                "its first line is not `bulkhead-private-key 1`",
            )),
        }
    }

    fn value(&mut self, word: &str, wrong: &'static str) -> Result<&'t str, KeyError> {
        let line = self.0.next().and_then(|line| line.strip_prefix(word));
        line.ok_or(KeyError::Form(wrong))
    }

    fn key(&mut self) -> Result<[u8; 32], KeyError> {
        let wrong = "its second line is not `key ed25519:BASE64`";
        let text = self.value("key ", wrong)?;
        let text = text.strip_prefix(PREFIX).ok_or(KeyError::Form(wrong))?;
        let bytes = STANDARD.decode(text).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| KeyError::Form(wrong))?;
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| KeyError::Form(wrong))
    }

    fn comment(&mut self) -> Result<String, KeyError> {
        let comment = self.value("comment ", "it has no line `comment TEXT`")?;
        check_comment(comment)?;
        Ok(comment.to_owned())
    }

    fn end(mut self) -> Result<(), KeyError> {
        match self.0.next() {
            None => Ok(()),
            Some(_) => Err(KeyError::Form("it has a line that no key has")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        let bytes = bytes(text);
        bytes.try_into().unwrap()
    }

    fn bytes(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        digits.chunks(2).map(|c| pair(c).unwrap()).collect()
    }

    /// RFC 8032, section 7.1, tests 1, 2, 3 and SHA(abc).
    #[test]
    fn the_vectors_of_the_specification() {
        for (seed, public, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
            ),
            (
                "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
                "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
                "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
            ),
        ] {
            let key = PrivateKey::from_seed(&hex(seed));
            let message = bytes(message);
            let signature = hex(signature);
            assert_eq!(key.public().to_bytes().to_vec(), bytes(public));
            assert_eq!(key.sign(&message), signature);
            assert!(key.public().verifies(&message, &signature));
            assert!(!key.public().verifies(b"another", &signature));
        }
    }

    #[test]
    fn weak_keys_are_none() {
        let mut one = [0; 32];
        one[0] = 1;
        // The neutral element; zero, of order 4; no point at all; y = p + 1, which is 1 once more.
        let mut again = [0xff; 32];
        again[0] = 0xee;
        again[31] = 0x7f;
        let mut outside = [0; 32];
        outside[0] = 2;
        for bytes in [one, [0; 32], outside, again] {
            assert!(matches!(PublicKey::from_bytes(&bytes), Err(KeyError::Weak)));
        }
    }

    #[test]
    fn keys_are_written_and_read() {
        let key = PrivateKey::generate().unwrap();
        assert_ne!(
            key.public().id(),
            PrivateKey::generate().unwrap().public().id()
        );
        let text = key.to_text("of alice");
        let (again, comment) = PrivateKey::from_text(&text).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(comment, "of alice");
        for trust in [None, Some(Trust::Sign), Some(Trust::SignAndApprove)] {
            let file = PublicKeyFile {
                key: key.public(),
                comment: "alice's laptop".to_owned(),
                trust,
            };
            assert_eq!(file.to_string().parse(), Ok(file));
        }
    }

    #[test]
    fn nothing_else_is_a_key() {
        let file = PublicKeyFile {
            key: PrivateKey::from_seed(&[7; 32]).public(),
            comment: "c".to_owned(),
            trust: None,
        };
        let text = file.to_string();
        let other = PrivateKey::from_seed(&[8; 32]).public().id().to_string();
        let id = file.key.id().to_string();
        let wrong = [
            text.replace("key 1", "key 2"),
            text.replace("ed25519", "rsa"),
            text.replace('\n', "\r\n").replace("\r\n", " "),
            text.replace(&id, &id.to_uppercase()),
            text.replace("comment c", "comment \u{7}"),
            text.replace("comment c", &format!("comment {}", "x".repeat(101))),
            text.replace("comment c\n", ""),
            format!("{text}may do anything\n"),
            format!("{text}may sign\nmay sign\n"),
            format!("{text}\n"),
            "x".repeat(5000),
            String::new(),
        ];
        for wrong in wrong {
            assert!(wrong.parse::<PublicKeyFile>().is_err(), "{wrong}");
        }
        let swapped = text.replace(&id, &other);
        assert!(matches!(
            swapped.parse::<PublicKeyFile>(),
            Err(KeyError::Id)
        ));
        assert!(PrivateKey::from_text(&text).is_err());
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let key = PrivateKey::from_seed(&[9; 32]);
        let printed = format!("{key:?}");
        assert_eq!(printed, format!("PrivateKey(of {})", key.public().id()));
    }
}

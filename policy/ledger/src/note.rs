//! Signed notes (c2sp.org/signed-note) with Ed25519, and the keys they are signed with.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::tree::Hash;

/// Most bytes of a note.
pub(crate) const MAX_NOTE_BYTES: usize = 16 * 1024;
/// The kind of key and signature, as notes number them: Ed25519.
const ED25519: u8 = 1;
/// How a private key begins, by the custom of those who write notes.
const PRIVATE: &str = "PRIVATE+KEY+";

/// Why something is no signed note of a key, or no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It has not the form of a note.
    #[error("is no signed note")]
    Malformed,
    /// It has no signature of the key.
    #[error("is not signed by this ledger's key")]
    NotSigned,
    /// It has one, which is wrong.
    #[error("has a signature that is wrong")]
    WrongSignature,
    /// It is no key.
    #[error("is no key of a ledger")]
    Key,
}

/// Who signs.
pub struct Signer {
    verifier: Verifier,
    key: SigningKey,
}

/// Whose signatures are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.verifier.name).finish()
    }
}

impl Signer {
    /// The key that `seed` stands for. Its name is made of its public half: it is the ledger's name,
    /// too, and there is one for each key.
    pub fn new(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = key.verifying_key();
        let digest = Sha256::digest(public.as_bytes());
        let short: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        let verifier = Verifier::new(format!("bulkhead-ledger/{short}"), public);
        Self { verifier, key }
    }

    /// The key as [`Signer::to_text`] writes it.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    pub fn from_text(text: &str) -> Result<Self, NoteError> {
        let rest = text.trim_end().strip_prefix(PRIVATE);
        let (name, id, seed) = parts(rest.ok_or(NoteError::Key)?)?;
        let signer = Self::new(&seed);
        let is_whole = signer.verifier.name == name && signer.verifier.id == id;
        is_whole.then_some(signer).ok_or(NoteError::Key)
    }

    /// One line, to be kept secret.
    pub fn to_text(&self) -> String {
        let Verifier { name, id, .. } = &self.verifier;
        format!("{PRIVATE}{}\n", key_text(name, id, self.key.as_bytes()))
    }

    /// The public half.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The note that says `text`, which ends with a line feed and has no empty line.
    pub fn sign(&self, text: &str) -> String {
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let bytes = [self.verifier.id.as_slice(), &signature].concat();
        let name = &self.verifier.name;
        format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(&bytes))
    }
}

impl Verifier {
    fn new(name: String, key: VerifyingKey) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(name.as_bytes());
        hasher.update([b'\n', ED25519]);
        hasher.update(key.as_bytes());
        let digest: Hash = hasher.finalize().into();
        let id = [digest[0], digest[1], digest[2], digest[3]];
        Self { name, id, key }
    }

    /// A public key in the form of a note's `vkey`: `name+id+key`.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    pub fn from_text(text: &str) -> Result<Self, NoteError> {
        let (name, id, key) = parts(text.trim_end())?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| NoteError::Key)?;
        let verifier = Self::new(name.to_owned(), key);
        (verifier.id == id)
            .then_some(verifier)
            .ok_or(NoteError::Key)
    }

    /// One line, which anybody may read.
    pub fn to_text(&self) -> String {
        let Self { name, id, key } = self;
        format!("{}\n", key_text(name, id, key.as_bytes()))
    }

    /// The key's name, which is the ledger's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `note` says, if this key has signed it. Signatures of others do not matter.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn open<'a>(&self, note: &'a [u8]) -> Result<&'a str, NoteError> {
        let (text, signatures) = split(note)?;
        let mut outcome = Err(NoteError::NotSigned);
        for line in signatures.lines() {
            let signature = line.strip_prefix("\u{2014} ").ok_or(NoteError::Malformed)?;
            let (name, bytes) = signature.split_once(' ').ok_or(NoteError::Malformed)?;
            let bytes = STANDARD.decode(bytes).map_err(|_| NoteError::Malformed)?;
            let Some((id, bytes)) = bytes.split_first_chunk::<4>() else {
                return Err(NoteError::Malformed);
            };
            if name != self.name || *id != self.id || outcome.is_ok() {
                continue;
            }
            let signature = Signature::from_slice(bytes).map_err(|_| NoteError::WrongSignature)?;
            (self.key.verify_strict(text.as_bytes(), &signature))
                .map_err(|_| NoteError::WrongSignature)?;
            outcome = Ok(text);
        }
        outcome
    }
}

/// A note's text, and the lines of its signatures.
///
/// # Errors
/// [`NoteError::Malformed`].
pub(crate) fn split(note: &[u8]) -> Result<(&str, &str), NoteError> {
    let note = Some(note).filter(|note| note.len() <= MAX_NOTE_BYTES);
    let note = note.and_then(|note| std::str::from_utf8(note).ok());
    let note = note.filter(|note| note.ends_with('\n') && !note.contains('\r'));
    let note = note.ok_or(NoteError::Malformed)?;
    let middle = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
    let (text, rest) = note.split_at(middle + 1);
    let signatures = rest.get(1..).unwrap_or_default();
    match text.len() > 1 && !signatures.is_empty() {
        true => Ok((text, signatures)),
        false => Err(NoteError::Malformed),
    }
}

fn key_text(name: &str, id: &[u8; 4], key: &[u8; 32]) -> String {
    let bytes = [&[ED25519], key.as_slice()].concat();
    let id = u32::from_be_bytes(*id);
    format!("{name}+{id:08x}+{}", STANDARD.encode(&bytes))
}

fn parts(text: &str) -> Result<(&str, [u8; 4], [u8; 32]), NoteError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(NoteError::Key);
    };
    let is_name = !name.is_empty() && !name.chars().any(char::is_whitespace);
    let number = u32::from_str_radix(id, 16).ok().filter(|_| id.len() == 8);
    let bytes = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
    match (bytes.split_first(), number) {
        (Some((&ED25519, key)), Some(number)) if is_name => {
            let key = key.try_into().map_err(|_| NoteError::Key)?;
            Ok((name, number.to_be_bytes(), key))
        }
        _ => Err(NoteError::Key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Go's `golang.org/x/mod/sumdb/note`, which defined the form.
    #[test]
    fn a_note_of_another_implementation_is_opened() {
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\
                    \n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let verifier = Verifier::from_text(key).unwrap();
        let text = verifier.open(note.as_bytes()).unwrap();
        assert!(text.starts_with("If you think") && text.ends_with("problem is.\n"));
        assert_eq!(verifier.to_text().trim_end(), key);
        for (from, to, error) in [
            ("answer", "Answer", NoteError::WrongSignature),
            ("uBS9UG", "uBT9UG", NoteError::WrongSignature),
            ("PeterNeumann x08", "PeterNeumanN x08", NoteError::NotSigned),
            ("\n\n", "\n", NoteError::Malformed),
            ("\u{2014} ", "- ", NoteError::Malformed),
        ] {
            let changed = note.replacen(from, to, 1);
            assert_eq!(verifier.open(changed.as_bytes()), Err(error), "{from}");
        }
    }

    #[test]
    fn keys_come_back_from_their_text() {
        let signer = Signer::new(&[7; 32]);
        let text = signer.to_text();
        let again = Signer::from_text(&text).unwrap();
        assert_eq!(again.verifier(), signer.verifier());
        let public = Verifier::from_text(&signer.verifier().to_text()).unwrap();
        let note = again.sign("text\n");
        assert_eq!(public.open(note.as_bytes()), Ok("text\n"));
        let other = Signer::new(&[8; 32]);
        assert_eq!(
            other.verifier().open(note.as_bytes()),
            Err(NoteError::NotSigned)
        );
        for wrong in [
            "",
            "x",
            "PRIVATE+KEY+a+00000000+AQ==",
            &text[..text.len() - 9],
        ] {
            assert_eq!(Signer::from_text(wrong).err(), Some(NoteError::Key));
        }
        assert!(!format!("{signer:?}").contains("KEY"));
    }
}

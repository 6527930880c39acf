//! Checkpoints (c2sp.org/tlog-checkpoint): how many records there are, and the root over them, as the
//! text of a signed note.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::note::{NoteError, Signer, Verifier};
use crate::tree::Hash;

/// A ledger at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The ledger's name.
    pub origin: String,
    /// How many records it had.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The signed note that says so.
    pub fn sign(&self, signer: &Signer) -> String {
        signer.sign(&self.to_text())
    }

    /// What `note` says, if the ledger's key has signed it, and the ledger is that of the key.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn open(note: &[u8], verifier: &Verifier) -> Result<Self, NoteError> {
        let checkpoint = Self::from_text(verifier.open(note)?).ok_or(NoteError::Malformed)?;
        let is_ours = checkpoint.origin == verifier.name();
        is_ours.then_some(checkpoint).ok_or(NoteError::NotSigned)
    }

    /// The text of the note.
    pub fn to_text(&self) -> String {
        let root = STANDARD.encode(self.root);
        format!("{}\n{}\n{root}\n", self.origin, self.size)
    }

    /// What the text of a note says; lines behind the third belong to others.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?.to_owned();
        let digits = lines.next()?;
        let size: u64 = digits.parse().ok()?;
        let root = lines.next()?;
        let bytes = STANDARD.decode(root).ok()?;
        // One way of writing a number: no sign, no zero before it.
        (size.to_string() == digits && lines.all(|line| !line.is_empty())).then_some(Self {
            origin,
            size,
            root: bytes.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_three_lines_and_a_signature() {
        let signer = Signer::new(&[1; 32]);
        let checkpoint = Checkpoint {
            origin: signer.verifier().name().to_owned(),
            size: 42,
            root: [9; 32],
        };
        let note = checkpoint.sign(&signer);
        let lines: Vec<&str> = note.lines().collect();
        assert_eq!(lines.len(), 5, "{note}");
        assert_eq!((lines[1], lines[3]), ("42", ""));
        let opened = Checkpoint::open(note.as_bytes(), signer.verifier());
        assert_eq!(opened.as_ref(), Ok(&checkpoint));
        let other = Signer::new(&[2; 32]);
        // Signed by the key, but of another ledger.
        let foreign = Checkpoint {
            origin: other.verifier().name().to_owned(),
            ..checkpoint.clone()
        };
        let note = foreign.sign(&signer);
        let opened = Checkpoint::open(note.as_bytes(), signer.verifier());
        assert_eq!(opened, Err(NoteError::NotSigned));
        for wrong in ["", "a\n", "a\n1\n", "a\n1\nAA==\n", "\n1\n\n"] {
            assert_eq!(Checkpoint::from_text(wrong), None, "{wrong:?}");
        }
        let text = checkpoint.to_text();
        for size in ["042", "+42", "-1", "4 2", "18446744073709551616"] {
            let wrong = text.replacen("42", size, 1);
            assert_eq!(Checkpoint::from_text(&wrong), None, "{size}");
        }
        let more = format!("{text}extension\n");
        assert_eq!(Checkpoint::from_text(&more), Some(checkpoint));
    }
}

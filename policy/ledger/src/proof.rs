//! Proofs that a record is in a ledger (c2sp.org/tlog-proof), which can be checked with its public key and
//! nothing else. The record itself is in the line `extra`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::Checkpoint;
use crate::note::{NoteError, Verifier};
use crate::record::{MAX_RECORD_BYTES, Record};
use crate::tree::{self, Hash, MAX_HASHES};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// A record, and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The record's canonical form.
    pub record: Vec<u8>,
    /// Its place.
    pub index: u64,
    /// The hashes beside its way to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint with the root, signed.
    pub note: String,
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It has not the form of one.
    #[error("it is no proof")]
    Malformed,
    /// Its checkpoint is not the ledger's.
    #[error("its checkpoint {0}")]
    Checkpoint(NoteError),
    /// The hashes do not lead from the record to the root.
    #[error("record {0} is not in the tree of its checkpoint")]
    NotInTree(u64),
    /// What is proven is no record.
    #[error("what it proves is no record: {0}")]
    Record(#[from] serde_json::Error),
}

impl Proof {
    /// As it stands in a file.
    pub fn to_text(&self) -> String {
        let extra = STANDARD.encode(&self.record);
        let mut text = format!("{FIRST_LINE}\nextra {extra}\nindex {}\n", self.index);
        for hash in &self.hashes {
            text += &STANDARD.encode(hash);
            text.push('\n');
        }
        format!("{text}\n{}", self.note)
    }

    /// The proof that a file has.
    ///
    /// # Errors
    /// [`ProofError::Malformed`].
    pub fn from_text(text: &str) -> Result<Self, ProofError> {
        Self::parse(text).ok_or(ProofError::Malformed)
    }

    fn parse(text: &str) -> Option<Self> {
        let (lines, note) = text.split_once("\n\n")?;
        let mut lines = lines.split('\n');
        lines.next().filter(|line| *line == FIRST_LINE)?;
        let extra = lines.next()?.strip_prefix("extra ")?;
        let digits = lines.next()?.strip_prefix("index ")?;
        let index: u64 = digits.parse().ok()?;
        let hash = |line: &str| STANDARD.decode(line).ok()?.try_into().ok();
        let hashes: Vec<Hash> = lines
            .take(MAX_HASHES + 1)
            .map(hash)
            .collect::<Option<_>>()?;
        let is_short = extra.len() <= 2 * MAX_RECORD_BYTES && hashes.len() <= MAX_HASHES;
        (is_short && index.to_string() == digits).then_some(Self {
            record: STANDARD.decode(extra).ok()?,
            index,
            hashes,
            note: note.to_owned(),
        })
    }

    /// The record, and the checkpoint it is proven by, if the key of `verifier` vouches for it.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn check(&self, verifier: &Verifier) -> Result<(Record, Checkpoint), ProofError> {
        let checkpoint = Checkpoint::open(self.note.as_bytes(), verifier);
        let checkpoint = checkpoint.map_err(ProofError::Checkpoint)?;
        let leaf = tree::leaf(&self.record);
        let root = tree::root_by_proof(leaf, self.index, checkpoint.size, &self.hashes);
        if root != Some(checkpoint.root) {
            return Err(ProofError::NotInTree(self.index));
        }
        Ok((Record::from_json(&self.record)?, checkpoint))
    }
}

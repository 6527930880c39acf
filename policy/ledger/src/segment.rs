//! What a segment's file holds: a header that says where it begins, then records and checkpoints, each
//! in a frame. Read here, and checked against what came before; written by [`crate::log`].
//!
//! A commit is some records and the checkpoint behind them. What is behind the last checkpoint was never
//! acknowledged.

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::note::{self, Verifier};
use crate::record::{MAX_RECORD_BYTES, after_of, index_of};
use crate::tree::{self, Frontier, Hash};

/// How each segment begins.
const MAGIC: &[u8] = b"bulkhead ledger segment 1\n";
/// Bytes of a frame before what it holds: its kind, and the length of that.
const FRAME_HEAD: usize = 5;
/// A frame with a record: the hash of the leaf, and the leaf.
const RECORD: u8 = b'R';
/// A frame with a checkpoint: a signed note.
const CHECKPOINT: u8 = b'C';
/// Most bytes that a frame can hold.
const MAX_FRAME: usize = 64 * 1024;
const HASH: usize = 32;

/// Where the ledger stands at a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) tree: Frontier,
    /// The checkpoint, as it was written; empty before the first.
    pub(crate) note: Vec<u8>,
}

impl Head {
    /// The hash that the next record names.
    pub(crate) fn after(&self) -> Option<Hash> {
        (!self.note.is_empty()).then(|| Sha256::digest(&self.note).into())
    }
}

/// What is wrong, and with which record first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The first bad record; where that is not known, the first that may be it.
    pub first: u64,
    /// The last record that may be the first bad one.
    pub last: u64,
    /// The segment it was found in.
    pub segment: Option<String>,
    /// What is wrong, as a sentence.
    pub what: String,
}

impl Problem {
    pub(crate) fn at(index: u64, what: impl Into<String>) -> Self {
        Self::within(index, index, what)
    }

    pub(crate) fn within(first: u64, last: u64, what: impl Into<String>) -> Self {
        Self {
            first,
            last: last.max(first),
            segment: None,
            what: what.into(),
        }
    }
}

/// The name of the segment that begins with record `first`.
pub(crate) fn name(first: u64) -> String {
    format!("{first:020}.segment")
}

/// The record that the segment of this name begins with.
pub(crate) fn first_of(name: &str) -> Option<u64> {
    let first = name.strip_suffix(".segment")?.parse().ok()?;
    (self::name(first) == name).then_some(first)
}

/// The header of a segment that begins at `head`.
pub(crate) fn header(head: &Head) -> Vec<u8> {
    let length = u32::try_from(head.note.len()).unwrap_or(u32::MAX);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(head.tree.size().to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(&head.note);
    bytes.extend(head.tree.peaks().as_flattened());
    bytes
}

/// Where a segment begins, by its header, and how long that is. Nothing where it is none.
pub(crate) fn parse_header(bytes: &[u8]) -> Option<(Head, usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (size, rest) = rest.split_first_chunk()?;
    let size = u64::from_le_bytes(*size);
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (note, rest) = rest.split_at_checked(length)?;
    let peaks = rest.get(..Frontier::peaks_of(size) * HASH)?;
    let (hashes, _) = peaks.as_chunks::<HASH>();
    let tree = Frontier::new(size, hashes.to_vec())?;
    let note = note.to_vec();
    let end = bytes.len() - rest.len() + peaks.len();
    ((size == 0) == note.is_empty()).then_some((Head { tree, note }, end))
}

/// Whether `head` is one that the ledger's key vouches for.
pub(crate) fn is_signed(head: &Head, verifier: &Verifier) -> bool {
    head.note.is_empty()
        || Checkpoint::open(&head.note, verifier).is_ok_and(|checkpoint| {
            checkpoint.size == head.tree.size() && checkpoint.root == head.tree.root()
        })
}

/// Adds a frame with a record to `bytes`; the hash of its leaf.
pub(crate) fn push_record(bytes: &mut Vec<u8>, json: &[u8]) -> Hash {
    let leaf = tree::leaf(json);
    push(bytes, RECORD, &[&leaf, json]);
    leaf
}

/// Adds a frame with a checkpoint.
pub(crate) fn push_checkpoint(bytes: &mut Vec<u8>, note: &str) {
    push(bytes, CHECKPOINT, &[note.as_bytes()]);
}

fn push(bytes: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    bytes.push(kind);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    parts.iter().for_each(|part| bytes.extend(*part));
}

/// What stands in a frame.
pub(crate) enum Frame<'a> {
    Record { leaf: &'a Hash, json: &'a [u8] },
    Checkpoint(&'a [u8]),
}

/// The frame at the beginning of `bytes`, and what is behind it; nothing where there is no whole one.
pub(crate) fn frame(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD>()?;
    let [kind, length @ ..] = *head;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let (held, rest) = rest.split_at_checked(length.min(MAX_FRAME + 1))?;
    match kind {
        RECORD => {
            let (leaf, json) = held.split_first_chunk::<HASH>()?;
            (json.len() <= MAX_RECORD_BYTES).then_some((Frame::Record { leaf, json }, rest))
        }
        CHECKPOINT if held.len() <= note::MAX_NOTE_BYTES => Some((Frame::Checkpoint(held), rest)),
        _ => None,
    }
}

/// What was found behind a head.
pub(crate) struct Walked {
    /// The head at the last checkpoint.
    pub(crate) head: Head,
    /// How many bytes lead there.
    pub(crate) end: usize,
    /// What is wrong before that.
    pub(crate) problem: Option<Problem>,
    /// What is wrong behind it: a commit that was not finished, or that was destroyed.
    pub(crate) torn: Option<Problem>,
}

/// Reads frames that follow `head`, hashes every record, and checks order, the hashes that stand beside
/// the records, and sizes and roots of all checkpoints; whose signatures are the caller's
/// business. `seen` is told each record's index, leaf and canonical form. It ends at the first problem
/// that a checkpoint covers.
pub(crate) fn walk<'a>(
    head: Head,
    bytes: &'a [u8],
    mut seen: impl FnMut(u64, Hash, &'a [u8], &Frontier),
) -> Walked {
    let mut tree = head.tree.clone();
    let mut walked = Walked {
        head,
        end: 0,
        problem: None,
        torn: None,
    };
    let mut after = walked.head.after();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some((frame, behind)) = frame(rest) else {
            let problem = Problem::at(tree.size(), "its frame is cut off or broken");
            walked.torn.get_or_insert(problem);
            return walked;
        };
        rest = behind;
        match frame {
            Frame::Record { leaf, json } if walked.torn.is_none() => {
                let hash = tree::leaf(json);
                match check(json, *leaf == hash, tree.size(), after.as_ref()) {
                    Ok(()) => {
                        tree.push(hash);
                        seen(tree.size() - 1, hash, json, &tree);
                    }
                    Err(problem) => walked.torn = Some(problem),
                }
                after = None;
            }
            Frame::Record { .. } => {}
            Frame::Checkpoint(note) => {
                let wrong = walked.torn.take();
                let wrong = wrong.or_else(|| check_note(note, &tree, walked.head.tree.size()));
                match wrong {
                    // A note that is none covers nothing.
                    Some(wrong) if parse(note).is_none() => walked.torn = Some(wrong),
                    Some(wrong) => {
                        walked.problem = Some(wrong);
                        return walked;
                    }
                    None => {
                        walked.end = bytes.len() - rest.len();
                        walked.head.tree.clone_from(&tree);
                        walked.head.note = note.to_vec();
                        after = walked.head.after();
                    }
                }
            }
        }
    }
    if tree.size() > walked.head.tree.size() {
        let first = walked.head.tree.size();
        let problem = Problem::at(first, "no checkpoint is behind it");
        walked.torn.get_or_insert(problem);
    }
    walked
}

fn parse(note: &[u8]) -> Option<Checkpoint> {
    let (text, _) = note::split(note).ok()?;
    Checkpoint::from_text(text)
}

/// What is wrong with a record where record `expected` belongs.
fn check(json: &[u8], is_whole: bool, expected: u64, after: Option<&Hash>) -> Result<(), Problem> {
    let wrong = |what: &str| Err(Problem::at(expected, what));
    if !is_whole {
        return wrong("it is not what it was when it was written: its hash differs");
    }
    match index_of(json) {
        Some(index) if index == expected => {}
        Some(index) => {
            // One that stands there twice may have been put there the first time.
            let what = format!("record {index} stands where record {expected} belongs");
            return Err(Problem::within(index.min(expected), expected, what));
        }
        None => return wrong("it is no record"),
    }
    match after_of(json).as_ref() == after {
        true => Ok(()),
        false => wrong("the checkpoint before it is not the one that it names"),
    }
}

fn check_note(note: &[u8], tree: &Frontier, since: u64) -> Option<Problem> {
    let size = tree.size();
    let within = |what: &str| Problem::within(since, size.saturating_sub(1), what);
    let Some(checkpoint) = parse(note) else {
        return Some(within("the checkpoint behind it is none"));
    };
    if checkpoint.size != size {
        let first = checkpoint.size.min(size);
        let what = format!("a checkpoint behind it counts {} records", checkpoint.size);
        return Some(Problem::at(first, what));
    }
    (checkpoint.root != tree.root())
        .then(|| within("it is not what it was when the checkpoint behind it was signed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_of_one_form() {
        assert_eq!(name(12), "00000000000000000012.segment");
        for first in [0, 12, u64::MAX] {
            assert_eq!(first_of(&name(first)), Some(first));
        }
        for wrong in [
            "",
            "12.segment",
            "00000000000000000012",
            "+0000000000000000012.segment",
        ] {
            assert_eq!(first_of(wrong), None);
        }
    }

    #[test]
    fn headers_come_back() {
        let mut head = Head::default();
        for size in 0..20 {
            let bytes = header(&head);
            let (again, end) = parse_header(&bytes).unwrap();
            assert_eq!((&again, end), (&head, bytes.len()));
            for cut in 0..bytes.len() {
                assert!(parse_header(&bytes[..cut]).is_none());
            }
            head.tree.push([size; 32]);
            head.note = vec![b'x'; 7];
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_walked_over(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_header(&bytes);
            let walked = walk(Head::default(), &bytes, |_, _, _, _| {});
            prop_assert_eq!(walked.end, 0);
            prop_assert_eq!(walked.torn.is_some(), !bytes.is_empty());
        }
    }
}

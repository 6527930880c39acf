//! Reading records without verifying them: what `tail`, `export` and `prove` show.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, OFlags};

use crate::error::LogError;
use crate::note::Verifier;
use crate::place::{lock, open, read_from, segments};
use crate::proof::Proof;
use crate::segment::{self, Frame, Head, Problem, frame, is_signed, parse_header, walk};
use crate::tree;

/// The records of one segment that a checkpoint is behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Index and canonical form of each.
    pub records: Vec<(u64, Vec<u8>)>,
    /// The checkpoint behind them, as a signed note; empty before the first.
    pub note: Vec<u8>,
}

/// A ledger, to read.
#[derive(Debug)]
pub struct Reader {
    directory: OwnedFd,
}

impl Reader {
    /// The ledger in `directory`.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// The records that segments begin with, in order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn segments(&self) -> Result<Vec<u64>, LogError> {
        segments(&self.directory).map_err(LogError::io("list the ledger"))
    }

    /// The segment that begins with record `first`, as far as it can be read.
    ///
    /// # Errors
    /// Its file cannot be read, or is no segment.
    pub fn segment(&self, first: u64) -> Result<Segment, LogError> {
        let bytes = self.bytes(first)?;
        let (head, mut frames) = header(first, &bytes)?;
        let mut index = head.tree.size();
        let mut segment = Segment {
            records: Vec::new(),
            note: head.note,
        };
        let mut committed = 0;
        while let Some((frame, rest)) = frame(frames) {
            frames = rest;
            match frame {
                Frame::Record { json, .. } => {
                    segment.records.push((index, json.to_vec()));
                    index += 1;
                }
                Frame::Checkpoint(note) => {
                    committed = segment.records.len();
                    segment.note = note.to_vec();
                }
            }
        }
        segment.records.truncate(committed);
        Ok(segment)
    }

    /// Proves that record `index` is one of the ledger, as it is now.
    ///
    /// # Errors
    /// There is no such record, or the ledger is damaged, which would make the proof worthless.
    pub fn prove(&self, index: u64, verifier: &Verifier) -> Result<Option<Proof>, LogError> {
        let mut head = Head::default();
        let (mut leaves, mut record) = (Vec::new(), None);
        for first in self.segments()? {
            let bytes = self.bytes(first)?;
            let (begin, frames) = header(first, &bytes)?;
            if begin != head {
                let what = "its segment does not follow the one before";
                return Err(LogError::Damaged(Problem::at(first, what)));
            }
            let walked = walk(head, frames, |at, leaf, json, _| {
                leaves.push(leaf);
                if at == index {
                    record = Some(json.to_vec());
                }
            });
            if let Some(problem) = walked.problem {
                return Err(LogError::Damaged(problem));
            }
            head = walked.head;
            leaves.truncate(usize::try_from(head.tree.size()).unwrap_or(usize::MAX));
        }
        if !is_signed(&head, verifier) {
            let last = head.tree.size().saturating_sub(1);
            let what = "the checkpoint behind it is not signed by the ledger's key";
            return Err(LogError::Damaged(Problem::at(last, what)));
        }
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let hashes = tree::prove(&leaves, at);
        Ok(hashes.zip(record).map(|(hashes, record)| Proof {
            record,
            index,
            hashes,
            note: String::from_utf8_lossy(&head.note).into_owned(),
        }))
    }

    fn bytes(&self, first: u64) -> Result<Vec<u8>, LogError> {
        let reading = LogError::io;
        let lock_file = open(&self.directory, "lock", OFlags::RDONLY).ok();
        let locked = lock_file
            .as_ref()
            .map(|file| lock(file, FlockOperation::LockShared));
        let _locked = locked.transpose().map_err(reading("lock the ledger"))?;
        let file = open(&self.directory, &segment::name(first), OFlags::RDONLY);
        file.and_then(|file| read_from(&file, 0))
            .map_err(reading("read the ledger"))
    }
}

fn header(first: u64, bytes: &[u8]) -> Result<(Head, &[u8]), LogError> {
    let parsed = parse_header(bytes).filter(|(head, _)| head.tree.size() == first);
    let Some((head, start)) = parsed else {
        let problem = Problem::at(first, "its segment has no header");
        return Err(LogError::Damaged(problem));
    };
    Ok((head, bytes.get(start..).unwrap_or_default()))
}

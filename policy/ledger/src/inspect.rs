//! What the segments say of themselves, each from its own header on: so that all CPUs can hash. Whether
//! one follows the other is for [`crate::verify`] to see, which calls this alone.

use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, available_parallelism, scope};

use rustix::fs::OFlags;

use crate::checkpoint::Checkpoint;
use crate::error::LogError;
use crate::note::Verifier;
use crate::place::{open, read_from};
use crate::segment::{self, Frame, Head, Problem, Walked, frame, is_signed, parse_header, walk};
use crate::tree::Frontier;
use crate::verify::Voucher;

/// What is checked in each segment.
pub(crate) struct Inspection<'a> {
    pub(crate) directory: Option<&'a OwnedFd>,
    /// The records that segments begin with, in their order.
    pub(crate) firsts: &'a [u64],
    /// What the last of them holds, which is read already.
    pub(crate) last: Option<&'a [u8]>,
    pub(crate) verifier: &'a Verifier,
    /// By their sizes.
    pub(crate) vouchers: &'a [Voucher],
}

/// A segment, taken at its header's word.
pub(crate) struct Inspected<'a> {
    /// Where its header says that it begins.
    pub(crate) head: Head,
    /// What was found behind the header.
    pub(crate) walked: Walked,
    /// The records that no signature covers, where its last checkpoint is not signed.
    pub(crate) unsigned: Option<Problem>,
    /// The first checkpoint from outside that says otherwise.
    pub(crate) contradicted: Option<&'a Voucher>,
    /// Bytes behind its last checkpoint.
    pub(crate) unfinished: u64,
}

/// A segment that was read; nothing where it has no header of its name.
type Outcome<'a> = Result<Option<Inspected<'a>>, LogError>;

impl<'a> Inspection<'a> {
    /// Every segment, in their order, on as many CPUs as there are.
    pub(crate) fn all(&self) -> Vec<Outcome<'a>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(self.firsts.len()));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(first) = self.firsts.get(number) else {
                    return;
                };
                let result = self.segment(number, *first);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((number, result));
            }
        };
        let cpus = available_parallelism().map_or(1, NonZero::get);
        scope(|threads| {
            for _ in 1..cpus.min(self.firsts.len()) {
                // Where the host gives no thread, there are fewer.
                if Builder::new().spawn_scoped(threads, work).is_err() {
                    break;
                }
            }
            work();
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn segment(&self, number: usize, first: u64) -> Outcome<'a> {
        match self.last.filter(|_| number + 1 == self.firsts.len()) {
            Some(bytes) => Ok(self.bytes(first, bytes)),
            None => Ok(self.bytes(first, &read(self.directory, first)?)),
        }
    }

    fn bytes(&self, first: u64, bytes: &[u8]) -> Option<Inspected<'a>> {
        let (head, start) = parse_header(bytes)?;
        if head.tree.size() != first {
            return None;
        }
        let frames = bytes.get(start..).unwrap_or_default();
        let mut sizes = self.vouchers.iter().peekable();
        while sizes
            .next_if(|voucher| voucher.checkpoint.size <= first)
            .is_some()
        {}
        let mut contradicted = None;
        let walked = walk(head.clone(), frames, |_, _, _, tree: &Frontier| {
            while let Some(voucher) = sizes.next_if(|v| v.checkpoint.size == tree.size()) {
                if voucher.checkpoint.root != tree.root() {
                    contradicted.get_or_insert(voucher);
                }
            }
        });
        let has_unsigned = walked.end > 0 && !is_signed(&walked.head, self.verifier);
        Some(Inspected {
            head,
            unsigned: has_unsigned.then(|| unsigned(first, frames, self.verifier)),
            contradicted,
            unfinished: (frames.len() - walked.end) as u64,
            walked,
        })
    }
}

/// The bytes of the segment that begins with record `first`.
pub(crate) fn read(directory: Option<&OwnedFd>, first: u64) -> Result<Vec<u8>, LogError> {
    let Some(directory) = directory else {
        return Ok(Vec::new());
    };
    let file = open(directory, &segment::name(first), OFlags::RDONLY);
    file.and_then(|file| read_from(&file, 0))
        .map_err(LogError::io("read the ledger"))
}

/// The first record that no signature covers, of a segment whose last checkpoint is not signed.
fn unsigned(mut good: u64, mut frames: &[u8], verifier: &Verifier) -> Problem {
    let what = "the checkpoint behind it is not signed by the ledger's key";
    let mut size = good;
    while let Some((frame, rest)) = frame(frames) {
        frames = rest;
        match frame {
            Frame::Record { .. } => size += 1,
            Frame::Checkpoint(note) => match Checkpoint::open(note, verifier) {
                Ok(_) => good = size,
                Err(_) => break,
            },
        }
    }
    Problem::within(good, size.saturating_sub(1), what)
}

//! Verification: reads the whole ledger, has every record hashed, and says whether it is what its
//! key's owner wrote, and all of it; else which record is the first bad one.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, OFlags};

use crate::checkpoint::Checkpoint;
use crate::error::LogError;
use crate::inspect::{Inspected, Inspection, read};
use crate::note::Verifier;
use crate::place::{self, lock, open, segments};
use crate::segment::{self, Frame, Head, Problem, frame, parse_header};
use crate::tree::{self, Hash};

/// A checkpoint from outside of the ledger, and where it is from.
#[derive(Clone, Debug)]
pub struct Voucher {
    /// As a sentence goes on behind "the checkpoint".
    pub of: String,
    /// What it says.
    pub checkpoint: Checkpoint,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many records were found good.
    pub records: u64,
    /// The root over them.
    pub root: Hash,
    /// How many segments there are.
    pub segments: usize,
    /// Bytes behind the last checkpoint: of a commit that was not finished, and so never acknowledged.
    pub unfinished: u64,
    /// The first thing that is wrong.
    pub problem: Option<Problem>,
}

/// Verifies the ledger in `directory` against its key, the second place, and what else vouches for it.
/// Without a directory it is one without a record.
///
/// # Errors
/// It cannot be read.
pub fn verify(
    directory: Option<&OwnedFd>,
    second: Option<&OwnedFd>,
    verifier: &Verifier,
    others: &[Voucher],
) -> Result<Report, LogError> {
    let reading = LogError::io;
    let lock_file = directory.and_then(|at| open(at, "lock", OFlags::RDONLY).ok());
    // Without the lock (in a copy) nobody writes.
    let locked = lock_file
        .as_ref()
        .map(|file| lock(file, FlockOperation::LockShared));
    let locked = locked.transpose().map_err(reading("lock the ledger"))?;
    let known = match second {
        Some(second) => {
            place::second(second, verifier).map_err(reading("read the second place"))?
        }
        None => None,
    };
    let firsts = directory.map_or(Ok(Vec::new()), segments);
    let firsts = firsts.map_err(reading("list the ledger"))?;
    // Older segments do not change any more.
    let last = firsts
        .last()
        .map(|first| read(directory, *first))
        .transpose()?;
    drop(locked);
    let mut vouchers = others.to_vec();
    vouchers.extend(known.clone().map(|checkpoint| Voucher {
        of: "in the second place".to_owned(),
        checkpoint,
    }));
    vouchers.sort_by_key(|voucher| voucher.checkpoint.size);
    let inspection = Inspection {
        directory,
        firsts: &firsts,
        last: last.as_deref(),
        verifier,
        vouchers: &vouchers,
    };
    let mut run = Run {
        vouchers: &vouchers,
        head: Head::default(),
        records: 0,
        unfinished: 0,
        torn: None,
    };
    let mut problem = None;
    for (number, (first, inspected)) in firsts.iter().zip(inspection.all()).enumerate() {
        let is_last = number + 1 == firsts.len();
        if let Err(mut found) = run.segment(*first, inspected?, is_last) {
            found.segment = Some(segment::name(*first));
            problem = Some(found);
            break;
        }
    }
    let mut problem = problem.or_else(|| run.missing());
    if let (Some(found), Some(second), Some(known)) = (&mut problem, second, &known) {
        let leaves = place::leaves(second, known.size);
        let leaves = leaves.map_err(reading("read the second place"))?;
        if let Some(leaves) = leaves.filter(|leaves| tree::root(leaves) == known.root)
            && let Some(first) = first_difference(directory, &firsts, &leaves)?
            && first <= found.last
        {
            (found.first, found.last) = (first, first);
        }
    }
    Ok(Report {
        records: run.records,
        root: run.head.tree.root(),
        segments: firsts.len(),
        unfinished: run.unfinished,
        problem,
    })
}

struct Run<'a> {
    /// By their sizes.
    vouchers: &'a [Voucher],
    head: Head,
    records: u64,
    unfinished: u64,
    torn: Option<Problem>,
}

impl Run<'_> {
    /// Goes on with the segment that begins with record `first`, by what was found in it.
    fn segment(
        &mut self,
        first: u64,
        inspected: Option<Inspected<'_>>,
        is_last: bool,
    ) -> Result<(), Problem> {
        let size = self.head.tree.size();
        let Some(inspected) = inspected else {
            return Err(Problem::at(first.min(size), "its segment has no header"));
        };
        if first > size {
            let what = format!("it is missing: the next segment begins with record {first}");
            return Err(Problem::within(size, first - 1, what));
        }
        if inspected.head != self.head {
            let what = "its segment does not follow the one before";
            return Err(Problem::at(first, what));
        }
        let walked = inspected.walked;
        if let Some(problem) = walked.problem.or(inspected.unsigned) {
            self.records = problem.first;
            return Err(problem);
        }
        if let Some(voucher) = inspected.contradicted {
            let last = voucher.checkpoint.size.saturating_sub(1);
            let what = format!("it is not what the checkpoint {} vouches for", voucher.of);
            return Err(Problem::within(0, last, what));
        }
        self.head = walked.head;
        self.records = self.head.tree.size();
        match walked.torn {
            Some(torn) if !is_last => Err(torn),
            torn => {
                self.unfinished = inspected.unfinished;
                self.torn = torn;
                Ok(())
            }
        }
    }

    /// What is known to have been there, and is not.
    fn missing(&mut self) -> Option<Problem> {
        let most = self.vouchers.last()?;
        let known = most.checkpoint.size;
        if known <= self.records {
            return None;
        }
        let of = &most.of;
        let torn = self.torn.take();
        Some(torn.unwrap_or_else(|| {
            let what = format!("it is missing: the checkpoint {of} counts {known} records");
            Problem::at(self.records, what)
        }))
    }
}

/// The first record whose leaf is not the one in `leaves`.
fn first_difference(
    directory: Option<&OwnedFd>,
    firsts: &[u64],
    leaves: &[Hash],
) -> Result<Option<u64>, LogError> {
    let mut expected = leaves.iter();
    let mut at = 0;
    for first in firsts {
        let bytes = read(directory, *first)?;
        let Some((_, start)) = parse_header(&bytes) else {
            return Ok(Some(at));
        };
        let mut frames = bytes.get(start..).unwrap_or_default();
        while let Some((frame, rest)) = frame(frames) {
            frames = rest;
            if let Frame::Record { json, .. } = frame {
                match expected.next() {
                    Some(leaf) if *leaf == tree::leaf(json) => at += 1,
                    Some(_) => return Ok(Some(at)),
                    None => return Ok(None),
                }
            }
        }
    }
    Ok(expected.next().map(|_| at))
}

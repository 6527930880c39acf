//! The ledger, to write to. Several processes may have one open: each commit takes the ledger's lock,
//! catches up with what others have added, adds its records with a checkpoint behind them, and waits until all of
//! it is durable.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bulkhead_record::Entry;
use rustix::fs::{FlockOperation, OFlags, fstat, fsync, renameat};

use crate::checkpoint::Checkpoint;
use crate::error::LogError;
use crate::note::Signer;
use crate::place::{Second, existing, lock, lock_file, open, read_from, segments};
use crate::record::Record;
use crate::segment::{self, Head, Problem, Walked, header, is_signed, parse_header};
use crate::tree::Hash;

/// From this length on, a segment is not added to any more.
pub const SEGMENT_BYTES: u64 = 1024 * 1024;
/// The name that a new segment has until it is whole.
const NEW: &str = "new";
/// How long the second place may be newer in memory than on disk.
const SECOND_SYNC: Duration = Duration::from_secs(1);

/// See the top of this file.
#[derive(Debug)]
pub struct Log {
    directory: OwnedFd,
    lock: Arc<File>,
    signer: Signer,
    second: Second,
    second_synced: Option<Instant>,
    limit: u64,
    /// The records that its segments begin with.
    firsts: Vec<u64>,
    /// The last of them.
    segment: File,
    head: Head,
    /// Where the last checkpoint ends in the segment.
    end: u64,
    /// Why nothing is written any more.
    broken: Option<String>,
}

impl Log {
    /// Opens the ledger in `directory`, and makes it if there is none; `second` is the second place.
    ///
    /// # Errors
    /// It is damaged, or shorter than the second place knows, or the host refuses.
    pub fn open(directory: OwnedFd, second: &OwnedFd, signer: Signer) -> Result<Self, LogError> {
        Self::with_limit(directory, second, signer, SEGMENT_BYTES)
    }

    /// The same with segments of another length.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn with_limit(
        directory: OwnedFd,
        second: &OwnedFd,
        signer: Signer,
        limit: u64,
    ) -> Result<Self, LogError> {
        let opening = LogError::io;
        let lock_file = lock_file(&directory).map_err(opening("open the ledger's lock"))?;
        let locked = lock(&lock_file, FlockOperation::LockExclusive);
        let locked = locked.map_err(opening("lock the ledger"))?;
        let mut firsts = segments(&directory).map_err(opening("list the ledger"))?;
        let first = match firsts.last() {
            Some(first) => *first,
            None => {
                make_segment(&directory, &Head::default())
                    .map_err(opening("make the ledger's first segment"))?;
                firsts.push(0);
                0
            }
        };
        let segment = open_segment(&directory, first)?;
        let bytes = read_from(&segment, 0).map_err(opening("read the ledger"))?;
        let Some((head, start)) = parse_header(&bytes) else {
            return Err(damaged(
                first,
                "the segment that begins with it has no header",
            ));
        };
        if head.tree.size() != first || !is_signed(&head, signer.verifier()) {
            let what = "the segment that begins with it does not say so, or not signed";
            return Err(damaged(first, what));
        }
        let second = Second::open(second).map_err(opening("open the second place"))?;
        drop(locked);
        let mut log = Self {
            directory,
            lock: Arc::new(lock_file),
            signer,
            second,
            second_synced: None,
            limit,
            firsts,
            segment,
            head,
            end: start as u64,
            broken: None,
        };
        log.take(bytes.get(start..).unwrap_or_default())?;
        log.catch_up_alone()?;
        Ok(log)
    }

    /// How many records there are, as far as this process knows.
    pub fn size(&self) -> u64 {
        self.head.tree.size()
    }

    /// Records `entries` one after the other; the index of the first. They are durable then, all of them.
    ///
    /// # Errors
    /// None of them is recorded, as far as anybody may rely on it. After a failure to write, nothing is recorded
    /// any more: what is on disk is not known for certain.
    pub fn append(&mut self, entries: Vec<Entry>) -> Result<u64, LogError> {
        if let Some(reason) = &self.broken {
            return Err(LogError::Broken(reason.clone()));
        }
        if entries.is_empty() {
            return Ok(self.size());
        }
        let outcome = self.commit(entries);
        if let Err(error) = &outcome {
            self.broken = Some(error.to_string());
        }
        outcome
    }

    fn commit(&mut self, entries: Vec<Entry>) -> Result<u64, LogError> {
        let lock_file = self.lock.clone();
        let locked = lock(&lock_file, FlockOperation::LockExclusive);
        let _locked = locked.map_err(LogError::io("lock the ledger"))?;
        self.catch_up()?;
        self.mend_second()?;
        let length = self.length()?;
        if length > self.end {
            // A commit that was not finished, and so never acknowledged.
            let cut = self.segment.set_len(self.end);
            cut.map_err(LogError::io("cut off an unfinished commit"))?;
        }
        if self.end >= self.limit && self.end > header(&self.head).len() as u64 {
            let first = self.head.tree.size();
            make_segment(&self.directory, &self.head)
                .map_err(LogError::io("make a segment of the ledger"))?;
            self.segment = open_segment(&self.directory, first)?;
            self.firsts.push(first);
            self.end = header(&self.head).len() as u64;
        }
        let first = self.head.tree.size();
        let commit = Commit::new(&self.head, &self.signer, entries)?;
        let written = self.segment.write_all_at(&commit.bytes, self.end);
        let durable = written.and_then(|()| self.segment.sync_data());
        if let Err(source) = durable {
            // Nobody is told that it was recorded; so it had better not be.
            let _ = self.segment.set_len(self.end);
            let doing = "write the ledger";
            return Err(LogError::Io { doing, source });
        }
        self.end += commit.bytes.len() as u64;
        self.head = commit.head;
        self.tell_second(&commit.note, first, &commit.leaves)
            .map_err(LogError::io("write to the second place"))?;
        Ok(first)
    }

    fn tell_second(&mut self, note: &str, first: u64, leaves: &[Hash]) -> io::Result<()> {
        self.second.write(note, first, leaves)?;
        if (self.second_synced).is_none_or(|synced| synced.elapsed() >= SECOND_SYNC) {
            self.second.sync()?;
            self.second_synced = Some(Instant::now());
        }
        Ok(())
    }

    fn length(&self) -> Result<u64, LogError> {
        let status = fstat(&self.segment).map_err(io::Error::from);
        let status = status.map_err(LogError::io("read the ledger"))?;
        Ok(status.st_size.unsigned_abs())
    }

    fn catch_up_alone(&mut self) -> Result<(), LogError> {
        let lock_file = self.lock.clone();
        let locked = lock(&lock_file, FlockOperation::LockShared);
        let _locked = locked.map_err(LogError::io("lock the ledger"))?;
        self.catch_up()?;
        self.known_to_second().map(drop)
    }

    /// How many records the second place knows: no more than there are, or somebody has cut them off.
    fn known_to_second(&mut self) -> Result<u64, LogError> {
        let known = self.second.known(self.signer.verifier());
        let known = known.map_err(LogError::io("read the second place"))?;
        let has = self.head.tree.size();
        match known > has {
            true => Err(LogError::Behind { has, known }),
            false => Ok(known),
        }
    }

    /// Tells the second place of what a writer had made durable, and did not live to tell it.
    fn mend_second(&mut self) -> Result<(), LogError> {
        let known = self.known_to_second()?;
        let size = self.head.tree.size();
        if known == size {
            return Ok(());
        }
        let reading = LogError::io;
        // Those that begin behind it, and the one that it is in.
        let begin = self.firsts.partition_point(|first| *first <= known);
        let begin = begin.saturating_sub(1);
        let mut leaves = Vec::new();
        for first in self.firsts.get(begin..).unwrap_or_default() {
            let segment = open_segment(&self.directory, *first)?;
            let bytes = read_from(&segment, 0).map_err(reading("read the ledger"))?;
            let Some((head, start)) = parse_header(&bytes) else {
                return Err(damaged(*first, "its segment has no header"));
            };
            let frames = bytes.get(start..).unwrap_or_default();
            let walked = segment::walk(head, frames, |index, leaf, _, _| {
                if (known..size).contains(&index) {
                    leaves.push(leaf);
                }
            });
            if let Some(problem) = walked.problem {
                return Err(LogError::Damaged(problem));
            }
        }
        if leaves.len() as u64 != size - known {
            return Err(damaged(known, "not all records behind it are there"));
        }
        let note = String::from_utf8_lossy(&self.head.note).into_owned();
        let told = self.second.write(&note, known, &leaves);
        told.map_err(LogError::io("write to the second place"))
    }

    /// Takes in what others have added.
    fn catch_up(&mut self) -> Result<(), LogError> {
        let reading = LogError::io;
        loop {
            let length = self.length()?;
            if length < self.end {
                let what = "the ledger became shorter while it was written to";
                return Err(damaged(self.head.tree.size().saturating_sub(1), what));
            }
            if length > self.end {
                let bytes = read_from(&self.segment, self.end);
                self.take(&bytes.map_err(reading("read the ledger"))?)?;
            }
            let first = self.head.tree.size();
            let begun_with_it = self.end == header(&self.head).len() as u64;
            let next = match begun_with_it {
                // This segment has the name that the next one would have.
                true => None,
                false => existing(&self.directory, &segment::name(first))
                    .map_err(reading("open a segment of the ledger"))?,
            };
            let Some(_) = next else {
                return Ok(());
            };
            let next = open_segment(&self.directory, first)?;
            let bytes = read_from(&next, 0).map_err(reading("read the ledger"))?;
            match parse_header(&bytes) {
                Some((head, start)) if head == self.head => {
                    self.segment = next;
                    self.firsts.push(first);
                    self.end = start as u64;
                }
                _ => {
                    let what = "the segment that begins with it does not follow the one before";
                    return Err(damaged(first, what));
                }
            }
        }
    }

    /// Takes in frames behind the head, whose last checkpoint has to be signed.
    fn take(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let before = self.head.tree.size();
        let Walked {
            head, end, problem, ..
        } = segment::walk(self.head.clone(), bytes, |_, _, _, _| {});
        if let Some(problem) = problem {
            return Err(LogError::Damaged(problem));
        }
        if end > 0 && !is_signed(&head, self.signer.verifier()) {
            let last = head.tree.size().saturating_sub(1);
            let what = "the checkpoint behind it is not signed by the ledger's key";
            return Err(LogError::Damaged(Problem::within(before, last, what)));
        }
        self.head = head;
        self.end += end as u64;
        Ok(())
    }
}

/// What is written at once.
struct Commit {
    bytes: Vec<u8>,
    leaves: Vec<Hash>,
    note: String,
    head: Head,
}

impl Commit {
    fn new(before: &Head, signer: &Signer, entries: Vec<Entry>) -> Result<Self, LogError> {
        let mut tree = before.tree.clone();
        let mut bytes = Vec::new();
        let mut leaves = Vec::with_capacity(entries.len());
        let mut after = before.after();
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        for entry in entries {
            let record = Record::new(entry, tree.size(), time, after.as_ref());
            let leaf = segment::push_record(&mut bytes, &record.to_json()?);
            tree.push(leaf);
            leaves.push(leaf);
            after = None;
        }
        let checkpoint = Checkpoint {
            origin: signer.verifier().name().to_owned(),
            size: tree.size(),
            root: tree.root(),
        };
        let note = checkpoint.sign(signer);
        segment::push_checkpoint(&mut bytes, &note);
        let head = Head {
            tree,
            note: note.as_bytes().to_vec(),
        };
        Ok(Self {
            bytes,
            leaves,
            note,
            head,
        })
    }
}

fn damaged(first: u64, what: &str) -> LogError {
    LogError::Damaged(Problem::at(first, what))
}

fn open_segment(directory: &OwnedFd, first: u64) -> Result<File, LogError> {
    let segment = open(directory, &segment::name(first), OFlags::RDWR);
    segment.map_err(LogError::io("open a segment of the ledger"))
}

/// Makes a segment that begins at `head`. It has its name once it is whole and durable.
fn make_segment(directory: &OwnedFd, head: &Head) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY;
    let mut file = open(directory, NEW, flags)?;
    file.write_all(&header(head))?;
    file.sync_data()?;
    renameat(directory, NEW, directory, segment::name(head.tree.size()))?;
    Ok(fsync(directory)?)
}

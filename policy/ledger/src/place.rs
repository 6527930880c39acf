//! The two directories of a ledger, worked in by descriptors alone: that of its segments, and the second
//! place, which vouches for how long it is.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;

use crate::checkpoint::Checkpoint;
use crate::note::Verifier;
use crate::segment::first_of;
use crate::tree::Hash;

/// Most bytes of a file that is read whole.
pub(crate) const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The file that is locked while somebody commits.
const LOCK: &str = "lock";
/// The file of the second place that has the last checkpoints: slots that are written in turn, so that
/// a write which is cut off leaves the one before.
const CHECKPOINT: &str = "checkpoint";
const SLOT: usize = 4096;
const SLOTS: usize = 2;
/// The file of the second place that has the hash of each record's leaf, one behind the other.
const LEAVES: &str = "leaves";

/// The directory at `path`, to work in.
///
/// # Errors
/// It cannot be opened.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// A file in a directory, for this user alone.
pub(crate) fn open(directory: impl AsFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(openat(directory, name, flags, mode).map(File::from)?)
}

/// A file that may be absent.
pub(crate) fn existing(directory: impl AsFd, name: &str) -> io::Result<Option<File>> {
    match open(directory, name, OFlags::RDONLY) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Everything in a file from `offset` on.
pub(crate) fn read_from(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let length = fstat(file)?.st_size.unsigned_abs().saturating_sub(offset);
    if length > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The records that segments begin with, in order.
pub(crate) fn segments(directory: impl AsFd) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in Dir::read_from(directory)? {
        firsts.extend(entry?.file_name().to_str().ok().and_then(first_of));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// The lock of a ledger, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a>(&'a File);

/// The file of the lock.
pub(crate) fn lock_file(directory: impl AsFd) -> io::Result<File> {
    open(directory, LOCK, OFlags::CREATE | OFlags::RDWR)
}

/// Waits for a lock: a shared one to read, or the only one to write.
pub(crate) fn lock(file: &File, operation: FlockOperation) -> io::Result<Locked<'_>> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(Locked(file)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // A lock that is held can be let go.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// The second place, to write to.
#[derive(Debug)]
pub(crate) struct Second {
    checkpoint: File,
    leaves: File,
    slot: usize,
    /// The slots as they were seen or written last, and the records that they count.
    seen: Vec<u8>,
    known: u64,
}

impl Second {
    /// Opens it.
    pub(crate) fn open(directory: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::RDWR;
        Ok(Self {
            checkpoint: open(directory, CHECKPOINT, flags)?,
            leaves: open(directory, LEAVES, flags)?,
            slot: 0,
            seen: Vec::new(),
            known: 0,
        })
    }

    /// How many records it counts, whoever wrote that.
    pub(crate) fn known(&mut self, verifier: &Verifier) -> io::Result<u64> {
        let bytes = read_from(&self.checkpoint, 0)?;
        if bytes != self.seen {
            let found = latest(&bytes, verifier);
            // The slot with the newest is not the one to write next.
            let newest = found.as_ref().map_or(1, |(slot, _)| *slot);
            self.slot = (newest + 1) % SLOTS;
            self.known = found.map_or(0, |(_, checkpoint)| checkpoint.size);
            self.seen = bytes;
        }
        Ok(self.known)
    }

    /// Takes note of a checkpoint, behind which stand `leaves` from record `first` on.
    pub(crate) fn write(&mut self, note: &str, first: u64, leaves: &[Hash]) -> io::Result<()> {
        let offset = first.saturating_mul(size_of::<Hash>() as u64);
        self.leaves.write_all_at(leaves.as_flattened(), offset)?;
        let mut slot = note.as_bytes().to_vec();
        slot.resize(SLOT.max(slot.len()), b'\n');
        let at = self.slot * SLOT;
        self.checkpoint.write_all_at(&slot, at as u64)?;
        self.seen.resize(self.seen.len().max(at + slot.len()), 0);
        if let Some(seen) = self.seen.get_mut(at..at + slot.len()) {
            seen.copy_from_slice(&slot);
        }
        self.known = first + leaves.len() as u64;
        self.slot = (self.slot + 1) % SLOTS;
        Ok(())
    }

    /// Waits until it is durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.leaves.sync_data()?;
        self.checkpoint.sync_data()
    }
}

/// The checkpoint that the second place in `directory` has.
pub(crate) fn second(directory: impl AsFd, verifier: &Verifier) -> io::Result<Option<Checkpoint>> {
    let Some(file) = existing(directory, CHECKPOINT)? else {
        return Ok(None);
    };
    let bytes = read_from(&file, 0)?;
    Ok(latest(&bytes, verifier).map(|(_, checkpoint)| checkpoint))
}

/// The first `count` leaves that the second place knows; nothing where it has not so many.
pub(crate) fn leaves(directory: impl AsFd, count: u64) -> io::Result<Option<Vec<Hash>>> {
    let Some(file) = existing(directory, LEAVES)? else {
        return Ok(None);
    };
    let Some(length) = count.checked_mul(size_of::<Hash>() as u64) else {
        return Ok(None);
    };
    if fstat(&file)?.st_size.unsigned_abs() < length {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    let (hashes, _) = bytes.as_chunks();
    Ok(Some(hashes.to_vec()))
}

/// The newest checkpoint that `verifier` vouches for: in a file of the second place, or in one that has
/// a note and nothing else.
pub fn latest(bytes: &[u8], verifier: &Verifier) -> Option<(usize, Checkpoint)> {
    let open = |slot: &[u8]| {
        let last = slot.iter().rposition(|byte| *byte != b'\n')?;
        let note = slot.get(..last + 2)?;
        Checkpoint::open(note, verifier).ok()
    };
    let slots = bytes.chunks(SLOT).take(SLOTS).enumerate();
    slots
        .filter_map(|(slot, bytes)| open(bytes).map(|checkpoint| (slot, checkpoint)))
        .max_by_key(|(_, checkpoint)| checkpoint.size)
}

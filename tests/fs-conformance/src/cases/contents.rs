//! Reading and writing, space and holes, mapping, locking, running.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    FallocateFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, ftruncate, seek, syncfs,
};
use rustix::io::Errno;

use super::Entry;
use crate::check::Needs::Nothing;
use crate::check::{Failure, HERE_I_AM, Outcome, fails, same, that};

pub(super) const CASES: &[Entry] = &[
    ("read and write anywhere", Nothing, anywhere),
    ("many megabytes", Nothing, megabytes),
    ("beyond 4 GiB", Nothing, beyond_4_gib),
    ("append", Nothing, append),
    ("two openers see each other", Nothing, two_openers),
    ("truncate", Nothing, truncate),
    ("fsync", Nothing, sync),
    ("fallocate", Nothing, allocate),
    ("punch holes", Nothing, punch),
    ("seek data and holes", Nothing, seek_holes),
    ("copy_file_range", Nothing, copy),
    ("write what cannot be read", Nothing, modes_of_access),
    ("flock", Nothing, flock),
    ("run a program", Nothing, run),
];

fn file(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    Ok(options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?)
}

/// Bytes that tell where they are.
fn pattern(start: u64, len: usize) -> Vec<u8> {
    (start..)
        .take(len)
        .map(|n| (n ^ n >> 8 ^ n >> 16) as u8)
        .collect()
}

fn anywhere(at: &Path) -> Outcome {
    let file = file(&at.join("f"))?;
    let mut shadow = vec![0u8; 300_000];
    let mut end = 0;
    let mut state = 1u64;
    for _ in 0..300 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let offset = (state >> 33) as usize % 250_000;
        let len = 1 + (state >> 20) as usize % 40_000;
        let data = pattern(state, len);
        file.write_all_at(&data, offset as u64)?;
        shadow[offset..offset + len].copy_from_slice(&data);
        end = end.max(offset + len);
    }
    same(file.metadata()?.len(), end as u64)?;
    let mut got = Vec::new();
    (&file).rewind()?;
    (&file).read_to_end(&mut got)?;
    that(got == shadow[..end])?;
    let mut byte = [0; 8];
    same(file.read_at(&mut byte, end as u64)?, 0)?;
    same(file.read_at(&mut byte, end as u64 - 3)?, 3)
}

fn megabytes(at: &Path) -> Outcome {
    const PIECE: usize = 1 << 20;
    let mut file = file(&at.join("f"))?;
    for n in 0..12 {
        file.write_all(&pattern(n * PIECE as u64, PIECE))?;
    }
    file.sync_all()?;
    file.rewind()?;
    let mut got = vec![0; PIECE];
    for n in 0..12 {
        file.read_exact(&mut got)?;
        that(got == pattern(n * PIECE as u64, PIECE))?;
    }
    Ok(())
}

fn beyond_4_gib(at: &Path) -> Outcome {
    const FAR: u64 = 5 << 30;
    let file = file(&at.join("f"))?;
    file.write_all_at(b"far", FAR)?;
    same(file.metadata()?.len(), FAR + 3)?;
    that(file.metadata()?.blocks() < 1 << 20)?;
    let mut got = [1; 3];
    file.read_exact_at(&mut got, FAR)?;
    same(&got, b"far")?;
    file.read_exact_at(&mut got, FAR / 2)?;
    same(got, [0; 3])
}

fn append(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "start")?;
    let open = || OpenOptions::new().append(true).open(&path);
    let (mut one, mut two) = (open()?, open()?);
    for n in 0..50 {
        write!(one, "{n},")?;
        write!(two, "{n};")?;
    }
    let wanted: String = (0..50).map(|n| format!("{n},{n};")).collect();
    same(fs::read_to_string(&path)?, format!("start{wanted}"))
}

fn two_openers(at: &Path) -> Outcome {
    let path = at.join("f");
    let (one, two) = (file(&path)?, file(&path)?);
    one.write_all_at(b"hello", 10)?;
    let mut got = [0; 5];
    two.read_exact_at(&mut got, 10)?;
    same(&got, b"hello")?;
    two.set_len(12)?;
    same(one.metadata()?.len(), 12)?;
    same(one.read_at(&mut got, 10)?, 2)
}

fn truncate(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, pattern(0, 10_000))?;
    let file = file(&path)?;
    file.set_len(5_000)?;
    file.set_len(9_000)?;
    let mut wanted = pattern(0, 5_000);
    wanted.resize(9_000, 0);
    that(fs::read(&path)? == wanted)?;
    let read_only = File::open(&path)?;
    fails(ftruncate(&read_only, 0), Errno::INVAL)?;
    fails(ftruncate(&file, u64::MAX), Errno::INVAL)?;
    same(file.metadata()?.len(), 9_000)
}

fn sync(at: &Path) -> Outcome {
    let file = file(&at.join("f"))?;
    file.write_all_at(b"x", 0)?;
    fsync(&file)?;
    fdatasync(&file)?;
    syncfs(&file)?;
    fsync(File::open(at)?)?;
    Ok(())
}

fn allocate(at: &Path) -> Outcome {
    let file = file(&at.join("f"))?;
    fallocate(&file, FallocateFlags::empty(), 0, 100_000)?;
    same(file.metadata()?.len(), 100_000)?;
    that(file.metadata()?.blocks() >= 100_000 / 512)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 100_000, 50_000)?;
    same(file.metadata()?.len(), 100_000)?;
    fails(
        fallocate(&file, FallocateFlags::empty(), 0, 0),
        Errno::INVAL,
    )
}

fn punch(at: &Path) -> Outcome {
    let path = at.join("f");
    let file = file(&path)?;
    file.write_all_at(&pattern(0, 1 << 20), 0)?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, 64 << 10, 512 << 10)?;
    let mut wanted = pattern(0, 1 << 20);
    wanted[64 << 10..(64 + 512) << 10].fill(0);
    that(fs::read(&path)? == wanted)?;
    that(file.metadata()?.blocks() < before)
}

fn seek_holes(at: &Path) -> Outcome {
    let file = file(&at.join("f"))?;
    file.write_all_at(&[1; 4096], 1 << 20)?;
    file.set_len(4 << 20)?;
    file.sync_all()?;
    same(seek(&file, SeekFrom::Data(0))?, 1 << 20)?;
    same(seek(&file, SeekFrom::Hole(1 << 20))?, (1 << 20) + 4096)?;
    same(seek(&file, SeekFrom::Hole(0))?, 0)?;
    fails(seek(&file, SeekFrom::Data(2 << 20)), Errno::NXIO)?;
    same(seek(&file, SeekFrom::End(-1))?, (4 << 20) - 1)
}

fn copy(at: &Path) -> Outcome {
    let (from, to) = (file(&at.join("from"))?, file(&at.join("to"))?);
    from.write_all_at(&pattern(0, 200_000), 0)?;
    let (mut read, mut written) = (1_000, 500);
    let mut left = 150_000;
    while left > 0 {
        match copy_file_range(&from, Some(&mut read), &to, Some(&mut written), left)? {
            0 => return Err(Failure::new("the copy ends early")),
            copied => left -= copied,
        }
    }
    let mut wanted = vec![0; 500];
    wanted.extend(pattern(1_000, 150_000));
    that(fs::read(at.join("to"))? == wanted)
}

fn modes_of_access(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "x")?;
    let writer = OpenOptions::new().write(true).open(&path)?;
    fails(writer.read_at(&mut [0], 0), Errno::BADF)?;
    fails(File::open(&path)?.write_at(b"y", 0), Errno::BADF)?;
    // A mode that forbids writing does not bind who has it open.
    let mut new = OpenOptions::new();
    let file = new
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(at.join("g"))?;
    file.write_all_at(b"allowed", 0)?;
    file.set_len(5)?;
    same(fs::read(at.join("g"))?, b"allow".to_vec())
}

fn flock(at: &Path) -> Outcome {
    let (one, two) = (file(&at.join("f"))?, file(&at.join("f"))?);
    one.lock()?;
    that(matches!(two.try_lock(), Err(TryLockError::WouldBlock)))?;
    one.unlock()?;
    that(two.try_lock().is_ok())
}

fn run(at: &Path) -> Outcome {
    let copy = at.join("program");
    fs::copy("/proc/self/exe", &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let said = Command::new(&copy).arg(HERE_I_AM).output()?;
    same(String::from_utf8_lossy(&said.stdout).trim(), HERE_I_AM)
}

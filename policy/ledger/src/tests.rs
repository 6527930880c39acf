//! A ledger in a directory: written, cut off anywhere, written by several at once, and attacked.

mod attacks;

use super::*;
use crate::record::tests::entry;
use crate::segment::name;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tempfile::{TempDir, tempdir};

/// Small enough that a few records fill it.
const LIMIT: u64 = 2000;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        for name in ["ledger", "second"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    /// With these commits of as many records each.
    fn with(commits: &[usize]) -> Self {
        let place = Self::new();
        let mut log = place.log();
        for count in commits {
            let next = log.size();
            assert_eq!(place.commit(&mut log, *count).unwrap(), next);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        directory(&self.path(name)).unwrap()
    }

    fn try_log(&self, signer: Signer) -> Result<Log, LogError> {
        Log::with_limit(self.open("ledger"), &self.open("second"), signer, LIMIT)
    }

    fn log(&self) -> Log {
        self.try_log(signer()).unwrap()
    }

    fn commit(&self, log: &mut Log, count: usize) -> Result<u64, LogError> {
        let first = log.size();
        let entries = (0..count as u64).map(|number| entry(&format!("object {}", first + number)));
        log.append(entries.collect())
    }

    fn segments(&self) -> Vec<u64> {
        place::segments(self.open("ledger")).unwrap()
    }

    fn segment_path(&self, first: u64) -> PathBuf {
        self.path("ledger").join(name(first))
    }

    fn verify_with(&self, others: &[Voucher]) -> Report {
        let (ledger, second) = (self.open("ledger"), self.open("second"));
        verify(Some(&ledger), Some(&second), signer().verifier(), others).unwrap()
    }

    fn verify(&self) -> Report {
        self.verify_with(&[])
    }

    /// The first bad record.
    fn problem(&self) -> Problem {
        self.verify().problem.expect("nothing was found")
    }

    #[track_caller]
    fn expect_good(&self, records: u64) {
        let report = self.verify();
        assert_eq!((report.problem, report.records), (None, records));
    }

    fn objects(&self) -> Vec<String> {
        let reader = Reader::new(self.open("ledger"));
        let mut objects = Vec::new();
        for first in reader.segments().unwrap() {
            for (index, json) in reader.segment(first).unwrap().records {
                let record = Record::from_json(&json).unwrap();
                assert_eq!((record.index, index), (objects.len() as u64, index));
                objects.push(record.entry.object);
            }
        }
        objects
    }
}

fn signer() -> Signer {
    Signer::new(&[3; 32])
}

#[test]
fn a_writer_sees_that_another_ones_end_was_cut_off() {
    for more in [0, 1] {
        let place = Place::new();
        let (mut one, mut other) = (place.log(), place.log());
        place.commit(&mut one, 2).unwrap();
        if more > 0 {
            place.commit(&mut other, 1).unwrap();
        }
        let path = place.segment_path(0);
        let kept = fs::read(&path).unwrap();
        other.append(vec![entry("x")]).unwrap();
        fs::write(&path, kept).unwrap();
        let error = one.append(vec![entry("y")]).unwrap_err();
        assert!(matches!(error, LogError::Behind { .. }), "{error}");
    }
}

#[test]
fn the_second_place_is_told_what_a_killed_writer_did_not() {
    let place = Place::with(&[2]);
    let second = ["checkpoint", "leaves"].map(|name| place.path("second").join(name));
    let before = second.each_ref().map(|path| fs::read(path).unwrap());
    // Over several segments.
    let mut log = place.log();
    for count in [3, 8, 8, 8, 1] {
        place.commit(&mut log, count).unwrap();
    }
    assert!(place.segments().len() > 2);
    let after = second.each_ref().map(|path| fs::read(path).unwrap());
    for (path, bytes) in second.iter().zip(&before) {
        fs::write(path, bytes).unwrap();
    }
    drop(log);
    place.commit(&mut place.log(), 1).unwrap();
    place.expect_good(31);
    let leaves = place::leaves(place.open("second"), 31).unwrap().unwrap();
    let leaves = leaves.as_flattened();
    assert_eq!(leaves.get(..30 * 32), Some(after[1].as_slice()));
    // The writer that was there all the time goes on as well.
    let mut log = place.log();
    for (path, bytes) in second.iter().zip(&before) {
        fs::write(path, bytes).unwrap();
    }
    place.commit(&mut log, 1).unwrap();
    let again = place::leaves(place.open("second"), 31).unwrap().unwrap();
    assert_eq!(again.as_flattened(), leaves);
}

#[test]
fn what_is_recorded_can_be_verified_and_read() {
    let place = Place::new();
    place.expect_good(0);
    let mut log = place.log();
    assert_eq!(log.append(Vec::new()).unwrap(), 0);
    let mut records = 0;
    for count in [1, 2, 3, 1, 20, 1, 1] {
        assert_eq!(place.commit(&mut log, count).unwrap(), records);
        records += count as u64;
        place.expect_good(records);
    }
    assert!(place.segments().len() > 2);
    let objects: Vec<String> = (0..records).map(|n| format!("object {n}")).collect();
    assert_eq!(place.objects(), objects);
    drop(log);
    let mut log = place.log();
    assert_eq!(log.size(), records);
    assert_eq!(place.commit(&mut log, 2).unwrap(), records);
    place.expect_good(records + 2);
}

#[test]
fn two_writers_take_turns() {
    let place = Place::new();
    let (mut one, mut other) = (place.log(), place.log());
    for round in 0..20u64 {
        assert_eq!(one.append(vec![entry("one")]).unwrap(), 3 * round);
        let two = vec![entry("other"), entry("other")];
        assert_eq!(other.append(two).unwrap(), 3 * round + 1);
    }
    place.expect_good(60);
    assert!(place.segments().len() > 2);
}

#[test]
fn many_writers_at_once_lose_and_mix_nothing() {
    let place = Place::new();
    let (writers, each) = (4, 25);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let place = &place;
            scope.spawn(move || {
                let mut log = place.log();
                for number in 0..each {
                    let object = format!("{writer} {number}");
                    log.append(vec![entry(&object)]).unwrap();
                }
            });
        }
    });
    place.expect_good(writers * each);
    let objects = place.objects();
    for writer in 0..writers {
        let of: Vec<&String> = (objects.iter())
            .filter(|object| object.starts_with(&format!("{writer} ")))
            .collect();
        let expected: Vec<String> = (0..each)
            .map(|number| format!("{writer} {number}"))
            .collect();
        assert_eq!(of, expected.iter().collect::<Vec<_>>());
    }
}

/// A commit that was cut off anywhere is taken back; nothing before it is lost, and the ledger goes on.
#[test]
fn an_unfinished_commit_is_cut_off_wherever_it_ends() {
    for commits in [&[2, 3][..], &[20, 3]] {
        let place = Place::with(&commits[..1]);
        let before = place.segments().last().copied().unwrap();
        let kept = fs::read(place.segment_path(before)).unwrap();
        let good = commits[0] as u64;
        // What the second place knows before the last commit.
        let known = fs::read(place.path("second").join("checkpoint")).unwrap();
        place.commit(&mut place.log(), commits[1]).unwrap();
        let last = place.segments().last().copied().unwrap();
        let whole = fs::read(place.segment_path(last)).unwrap();
        let start = if last == before {
            kept.len()
        } else {
            parse_end(&whole)
        };
        for end in start..whole.len() {
            fs::write(place.segment_path(last), &whole[..end]).unwrap();
            fs::write(place.path("second").join("checkpoint"), &known).unwrap();
            let report = place.verify();
            assert_eq!((report.problem, report.records), (None, good), "{end}");
            assert_eq!(report.unfinished, (end - start) as u64);
            if end % 7 != 0 {
                continue;
            }
            let mut log = place.log();
            assert_eq!(log.size(), good);
            assert_eq!(log.append(vec![entry("next")]).unwrap(), good);
            place.expect_good(good + 1);
            assert_eq!(place.objects().last().unwrap(), "next");
        }
    }
}

fn parse_end(segment: &[u8]) -> usize {
    segment::parse_header(segment).unwrap().1
}

#[test]
fn nothing_is_written_once_the_ledger_is_damaged() {
    // The last segment is what a writer builds upon.
    let place = Place::with(&[2, 2]);
    let path = place.segment_path(0);
    let whole = fs::read(&path).unwrap();
    let at = |needle: &[u8]| whole.windows(needle.len()).position(|w| w == needle);
    for needle in [
        &b"object 1"[..],
        b"object 3",
        b"bulkhead-ledger/",
        b"ledger segment",
    ] {
        let mut bytes = whole.clone();
        bytes[at(needle).unwrap()] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = place.try_log(signer()).unwrap_err();
        assert_eq!(error.code(), "ledger-damaged", "{error}");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = place.try_log(signer()).unwrap_err();
    assert_eq!(error.code(), "ledger-truncated");
    assert_eq!(
        error.to_string(),
        "there are 2 records, and the checkpoint in the second place counts 4"
    );
    fs::write(&path, &whole).unwrap();
    let stranger = Signer::new(&[4; 32]);
    assert_eq!(
        place.try_log(stranger).unwrap_err().code(),
        "ledger-damaged"
    );
    assert_eq!(place.log().size(), 4);
}

#[test]
fn a_ledger_that_shrinks_under_its_writer_is_not_written_to() {
    let place = Place::with(&[2]);
    let mut log = place.log();
    let path = place.segment_path(0);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(
        place.commit(&mut log, 1).unwrap_err().code(),
        "ledger-damaged"
    );
    // Not even when it is as it was.
    fs::write(&path, &whole).unwrap();
    assert_eq!(
        place.commit(&mut log, 1).unwrap_err().code(),
        "ledger-not-written"
    );
    assert_eq!(place.commit(&mut place.log(), 1).unwrap(), 2);
}

#[test]
fn every_record_can_be_proven_and_nothing_else() {
    let place = Place::with(&[1, 2, 5, 20]);
    let reader = Reader::new(place.open("ledger"));
    let key = signer();
    for index in 0..28 {
        let proof = reader.prove(index, key.verifier()).unwrap().unwrap();
        let text = proof.to_text();
        let again = Proof::from_text(&text).unwrap();
        assert_eq!(again, proof);
        let (record, checkpoint) = again.check(key.verifier()).unwrap();
        assert_eq!(record.entry.object, format!("object {index}"));
        assert_eq!(checkpoint.size, 28);
        let mut other = proof.clone();
        other.index = (index + 1) % 28;
        assert!(other.check(key.verifier()).is_err());
        let mut other = proof.clone();
        other.record = String::from_utf8(other.record)
            .unwrap()
            .replace("net", "nEt")
            .into();
        assert!(other.check(key.verifier()).is_err());
        let stranger = Signer::new(&[4; 32]);
        assert!(proof.check(stranger.verifier()).is_err());
        let short = text.trim_end();
        assert!(Proof::from_text(short).is_ok_and(|p| p.check(key.verifier()).is_err()));
    }
    assert!(reader.prove(28, key.verifier()).unwrap().is_none());
    for wrong in [
        "",
        "c2sp.org/tlog-proof@v1\n\n",
        "c2sp.org/tlog-proof@v1\nextra \nindex 01\n\nx",
    ] {
        assert!(Proof::from_text(wrong).is_err());
    }
}

//! A ledger that somebody has written to: segments, checkpoints, keys and proofs, and what clients
//! send to its writer. Nothing of it is believed that its key has not signed.
#![no_main]

use std::sync::LazyLock;

use bulkhead_ledger::writer::requests::{Packet, look_at};
use bulkhead_ledger::{
    Checkpoint, Log, Proof, Reader, Record, Signer, Verifier, directory, verify,
};
use libfuzzer_sys::fuzz_target;

static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new(&[7; 32]));

/// Where the ledger is that is fuzzed: one for each process, in memory where that is to be had.
static PLACE: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let parent = ["/dev/shm", "/tmp"]
        .into_iter()
        .find(|path| std::fs::metadata(path).is_ok());
    let name = format!("bulkhead-fuzz-ledger-{}", std::process::id());
    let place = std::path::Path::new(parent.expect("a place")).join(name);
    std::fs::create_dir_all(place.join("ledger")).expect("room");
    std::fs::create_dir_all(place.join("second")).expect("room");
    place
});

fn ledger(bytes: &[u8]) {
    let segment = PLACE.join("ledger/00000000000000000000.segment");
    std::fs::write(&segment, bytes).expect("room");
    let ledger = directory(&PLACE.join("ledger")).expect("it is there");
    let second = directory(&PLACE.join("second")).expect("it is there");
    let report = verify(Some(&ledger), None, SIGNER.verifier(), &[]).expect("it can be read");
    let reader = Reader::new(ledger.try_clone().expect("a descriptor"));
    // What can be read is what was verified, or more: the end of a commit that was cut off.
    if let Ok(read) = reader.segment(0) {
        assert!(report.problem.is_some() || read.records.len() as u64 >= report.records);
        if report.problem.is_none() {
            for (_, json) in &read.records {
                let _ = Record::from_json(json);
            }
            let last = report.records.checked_sub(1);
            let proven = last.map(|last| reader.prove(last, SIGNER.verifier()));
            if let Some(Ok(Some(proof))) = proven
                && Record::from_json(&proof.record).is_ok()
            {
                assert!(proof.check(SIGNER.verifier()).is_ok());
            }
        }
    }
    // A writer goes on where all is well, and only there.
    let signer = Signer::new(&[7; 32]);
    let log = Log::open(ledger, &second, signer);
    assert_eq!(log.is_ok(), report.problem.is_none());
    std::fs::write(PLACE.join("second/checkpoint"), b"").expect("room");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let text = std::str::from_utf8(rest);
    match (kind, text) {
        (b's', _) => ledger(rest),
        (b'c', Ok(text)) => {
            if let Some(checkpoint) = Checkpoint::from_text(text) {
                let again = Checkpoint::from_text(&checkpoint.to_text());
                assert_eq!(again.as_ref(), Some(&checkpoint));
            }
        }
        (b'n', _) => {
            let _ = Checkpoint::open(rest, SIGNER.verifier());
            let _ = bulkhead_ledger::latest(rest, SIGNER.verifier());
        }
        (b'k', Ok(text)) => {
            let _ = Signer::from_text(text);
            if let Ok(verifier) = Verifier::from_text(text) {
                assert_eq!(Verifier::from_text(&verifier.to_text()), Ok(verifier));
            }
        }
        (b'p', Ok(text)) => {
            if let Ok(proof) = Proof::from_text(text) {
                let again = Proof::from_text(&proof.to_text()).expect("what we wrote is accepted");
                assert_eq!(again, proof);
                let _ = proof.check(SIGNER.verifier());
            }
        }
        (b'r', _) => {
            if let Packet::Record(_, entry) = look_at(rest, "s/a", 1 << 20) {
                let is_its = entry.actor == "s/a" || entry.actor.starts_with("s/a/");
                assert!(is_its);
                let record = Record::new(entry, 1, 2, None);
                let json = record.to_json().expect("plain data");
                assert_eq!(Record::from_json(&json).expect("ours"), record);
            }
        }
        _ => (),
    }
});

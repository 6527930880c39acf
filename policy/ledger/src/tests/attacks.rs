//! What somebody does who can write where the ledger is: with an editor, with a program that makes
//! everything fit but the signatures, and with the stolen key. Each is found, and the first bad record named.

use super::*;
use crate::segment::{Frame, Head, frame, header, parse_header, push_checkpoint, push_record};

/// What the frames of a ledger held.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Record(Vec<u8>),
    Checkpoint(Vec<u8>),
}

/// The frames of the one segment of a ledger.
fn frames(place: &Place) -> Vec<Held> {
    assert_eq!(place.segments(), [0]);
    let bytes = fs::read(place.segment_path(0)).unwrap();
    let mut rest = &bytes[parse_header(&bytes).unwrap().1..];
    let mut held = Vec::new();
    while let Some((frame, behind)) = frame(rest) {
        rest = behind;
        held.push(match frame {
            Frame::Record { json, .. } => Held::Record(json.to_vec()),
            Frame::Checkpoint(note) => Held::Checkpoint(note.to_vec()),
        });
    }
    held
}

/// Writes them back as they are, with the hashes that go with them.
fn replace(place: &Place, frames: &[Held]) {
    let mut bytes = header(&Head::default());
    for held in frames {
        match held {
            Held::Record(json) => {
                push_record(&mut bytes, json);
            }
            Held::Checkpoint(note) => {
                push_checkpoint(&mut bytes, std::str::from_utf8(note).unwrap());
            }
        }
    }
    fs::write(place.segment_path(0), bytes).unwrap();
}

/// Writes the records anew, in commits as they were, so that everything fits together; signed by `signer`
/// in the name of the ledger.
fn rewrite(place: &Place, frames: &[Held], signer_of: &Signer) {
    let name = signer().verifier().name().to_owned();
    let mut head = Head::default();
    let mut bytes = header(&head);
    let mut after = None;
    for held in frames {
        match held {
            Held::Record(json) => {
                let mut record: Record = serde_json::from_slice(json).unwrap();
                record = Record::new(record.entry, head.tree.size(), record.time, after.as_ref());
                head.tree
                    .push(push_record(&mut bytes, &record.to_json().unwrap()));
                after = None;
            }
            Held::Checkpoint(_) => {
                let checkpoint = Checkpoint {
                    origin: name.clone(),
                    size: head.tree.size(),
                    root: head.tree.root(),
                };
                let mut note = checkpoint.sign(signer_of);
                // Its own signature would be one of another name.
                note = note.replace(signer_of.verifier().name(), &name);
                push_checkpoint(&mut bytes, &note);
                head.note = note.into_bytes();
                after = head.after();
            }
        }
    }
    fs::write(place.segment_path(0), bytes).unwrap();
}

/// Commits of 1, 3, 1 and 3 records: 0, 1 2 3, 4, 5 6 7.
fn ledger() -> Place {
    let place = Place::with(&[1, 3, 1, 3]);
    assert_eq!(frames(&place).len(), 12);
    place
}

/// Where record `index` is among the frames.
fn place_of(frames: &[Held], index: usize) -> usize {
    let records = frames
        .iter()
        .enumerate()
        .filter(|(_, held)| matches!(held, Held::Record(_)));
    records.map(|(at, _)| at).nth(index).unwrap()
}

/// The ways to change a ledger, each at a record, and the first bad record then.
type Change = fn(&mut Vec<Held>, usize);
const CHANGES: [(&str, Change); 4] = [
    ("edit", |frames, at| {
        let at = place_of(frames, at);
        if let Held::Record(json) = &mut frames[at] {
            let text = String::from_utf8(json.clone()).unwrap();
            *json = text.replace("allowed", "denied").into_bytes();
        }
    }),
    ("delete", |frames, at| {
        let at = place_of(frames, at);
        frames.remove(at);
    }),
    ("insert", |frames, at| {
        let at = place_of(frames, at);
        let text = match &frames[at] {
            Held::Record(json) => String::from_utf8(json.clone()).unwrap(),
            Held::Checkpoint(_) => unreachable!(),
        };
        frames.insert(
            at,
            Held::Record(text.replace("object ", "forged ").into_bytes()),
        );
    }),
    ("reorder", |frames, at| {
        let (one, other) = (place_of(frames, at), place_of(frames, at + 1));
        frames.swap(one, other);
    }),
];

#[test]
fn changes_are_found_and_the_first_bad_record_is_named() {
    for (what, change) in CHANGES {
        for at in 0..7 {
            let place = ledger();
            let mut changed = frames(&place);
            change(&mut changed, at);
            replace(&place, &changed);
            let problem = place.problem();
            assert_eq!(
                (problem.first, problem.last),
                (at as u64, at as u64),
                "{what} {at}: {problem:?}"
            );
        }
    }
}

/// Nothing but the segments is there to go by: not the second place. Then a commit is named, where its
/// records alone do not tell.
#[test]
fn changes_are_found_without_the_second_place() {
    for (what, change) in CHANGES {
        for at in 0..7 {
            let place = ledger();
            fs::remove_dir_all(place.path("second")).unwrap();
            fs::create_dir(place.path("second")).unwrap();
            let mut changed = frames(&place);
            change(&mut changed, at);
            replace(&place, &changed);
            let problem = place.problem();
            let named = problem.first..=problem.last;
            assert!(named.contains(&(at as u64)), "{what} {at}: {problem:?}");
            // What makes everything fit is found by its signatures.
            rewrite(&place, &changed, &Signer::new(&[4; 32]));
            let problem = place.problem();
            assert_eq!(problem.first, 0, "{what} {at}: {problem:?}");
        }
    }
}

/// The record's hash beside it is left as it was: an editor, or a disk.
#[test]
fn a_changed_byte_is_found_at_its_record() {
    let place = ledger();
    let whole = fs::read(place.segment_path(0)).unwrap();
    for index in 0..8 {
        let needle = format!("object {index}");
        let at = whole
            .windows(8)
            .position(|w| w == needle.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at + 3] ^= 4;
        fs::write(place.segment_path(0), bytes).unwrap();
        let problem = place.problem();
        assert_eq!((problem.first, problem.last), (index, index));
        assert!(problem.what.contains("hash differs"), "{problem:?}");
    }
}

#[test]
fn no_byte_of_a_segment_can_be_changed() {
    let place = Place::with(&[1, 3, 9, 2]);
    let segments = place.segments();
    assert!(segments.len() > 1);
    for first in segments {
        let whole = fs::read(place.segment_path(first)).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(place.segment_path(first), bytes).unwrap();
            assert!(
                place.verify().problem.is_some(),
                "segment {first}, byte {at}"
            );
        }
        fs::write(place.segment_path(first), &whole).unwrap();
    }
    place.expect_good(15);
}

#[test]
fn a_truncated_ledger_is_found_wherever_it_ends() {
    let place = ledger();
    let whole = fs::read(place.segment_path(0)).unwrap();
    let held = frames(&place);
    for end in 0..whole.len() {
        fs::write(place.segment_path(0), &whole[..end]).unwrap();
        assert!(place.verify().problem.is_some(), "{end}");
    }
    // Whole commits are missing: all fits, but for what the second place knows.
    for (commits, kept) in [(2, 1), (6, 4), (8, 5)] {
        replace(&place, &held[..commits]);
        let problem = place.problem();
        assert_eq!((problem.first, problem.last), (kept, kept));
        assert_eq!(
            problem.what,
            "it is missing: the checkpoint in the second place counts 8 records"
        );
        // A rewound second place does not help who has not rewound what a person has kept.
        let known = Checkpoint::open(
            match &held[11] {
                Held::Checkpoint(note) => note,
                Held::Record(_) => unreachable!(),
            },
            signer().verifier(),
        );
        let voucher = Voucher {
            of: "in `kept`".to_owned(),
            checkpoint: known.unwrap(),
        };
        let hidden = place.path("hidden");
        fs::rename(place.path("second"), &hidden).unwrap();
        fs::create_dir(place.path("second")).unwrap();
        assert_eq!(place.verify().problem, None, "nothing else knows");
        let problem = place.verify_with(&[voucher]).problem.unwrap();
        assert_eq!(problem.first, kept);
        fs::remove_dir(place.path("second")).unwrap();
        fs::rename(&hidden, place.path("second")).unwrap();
    }
}

#[test]
fn segments_that_are_gone_are_found() {
    let place = Place::with(&[9, 9, 9, 9]);
    let segments = place.segments();
    assert_eq!(segments.len(), 4);
    for (number, first) in segments.iter().enumerate() {
        let path = place.segment_path(*first);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let problem = place.problem();
        assert_eq!(problem.first, *first, "{problem:?}");
        // Another one in its place.
        let other = segments[(number + 1) % 4];
        fs::copy(place.segment_path(other), &path).unwrap();
        assert_eq!(place.problem().first, *first);
        fs::write(&path, whole).unwrap();
    }
    for first in &segments {
        fs::remove_file(place.segment_path(*first)).unwrap();
    }
    assert_eq!(place.problem().first, 0);
    let second = place.open("second");
    let report = verify(None, Some(&second), signer().verifier(), &[]).unwrap();
    assert_eq!(report.problem.map(|problem| problem.first), Some(0));
    assert_eq!(
        place.try_log(signer()).unwrap_err().code(),
        "ledger-truncated"
    );
}

#[test]
fn a_replaced_ledger_is_found() {
    // By a stranger, who has no key.
    let place = ledger();
    let held = frames(&place);
    rewrite(&place, &held, &Signer::new(&[4; 32]));
    let problem = place.problem();
    assert_eq!((problem.first, problem.last), (0, 0));
    assert!(problem.what.contains("not signed"), "{problem:?}");
    // By whoever has stolen the key: what the second place knows is not so any more.
    for (what, change) in CHANGES {
        for at in 0..7 {
            let mut changed = held.clone();
            change(&mut changed, at);
            if what == "delete" {
                // Else it is one that is missing at the end.
                changed.insert(0, held[0].clone());
                changed.remove(0);
            }
            rewrite(&place, &changed, &signer());
            let problem = place.problem();
            assert_eq!(
                (problem.first, problem.last),
                (at as u64, at as u64),
                "{what} {at}: {problem:?}"
            );
        }
    }
    // Whatever is rewritten, and longer than before.
    let mut longer = held.clone();
    longer.extend(held.iter().cloned());
    longer.remove(0);
    rewrite(&place, &longer, &signer());
    assert_eq!(place.problem().first, 0);
}

#[test]
fn a_checkpoint_of_nobody_is_found() {
    let place = ledger();
    let held = frames(&place);
    for (number, last_good) in [(1, 0), (5, 1), (7, 4)] {
        // Signed by somebody else; the one behind it is right.
        let mut changed = held.clone();
        if let Held::Checkpoint(note) = &mut changed[number] {
            let text = String::from_utf8(note.clone()).unwrap();
            *note = text.replace('A', "B").into_bytes();
        }
        if changed == held {
            continue;
        }
        replace(&place, &changed);
        assert!(place.problem().last >= last_good);
    }
}

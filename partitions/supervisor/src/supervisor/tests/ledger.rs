//! What a system has recorded, and that nothing is done without.

use super::*;
use crate::process::packet_pair;
use bulkhead_record::wire::{Answer as Written, MAX_REQUEST_BYTES, Outcome as Record, Request};
use bulkhead_record::{Client, Entry, Kind, Verdict};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A writer of the ledger that keeps what it is told in memory.
#[derive(Default)]
pub(super) struct FakeWriter {
    entries: Mutex<Vec<Entry>>,
    /// From this entry on, counted from 1, nothing is written; 0 for never.
    full_at: AtomicUsize,
    /// It is gone before anybody asks it.
    gone: AtomicBool,
}

impl FakeWriter {
    /// A ledger that it writes.
    pub(super) fn serve(self: &Arc<Self>, system: &str) -> Ledger {
        let (ours, theirs) = packet_pair().unwrap();
        if self.gone.load(Ordering::SeqCst) {
            drop(theirs);
            return Ledger::on(system, Client::new(ours));
        }
        let writer = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; MAX_REQUEST_BYTES];
            while let Ok((length @ 1.., _)) =
                recv(&theirs, buffer.as_mut_slice(), RecvFlags::empty())
            {
                let request: Request = serde_json::from_slice(&buffer[..length]).unwrap();
                let mut entries = writer.entries.lock().unwrap();
                let full_at = writer.full_at.load(Ordering::SeqCst);
                let outcome = match full_at > 0 && entries.len() + 1 >= full_at {
                    true => Record::NotWritten("no space left on device".to_owned()),
                    false => {
                        entries.push(request.entry);
                        Record::Recorded(entries.len() as u64 - 1)
                    }
                };
                let id = request.id;
                let answer = serde_json::to_vec(&Written { id, outcome }).unwrap();
                // A supervisor that is gone does not want it.
                let _ = send(&theirs, &answer, SendFlags::NOSIGNAL);
            }
        });
        Ledger::on(system, Client::new(ours))
    }

    /// What was recorded.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// Nothing more is written.
    pub(super) fn fill(&self) {
        self.full_at.store(1, Ordering::SeqCst);
    }

    /// What was recorded, as words.
    fn told(&self) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        let word = |entry: &Entry| {
            let Entry {
                kind,
                actor,
                action,
                object,
                verdict,
                ..
            } = entry;
            let intent = entry.intent.map(|intent| format!(" of {intent}"));
            format!(
                "{kind} {actor} {action} {object} {verdict}{}",
                intent.unwrap_or_default()
            )
        };
        entries.iter().map(word).collect()
    }
}

const START: [&str; 4] = [
    "intent test/a partition.start  allowed",
    "transition test/a partition.state provisioned done",
    "transition test/a partition.state validated done",
    "transition test/a partition.state isolated done",
];

#[test]
fn every_step_of_a_life_is_recorded() {
    let house = House::new("running; ended 7");
    let _ = wait(house.start(&["a"], false));
    let told = house.writer.told();
    assert_eq!(told[..4], START);
    assert_eq!(
        told[4..],
        [
            "transition test/a partition.state running done",
            "transition test/a partition.state terminated done",
        ]
    );
    let entries = house.writer.entries.lock().unwrap();
    let last = entries.last().unwrap();
    assert_eq!((last.kind, last.verdict), (Kind::Transition, Verdict::Done));
    assert_eq!(
        (&*last.detail["from"], &*last.detail["status"]),
        ("running", "7")
    );
}

#[test]
fn a_partition_that_never_ran_is_recorded_as_rejected() {
    let failed = r#"{"event":"failed","code":"x","message":"it broke"}"#;
    let house = House::new(&format!("printf '%s' '{failed}' >&\"$control\"; exit 125"));
    let _ = wait(house.start(&["a"], false));
    let told = house.writer.told();
    assert_eq!(told[..4], START);
    assert_eq!(
        told[4..],
        ["transition test/a partition.state rejected failed"]
    );
    let entries = house.writer.entries.lock().unwrap();
    let last = entries.last().unwrap();
    assert_eq!(last.reason, "partition `a`: it broke");
    assert_eq!(last.detail["status"], "125");
}

#[test]
fn what_does_not_start_is_recorded_with_its_reason() {
    let house = House::new("running");
    fs::write(house.library.path().join("kernel"), "x").unwrap();
    let text = "name = \"test\"\n[[partition]]\nname = \"a\"\nkernel = \"linux-abi\"\n\
                command = [\"/x\"]\n";
    house.try_start(text, false).unwrap_err();
    let entries = house.writer.entries.lock().unwrap();
    let last = entries.last().unwrap();
    assert_eq!((last.kind, last.verdict), (Kind::Refusal, Verdict::Denied));
    assert_eq!((&*last.actor, &*last.action), ("test/a", "partition.start"));
    let reason = "kernel-format: partition `a`: the kernel image is no ELF file";
    assert_eq!(last.reason, reason);
}

#[test]
fn nothing_starts_that_cannot_be_recorded() {
    let house = House::new("boots; running; ended 7");
    let text = "name = \"test\"\n[[partition]]\nname = \"a\"\nkernel = \"linux-abi\"\n\
                command = [\"/x\"]\n";
    // The intent, and what else is written before anything runs.
    for full_at in 1..=3 {
        house.writer.entries.lock().unwrap().clear();
        house.writer.full_at.store(full_at, Ordering::SeqCst);
        let error = house.try_start(text, false).unwrap_err();
        assert_eq!(error.code(), "ledger");
        let sentence = "the ledger cannot be written: no space left on device";
        assert_eq!(error.to_string(), sentence);
        assert!(house.is_clean());
    }
    // Nothing can even be sent.
    house.writer.gone.store(true, Ordering::SeqCst);
    let error = house.try_start(text, false).unwrap_err();
    let sentence = "the ledger cannot be written: the ledger's writer is gone";
    assert_eq!((error.code(), &*error.to_string()), ("ledger", sentence));
    let boots = house.library.path().join("bulkhead-vmm.boots");
    assert!(!boots.exists());
}

/// The ledger is full after the start: the partition runs on, and nothing is done to it any more.
#[test]
fn nothing_is_done_to_a_partition_that_cannot_be_recorded() {
    let house =
        House::new("running; request >$0.1; reply 1 '{\"reply\":\"done\"}'; exec sleep 1000");
    let outcome = ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        let answer = act(&found, "a", Act::Pause).unwrap();
        assert_eq!(answer, Answer::Done { device: None });
        let end = Instant::now() + PATIENCE;
        while !house
            .writer
            .told()
            .iter()
            .any(|line| line.starts_with("outcome"))
        {
            assert!(Instant::now() < end, "the outcome is not recorded");
            thread::sleep(Duration::from_millis(1));
        }
        house.writer.full_at.store(1, Ordering::SeqCst);
        for asked in [
            Act::Resume,
            Act::Detach {
                device: "x".to_owned(),
            },
        ] {
            let Answer::Refused { code, message, .. } = act(&found, "a", asked).unwrap() else {
                panic!("it was done")
            };
            assert_eq!(code, "ledger");
            assert_eq!(
                message,
                "the ledger cannot be written: no space left on device"
            );
        }
        signals.write_all(&[15]).unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Signal(15)));
    let told = house.writer.told();
    let of_the_pause: Vec<&str> = (told.iter().map(String::as_str))
        .filter(|line| {
            line.starts_with("intent test/a partition.pause")
                || line.contains("suspended")
                || line.starts_with("outcome")
        })
        .collect();
    let intent = told.iter().position(|line| line.contains("pause"));
    let outcome = format!(
        "outcome test/a partition.pause  done of {}",
        intent.unwrap()
    );
    assert_eq!(
        of_the_pause,
        [
            "intent test/a partition.pause  allowed",
            "transition test/a partition.state suspended done",
            &outcome,
        ]
    );
    assert!(!told.iter().any(|line| line.contains("detach")));
}

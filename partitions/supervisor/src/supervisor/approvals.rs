//! Questions to a person, on the supervisor's side: taken from the processes that want to act, kept
//! until a person answers or their time is over, recorded both times, and answered.

use super::{Cause, Supervisor};
use crate::control::{self, OpenQuestion};
use bulkhead_approval::{
    Answer, Asked, Decision, MAX_MESSAGE_BYTES, NotPending, Queue, Request, Scope, Settled,
};
use bulkhead_manifest::{Partition, System};
use bulkhead_record::{Entry, Kind, Recorder, Verdict};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// What is asked for the partitions of one system.
pub(super) struct Approvals {
    system: String,
    /// Of its partitions that have ancestors, those.
    lineages: BTreeMap<String, Vec<String>>,
    recorder: Arc<dyn Recorder>,
    queue: Queue,
    /// Who waits for the answer to a question.
    waiting: BTreeMap<u64, Waiting>,
    /// Partitions of which one question too many is on record, since one of theirs was settled.
    crowded: BTreeSet<String>,
}

struct Waiting {
    /// Our end of the process's socket.
    socket: Arc<OwnedFd>,
    /// The number under which it asked.
    request: u64,
    /// The record of the question.
    record: u64,
}

impl fmt::Debug for Approvals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approvals")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Approvals {
    pub(super) fn new(system: &System, recorder: Arc<dyn Recorder>) -> Self {
        let with_ancestors = |one: &&Partition| !one.lineage().is_empty();
        let lineages = (system.partitions.iter().filter(with_ancestors))
            .map(|one| (one.name.clone(), one.lineage().to_vec()));
        Self {
            system: system.name.clone(),
            lineages: lineages.collect(),
            recorder,
            queue: Queue::default(),
            waiting: BTreeMap::new(),
            crowded: BTreeSet::new(),
        }
    }

    /// Takes one question from a process of `partition`. `false` when it will ask no more: it is
    /// gone, or says what no process of ours says.
    pub(super) fn hear(&mut self, partition: &str, socket: &Arc<OwnedFd>, now: Instant) -> bool {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let packet = match recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((length @ 1.., _)) => buffer.get(..length).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
            Ok((0, _)) | Err(_) => return false,
        };
        let Ok(Request { id, question }) = serde_json::from_slice::<Request>(packet) else {
            return false;
        };
        if question.check().is_err() {
            return false;
        }
        let mut entry = Entry {
            kind: Kind::Approval,
            actor: format!("{}/{partition}", self.system),
            action: question.capability.clone(),
            object: question.object.clone(),
            verdict: Verdict::Pending,
            reason: question.why.clone(),
            intent: None,
            detail: self.lineage_detail(partition),
        };
        if let Some(task) = &question.task {
            entry.detail.insert("task".to_owned(), task.clone());
        }
        let (allowed, reason) = match self.queue.ask(partition, question, now) {
            Asked::Decided(decision) => {
                entry.verdict = verdict(decision);
                entry.reason = decision.reason();
                let is_crowd = decision == Decision::TooMany;
                // Only the first of them, or a guest could fill the ledger.
                let recorded = match is_crowd && !self.crowded.insert(partition.to_owned()) {
                    true => Ok(()),
                    false => self.recorder.record(&entry).map(drop),
                };
                match recorded {
                    Ok(()) => (decision.allows(), decision.reason()),
                    Err(error) => (false, error.to_string()),
                }
            }
            Asked::Waits(number) => {
                entry
                    .detail
                    .insert("question".to_owned(), number.to_string());
                match self.recorder.record(&entry) {
                    Ok(record) => {
                        let socket = socket.clone();
                        let waiting = Waiting {
                            socket,
                            request: id,
                            record,
                        };
                        self.waiting.insert(number, waiting);
                        return true;
                    }
                    Err(error) => {
                        // Nobody is asked what cannot be recorded.
                        let _ = self.queue.deny(number, now);
                        (false, error.to_string())
                    }
                }
            }
        };
        tell(
            socket,
            &Answer {
                id,
                allowed,
                reason,
            },
        );
        true
    }

    /// From whom a partition descends, for a record.
    fn lineage_detail(&self, partition: &str) -> BTreeMap<String, String> {
        let lineage = self.lineages.get(partition);
        let joined = lineage.map(|lineage| ("lineage".to_owned(), lineage.join(", ")));
        joined.into_iter().collect()
    }

    /// A person answers: with a scope it is a yes.
    pub(super) fn decide(
        &mut self,
        question: u64,
        allow: Option<Scope>,
        now: Instant,
    ) -> Result<(), NotPending> {
        let settled = match allow {
            Some(scope) => self.queue.allow(question, scope, now)?,
            None => vec![self.queue.deny(question, now)?],
        };
        self.settle(settled);
        Ok(())
    }

    /// Denies what has waited long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        let settled = self.queue.expire(now);
        self.settle(settled);
    }

    /// A partition has ended.
    pub(super) fn end(&mut self, partition: &str) {
        let settled = self.queue.end(partition);
        self.settle(settled);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    /// What waits, the oldest first.
    pub(super) fn open(&self, now: Instant) -> Vec<OpenQuestion> {
        let open = self.queue.pending().iter().map(|pending| OpenQuestion {
            id: pending.id,
            partition: pending.partition.clone(),
            lineage: (self.lineages.get(&pending.partition).cloned()).unwrap_or_default(),
            question: pending.question.clone(),
            seconds: pending.deadline.saturating_duration_since(now).as_secs(),
        });
        open.collect()
    }

    /// Records how questions were decided, and then tells those who wait.
    fn settle(&mut self, settled: Vec<Settled>) {
        for Settled { pending, decision } in settled {
            let Some(waiting) = self.waiting.remove(&pending.id) else {
                continue;
            };
            self.crowded.remove(&pending.partition);
            let by_person = matches!(decision, Decision::Allowed(_) | Decision::Denied);
            let mut detail = self.lineage_detail(&pending.partition);
            detail.insert("question".to_owned(), pending.id.to_string());
            if let Decision::Allowed(scope) = decision {
                detail.insert("scope".to_owned(), scope.to_string());
            }
            let entry = Entry {
                kind: Kind::Approval,
                actor: format!("{}/{}", self.system, pending.partition),
                action: pending.question.capability,
                object: pending.question.object,
                verdict: verdict(decision),
                reason: match by_person {
                    true => format!("operator: {}", decision.reason()),
                    false => decision.reason(),
                },
                intent: Some(waiting.record),
                detail,
            };
            let (allowed, reason) = match self.recorder.record(&entry) {
                Ok(_) => (decision.allows(), decision.reason()),
                Err(error) => (false, error.to_string()),
            };
            let id = waiting.request;
            tell(
                &waiting.socket,
                &Answer {
                    id,
                    allowed,
                    reason,
                },
            );
        }
    }
}

impl Supervisor {
    /// A process behind a partition asks for consent.
    pub(super) fn hear_question(&mut self, at: usize, backend: usize) -> Option<Cause> {
        let member = self.members.get_mut(at)?;
        let name = member.name().to_owned();
        let backend = member.backends.get_mut(backend)?;
        let socket = backend.questions.clone()?;
        if !self.approvals.hear(&name, &socket, Instant::now()) {
            backend.questions = None;
        }
        None
    }

    /// A person has answered.
    pub(super) fn decide(&mut self, question: u64, allow: Option<Scope>) -> control::Answer {
        match self.approvals.decide(question, allow, Instant::now()) {
            Ok(()) => control::Answer::Done { device: None },
            Err(error) => control::Answer::Refused {
                code: "no-such-question".to_owned(),
                message: error.to_string(),
                help: Some("list them with `bulkhead approvals ls`".to_owned()),
            },
        }
    }
}

fn verdict(decision: Decision) -> Verdict {
    match decision.allows() {
        true => Verdict::Allowed,
        false => Verdict::Denied,
    }
}

/// A process that is gone, or does not take its answers, has not been allowed anything.
fn tell(socket: &OwnedFd, answer: &Answer) {
    if let Ok(packet) = serde_json::to_vec(answer) {
        let _ = send(socket, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::packet_pair;
    use bulkhead_approval::{Asker, PATIENCE, Question};
    use bulkhead_manifest::parse_manifest;
    use bulkhead_record::RecordError;
    use std::path::Path;
    use std::sync::Mutex;
    use std::thread;
    use std::time::Duration;

    /// A ledger in memory, with room for so many.
    struct Fake {
        entries: Mutex<Vec<Entry>>,
        room: usize,
    }

    impl Recorder for Fake {
        fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
            let mut entries = self.entries.lock().unwrap();
            if entries.len() >= self.room {
                return Err(RecordError::NotWritten("it is full".to_owned()));
            }
            entries.push(entry.clone());
            Ok(entries.len() as u64 - 1)
        }
    }

    struct House {
        ledger: Arc<Fake>,
        approvals: Approvals,
        socket: Arc<OwnedFd>,
        asker: Asker,
    }

    /// A system of one partition, `agent`, a child of `boss`, which is one of `chief`.
    fn descended() -> System {
        let manifest = "[identity]\nname = \"agent\"\nrole = \"r\"\nparent = \"boss\"\n\
                        [boot]\nkernel = \"native\"\nprogram = \"/p\"\n[lifetime]\nmax = \"1h\"\n";
        let manifest = parse_manifest(manifest.as_bytes(), Path::new("/agent.toml")).unwrap();
        let mut agent = manifest.partition().clone();
        agent.mandate.as_mut().unwrap().lineage = vec!["boss".to_owned(), "chief".to_owned()];
        System {
            name: "web".to_owned(),
            partitions: vec![agent],
        }
    }

    fn house(room: usize) -> House {
        let ledger = Arc::new(Fake {
            entries: Mutex::default(),
            room,
        });
        let (ours, theirs) = packet_pair().unwrap();
        House {
            approvals: Approvals::new(&descended(), ledger.clone()),
            ledger,
            socket: Arc::new(ours),
            asker: Asker::new(theirs),
        }
    }

    fn question(object: &str) -> Question {
        Question {
            capability: "tool.call".to_owned(),
            object: object.to_owned(),
            why: "it may destroy something".to_owned(),
            task: None,
        }
    }

    /// Waits until a question has come in.
    fn hear(approvals: &mut Approvals, socket: &Arc<OwnedFd>, now: Instant) {
        let mut watched = [rustix::event::PollFd::new(
            socket,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut watched, None).unwrap();
        assert!(approvals.hear("agent", socket, now));
    }

    #[test]
    fn a_person_answers_and_both_are_on_record() {
        let House {
            ledger,
            mut approvals,
            socket,
            asker,
        } = house(10);
        let now = Instant::now();
        for (allow, answer) in [
            (
                Some(Scope::Once),
                Ok("a person allowed it: once".to_owned()),
            ),
            (None, Err("a person denied it".to_owned())),
        ] {
            thread::scope(|scope| {
                let asked = scope.spawn(|| asker.ask(question("fs.delete /x")).unwrap());
                hear(&mut approvals, &socket, now);
                let open = approvals.open(now + Duration::from_secs(20));
                let [open] = open.as_slice() else {
                    panic!("{open:?}")
                };
                assert_eq!((open.partition.as_str(), open.seconds), ("agent", 100));
                assert_eq!(open.lineage, ["boss", "chief"]);
                approvals.decide(open.id, allow, now).unwrap();
                assert!(
                    approvals.decide(open.id, allow, now).is_err(),
                    "an answer is one answer"
                );
                assert_eq!(asked.join().unwrap(), answer);
            });
        }
        let entries = ledger.entries.lock().unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|entry| (entry.verdict, entry.intent))
            .collect();
        assert_eq!(
            seen,
            [
                (Verdict::Pending, None),
                (Verdict::Allowed, Some(0)),
                (Verdict::Pending, None),
                (Verdict::Denied, Some(2)),
            ]
        );
        assert!(
            entries
                .iter()
                .all(|entry| entry.actor == "web/agent" && entry.object == "fs.delete /x")
        );
        assert!(
            entries
                .iter()
                .all(|entry| entry.detail["lineage"] == "boss, chief")
        );
        assert_eq!(entries[1].detail["scope"], "once");
    }

    #[test]
    fn nobody_answers_and_what_was_allowed_is_remembered() {
        let House {
            ledger,
            mut approvals,
            socket,
            asker,
        } = house(10);
        let now = Instant::now();
        thread::scope(|scope| {
            let asked = scope.spawn(|| asker.ask(question("x")).unwrap());
            hear(&mut approvals, &socket, now);
            assert_eq!(approvals.next_deadline(), Some(now + PATIENCE));
            approvals.expire(now + PATIENCE);
            assert_eq!(
                asked.join().unwrap(),
                Err("nobody answered within 120 seconds".to_owned())
            );
        });
        thread::scope(|scope| {
            let asked = scope.spawn(|| asker.ask(question("x")).unwrap());
            hear(&mut approvals, &socket, now);
            let id = approvals.open(now)[0].id;
            approvals.decide(id, Some(Scope::Session), now).unwrap();
            assert!(asked.join().unwrap().is_ok());
        });
        thread::scope(|scope| {
            let asked = scope.spawn(|| asker.ask(question("x")).unwrap());
            hear(&mut approvals, &socket, now);
            assert!(asked.join().unwrap().unwrap().contains("with question 2"));
        });
        assert_eq!(ledger.entries.lock().unwrap().len(), 5);
        approvals.end("agent");
        thread::scope(|scope| {
            let asked = scope.spawn(|| asker.ask(question("x")).unwrap());
            hear(&mut approvals, &socket, now);
            approvals.end("agent");
            assert_eq!(
                asked.join().unwrap(),
                Err("the partition has ended".to_owned())
            );
        });
    }

    #[test]
    fn what_cannot_be_recorded_is_neither_asked_nor_allowed() {
        for (room, asked_at_all) in [(0, false), (1, true)] {
            let House {
                mut approvals,
                socket,
                asker,
                ..
            } = house(room);
            let now = Instant::now();
            thread::scope(|scope| {
                let asked = scope.spawn(|| asker.ask(question("x")).unwrap());
                hear(&mut approvals, &socket, now);
                let open = approvals.open(now);
                assert_eq!(open.len(), usize::from(asked_at_all));
                if let Some(open) = open.first() {
                    approvals.decide(open.id, Some(Scope::Once), now).unwrap();
                }
                let why = asked.join().unwrap().unwrap_err();
                assert!(why.contains("it is full"), "{why}");
            });
        }
    }

    #[test]
    fn of_questions_that_are_too_many_the_first_is_on_record() {
        let mut house = house(100);
        let (ours, theirs) = packet_pair().unwrap();
        let socket = Arc::new(ours);
        let now = Instant::now();
        let ask = |house: &mut House, id: u64| {
            let question = question(&id.to_string());
            let packet = serde_json::to_vec(&Request { id, question }).unwrap();
            send(&theirs, &packet, SendFlags::NOSIGNAL).unwrap();
            assert!(house.approvals.hear("agent", &socket, now));
            house.ledger.entries.lock().unwrap().len()
        };
        let counts: Vec<usize> = (0..8).map(|id| ask(&mut house, id)).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 6, 6]);
        // There is room for one, and then there are too many once more.
        house.approvals.decide(1, None, now).unwrap();
        assert_eq!([8, 9, 10].map(|id| ask(&mut house, id)), [8, 9, 9]);
    }

    #[test]
    fn nonsense_is_not_heard_again() {
        let long = "x".repeat(1701);
        let long = serde_json::to_vec(&Request {
            id: 1,
            question: question(&long),
        })
        .unwrap();
        for packet in [&b"{}"[..], b"\xff", &long] {
            let mut house = house(10);
            let (ours, theirs) = packet_pair().unwrap();
            send(&theirs, packet, SendFlags::NOSIGNAL).unwrap();
            assert!(
                !house
                    .approvals
                    .hear("agent", &Arc::new(ours), Instant::now())
            );
            assert!(house.ledger.entries.lock().unwrap().is_empty());
        }
    }
}

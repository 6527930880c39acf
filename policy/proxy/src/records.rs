//! Records of what the guest does: the intent before it takes effect, the outcome after, refusals.
//! The ledger is waited for on threads of their own. Used by the proxy and by the gateway.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bulkhead_record::{Entry, Kind, RecordError, Recorder, Verdict};

/// Threads that wait for the ledger, which commits what comes at once together.
const WAITERS: usize = 4;
/// Most records that wait.
const MAX_WAITING: usize = 4096;
/// Longest text of a record.
const MAX_TEXT: usize = 1024;

type Done = Box<dyn FnOnce(Result<u64, RecordError>) + Send>;

struct Job {
    entry: Entry,
    done: Done,
}

struct Ledger {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
    actor: String,
}

/// Where acts are recorded; clones are the same place.
#[derive(Clone, Default)]
pub struct Records(Option<Arc<Ledger>>);

/// An act whose intent is on record.
#[derive(Clone, Debug)]
pub struct Act {
    action: &'static str,
    object: String,
    intent: Option<u64>,
}

impl Records {
    /// Starts the threads that record what `actor` does, by `recorder`. Without one (the default)
    /// nothing is recorded, and nothing waits.
    ///
    /// # Errors
    /// The host gives no threads.
    pub fn start(recorder: &Arc<dyn Recorder>, actor: &str) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let waiting = Arc::new(AtomicUsize::new(0));
        let (began, begun) = channel();
        for _ in 0..WAITERS {
            let (recorder, queue) = (recorder.clone(), queue.clone());
            let (waiting, began) = (waiting.clone(), began.clone());
            // Held, so that the thread never ends before the process does, which it may have no
            // system call for.
            let held: Sender<Job> = jobs.clone();
            thread::Builder::new()
                .name("records".to_owned())
                .spawn(move || {
                    let _ = began.send(());
                    wait(&*recorder, &queue, &waiting);
                    drop(held);
                })?;
        }
        // All of them are there before the process gives up making any.
        let there = begun.iter().take(WAITERS).count();
        debug_assert_eq!(there, WAITERS);
        Ok(Self(Some(Arc::new(Ledger {
            jobs,
            waiting,
            actor: actor.to_owned(),
        }))))
    }

    /// Whether anything is recorded.
    pub fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Records that the act is about to be done; `done` hears when it may be. Only with
    /// [`Self::are_kept`]; else at once.
    pub fn begin(
        &self,
        action: &'static str,
        object: &str,
        reason: &str,
        detail: BTreeMap<String, String>,
        done: impl FnOnce(Result<Act, RecordError>) + Send + 'static,
    ) {
        let mut act = Act {
            action,
            object: shortened(object),
            intent: None,
        };
        let entry = self.entry(Kind::Intent, &act, Verdict::Allowed, reason, detail);
        self.submit(
            entry,
            Box::new(move |index| match index {
                Ok(index) => {
                    act.intent = index.into();
                    done(Ok(act));
                }
                Err(error) => done(Err(error)),
            }),
        );
    }

    /// The same, for who can wait.
    ///
    /// # Errors
    /// It is not on record, and must not be done.
    pub async fn intent(
        &self,
        action: &'static str,
        object: &str,
        reason: &str,
        detail: BTreeMap<String, String>,
    ) -> Result<Act, RecordError> {
        if !self.are_kept() {
            return Ok(Act {
                action,
                object: String::new(),
                intent: None,
            });
        }
        let (heard, hear) = tokio::sync::oneshot::channel();
        self.begin(action, object, reason, detail, move |act| {
            // Nobody waits any more where the guest is gone.
            let _ = heard.send(act);
        });
        hear.await.unwrap_or(Err(RecordError::WriterGone))
    }

    /// Records how it went.
    pub fn outcome(
        &self,
        act: &Act,
        verdict: Verdict,
        reason: &str,
        detail: BTreeMap<String, String>,
    ) {
        let entry = self.entry(Kind::Outcome, act, verdict, reason, detail);
        self.submit(entry, Box::new(|_| {}));
    }

    /// Records that something was refused, as far as the ledger keeps up: it had no effect.
    pub fn refusal(&self, action: &'static str, object: &str, reason: &str) {
        let act = Act {
            action,
            object: shortened(object),
            intent: None,
        };
        let entry = self.entry(
            Kind::Refusal,
            &act,
            Verdict::Denied,
            reason,
            BTreeMap::new(),
        );
        self.submit(entry, Box::new(|_| {}));
    }

    fn entry(
        &self,
        kind: Kind,
        act: &Act,
        verdict: Verdict,
        reason: &str,
        detail: BTreeMap<String, String>,
    ) -> Entry {
        Entry {
            kind,
            actor: self
                .0
                .as_ref()
                .map_or_else(String::new, |ledger| ledger.actor.clone()),
            action: act.action.to_owned(),
            object: act.object.clone(),
            verdict,
            reason: shortened(reason),
            intent: act.intent,
            detail,
        }
    }

    fn submit(&self, entry: Entry, done: Done) {
        let Some(ledger) = &self.0 else {
            return;
        };
        let outcome = entry.kind == Kind::Outcome;
        // An outcome has an intent, of which there are only so many.
        if ledger.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING && !outcome {
            ledger.waiting.fetch_sub(1, Ordering::AcqRel);
            done(Err(RecordError::NotWritten(
                "too many records wait".to_owned(),
            )));
            return;
        }
        if let Err(unsent) = ledger.jobs.send(Job { entry, done }) {
            (unsent.0.done)(Err(RecordError::WriterGone));
        }
    }
}

/// Records one after the other.
fn wait(recorder: &dyn Recorder, queue: &Mutex<Receiver<Job>>, waiting: &AtomicUsize) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        let recorded = recorder.record(&job.entry);
        waiting.fetch_sub(1, Ordering::AcqRel);
        (job.done)(recorded);
    }
}

/// The beginning of `text`, in characters that fit into a record.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

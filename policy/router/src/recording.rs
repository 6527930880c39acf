//! What conditions are asked about a call, and what the ledger is told of it: the intent before a provider
//! is asked, the outcome after, and refusals. A call whose intent is not recorded is not made.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bulkhead_conditions::{Act, Asker, Notes, Ruling};
use bulkhead_record::{Entry, Kind, RecordError, Recorder, Verdict};
use tokio::sync::oneshot;

/// The clear name of what is done.
const ACTION: &str = "model.chat";

/// Threads that wait for conditions and for the ledger, which makes durable together what comes at once.
const WAITERS: usize = 4;

/// What there is to do, and who waits for it.
enum Job {
    Ask(Vec<Act>, oneshot::Sender<Result<Notes, Ruling>>),
    Record(Entry, oneshot::Sender<Result<u64, RecordError>>),
}

/// Records for one partition.
pub(crate) struct Recording {
    jobs: Sender<Job>,
    actor: String,
    /// There are conditions.
    asks: bool,
}

/// What else there is to know, by name.
pub(crate) type Detail = BTreeMap<String, String>;

/// Details of names and values.
pub(crate) fn detail<const N: usize>(pairs: [(&str, String); N]) -> Detail {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl Recording {
    /// Asks `conditions`, where there are any, and records what `actor` does by `recorder`, on threads that
    /// are there from the start: the process may not be able to make any later.
    pub(crate) fn start(
        recorder: &Arc<dyn Recorder>,
        conditions: Option<&Arc<Asker>>,
        actor: String,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let (began, begun) = channel();
        for _ in 0..WAITERS {
            let (recorder, conditions) = (recorder.clone(), conditions.cloned());
            let (queue, began) = (queue.clone(), began.clone());
            let thread = thread::Builder::new().name("model records".to_owned());
            thread.spawn(move || {
                let _ = began.send(());
                wait(&*recorder, conditions.as_deref(), &queue);
            })?;
        }
        for _ in 0..WAITERS {
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            begun.recv().map_err(gone)?;
        }
        let asks = conditions.is_some();
        Ok(Self { jobs, actor, asks })
    }

    /// Whether conditions permit calls of all these models; what they say, for the intent.
    pub(crate) async fn ask(&self, models: Vec<String>) -> Result<Detail, Ruling> {
        if !self.asks {
            return Ok(Detail::new());
        }
        let (heard, hear) = oneshot::channel();
        let acts = models.into_iter().map(Act::Model).collect();
        let gone = || Ruling::Unanswered("the process ends".to_owned());
        self.jobs.send(Job::Ask(acts, heard)).map_err(|_| gone())?;
        Ok(hear.await.unwrap_or_else(|_| Err(gone()))?.into_detail())
    }

    /// A provider is about to be asked.
    pub(crate) async fn intent(&self, model: &str, detail: Detail) -> Result<u64, RecordError> {
        let reason = "the grant allows the model and the budget the call";
        self.record(
            Kind::Intent,
            ACTION,
            model,
            Verdict::Allowed,
            reason,
            None,
            detail,
        )
        .await
    }

    /// How the call of `intent` went; without an intent, it was answered without a provider.
    pub(crate) async fn outcome(
        &self,
        model: &str,
        intent: Option<u64>,
        verdict: Verdict,
        reason: &str,
        detail: Detail,
    ) -> Result<u64, RecordError> {
        self.record(
            Kind::Outcome,
            ACTION,
            model,
            verdict,
            reason,
            intent,
            detail,
        )
        .await
    }

    /// A call was refused.
    pub(crate) async fn refusal(&self, model: &str, reason: &str) -> Result<u64, RecordError> {
        let detail = Detail::new();
        self.record(
            Kind::Refusal,
            ACTION,
            model,
            Verdict::Denied,
            reason,
            None,
            detail,
        )
        .await
    }

    /// Most of the budget is spent, by the call of `intent`.
    pub(crate) async fn alert(
        &self,
        intent: u64,
        reason: &str,
        detail: Detail,
    ) -> Result<u64, RecordError> {
        let (kind, action) = (Kind::Outcome, "model.budget");
        self.record(
            kind,
            action,
            "budget",
            Verdict::Done,
            reason,
            Some(intent),
            detail,
        )
        .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of an entry, in their order"
    )]
    async fn record(
        &self,
        kind: Kind,
        action: &str,
        object: &str,
        verdict: Verdict,
        reason: &str,
        intent: Option<u64>,
        detail: Detail,
    ) -> Result<u64, RecordError> {
        let entry = Entry {
            kind,
            actor: self.actor.clone(),
            action: action.to_owned(),
            object: short(object),
            verdict,
            reason: short(reason),
            intent,
            detail,
        };
        let (heard, hear) = oneshot::channel();
        let sent = self.jobs.send(Job::Record(entry, heard));
        sent.map_err(|_| RecordError::WriterGone)?;
        hear.await.unwrap_or(Err(RecordError::WriterGone))
    }
}

/// Asks and records what comes, until nobody can send any more.
fn wait(recorder: &dyn Recorder, conditions: Option<&Asker>, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        // Nobody waits any more where a call was given up.
        match job {
            Job::Ask(acts, heard) => drop(heard.send(ask(conditions, &acts))),
            Job::Record(entry, heard) => drop(heard.send(recorder.record(&entry))),
        }
    }
}

fn ask(conditions: Option<&Asker>, acts: &[Act]) -> Result<Notes, Ruling> {
    let mut notes = Notes::default();
    for act in acts {
        let Some(said) = conditions.map(|asker| asker.ask(act, None)) else {
            continue;
        };
        if !said.allows() {
            return Err(said.ruling);
        }
        notes.add(act, said);
    }
    Ok(notes)
}

/// What a guest named, or a provider said, at a length that a record takes.
fn short(text: &str) -> String {
    const MOST: usize = 1000;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

//! What the guest does, before and after: conditions are asked and the intent is recorded before it
//! takes effect, the outcome after; so are refusals. Conditions and ledger are waited for on threads of
//! their own. Used by the proxy and by the gateway.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_conditions::{Asker, Ruling};
use bulkhead_record::{Entry, Kind, RecordError, Recorder, Verdict};

use crate::conditions::{Permitted, Question};

/// Threads that wait for the ledger, which commits what comes at once together.
const WAITERS: usize = 4;
/// Most records that wait.
const MAX_WAITING: usize = 4096;
/// Longest text of a record.
const MAX_TEXT: usize = 1024;
/// How an act ended that nobody waits for any more.
pub const GAVE_UP: &str = "the guest gave up";
/// Most refusals that are recorded at once.
const BURST: u32 = 20;
/// Time in which one more becomes possible: a guest that is refused all day fills no ledger.
const PER_REFUSAL: Duration = Duration::from_secs(5);

type Done = Box<dyn FnOnce(Result<Begun, NotDone>) + Send>;

/// What an act may be begun with: the record of its intent, and the names that it may be for.
type Begun = (Option<u64>, Option<Box<[String]>>);

struct Job {
    entry: Entry,
    question: Option<Question>,
    done: Done,
}

struct Ledger {
    jobs: Sender<Job>,
    work: Arc<Work>,
    flood: Mutex<Flood>,
    actor: String,
}

/// What is not done yet.
#[derive(Default)]
struct Work {
    left: Mutex<Left>,
    changed: Condvar,
}

#[derive(Default)]
struct Left {
    /// Records that wait.
    records: usize,
    /// Acts whose outcome is to come.
    acts: usize,
}

/// Bounds the refusals that are recorded, and counts the others.
struct Flood {
    left: u32,
    refilled: Instant,
    withheld: u64,
}

/// Where acts are recorded; clones are the same place.
#[derive(Clone, Default)]
pub struct Records(Option<Arc<Ledger>>);

/// Whom the threads wait for.
#[derive(Clone, Default)]
pub struct Outside {
    /// What writes the ledger; without, nothing is recorded.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// What answers for the conditions; without, there are none.
    pub conditions: Option<Arc<Asker>>,
}

/// What is about to be done.
#[derive(Clone, Debug)]
pub struct Intent {
    /// By its clear name.
    pub action: &'static str,
    /// To what.
    pub object: String,
    /// What grants it.
    pub reason: String,
    /// What else there is to know, by name.
    pub detail: BTreeMap<String, String>,
    /// What conditions are asked first.
    pub question: Question,
}

/// An act that was permitted, and whose intent is on record.
#[derive(Clone, Debug)]
pub struct Act {
    action: &'static str,
    object: String,
    intent: Option<u64>,
    /// The only names that a connection may be for, where conditions permit those alone.
    pub names: Option<Box<[String]>>,
}

/// Why something must not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The conditions deny it.
    #[error("{0}")]
    Denied(Ruling),
    /// It is not on record.
    #[error(transparent)]
    NotRecorded(#[from] RecordError),
}

impl Act {
    /// Whether its outcome has to be recorded.
    pub fn is_recorded(&self) -> bool {
        self.intent.is_some()
    }
}

impl Records {
    /// Starts the threads that ask and record what `actor` does. Without anybody to wait for (the
    /// default) nothing is asked or recorded, and nothing waits.
    ///
    /// # Errors
    /// The host gives no threads.
    pub fn start(outside: &Outside, actor: &str) -> io::Result<Self> {
        if outside.recorder.is_none() && outside.conditions.is_none() {
            return Ok(Self::default());
        }
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let work = Arc::new(Work::default());
        let (began, begun) = channel();
        for _ in 0..WAITERS {
            let (outside, queue) = (outside.clone(), queue.clone());
            let (work, began) = (work.clone(), began.clone());
            // Held, so that the thread never ends before the process does, which it may have no
            // system call for.
            let held: Sender<Job> = jobs.clone();
            thread::Builder::new()
                .name("records".to_owned())
                .spawn(move || {
                    let _ = began.send(());
                    wait(&outside, &queue, &work);
                    drop(held);
                })?;
        }
        // All of them are there before the process gives up making any.
        let there = begun.iter().take(WAITERS).count();
        debug_assert_eq!(there, WAITERS);
        Ok(Self(Some(Arc::new(Ledger {
            jobs,
            work,
            flood: Mutex::new(Flood::new(Instant::now())),
            actor: actor.to_owned(),
        }))))
    }

    /// Whether an act has to wait for anybody.
    pub fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// The act is about to be done; `done` hears when it may be, or that it must not. Only with
    /// [`Self::are_kept`].
    pub fn begin(&self, intent: Intent, done: impl FnOnce(Result<Act, NotDone>) + Send + 'static) {
        let Intent {
            action,
            object,
            reason,
            detail,
            question,
        } = intent;
        let mut act = Act {
            action,
            object: shortened(&object),
            intent: None,
            names: None,
        };
        let entry = self.entry(Kind::Intent, &act, Verdict::Allowed, &reason, detail);
        let work = self.0.as_ref().map(|ledger| ledger.work.clone());
        self.submit(
            entry,
            Some(question),
            Box::new(move |begun| {
                done(begun.map(|(intent, names)| {
                    act.intent = intent;
                    act.names = names;
                    if let Some(work) = work.filter(|_| intent.is_some()) {
                        work.left().acts += 1;
                    }
                    act
                }));
            }),
        );
    }

    /// The same, for who can wait.
    ///
    /// # Errors
    /// It is denied, or not on record, and must not be done.
    pub async fn intent(&self, intent: Intent) -> Result<Act, NotDone> {
        if !self.are_kept() {
            return Ok(Act {
                action: intent.action,
                object: String::new(),
                intent: None,
                names: None,
            });
        }
        let (heard, hear) = tokio::sync::oneshot::channel();
        let records = self.clone();
        self.begin(intent, move |begun| {
            let begun = begun.map(|act| OnItsWay {
                act: Some(act),
                records,
            });
            // Nobody waits any more where the guest is gone.
            let _ = heard.send(begun);
        });
        let gone = NotDone::NotRecorded(RecordError::WriterGone);
        match hear.await {
            Ok(begun) => begun?.act.take().ok_or(gone),
            Err(_) => Err(gone),
        }
    }

    /// Records how it went.
    pub fn outcome(
        &self,
        act: &Act,
        verdict: Verdict,
        reason: &str,
        detail: BTreeMap<String, String>,
    ) {
        // What had no intent on record has no outcome there.
        if !act.is_recorded() {
            return;
        }
        let entry = self.entry(Kind::Outcome, act, verdict, reason, detail);
        self.submit(entry, None, Box::new(|_| {}));
        if let Some(ledger) = &self.0 {
            let mut left = ledger.work.left();
            left.acts = left.acts.saturating_sub(1);
        }
    }

    /// Records that something was refused, as far as the ledger keeps up: it had no effect. Of a
    /// flood the first are recorded, and how many others there were with the next.
    pub fn refusal(&self, action: &'static str, object: &str, reason: &str) {
        let Some(ledger) = &self.0 else {
            return;
        };
        let mut flood = ledger.flood.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(withheld) = flood.permits(Instant::now()) else {
            return;
        };
        drop(flood);
        self.refuse(action, object, reason, withheld);
    }

    fn refuse(&self, action: &'static str, object: &str, reason: &str, withheld: u64) {
        let act = Act {
            action,
            object: shortened(object),
            intent: None,
            names: None,
        };
        let mut detail = BTreeMap::new();
        if withheld > 0 {
            detail.insert("unrecorded".to_owned(), withheld.to_string());
        }
        let entry = self.entry(Kind::Refusal, &act, Verdict::Denied, reason, detail);
        self.submit(entry, None, Box::new(|_| {}));
    }

    /// Waits until everything is on record, the outcomes of acts that are under way among it, but not
    /// longer than `patience`. For a process that ends.
    pub fn finish(&self, patience: Duration) {
        let Some(ledger) = &self.0 else {
            return;
        };
        let mut flood = ledger.flood.lock().unwrap_or_else(PoisonError::into_inner);
        let withheld = std::mem::take(&mut flood.withheld);
        drop(flood);
        if withheld > 0 {
            let reason = "refusals that are not recorded one by one";
            self.refuse("net.connect", "", reason, withheld);
        }
        let left = ledger.work.left();
        let busy = |left: &mut Left| left.records > 0 || left.acts > 0;
        // What is late has no outcome on record.
        let _ = ledger.work.changed.wait_timeout_while(left, patience, busy);
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

    fn submit(&self, entry: Entry, question: Option<Question>, done: Done) {
        let Some(ledger) = &self.0 else {
            return;
        };
        // An outcome has an intent, of which there are only so many.
        let outcome = entry.kind == Kind::Outcome;
        {
            let mut left = ledger.work.left();
            if left.records >= MAX_WAITING && !outcome {
                drop(left);
                let why = "too many records wait".to_owned();
                return done(Err(RecordError::NotWritten(why).into()));
            }
            left.records += 1;
        }
        let job = Job {
            entry,
            question,
            done,
        };
        if let Err(unsent) = ledger.jobs.send(job) {
            ledger.work.is_done();
            (unsent.0.done)(Err(RecordError::WriterGone.into()));
        }
    }
}

/// An act on its way to whoever waits for it: if nobody takes it, it has ended.
struct OnItsWay {
    act: Option<Act>,
    records: Records,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(act) = self.act.take().filter(Act::is_recorded) {
            let none = BTreeMap::new();
            self.records.outcome(&act, Verdict::Failed, GAVE_UP, none);
        }
    }
}

impl Work {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One record is written, or will not be.
    fn is_done(&self) {
        let mut left = self.left();
        left.records = left.records.saturating_sub(1);
        self.changed.notify_all();
    }
}

impl Flood {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
            withheld: 0,
        }
    }

    /// Whether one more is recorded, and how many were not since the last that was.
    fn permits(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled).as_nanos();
        let gained = u32::try_from(passed / PER_REFUSAL.as_nanos()).unwrap_or(BURST);
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(BURST);
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.withheld))
            }
            None => {
                self.withheld = self.withheld.saturating_add(1);
                None
            }
        }
    }
}

/// Asks and records, one after the other.
fn wait(outside: &Outside, queue: &Mutex<Receiver<Job>>, work: &Work) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        let Job {
            mut entry,
            question,
            done,
        } = job;
        let permitted = match (&outside.conditions, question) {
            (Some(asker), Some(question)) => question.put(&|act| asker.ask(act, None)),
            _ => Ok(Permitted::default()),
        };
        let begun = permitted.map_err(NotDone::Denied).and_then(|permitted| {
            entry.detail.extend(permitted.notes.into_detail());
            let recorder = outside.recorder.as_ref();
            let index = recorder
                .map(|recorder| recorder.record(&entry))
                .transpose()?;
            Ok((index, permitted.names))
        });
        done(begun);
        work.is_done();
    }
}

/// The beginning of `text`, in characters that fit into a record.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_the_first_are_recorded_and_the_others_counted() {
        let start = Instant::now();
        let mut flood = Flood::new(start);
        let recorded = (0..1000).filter_map(|_| flood.permits(start)).count();
        assert_eq!(recorded, 20);
        assert_eq!(flood.permits(start + PER_REFUSAL), Some(980));
        assert_eq!(flood.permits(start + PER_REFUSAL), None);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(flood.permits(much_later), Some(1));
        let rest = (0..1000).filter_map(|_| flood.permits(much_later)).count();
        assert_eq!(rest, 19);
    }

    /// A ledger in memory that takes its time.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Entry>>);

    impl Recorder for Slow {
        fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
            thread::sleep(Duration::from_millis(20));
            let mut entries = self.0.lock().unwrap();
            entries.push(entry.clone());
            Ok(entries.len() as u64 - 1)
        }
    }

    fn records() -> (Records, Arc<Slow>) {
        let ledger = Arc::new(Slow::default());
        let outside = Outside {
            recorder: Some(ledger.clone()),
            conditions: None,
        };
        (Records::start(&outside, "demo/web").unwrap(), ledger)
    }

    fn intent() -> Intent {
        Intent {
            action: "net.connect",
            object: "x".to_owned(),
            reason: "y".to_owned(),
            detail: BTreeMap::new(),
            question: Question::default(),
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_has_ended() {
        let (records, ledger) = records();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            for patience in [0, 1, 20, 40] {
                // Given up before its intent is on record, about then, or not at all.
                let patience = Duration::from_millis(patience);
                let begun = tokio::time::timeout(patience, records.intent(intent())).await;
                if let Ok(act) = begun {
                    records.outcome(&act.unwrap(), Verdict::Done, "", BTreeMap::new());
                }
            }
        });
        let patience = Duration::from_secs(20);
        let begun = Instant::now();
        records.finish(patience);
        assert!(begun.elapsed() < patience, "an act is waited for");
        let entries = ledger.0.lock().unwrap();
        let count = |kind| entries.iter().filter(|entry| entry.kind == kind).count();
        assert_eq!(count(Kind::Intent), count(Kind::Outcome));
        let gave_up = entries.iter().filter(|entry| entry.reason == GAVE_UP);
        assert!(gave_up.count() >= 2, "{entries:?}");
    }

    #[test]
    fn at_the_end_everything_is_on_record() {
        let (records, ledger) = records();
        let again = records.clone();
        records.begin(intent(), move |act| {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                again.outcome(&act.unwrap(), Verdict::Done, "", BTreeMap::new());
            });
        });
        for number in 0..30 {
            records.refusal("net.connect", &number.to_string(), "no rule");
        }
        records.finish(Duration::from_secs(20));
        let entries = ledger.0.lock().unwrap();
        let count = |kind| entries.iter().filter(|entry| entry.kind == kind).count();
        assert_eq!((count(Kind::Intent), count(Kind::Outcome)), (1, 1));
        assert_eq!(count(Kind::Refusal), 21);
        let unrecorded = entries.iter().find_map(|e| e.detail.get("unrecorded"));
        assert_eq!(unrecorded.map(String::as_str), Some("10"));
    }
}

//! What the event loop does is asked about and recorded: it goes on while conditions and ledger are waited
//! for elsewhere, and hears by an event when an act may be done. Used by the tables of flows, and by everything that refuses.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_conditions::Act as Asked;
use bulkhead_proxy::Records;
use bulkhead_proxy::conditions::Question;
use bulkhead_proxy::records::{Act, Intent, NotDone};
use bulkhead_record::Verdict;

use crate::table::Token;

/// How long the process waits at its end for what is not on record yet. Its supervisor waits longer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How acts end that are under way then.
const GONE: &str = "the guest is gone";

/// Whose act, and whether it may be done.
pub(crate) type Heard = (Token, Result<Act, NotDone>);

/// Where the event loop records; by default nowhere.
#[derive(Default)]
pub(crate) struct Journal {
    records: Records,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// There are conditions.
    asks: bool,
    /// An eventfd that wakes the event loop.
    wake: Option<Arc<OwnedFd>>,
}

impl Journal {
    /// Records by `records`, which asks conditions or does not, and writes to the eventfd `wake` when
    /// something may be done.
    pub(crate) fn new(records: Records, asks: bool, wake: OwnedFd) -> Self {
        Self {
            records,
            asks,
            heard: Arc::default(),
            wake: Some(Arc::new(wake)),
        }
    }

    /// Whether acts have to wait.
    pub(crate) fn is_kept(&self) -> bool {
        self.records.are_kept()
    }

    /// Whether there are conditions.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// The flow `token` is about to go to `object`, which `reason` allows, and to which a person may have
    /// had to consent; [`Self::take`] has it when the conditions permit it and that is on record, or when it
    /// must not.
    pub(crate) fn begin(
        &self,
        token: Token,
        object: String,
        reason: String,
        consent: Option<String>,
        question: Question,
    ) {
        let consent = consent.map(|how| ("consent".to_owned(), how));
        self.submit(
            token,
            Intent {
                action: "net.connect",
                object,
                reason,
                detail: consent.into_iter().collect(),
                question,
                quiet: false,
            },
        );
    }

    /// A query for `name` of `token` is about to be sent on; [`Self::take`] has it as well. Only with
    /// [`Self::asks`].
    pub(crate) fn resolve(&self, token: Token, name: &str) {
        self.submit(
            token,
            Intent {
                action: "dns.resolve",
                object: name.to_owned(),
                reason: "a rule speaks of the name".to_owned(),
                detail: BTreeMap::new(),
                question: Question {
                    connection: None,
                    acts: vec![Asked::Resolve(name.to_owned())],
                },
                quiet: true,
            },
        );
    }

    fn submit(&self, token: Token, intent: Intent) {
        let (heard, wake) = (self.heard.clone(), self.wake.clone());
        let done = move |act| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push((token, act));
            drop(heard);
            if let Some(wake) = wake {
                // It counts; a count that is full has woken the loop already.
                let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
            }
        };
        self.records.begin(intent, done);
    }

    /// What was recorded since the last time.
    pub(crate) fn take(&self) -> Vec<Heard> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *heard)
    }

    /// A flow has ended, after so many bytes out and in.
    pub(crate) fn outcome(&self, act: &Act, failure: Option<&str>, bytes: (u64, u64)) {
        let detail = BTreeMap::from([
            ("sent".to_owned(), bytes.0.to_string()),
            ("received".to_owned(), bytes.1.to_string()),
        ]);
        let verdict = match failure {
            None => Verdict::Done,
            Some(_) => Verdict::Failed,
        };
        let reason = failure.unwrap_or_default();
        self.records.outcome(act, verdict, reason, detail);
    }

    /// A flow ends because the guest has.
    pub(crate) fn gone(&self, act: &Act, bytes: (u64, u64)) {
        self.outcome(act, Some(GONE), bytes);
    }

    /// Waits for what is not on record yet, the proxy's acts among it.
    pub(crate) fn finish(&self) {
        self.records.finish(PATIENCE);
    }

    /// Something was refused.
    pub(crate) fn refusal(&self, action: &'static str, object: &str, reason: &str) {
        self.records.refusal(action, object, reason);
    }
}

//! Records of what the event loop does: it goes on while the ledger is waited for elsewhere, and hears
//! by an event when an act may be done. Used by the tables of flows, and by everything that refuses.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_proxy::Records;
use bulkhead_proxy::records::Act;
use bulkhead_record::{RecordError, Verdict};

use crate::table::Token;

/// How long the process waits at its end for what is not on record yet. Its supervisor waits longer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How acts end that are under way then.
const GONE: &str = "the guest is gone";

/// Whose act, and whether it may be done.
pub(crate) type Heard = (Token, Result<Act, RecordError>);

/// Where the event loop records; by default nowhere.
#[derive(Default)]
pub(crate) struct Journal {
    records: Records,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// An eventfd that wakes the event loop.
    wake: Option<Arc<OwnedFd>>,
}

impl Journal {
    /// Records by `records`, and writes to the eventfd `wake` when something was recorded.
    pub(crate) fn new(records: Records, wake: OwnedFd) -> Self {
        Self {
            records,
            heard: Arc::default(),
            wake: Some(Arc::new(wake)),
        }
    }

    /// Whether acts have to wait for their records.
    pub(crate) fn is_kept(&self) -> bool {
        self.records.are_kept()
    }

    /// The flow `token` is about to go to `object`, which `reason` allows; [`Self::take`] has it when
    /// that is on record.
    pub(crate) fn begin(&self, token: Token, object: &str, reason: &str) {
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
        let detail = BTreeMap::new();
        self.records
            .begin("net.connect", object, reason, detail, done);
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

//! What the event loop does is asked about and recorded: it goes on while conditions and ledger are waited
//! for elsewhere, and hears by an event when an act may be done. Used by the tables of flows, and by everything that refuses.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_conditions::Act as Asked;
use bulkhead_network::Forward;
use bulkhead_proxy::Records;
use bulkhead_proxy::conditions::Question;
use bulkhead_proxy::records::{Act, GAVE_UP, Intent, NotDone};
use bulkhead_record::Verdict;

use crate::chatter::printable;
use crate::table::Token;

/// How long the process waits at its end for what is not on record yet. Its supervisor waits longer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How acts end that are under way then.
const GONE: &str = "the guest is gone";
/// Most addresses of a name that its record has.
const MAX_ADDRESSES: usize = 16;

/// Why an act is not done about which neither conditions nor ledger have said anything.
pub(crate) const UNDECIDED: &str = "nobody has said in time whether it may be";
/// How acts end that were on record too late.
const LATE: &str = "its record came too late";

/// Whose act, and whether it may be done.
pub(crate) type Heard = (Token, Result<Act, NotDone>);

/// Where the event loop records; by default nowhere.
#[derive(Default)]
pub(crate) struct Journal {
    records: Records,
    /// What nobody has taken yet; none once nobody will.
    heard: Arc<Mutex<Option<Vec<Heard>>>>,
    /// An eventfd that wakes the event loop.
    wake: Option<Arc<OwnedFd>>,
}

impl Journal {
    /// Records by `records`, and writes to the eventfd `wake` when something may be done.
    pub(crate) fn new(records: Records, wake: OwnedFd) -> Self {
        Self {
            records,
            heard: Arc::new(Mutex::new(Some(Vec::new()))),
            wake: Some(Arc::new(wake)),
        }
    }

    /// Whether acts have to wait.
    pub(crate) fn is_kept(&self) -> bool {
        self.records.are_kept()
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
            },
        );
    }

    /// A resolver is about to be asked for `name`, which `grant` allows, for `token`; [`Self::take`] has it
    /// as well.
    pub(crate) fn resolve(&self, token: Token, name: &str, grant: String) {
        self.submit(
            token,
            Intent {
                action: "dns.resolve",
                object: printable(name),
                reason: grant,
                detail: BTreeMap::new(),
                question: Question {
                    connection: None,
                    acts: vec![Asked::Resolve(name.to_owned())],
                },
            },
        );
    }

    /// A connection of `from` is about to be handed to the guest; [`Self::take`] has it as well. Conditions
    /// do not speak of what others do.
    pub(crate) fn accept(&self, token: Token, from: SocketAddr, forward: &Forward) {
        self.submit(
            token,
            Intent {
                action: "net.listen",
                object: listened(forward.guest_port),
                reason: format!("net.listen:{}={}", forward.address, forward.guest_port),
                detail: BTreeMap::from([("from".to_owned(), from.to_string())]),
                question: Question::default(),
            },
        );
    }

    fn submit(&self, token: Token, intent: Intent) {
        let (heard, wake) = (self.heard.clone(), self.wake.clone());
        let records = self.records.clone();
        let done = move |act: Result<Act, NotDone>| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match (heard.as_mut(), act) {
                (Some(heard), act) => heard.push((token, act)),
                (None, Ok(act)) => {
                    records.outcome(&act, Verdict::Failed, GONE, BTreeMap::new());
                }
                (None, Err(_)) => {}
            }
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
        heard.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A flow has ended, after so many bytes out and in.
    pub(crate) fn outcome(&self, act: &Act, failure: Option<&str>, bytes: (u64, u64)) {
        let detail = BTreeMap::from([
            ("sent".to_owned(), bytes.0.to_string()),
            ("received".to_owned(), bytes.1.to_string()),
        ]);
        self.end(act, failure, detail);
    }

    /// A resolver has answered that a name stands for these addresses, which may be none.
    pub(crate) fn answered(&self, act: &Act, addresses: impl Iterator<Item = Ipv4Addr>) {
        let addresses = addresses.take(MAX_ADDRESSES);
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        let detail = BTreeMap::from([("addresses".to_owned(), addresses.join(" "))]);
        self.end(act, None, detail);
    }

    /// An act has come to nothing.
    pub(crate) fn failed(&self, act: &Act, why: &str) {
        self.end(act, Some(why), BTreeMap::new());
    }

    /// The guest waits no more for what was recorded, if it was.
    pub(crate) fn given_up(&self, act: Option<Act>) {
        if let Some(act) = act {
            self.failed(&act, GAVE_UP);
        }
    }

    /// It was not waited for any longer until it was on record, or must not be done.
    pub(crate) fn late(&self, act: Result<Act, NotDone>) {
        if let Ok(act) = act {
            self.failed(&act, LATE);
        }
    }

    fn end(&self, act: &Act, failure: Option<&str>, detail: BTreeMap<String, String>) {
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

    /// A name is not looked up any more because the guest is gone.
    pub(crate) fn unanswered(&self, act: &Act) {
        self.failed(act, GONE);
    }

    /// Waits for what is not on record yet, the proxy's acts among it. Nobody takes anything any more.
    pub(crate) fn finish(&self) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let untaken = heard.take().unwrap_or_default();
        drop(heard);
        for act in untaken.into_iter().filter_map(|(_, act)| act.ok()) {
            self.failed(&act, GONE);
        }
        self.records.finish(PATIENCE);
    }

    /// Something was refused.
    pub(crate) fn refusal(&self, action: &'static str, object: &str, reason: &str) {
        self.records.refusal(action, object, reason);
    }
}

/// The port of the guest that a forward leads to, as an object of records.
pub(crate) fn listened(guest_port: u16) -> String {
    format!("tcp {guest_port}")
}

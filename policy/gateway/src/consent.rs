//! A person's consent to flows of UDP: the event loop asks for it and goes on, and hears by an event how it
//! was answered. Used by the table of these flows; TCP that takes consent is the proxy's.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_approval::MAX_PENDING;
use bulkhead_proxy::Consent;

use crate::table::Token;

/// Whose flow, and how somebody consented or why nobody did.
pub(crate) type Heard = (Token, Result<String, String>);

/// The way to a person, by default to nobody.
#[derive(Default)]
pub(crate) struct Consents {
    consent: Consent,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// An eventfd that wakes the event loop; without, there is nobody to ask.
    wake: Option<Arc<OwnedFd>>,
    /// Flows that wait.
    waiting: usize,
}

impl Consents {
    /// Asks by `consent`, and writes to the eventfd `wake` when there is an answer.
    pub(crate) fn new(consent: Consent, wake: OwnedFd) -> Self {
        Self {
            consent,
            wake: Some(Arc::new(wake)),
            ..Self::default()
        }
    }

    /// Asks whether the flow `token` may go to `object`, which `grant` allows; [`Self::take`] has the
    /// answer.
    ///
    /// # Errors
    /// Nobody is asked, and this is the answer.
    pub(crate) fn begin(&mut self, token: Token, object: &str, grant: &str) -> Result<(), String> {
        let Some(wake) = self.wake.clone() else {
            return Err("nobody can be asked".to_owned());
        };
        // One more would be denied by whoever asks the person, and be on record there each time.
        if self.waiting >= MAX_PENDING {
            return Err(format!("{MAX_PENDING} flows wait for a person already"));
        }
        self.waiting += 1;
        let heard = self.heard.clone();
        let done = move |said| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push((token, said));
            drop(heard);
            // It counts; a count that is full has woken the loop already.
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        };
        let why = format!("the grant {grant} demands it");
        self.consent.begin("net.connect", object, &why, done);
        Ok(())
    }

    /// What was answered since the last time.
    pub(crate) fn take(&mut self) -> Vec<Heard> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *heard);
        self.waiting = self.waiting.saturating_sub(taken.len());
        taken
    }
}

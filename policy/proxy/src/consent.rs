//! A person's consent: asked on threads that wait, one question each, while the proxy serves others.
//! Used where something has been decided that takes it, before it takes effect: by the proxy, and in its
//! gateway by the router of models and the event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bulkhead_approval::{Asker, MAX_PENDING, Question};
use tokio::sync::oneshot;

/// Threads that wait: for as many questions as may wait for a partition, and for one that is denied
/// at once because it would be one too many.
const WAITERS: usize = MAX_PENDING + 1;

/// Why there is no consent where there is no way to anybody.
const NOBODY: &str = "nobody can be asked";

/// Hears how somebody consented, or why nobody did.
type Heard = Box<dyn FnOnce(Result<String, String>) + Send>;

type Job = (Question, Heard);

/// The way to a person, by default to nobody.
#[derive(Clone, Default)]
pub struct Consent(Option<Sender<Job>>);

impl Consent {
    /// Starts the threads, which ask on `socket`.
    ///
    /// # Errors
    /// The host gives no threads.
    pub fn start(socket: OwnedFd) -> io::Result<Self> {
        let asker = Arc::new(Asker::new(socket));
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let (began, begun) = channel();
        for _ in 0..WAITERS {
            let (asker, queue, began) = (asker.clone(), queue.clone(), began.clone());
            // Held, so that the thread never ends before the process does, which it may have no
            // system call for.
            let held = jobs.clone();
            thread::Builder::new()
                .name("consent".to_owned())
                .spawn(move || {
                    let _ = began.send(());
                    wait(&asker, &queue);
                    drop(held);
                })?;
        }
        // All of them are there before the process gives up making any.
        let there = begun.iter().take(WAITERS).count();
        debug_assert_eq!(there, WAITERS);
        Ok(Self(Some(jobs)))
    }

    /// Asks whether `capability` may be used on `object`, and waits for the answer; how it was given.
    ///
    /// # Errors
    /// Why it was not.
    pub async fn ask(&self, capability: &str, object: &str, why: &str) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        self.begin(capability, object, why, move |said| {
            // The guest may have given up meanwhile.
            let _ = answer.send(said);
        });
        answered.await.unwrap_or_else(|_| Err(NOBODY.to_owned()))
    }

    /// The same for who does not wait: `heard` is called with the answer, on another thread where there is
    /// somebody to ask.
    pub fn begin(
        &self,
        capability: &str,
        object: &str,
        why: &str,
        heard: impl FnOnce(Result<String, String>) + Send + 'static,
    ) {
        let question = Question {
            capability: capability.to_owned(),
            object: object.to_owned(),
            why: why.to_owned(),
            task: None,
        };
        let job: Job = (question, Box::new(heard));
        let unasked = match &self.0 {
            Some(jobs) => jobs.send(job).map_err(|refused| refused.0).err(),
            None => Some(job),
        };
        if let Some((_, heard)) = unasked {
            heard(Err(NOBODY.to_owned()));
        }
    }
}

/// Asks one question after the other.
fn wait(asker: &Asker, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((question, heard)) = next else {
            return;
        };
        let said = match asker.ask(question) {
            Ok(said) => said,
            Err(none) => Err(none.to_string()),
        };
        heard(said);
    }
}

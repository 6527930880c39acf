//! A person's consent: asked on threads that wait, one question each, while the proxy serves others.
//! Used where something has been decided that takes it, before it takes effect.

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

type Job = (Question, oneshot::Sender<Result<String, String>>);

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
    pub(crate) async fn ask(
        &self,
        capability: &str,
        object: &str,
        why: &str,
    ) -> Result<String, String> {
        let nobody = || Err("nobody can be asked".to_owned());
        let Some(jobs) = &self.0 else {
            return nobody();
        };
        let question = Question {
            capability: capability.to_owned(),
            object: object.to_owned(),
            why: why.to_owned(),
            task: None,
        };
        let (answer, answered) = oneshot::channel();
        if jobs.send((question, answer)).is_err() {
            return nobody();
        }
        answered.await.unwrap_or_else(|_| nobody())
    }
}

/// Asks one question after the other.
fn wait(asker: &Asker, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((question, answer)) = next else {
            return;
        };
        let said = match asker.ask(question) {
            Ok(said) => said,
            Err(none) => Err(none.to_string()),
        };
        // The guest may have given up meanwhile.
        let _ = answer.send(said);
    }
}

//! Threads for the disk operations that io_uring does not carry out: where the host refuses it, for
//! disks attached after lock-down, and for the parts of an overlay that are more than one system
//! call. All disks of a partition share them. The machine calls [`Workers::start`] once, when the
//! jail is closed; the block device calls the rest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a worker does.
pub type Work = Box<dyn FnOnce() + Send>;

/// A handle on the threads; clones are handles on the same. The threads end after the last is gone.
#[derive(Clone, Default)]
pub struct Workers(Arc<Handle>);

#[derive(Default)]
struct Handle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Work and the disk it is for, oldest first. Each disk bounds its own.
    queue: VecDeque<(usize, Work)>,
    needed: usize,
    threads: usize,
    started: bool,
    ended: bool,
}

impl Workers {
    /// Asks for at least `threads` threads; all that ask share them.
    pub fn need(&self, threads: usize) {
        let mut state = self.0.0.state();
        state.needed = state.needed.max(threads);
    }

    /// Whether [`Self::start`] was called, and the jail is closed: a disk that comes now can make
    /// no io_uring of its own.
    pub(super) fn started(&self) -> bool {
        self.0.0.state().started
    }

    /// Starts as many threads as were asked for, maybe none; each calls `lock_in` first.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(&self, lock_in: impl Fn() + Clone + Send + 'static) -> io::Result<()> {
        let shared = &self.0.0;
        let needed = {
            let mut state = shared.state();
            state.started = true;
            state.needed
        };
        for number in 0..needed {
            let (shared, lock_in) = (shared.clone(), lock_in.clone());
            let body = move || {
                lock_in();
                shared.run();
            };
            let builder = std::thread::Builder::new().name(format!("disk{number}"));
            builder.spawn(body)?;
            self.0.0.state().threads += 1;
        }
        Ok(())
    }

    /// Has a thread do `work` for `owner`; false when there is no thread, and there will be none.
    pub fn submit(&self, owner: usize, work: Work) -> bool {
        let mut state = self.0.0.state();
        if state.threads == 0 {
            return false;
        }
        state.queue.push_back((owner, work));
        drop(state);
        self.0.0.work.notify_one();
        true
    }

    /// Takes back what `owner` submitted and no thread has begun; how much that was.
    pub(super) fn withdraw(&self, owner: usize) -> usize {
        let mut state = self.0.0.state();
        let before = state.queue.len();
        state.queue.retain(|(of, _)| *of != owner);
        before - state.queue.len()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some((_, work)) = state.queue.pop_front() {
                drop(state);
                work();
                state = self.state();
            } else if state.ended {
                return;
            } else {
                let woken = self.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

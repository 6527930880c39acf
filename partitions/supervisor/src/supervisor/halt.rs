//! The emergency stop, on the supervisor's side: partitions stand still, and so do the processes
//! behind their devices, whether they help or not.
//!
//! What stands behind the devices is frozen at once: a gateway that does not run moves nothing. The
//! VMM is asked to pause first, so that its guest learns later that it was away, and frozen then, or
//! when it has not answered in time. Programs that tools have started do not go on afterwards: they are
//! killed.

use super::Supervisor;
use super::acts::After;
use super::member::Member;
use crate::backend::Kind;
use crate::control::reply;
use crate::lifecycle::State;
use bulkhead_machine::control::Command;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a VMM may take to pause before it is frozen as it is.
const PAUSE: Duration = Duration::from_millis(250);

/// How far a partition has come in standing still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// Its VMM was asked to pause, and is frozen at this time.
    Asked(Instant),
    /// Nothing of it runs.
    Done {
        /// The pause is ours to end.
        paused: bool,
    },
}

impl Supervisor {
    /// Halts every partition; `client` is told when all are.
    pub(super) fn halt(&mut self, client: UnixStream) {
        self.halted = true;
        self.halting.push(client);
        self.members.iter_mut().for_each(Member::halt);
        let deadline = Instant::now() + PAUSE;
        for backend in self.members.iter().flat_map(Member::all_backends) {
            if backend.kind == Kind::Tools {
                backend.process.kill_children(deadline);
            }
        }
    }

    /// Tells those who wait for it that everything stands still.
    pub(super) fn answer_halt(&mut self) {
        if self.halting.is_empty() || !self.members.iter().all(Member::stands_still) {
            return;
        }
        let record = self.record(false);
        // Without it, `ps` asks us.
        let _ = self.directory.write(&record);
        for client in self.halting.drain(..) {
            reply(&client, &record);
        }
    }

    /// Lets every partition that was halted go on.
    pub(super) fn go_on(&mut self) {
        self.halted = false;
        self.members.iter_mut().for_each(Member::go_on);
        let _ = self.directory.write(&self.record(false));
    }
}

impl Member {
    fn halt(&mut self) {
        if self.exited || self.halt.is_some() {
            return;
        }
        self.all_backends()
            .for_each(|backend| backend.process.freeze());
        let runs = self.state() == State::Running;
        if runs && self.ask_ourselves(Command::Pause, After::Halt) {
            self.halt = Some(Halt::Asked(Instant::now() + PAUSE));
        } else {
            // It stands still already, does not run yet, or does not listen.
            self.vmm.process.freeze();
            self.halt = Some(Halt::Done { paused: false });
        }
    }

    /// The VMM has answered, or its time is over: from here on it does not have to be believed.
    pub(super) fn freeze(&mut self, paused: bool) {
        if !matches!(self.halt, Some(Halt::Asked(_))) {
            return;
        }
        self.vmm.process.freeze();
        self.halt = Some(Halt::Done { paused: true });
        if paused {
            let _ = self.step(State::Suspended);
        }
    }

    pub(super) fn halt_deadline(&self) -> Option<Instant> {
        match self.halt {
            Some(Halt::Asked(deadline)) => Some(deadline),
            _ => None,
        }
    }

    fn stands_still(&self) -> bool {
        self.exited || matches!(self.halt, Some(Halt::Done { .. }))
    }

    fn go_on(&mut self) {
        let Some(halt) = self.halt.take() else {
            return;
        };
        self.vmm.process.thaw();
        self.all_backends()
            .for_each(|backend| backend.process.thaw());
        if halt != (Halt::Done { paused: false }) {
            let _ = self.ask_ourselves(Command::Resume, After::State(State::Running));
        }
    }
}

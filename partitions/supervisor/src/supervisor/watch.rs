//! The loop of a running system: one `poll` over signals, VMMs, console pumps and other commands.

use super::{Cause, Outcome, Supervisor};
use crate::console::Notice;
use crate::control::{Request, serve};
use crate::end::End;
use crate::error::Error;
use crate::lifecycle::State;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// Who became readable.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Notices,
    Listener,
    Control(usize),
    Process(usize),
    Stderr(usize),
    Output(usize),
}

impl Supervisor {
    /// Watches the system until all of it has ended. A byte read from `signals` is the number of a
    /// signal that ends it; a second one ends it without asking. `on_running` is called once, when
    /// every partition runs or has run.
    ///
    /// # Errors
    /// The operating system refused to wait. The system is ended all the same.
    pub fn wait(
        mut self,
        mut signals: impl Read + AsFd,
        on_running: impl FnOnce(),
    ) -> Result<Outcome, Error> {
        let mut on_running = Some(on_running);
        let mut cause = None;
        while self.members.iter().any(|member| !member.is_over()) {
            for source in self.poll(signals.as_fd())? {
                let stop = match source {
                    Source::Signals => read_byte(&mut signals).map(Cause::Signal),
                    Source::Notices => self.notice(),
                    Source::Listener => self.serve(),
                    Source::Control(at) => self.with(at, |member| member.hear()),
                    Source::Stderr(at) => self.with(at, |member| {
                        if !member.vmm.listen() {
                            member.vmm.stderr = None;
                        }
                    }),
                    Source::Output(at) => self.with(at, |member| member.finished = None),
                    Source::Process(at) => {
                        self.with(at, |member| member.exit());
                        self.members
                            .get(at)
                            .and_then(|m| m.was_rejected().then_some(Cause::Incomplete))
                    }
                };
                if let Some(stop) = stop {
                    // Only a person's second signal means "now".
                    let at_once = matches!(stop, Cause::Signal(_)) && cause.is_some();
                    cause.get_or_insert(stop);
                    self.members
                        .iter_mut()
                        .for_each(|member| member.stop(at_once));
                }
            }
            let now = Instant::now();
            for member in &mut self.members {
                if member.deadline.is_some_and(|deadline| deadline <= now) {
                    member.expire();
                }
            }
            let ran = |state| matches!(state, State::Running | State::Terminated);
            if self.members.iter().all(|member| ran(member.state()))
                && let Some(on_running) = on_running.take()
            {
                // Without the record, `ps` falls back to the last one.
                let _ = self.directory.write(&self.record(false));
                on_running();
            }
        }
        if self.keep_logs && cause.is_none() {
            self.directory.write(&self.record(true))?;
            self.directory.keep();
        }
        let ends = self.members.drain(..).map(|member| {
            let end = member
                .end
                .unwrap_or_else(|| End::Vanished("is gone".to_owned()));
            (member.name, end)
        });
        Ok(Outcome {
            ends: ends.collect(),
            cause,
        })
    }

    fn with(&mut self, at: usize, act: impl FnOnce(&mut super::Member)) -> Option<Cause> {
        if let Some(member) = self.members.get_mut(at) {
            act(member);
        }
        None
    }

    /// Waits for something to read or for the next deadline.
    fn poll(&self, signals: BorrowedFd<'_>) -> Result<Vec<Source>, Error> {
        let mut sources = vec![
            (Source::Signals, signals),
            (Source::Notices, self.notices.as_fd()),
            (Source::Listener, self.listener.as_fd()),
        ];
        for (at, member) in self.members.iter().enumerate() {
            if member.talking {
                sources.push((Source::Control(at), member.vmm.control.as_fd()));
            }
            if let Some(stderr) = &member.vmm.stderr {
                sources.push((Source::Stderr(at), stderr.as_fd()));
            }
            if !member.exited {
                sources.push((Source::Process(at), member.vmm.pidfd.as_fd()));
            }
            if let Some(finished) = &member.finished {
                sources.push((Source::Output(at), finished.as_fd()));
            }
        }
        let mut watched: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let deadline = self
            .members
            .iter()
            .filter_map(|member| member.deadline)
            .min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::system("wait for partitions")(errno)),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let ready = sources.iter().zip(&watched).filter(|(_, fd)| ready(fd));
        Ok(ready.map(|((source, _), _)| *source).collect())
    }

    fn notice(&mut self) -> Option<Cause> {
        match Notice::from_byte(read_byte(&mut self.notices)?)? {
            Notice::Escape => Some(Cause::Escape),
            Notice::BrokenPipe => Some(Cause::BrokenPipe),
            Notice::OutputFailed(errno) => Some(Cause::OutputFailed { errno }),
        }
    }

    fn serve(&mut self) -> Option<Cause> {
        // The client may be gone again by now.
        let (client, _) = self.listener.accept().ok()?;
        client.set_nonblocking(false).ok()?;
        match serve(&client, &self.record(false))? {
            Request::Status => None,
            Request::Down => Some(Cause::Request),
        }
    }
}

fn read_byte(from: &mut impl Read) -> Option<u8> {
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(1..) => return byte.first().copied(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return None,
        }
    }
}

//! The loop of a running system: one `poll` over signals, VMMs, console pumps and other commands.

use super::Consoles;
use super::{Cause, Outcome, Supervisor};
use crate::console::Notice;
use crate::control::{Answer, Request, reply};
use crate::end::End;
use crate::error::Error;
use crate::lifecycle::State;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Who became readable.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Notices,
    Listener,
    Caller(u64),
    Control(usize),
    Process(usize),
    Stderr(usize),
    Output(usize),
    Vsock(usize),
    BackendControl(usize, usize),
    BackendStderr(usize, usize),
    BackendQuestion(usize, usize),
    BackendProcess(usize, usize),
    Ledger,
}

/// The signal that says that the terminal's window has another size (signal(7), x86).
const SIGWINCH: u8 = 28;

impl Supervisor {
    /// Watches the system until all of it has ended. A byte read from `signals` is the number of a
    /// signal: SIGWINCH has the guest told of the window's size, any other ends the system, and a second
    /// one ends it without asking. `on_running` is called once, when
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
            let mut ended = Vec::new();
            for source in self.poll(signals.as_fd())? {
                let stop = match source {
                    Source::Signals => match read_byte(&mut signals) {
                        Some(SIGWINCH) => self.resize_consoles(),
                        byte => byte.map(Cause::Signal),
                    },
                    Source::Notices => self.notice(),
                    Source::Listener => {
                        let request = self.callers.accept(&self.listener);
                        request.and_then(|(client, request)| self.serve(client, request))
                    }
                    Source::Caller(number) => {
                        let request = self.callers.hear(number);
                        request.and_then(|(client, request)| self.serve(client, request))
                    }
                    Source::Control(at) => match self.members.get_mut(at).map(|m| m.hear()) {
                        Some(true) => self.resize_consoles(),
                        Some(false) | None => None,
                    },
                    Source::Stderr(at) => self.with(at, |member| member.listen()),
                    Source::Vsock(at) => self.with(at, |member| {
                        if let Some(vsock) = &mut member.vsock {
                            vsock.serve();
                        }
                    }),
                    Source::BackendControl(at, backend) => {
                        self.with(at, |member| member.hear_backend(backend))
                    }
                    Source::BackendQuestion(at, backend) => self.hear_question(at, backend),
                    Source::BackendStderr(at, backend) => {
                        self.with(at, |member| member.listen_to_backend(backend))
                    }
                    Source::BackendProcess(at, backend) => {
                        ended.push((at, backend));
                        None
                    }
                    Source::Ledger => self.listen_to_ledger(),
                    Source::Output(at) => self.with(at, |member| member.finished = None),
                    Source::Process(at) => {
                        // Its back ends are gone with it.
                        ended.retain(|(of, _)| *of != at);
                        let launcher = &self.launcher;
                        let member = self.members.get_mut(at);
                        member.and_then(|member| {
                            self.approvals.end(member.name());
                            member.exit(launcher);
                            member.was_rejected().then_some(Cause::Incomplete)
                        })
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
            for (at, member) in self.members.iter_mut().enumerate() {
                let ended = ended.iter().filter(|(of, _)| *of == at);
                let ended: Vec<usize> = ended.map(|(_, backend)| *backend).collect();
                if !ended.is_empty() {
                    member.reap_backends(&ended);
                }
            }
            let now = Instant::now();
            for member in &mut self.members {
                member.time_out(now);
                if member.expires.is_some_and(|expires| expires <= now) {
                    member.outlive();
                }
                if member.deadline.is_some_and(|deadline| deadline <= now) {
                    member.expire();
                }
            }
            self.approvals.expire(now);
            self.callers.expire(now);
            self.answer_halt();
            self.settle();
            let ran =
                |state| matches!(state, State::Running | State::Suspended | State::Terminated);
            if self.members.iter().all(|member| ran(member.state()))
                && let Some(on_running) = on_running.take()
            {
                // Without the record, `ps` falls back to the last one.
                let _ = self.directory.write(&self.record(false));
                on_running();
            }
        }
        if self.launcher.options.keep_logs && cause.is_none() {
            self.directory.write(&self.record(true))?;
            self.directory.keep();
        }
        let ends = self.members.drain(..).map(|member| {
            let end = member
                .end
                .clone()
                .unwrap_or_else(|| End::Vanished("is gone".to_owned()));
            (member.partition.name, end)
        });
        Ok(Outcome {
            ends: ends.collect(),
            cause,
        })
    }

    fn member(&mut self, name: &str) -> Option<&mut super::Member> {
        self.members.iter_mut().find(|member| member.name() == name)
    }

    fn with(&mut self, at: usize, act: impl FnOnce(&mut super::Member)) -> Option<Cause> {
        if let Some(member) = self.members.get_mut(at) {
            act(member);
        }
        None
    }

    /// Waits for something to read or for the next deadline.
    fn poll(&self, signals: BorrowedFd<'_>) -> Result<Vec<Source>, Error> {
        let ledger = self.ledger.voice();
        let mut sources = vec![
            (Source::Signals, signals),
            (Source::Notices, self.notices.as_fd()),
            (Source::Listener, self.listener.as_fd()),
        ];
        sources.extend(ledger.as_ref().map(|voice| (Source::Ledger, voice.as_fd())));
        let callers = self.callers.waiting();
        sources.extend(callers.map(|(number, stream)| (Source::Caller(number), stream)));
        for (at, member) in self.members.iter().enumerate() {
            if member.talking {
                sources.push((Source::Control(at), member.vmm.control.as_fd()));
            }
            let vsock = member.vsock.as_ref().filter(|vsock| vsock.asking);
            if let Some(vsock) = vsock.filter(|_| member.halt.is_none()) {
                sources.push((Source::Vsock(at), vsock.connector.as_fd()));
            }
            for (number, backend) in member.backends.iter().enumerate() {
                if let Some(control) = &backend.control {
                    sources.push((Source::BackendControl(at, number), control.as_fd()));
                }
                if let Some(questions) = &backend.questions {
                    let source = Source::BackendQuestion(at, number);
                    sources.push((source, questions.as_fd()));
                }
                if let Some(stderr) = &backend.process.stderr {
                    sources.push((Source::BackendStderr(at, number), stderr.as_fd()));
                }
                let pidfd = backend.process.pidfd.as_fd();
                sources.push((Source::BackendProcess(at, number), pidfd));
            }
            if let Some(stderr) = &member.vmm.process.stderr {
                sources.push((Source::Stderr(at), stderr.as_fd()));
            }
            if !member.exited {
                sources.push((Source::Process(at), member.vmm.process.pidfd.as_fd()));
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
            .flat_map(|member| [member.deadline, member.next_timeout(), member.expires])
            .chain([self.approvals.next_deadline(), self.callers.next_deadline()])
            .flatten()
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

    /// Waits until what has happened is on record. Where it cannot be, nothing that has to be recorded
    /// before is done any more.
    fn settle(&mut self) {
        if let (Err(error), false) = (self.ledger.settle(), self.unrecorded) {
            self.unrecorded = true;
            let text = format!("{error}: whatever has to be recorded is refused");
            self.say_of_ledger(text.as_bytes());
        }
    }

    /// Passes on what the ledger's writer says.
    fn listen_to_ledger(&mut self) -> Option<Cause> {
        if let Some(text) = self.ledger.listen() {
            self.say_of_ledger(&text);
        }
        None
    }

    fn say_of_ledger(&mut self, text: &[u8]) {
        if let Some(member) = self.members.first_mut() {
            member.messages.say("ledger", text);
        }
    }

    fn notice(&mut self) -> Option<Cause> {
        match Notice::from_byte(read_byte(&mut self.notices)?)? {
            Notice::Escape => Some(Cause::Escape),
            Notice::BrokenPipe => Some(Cause::BrokenPipe),
            Notice::OutputFailed(errno) => Some(Cause::OutputFailed { errno }),
        }
    }

    fn serve(&mut self, client: UnixStream, request: Request) -> Option<Cause> {
        match request {
            Request::Status => reply(&client, &self.record(false)),
            Request::Down => {
                reply(&client, &self.record(false));
                return Some(Cause::Request);
            }
            Request::Whose { token } => {
                reply(&client, &self.launcher.options.secrets.whose(&token))
            }
            Request::Questions => reply(&client, &self.approvals.open(Instant::now())),
            Request::Decide { question, allow } => reply(&client, &self.decide(question, allow)),
            Request::Halt => self.halt(client),
            Request::GoOn => {
                self.go_on();
                reply(&client, &self.record(false));
            }
            Request::Conditions { partition } => {
                let member = self.member(&partition);
                reply(&client, &member.and_then(|member| member.held_conditions()));
            }
            Request::Partition { .. } | Request::Reload { .. } if self.halted => {
                reply(&client, &halted())
            }
            Request::Reload { partition, new } => match self.member(&partition) {
                Some(member) => member.reload(new, client),
                None => reply(&client, &no_such_partition(&partition)),
            },
            Request::Partition { partition, act } => {
                let launcher = &self.launcher;
                let mut members = self.members.iter_mut();
                match members.find(|member| member.name() == partition) {
                    Some(member) => member.act(act, client, launcher),
                    None => reply(&client, &no_such_partition(&partition)),
                }
            }
        }
        None
    }

    /// Tells the guest on our terminal how large its window is.
    fn resize_consoles(&mut self) -> Option<Cause> {
        let Consoles::Attached { tty: true, .. } = self.launcher.options.consoles else {
            return None;
        };
        let window = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        for member in &mut self.members {
            if member.state() == State::Running {
                member.resize_console(window.ws_col, window.ws_row);
            }
        }
        None
    }
}

fn halted() -> Answer {
    Answer::Refused {
        code: Error::Halted.code().to_owned(),
        message: Error::Halted.to_string(),
        help: Error::Halted.help(),
    }
}

fn no_such_partition(partition: &str) -> Answer {
    Answer::Refused {
        code: "no-such-partition".to_owned(),
        message: format!("the system has no partition `{}`", partition.escape_debug()),
        help: Some("list them with `bulkhead ps`".to_owned()),
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

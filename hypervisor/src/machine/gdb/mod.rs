//! The debugger's thread: GDB's remote protocol on the listening socket of the description.
//!
//! The vCPUs are held from the start until the first debugger has come and lets them go on. One that
//! leaves lets them run; the next is waited for. Threads are vCPUs, by number from 1. While the
//! debugger looks at stopped vCPUs, devices go on. The protocol is the gdbstub crate's; this room has
//! the connection and the waiting, `target` what debuggers can do.

mod target;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_machine::control::Ended;
use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::TargetError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::run_control::Holder;
use super::vcpu::Shared;
use crate::error::Error;
use target::{Debuggee, tid};

/// Stops of vCPUs that the debugger has not heard of.
#[derive(Debug)]
pub struct Stops {
    vcpus: Mutex<VecDeque<usize>>,
    /// Readable while there are some.
    event: OwnedFd,
}

impl Stops {
    /// None so far.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io("cannot make an eventfd"))?;
        Ok(Self {
            vcpus: Mutex::default(),
            event,
        })
    }

    /// vCPU `id` has come to a breakpoint, or to the end of a step.
    pub fn tell(&self, id: usize) {
        self.lock().push_back(id);
        // Full only after 2^64 - 2 stops that nobody heard of.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// The first stop; later ones are forgotten: who stands before a breakpoint comes to it again.
    fn take(&self) -> Option<usize> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let mut vcpus = self.lock();
        let first = vcpus.pop_front();
        vcpus.clear();
        first
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<usize>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one debugger after another on `listener`, until the partition is over.
pub fn serve(listener: &File, shared: &Arc<Shared>, stops: &Arc<Stops>) {
    while wait(shared, &[listener.as_fd()]).is_some() {
        let stream = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(stream) => stream,
            // Somebody who left again.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => {
                let failed = Error::io("cannot accept a debugger");
                return shared.ending.fail(failed(error));
            }
        };
        // A vCPU that waits for its console to be read joins the others later.
        let _ = shared.control.hold(Holder::Debugger);
        let mut debuggee = Debuggee::new(shared.clone(), stops.clone());
        let session = GdbStub::new(Stream::new(stream, shared.clone()));
        let end = session.run_blocking::<Session>(&mut debuggee);
        if matches!(end, Ok(DisconnectReason::Kill)) {
            shared.ending.end(Ended::Stopped);
        }
        debuggee.forget();
        shared.control.release(Holder::Debugger);
    }
}

/// Waits until one of `fds` is ready; its index, or nothing when the partition is over.
fn wait(shared: &Shared, fds: &[std::os::fd::BorrowedFd<'_>]) -> Option<usize> {
    let ending = shared.ending.event();
    let mut all: Vec<_> = fds
        .iter()
        .chain([&ending])
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    loop {
        // What else than a signal could fail would fail for ever: the thread ends.
        match poll(&mut all, None) {
            Ok(_) if shared.ending.is_over() => return None,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return None,
        }
        let ready = all.iter().position(|fd| !fd.revents().is_empty());
        if let Some(index) = ready {
            return Some(index);
        }
    }
}

/// The connection to a debugger; what is written leaves with the flush.
struct Stream {
    file: File,
    shared: Arc<Shared>,
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
}

impl Stream {
    fn new(socket: OwnedFd, shared: Arc<Shared>) -> Self {
        Self {
            file: File::from(socket),
            shared,
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
        }
    }

    /// Takes in what has come; waits for it, and fails when the partition is over.
    fn fill(&mut self) -> io::Result<()> {
        if wait(&self.shared, &[self.file.as_fd()]).is_none() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut buffer = [0; 4096];
        match self.file.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => {
                self.incoming.extend(buffer.iter().take(len));
                Ok(())
            }
        }
    }
}

impl Connection for Stream {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.outgoing.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.file.write_all(&self.outgoing);
        self.outgoing.clear();
        done
    }
}

impl ConnectionExt for Stream {
    fn read(&mut self) -> io::Result<u8> {
        loop {
            if let Some(byte) = self.incoming.pop_front() {
                return Ok(byte);
            }
            self.fill()?;
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.incoming.front().copied())
    }
}

/// How the stub waits for vCPUs and for the debugger at once.
enum Session {}

impl BlockingEventLoop for Session {
    type Target = Debuggee;
    type Connection = Stream;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        debuggee: &mut Debuggee,
        stream: &mut Stream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Error, io::Error>> {
        let shared = stream.shared.clone();
        loop {
            if let Some(byte) = stream.incoming.pop_front() {
                return Ok(Event::IncomingData(byte));
            }
            let stops = debuggee.stops().clone();
            match wait(&shared, &[stream.file.as_fd(), stops.event.as_fd()]) {
                None => return Ok(Event::TargetStopped(end(&shared))),
                Some(0) => stream.fill().map_err(WaitForStopReasonError::Connection)?,
                Some(_) => {
                    // All stand, or one waits for its console to be read and stands later.
                    let _ = shared.control.hold(Holder::Debugger);
                    if let Some(id) = stops.take() {
                        return Ok(Event::TargetStopped(trap(id, Signal::SIGTRAP)));
                    }
                }
            }
        }
    }

    fn on_interrupt(debuggee: &mut Debuggee) -> Result<Option<Self::StopReason>, Error> {
        // Where a vCPU does not stand, the debugger may ask again.
        Ok(debuggee.interrupt().then(|| trap(0, Signal::SIGINT)))
    }
}

fn trap(id: usize, signal: Signal) -> MultiThreadStopReason<u64> {
    MultiThreadStopReason::SignalWithThread {
        tid: tid(id),
        signal,
    }
}

/// What the debugger hears of the partition's end.
fn end(shared: &Shared) -> MultiThreadStopReason<u64> {
    match shared.ending.outcome() {
        Some(Ok(Ended::Exit { status })) => MultiThreadStopReason::Exited(*status),
        Some(Ok(Ended::PowerOff | Ended::Reset | Ended::Stopped)) => {
            MultiThreadStopReason::Exited(0)
        }
        Some(Ok(Ended::TripleFault)) => MultiThreadStopReason::Terminated(Signal::SIGSEGV),
        Some(Ok(Ended::CannotRun { .. })) => MultiThreadStopReason::Terminated(Signal::SIGILL),
        _ => MultiThreadStopReason::Terminated(Signal::SIGKILL),
    }
}

/// For `map_err` on what KVM or guest memory refuses: an error for the debugger's user alone.
fn refused<E>(_: E) -> TargetError<Error> {
    TargetError::NonFatal
}

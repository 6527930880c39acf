//! The connection to a vhost-user back end: one request at a time, each answered in time or never.
//! Used by the device alone.
//!
//! The messages' structures are the `vhost` crate's. Its front end is not used, because it takes a
//! read that timed out for one to try again: a back end that says nothing would stop its caller for
//! ever. Here nothing blocks but `poll`, until a deadline; descriptors that a back end sends are
//! dropped by the kernel; and the first thing that goes wrong is the end of the connection.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, recv, sendmsg,
    shutdown,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag, VhostUserU64};
use vm_memory::ByteValued;

/// How long a back end may take for everything that one event of the driver needs of it.
pub(super) const PATIENCE: Duration = if cfg!(test) {
    Duration::from_millis(300)
} else {
    Duration::from_secs(5)
};
/// Most descriptors of one request: one a region of memory.
pub(super) const MAX_DESCRIPTORS: usize = 8;
/// Version 1 of the protocol.
const VERSION: u32 = 1;
/// Request, flags and size of the body, 32 bits each.
const HEADER: usize = 12;

/// Why a back end is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It closed the connection, or the connection was given up before.
    #[error("the vhost-user back end is gone")]
    Gone,
    /// It did not answer.
    #[error("the vhost-user back end did not answer {0:?} in time")]
    Late(FrontendReq),
    /// It answered something else.
    #[error("the vhost-user back end answered {0:?} with something else")]
    Garbled(FrontendReq),
    /// It refused.
    #[error("the vhost-user back end refused {0:?}")]
    Refused(FrontendReq),
    /// It said something that nobody asked for.
    #[error("the vhost-user back end sent what nobody asked for")]
    Unasked,
    /// It reported an error of a queue.
    #[error("the vhost-user back end reported a broken queue")]
    Queue,
    /// It cannot do what is needed.
    #[error("the vhost-user back end does not offer {0}")]
    Lacks(String),
    /// The description asks for something this front end has not.
    #[error("a vhost-user device cannot have {0}")]
    Unsupported(String),
    /// Guest memory is not a shared file.
    #[error("a device of another process, as a shared directory is, needs `shared` memory")]
    Memory,
    /// The host refused.
    #[error("the connection to the vhost-user back end failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for BackendError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::Gone,
            other => Self::Io(other.into()),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    until: Instant,
    /// Requests without a reply of their own are acknowledged.
    pub(super) acknowledged: bool,
    alive: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            until: Instant::now(),
            acknowledged: false,
            alive: true,
        }
    }

    /// The socket, to watch for what nobody asked for.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// It still answers.
    pub(super) fn alive(&self) -> bool {
        self.alive
    }

    /// Gives the back end [`PATIENCE`] for the requests that follow.
    pub(super) fn begin(&mut self) {
        self.until = Instant::now() + PATIENCE;
    }

    /// Looks at a connection that was announced to be readable while nobody asks. The announcement
    /// may be that of a reply that was taken meanwhile.
    pub(super) fn look(&self) -> Result<(), BackendError> {
        loop {
            return match recv(
                &self.socket,
                &mut [0; 1][..],
                RecvFlags::DONTWAIT | RecvFlags::PEEK,
            ) {
                Err(Errno::AGAIN) => Ok(()),
                Err(Errno::INTR) => continue,
                Ok((0, _)) => Err(BackendError::Gone),
                Ok(_) => Err(BackendError::Unasked),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Ends the connection, for good.
    pub(super) fn give_up(&mut self) {
        self.alive = false;
        // One that is closed already needs no more.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends `request`, and waits until the back end has done it where it acknowledges.
    pub(super) fn tell(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), BackendError> {
        let flags = if self.acknowledged {
            VhostUserHeaderFlag::NEED_REPLY.bits()
        } else {
            0
        };
        let mut answer = VhostUserU64::default();
        let reply = self.acknowledged.then_some(answer.as_mut_slice());
        self.exchange(request, flags, body, descriptors, reply)?;
        if { answer.value } != 0 {
            self.give_up();
            return Err(BackendError::Refused(request));
        }
        Ok(())
    }

    /// Sends `request`, and returns the reply's body.
    pub(super) fn ask<T: ByteValued + Default>(
        &mut self,
        request: FrontendReq,
        body: &[u8],
    ) -> Result<T, BackendError> {
        let mut answer = T::default();
        self.ask_into(request, body, answer.as_mut_slice())?;
        Ok(answer)
    }

    /// As [`Self::ask`], for a body that is no structure.
    pub(super) fn ask_into(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        answer: &mut [u8],
    ) -> Result<(), BackendError> {
        self.exchange(request, 0, body, &[], Some(answer))
    }

    fn exchange(
        &mut self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        answer: Option<&mut [u8]>,
    ) -> Result<(), BackendError> {
        if !self.alive {
            return Err(BackendError::Gone);
        }
        let outcome = self
            .send(request, flags, body, descriptors)
            .and_then(|()| match answer {
                Some(answer) => self.receive(request, answer),
                None => Ok(()),
            });
        if outcome.is_err() {
            self.give_up();
        }
        outcome
    }

    fn send(
        &self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), BackendError> {
        let head = [request as u32, VERSION | flags, body.len() as u32].map(u32::to_ne_bytes);
        let message = [head.as_flattened(), body].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut sent = 0;
        while let Some(rest) = message.get(sent..).filter(|rest| !rest.is_empty()) {
            let mut control = SendAncillaryBuffer::new(&mut space);
            // They go with the first byte.
            if sent == 0
                && !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(BackendError::Memory);
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => self.wait(request, PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives the reply to `request`, whose body has the length of `body`.
    fn receive(&self, request: FrontendReq, body: &mut [u8]) -> Result<(), BackendError> {
        let mut head = [0; HEADER];
        self.fill(request, &mut head)?;
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        let expected = [request as u32, flags, body.len() as u32].map(u32::to_ne_bytes);
        if head != expected.as_flattened() {
            return Err(BackendError::Garbled(request));
        }
        self.fill(request, body)
    }

    fn fill(&self, request: FrontendReq, buffer: &mut [u8]) -> Result<(), BackendError> {
        let mut got = 0;
        while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match recv(&self.socket, rest, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(BackendError::Gone),
                Ok((count, _)) => got += count,
                Err(Errno::AGAIN) => self.wait(request, PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, request: FrontendReq, events: PollFlags) -> Result<(), BackendError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(BackendError::Late(request));
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)) {
            // Time is looked at again by the next call.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

//! The sockets of the process: the supervisor's, through which askers come, and the askers'.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_conditions::control::{Command, Event, MAX_CLIENTS, MAX_MESSAGE_BYTES};
use bulkhead_conditions::wire::{Answer, MAX_REQUEST_BYTES};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

use super::{Judge, say, tell};

/// Most questions of an asker before others have a turn.
const QUESTIONS: usize = 16;

/// The supervisor's socket.
pub(super) struct Control(OwnedFd);

/// Everybody who asks.
#[derive(Default)]
pub(super) struct Askers(Vec<OwnedFd>);

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Control {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Does what the supervisor wants; false when it is gone.
    pub(super) fn obey(&self, askers: &mut Askers, judge: &mut Judge) -> bool {
        loop {
            let mut bytes = [0; MAX_MESSAGE_BYTES];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let received = match recvmsg(&self.0, &mut parts, &mut ancillary, flags) {
                Ok(received) => received.bytes,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => continue,
                Err(_) => return false,
            };
            if received == 0 {
                return false;
            }
            let mut passed = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let passed = passed.next().and_then(|mut passed| passed.next());
            let packet = bytes.get(..received).unwrap_or_default();
            match (serde_json::from_slice(packet), passed) {
                (Ok(Command::Client), Some(socket)) => askers.add(socket),
                (Ok(Command::Reload { id, widen, of }), Some(file)) => {
                    let outcome = judge.reload(file, widen, of.as_deref());
                    tell(&self.0, &Event::Reloaded { id, outcome });
                }
                // What came with it is closed: an asker sees that nobody answers.
                _ => say("the supervisor said what is no command"),
            }
        }
    }
}

impl Askers {
    fn add(&mut self, socket: OwnedFd) {
        match self.0.len() < MAX_CLIENTS {
            true => self.0.push(socket),
            false => say("too many processes ask: another is not answered"),
        }
    }

    /// Their sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Answers those that are `ready`, counted as in [`Askers::sockets`].
    pub(super) fn answer(
        &mut self,
        ready: &[usize],
        mut answer: impl FnMut(&[u8]) -> Option<Answer>,
    ) {
        let mut at = 0;
        self.0.retain(|socket| {
            let goes_on = !ready.contains(&at) || serve(socket, &mut answer);
            at += 1;
            goes_on
        });
    }
}

/// Answers what an asker has asked; false when it will ask no more, or says what is no question.
fn serve(socket: &OwnedFd, answer: &mut impl FnMut(&[u8]) -> Option<Answer>) -> bool {
    let mut buffer = vec![0; MAX_REQUEST_BYTES + 1];
    for _ in 0..QUESTIONS {
        let length = match recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((length @ 1.., _)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Ok((0, _)) | Err(_) => return false,
        };
        let packet = buffer.get(..length).filter(|_| length <= MAX_REQUEST_BYTES);
        let Some(answer) = packet.and_then(&mut *answer) else {
            say("somebody asked what is no question, and is not answered any more");
            return false;
        };
        // An answer is plain data, and short.
        let packet = serde_json::to_vec(&answer).unwrap_or_default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // Whoever does not read has asked too much at once.
        if send(socket, &packet, flags).is_err() {
            return false;
        }
    }
    true
}

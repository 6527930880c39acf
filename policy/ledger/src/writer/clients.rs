//! The sockets of the writer: the supervisor's, through which clients come, and the clients'.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_record::Entry;
use bulkhead_record::description::{Command, MAX_CLIENTS, MAX_MESSAGE_BYTES};
use bulkhead_record::wire::{MAX_REQUEST_BYTES, Outcome};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};

use super::requests::{self, Packet};
use super::say;

/// Most packets of a client before others have a turn.
const PACKETS: usize = 64;
/// Most entries in a commit.
const ENTRIES: usize = 1024;

/// The supervisor's socket.
pub(super) struct Control(OwnedFd);

/// Whose request it was: its client's place, and its number there.
pub(super) type Sender = (usize, u64);

/// Everybody who may record.
#[derive(Default)]
pub(super) struct Clients {
    clients: Vec<Option<Client>>,
}

struct Client {
    socket: OwnedFd,
    actor: String,
    /// People were told of what it may not do: once, since it may go on trying.
    told: bool,
}

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
    pub(super) fn obey(&self, clients: &mut Clients) -> bool {
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
            let mut sockets = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let socket = sockets.next().and_then(|mut sockets| sockets.next());
            let packet = bytes.get(..received).unwrap_or_default();
            match (serde_json::from_slice(packet), socket) {
                (Ok(Command::Client { actor }), Some(socket)) if requests::is_actor(&actor) => {
                    clients.add(Client {
                        socket,
                        actor,
                        told: false,
                    });
                }
                // The client's socket is closed: it sees that nobody records for it.
                _ => say("the supervisor said what is no command"),
            }
        }
    }
}

impl Clients {
    fn add(&mut self, client: Client) {
        if self.clients.iter().flatten().count() >= MAX_CLIENTS {
            return say("there are too many clients: another is not served");
        }
        match self.clients.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(client),
            None => self.clients.push(Some(client)),
        }
    }

    /// Their sockets, in the order of [`Clients::requests`].
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients
            .iter()
            .flatten()
            .map(|client| client.socket.as_fd())
    }

    /// What is asked for by those that are `ready`, counted as in [`Clients::sockets`], of a ledger with
    /// `size` records.
    pub(super) fn requests(&mut self, ready: &[usize], size: u64) -> Vec<(Sender, Entry)> {
        let mut requests = Vec::new();
        let present = self
            .clients
            .iter_mut()
            .enumerate()
            .filter(|(_, place)| place.is_some());
        for (number, (at, place)) in present.enumerate() {
            if !ready.contains(&number) {
                continue;
            }
            let goes_on = place
                .as_mut()
                .is_none_or(|client| client.take(at, size, &mut requests));
            if !goes_on {
                *place = None;
            }
        }
        requests
    }

    /// Tells everybody what became of the requests of one commit, in their order.
    pub(super) fn answer(&mut self, senders: Vec<Sender>, outcome: &Result<u64, String>) {
        for (number, (at, id)) in senders.into_iter().enumerate() {
            let outcome = match outcome {
                Ok(first) => Outcome::Recorded(first + number as u64),
                Err(why) => Outcome::NotWritten(why.clone()),
            };
            let Some(place) = self.clients.get_mut(at) else {
                continue;
            };
            if (place.as_ref()).is_some_and(|client| !client.answer(id, outcome)) {
                *place = None;
            }
        }
    }
}

impl Client {
    /// Takes the requests that are there; false when there will be no more.
    fn take(&mut self, at: usize, size: u64, requests: &mut Vec<(Sender, Entry)>) -> bool {
        let mut buffer = [0; MAX_REQUEST_BYTES + 1];
        for _ in 0..PACKETS {
            if requests.len() >= ENTRIES {
                return true;
            }
            let length = match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((length, _)) => length,
                Err(Errno::AGAIN | Errno::INTR) => return true,
                // It ended before it read an answer; what it asked for before is there all the same.
                Err(Errno::CONNRESET) => continue,
                Err(_) => return false,
            };
            let packet = buffer.get(..length).unwrap_or_default();
            match requests::look_at(packet, &self.actor, size) {
                Packet::Record(id, entry) => requests.push(((at, id), entry)),
                Packet::Refuse(id, why) => {
                    if !self.told {
                        self.told = true;
                        say(&why);
                    }
                    if !self.answer(id, Outcome::Refused(why)) {
                        return false;
                    }
                }
                Packet::Nonsense => {
                    let actor = &self.actor;
                    say(&format!(
                        "`{actor}` sent what is no request, and is not served any more"
                    ));
                    return false;
                }
            }
        }
        true
    }

    /// Answers; false when the client does not read what it is told.
    fn answer(&self, id: u64, outcome: Outcome) -> bool {
        let answer = requests::answer(id, outcome);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match send(&self.socket, &answer, flags) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

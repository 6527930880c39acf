//! The control socket: packets in and out. What commands do is [`crate::machine::controller`]'s.
//!
//! One packet is one message, JSON, of the description's version; descriptors come with the packet
//! that names them. Nothing is read while an answer waits to be sent, so that a supervisor that does
//! not read its answers is not served, and loses none. When the supervisor is gone, so is the reason
//! to run: the end of the socket ends the partition.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use bulkhead_machine::control::{Event, MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS, Reply, Request};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use serde::Deserialize;

use crate::descriptors::Descriptors;

/// Characters of a sentence that surely fit into a packet: JSON takes up to six bytes for each.
const MAX_TEXT_CHARS: usize = MAX_MESSAGE_BYTES / 8;

/// Sends `event`; a supervisor that is gone or does not read is not waited for.
pub fn tell(socket: &File, event: &Event) {
    let _ = send_now(socket, &packet(event));
}

fn send_now(socket: &File, packet: &[u8]) -> Result<(), Errno> {
    send(socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// `event` as a packet.
fn packet(event: &Event) -> Vec<u8> {
    // Events are plain data: they always serialise.
    let message = serde_json::to_vec(event).unwrap_or_default();
    if message.len() <= MAX_MESSAGE_BYTES {
        return message;
    }
    let short = match event {
        // A sentence may hold a name of any length.
        Event::Failed { code, message } => Event::Failed {
            code: code.clone(),
            message: message.chars().take(MAX_TEXT_CHARS).collect(),
        },
        Event::Reply { id, .. } => Event::Reply {
            id: *id,
            outcome: refused("reply-too-long", "the answer does not fit into a packet"),
        },
        other => other.clone(),
    };
    serde_json::to_vec(&short).unwrap_or_default()
}

/// A request that was not carried out.
pub fn refused(code: &str, message: &str) -> Reply {
    Reply::Refused {
        code: code.into(),
        message: message.chars().take(MAX_TEXT_CHARS).collect(),
    }
}

/// What the socket brought.
#[derive(Debug)]
pub enum Received {
    /// Nothing now.
    Nothing,
    /// A command, and the descriptors that came with it.
    Request(Request, Descriptors),
    /// Something with a number that is no command; it is to be answered so.
    Invalid(u64, Reply),
    /// Something that cannot be answered: supervisor and VMM do not understand each other.
    Garbage(String),
    /// The supervisor is gone.
    Gone,
}

/// The VMM's end of the socket.
#[derive(Debug)]
pub struct Channel {
    socket: File,
    /// Answers that the socket did not take yet: few, since no request is read meanwhile.
    unsent: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Channel {
    /// Speaks on `socket`.
    pub fn new(socket: File) -> Self {
        Self {
            socket,
            unsent: VecDeque::new(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
        }
    }

    /// The socket, to wait for: until it takes more where [`Self::is_clogged`], else for requests.
    pub fn socket(&self) -> &File {
        &self.socket
    }

    /// An answer waits to be sent.
    pub fn is_clogged(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Answers request `id`.
    pub fn reply(&mut self, id: u64, outcome: Reply) {
        let answer = packet(&Event::Reply { id, outcome });
        self.unsent.push_back(answer);
        self.flush();
    }

    /// Sends what waits to be sent.
    pub fn flush(&mut self) {
        while let Some(packet) = self.unsent.front() {
            if send_now(&self.socket, packet).is_err_and(is_passing) {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// Takes the next request.
    pub fn receive(&mut self) -> Received {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let message = match recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
            Ok(message) => message,
            Err(error) if is_passing(error) => return Received::Nothing,
            Err(_) => return Received::Gone,
        };
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                descriptors.extend(fds);
            }
        }
        if message.bytes == 0 {
            return Received::Gone;
        }
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Received::Garbage(format!("it is longer than {MAX_MESSAGE_BYTES} bytes"));
        }
        let lost = message.flags.contains(ReturnFlags::CTRUNC);
        let text = self.buffer.get(..message.bytes).unwrap_or_default();
        parse(text, Descriptors::received(descriptors), lost)
    }
}

/// What every request has, whatever it asks.
#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

/// Reads one packet; `lost` when not all of its descriptors arrived.
pub fn parse(text: &[u8], descriptors: Descriptors, lost: bool) -> Received {
    let id = match serde_json::from_slice::<Numbered>(text) {
        Ok(Numbered { id }) => id,
        Err(error) => return Received::Garbage(error.to_string()),
    };
    if lost {
        let sentence = format!(
            "not all descriptors of the message arrived; it may bring {MAX_MESSAGE_FDS} that fit \
             into what the partition may have open"
        );
        return Received::Invalid(id, refused("descriptors-lost", &sentence));
    }
    match serde_json::from_slice(text) {
        Ok(request) => Received::Request(request, descriptors),
        Err(error) => {
            let sentence = format!("the message is no command of this release: {error}");
            Received::Invalid(id, refused("command-invalid", &sentence))
        }
    }
}

fn is_passing(error: Errno) -> bool {
    matches!(
        std::io::Error::from(error).kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_machine::Fd;
    use bulkhead_machine::control::{Command, Ended};
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, SocketType, recv,
        sendmsg, socketpair,
    };
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    fn pair() -> (File, Channel) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (File::from(ours), Channel::new(File::from(theirs)))
    }

    fn event(supervisor: &File) -> Event {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let (len, _) = recv(supervisor, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        serde_json::from_slice(&buffer[..len]).unwrap()
    }

    fn kind(received: &Received) -> String {
        match received {
            Received::Invalid(id, Reply::Refused { code, .. }) => format!("{code} of {id}"),
            Received::Request(request, _) => format!("{:?} of {}", request.command, request.id),
            Received::Garbage(_) => "garbage".into(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn messages_are_commands_or_answerable_or_garbage() {
        let long = vec![b' '; MAX_MESSAGE_BYTES + 1];
        let deep = format!("{{\"id\":1,\"command\":{}", "[".repeat(1000));
        for (message, want) in [
            (&br#"{"id":1,"command":"stop"}"#[..], "Stop of 1"),
            (br#"{"id":2,"command":"pause","more":1}"#, "Pause of 2"),
            (br#"{"id":3,"command":"fly"}"#, "command-invalid of 3"),
            (br#"{"id":4,"command":"attach"}"#, "command-invalid of 4"),
            (br#"{"id":5}"#, "command-invalid of 5"),
            (br#"{"id":-1,"command":"stop"}"#, "garbage"),
            (br#"{"command":"stop"}"#, "garbage"),
            (b"\xff\xfe", "garbage"),
            (b"{}", "garbage"),
            (&long, "garbage"),
            (deep.as_bytes(), "garbage"),
        ] {
            let (supervisor, mut channel) = pair();
            send(&supervisor, message, SendFlags::empty()).unwrap();
            assert_eq!(kind(&channel.receive()), want);
            assert_eq!(kind(&channel.receive()), "Nothing");
        }
    }

    #[test]
    fn a_supervisor_that_is_gone_is_noticed() {
        let (supervisor, mut channel) = pair();
        drop(supervisor);
        assert_eq!(kind(&channel.receive()), "Gone");
        // And telling it something is no error either.
        channel.reply(1, Reply::Done);
        assert!(!channel.is_clogged());
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (supervisor, mut channel) = pair();
        let null = File::open("/dev/null").unwrap();
        let fds = vec![null.as_fd(); 2];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = br#"{"id":7,"command":"dump","file":1}"#;
        let parts = [IoSlice::new(text)];
        sendmsg(&supervisor, &parts, &mut ancillary, SendFlags::empty()).unwrap();
        let Received::Request(request, mut descriptors) = channel.receive() else {
            panic!("no request");
        };
        assert_eq!(request.command, Command::Dump { file: Fd(1) });
        assert!(descriptors.take("test", Fd(1)).is_ok());
        assert!(descriptors.take("test", Fd(1)).is_err(), "taken");
        assert!(descriptors.take("test", Fd(2)).is_err(), "not sent");
        assert!(descriptors.take("test", Fd(0)).is_ok());
    }

    #[test]
    fn no_answer_is_lost_on_a_supervisor_that_reads_late() {
        let (supervisor, mut channel) = pair();
        let mut sent = 0;
        while !channel.is_clogged() {
            channel.reply(sent, Reply::Done);
            sent += 1;
        }
        for id in 0..sent {
            let want = Event::Reply {
                id,
                outcome: Reply::Done,
            };
            assert_eq!(event(&supervisor), want);
            channel.flush();
        }
        assert!(!channel.is_clogged());
    }

    #[test]
    fn events_arrive_as_one_packet_each() {
        let (supervisor, channel) = pair();
        for (text, kept) in [
            ("the kernel image is empty".to_owned(), 25),
            ("\u{1}".repeat(100_000), MAX_TEXT_CHARS),
        ] {
            let failed = |message: &str| Event::Failed {
                code: "kernel-empty".into(),
                message: message.into(),
            };
            tell(&channel.socket, &failed(&text));
            assert_eq!(event(&supervisor), failed(&text[..kept]));
        }
        let ended = Event::Ended {
            how: Ended::Stopped,
        };
        tell(&channel.socket, &ended);
        assert_eq!(event(&supervisor), ended);
    }
}

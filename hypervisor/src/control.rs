//! The control socket: tells the supervisor what happens, and hears from it.
//!
//! When the supervisor is gone, so is the reason to run: the end of the socket ends the partition.

use std::fs::File;
use std::io::ErrorKind;

use bulkhead_machine::control::{Command, Ended, Event, MAX_MESSAGE_BYTES, Reply, Request};
use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vmm_sys_util::epoll::EventSet;

use crate::error::Error;
use crate::machine::ending::Ending;

/// Characters of a sentence that surely fit into a packet: JSON takes up to six bytes for each.
const MAX_TEXT_CHARS: usize = MAX_MESSAGE_BYTES / 8;

/// Sends `event`; a supervisor that is gone or does not read is not waited for.
pub fn tell(socket: &File, event: &Event) {
    // Events are plain data: they always serialise.
    let Ok(mut message) = serde_json::to_vec(event) else {
        return;
    };
    if message.len() > MAX_MESSAGE_BYTES
        && let Event::Failed {
            code,
            message: text,
        } = event
    {
        // A sentence may hold a name of any length.
        let short = Event::Failed {
            code: code.clone(),
            message: text.chars().take(MAX_TEXT_CHARS).collect(),
        };
        message = serde_json::to_vec(&short).unwrap_or_default();
    }
    let _ = send(socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// The event loop's end of the socket.
pub struct Listener {
    socket: File,
    ending: Ending,
}

impl Listener {
    /// Listens on `socket`; commands act on `ending`.
    pub fn new(socket: File, ending: Ending) -> Self {
        Self { socket, ending }
    }

    fn receive(&self) {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.ending.end(Ended::Stopped),
            Ok((len, _)) => match serde_json::from_slice(buffer.get(..len).unwrap_or_default()) {
                Ok(Request {
                    command: Command::Stop,
                    ..
                }) => self.ending.end(Ended::Stopped),
                Ok(Request { id, .. }) => tell(&self.socket, &not_known(id)),
                Err(e) => self.ending.fail(Error::Control(e.to_string())),
            },
            Err(e) if is_passing(e) => {}
            Err(_) => self.ending.end(Ended::Stopped),
        }
    }
}

fn not_known(id: u64) -> Event {
    Event::Reply {
        id,
        outcome: Reply::Refused {
            code: "command-unsupported".into(),
            message: "this partition does not take that command".into(),
        },
    }
}

fn is_passing(error: rustix::io::Errno) -> bool {
    matches!(
        std::io::Error::from(error).kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted
    )
}

impl MutEventSubscriber for Listener {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.socket, EventSet::IN | EventSet::READ_HANG_UP);
        if let Err(e) = ops.add(events) {
            self.ending
                .fail(Error::Control(format!("it cannot be waited for: {e}")));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.receive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (File, Listener) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let listener = Listener::new(File::from(theirs), Ending::new().unwrap());
        (File::from(ours), listener)
    }

    fn outcome(listener: &Listener) -> String {
        match listener.ending.outcome() {
            None => "none".into(),
            Some(Ok(ended)) => format!("{ended:?}"),
            Some(Err(e)) => e.code().into(),
        }
    }

    #[test]
    fn commands_and_their_absence() {
        for (message, want) in [
            (Some(&br#"{"id":1,"command":"stop"}"#[..]), "Stopped"),
            (Some(b"{\"id\":1,\"command\":\"fly\"}"), "control-invalid"),
            (Some(b"\xff\xfe"), "control-invalid"),
            (None, "none"),
        ] {
            let (supervisor, listener) = pair();
            if let Some(message) = message {
                send(&supervisor, message, SendFlags::empty()).unwrap();
            }
            listener.receive();
            assert_eq!(outcome(&listener), want, "{message:?}");
        }
    }

    #[test]
    fn a_supervisor_that_is_gone_stops_the_partition() {
        let (supervisor, listener) = pair();
        drop(supervisor);
        listener.receive();
        assert_eq!(outcome(&listener), "Stopped");
        // And telling it something is no error either.
        tell(
            &listener.socket,
            &Event::Ended {
                how: Ended::Stopped,
            },
        );
    }

    #[test]
    fn events_arrive_as_one_packet_each() {
        let (supervisor, listener) = pair();
        for (text, kept) in [
            ("the kernel image is empty".to_owned(), 25),
            ("\u{1}".repeat(100_000), MAX_TEXT_CHARS),
        ] {
            let failed = |message: &str| Event::Failed {
                code: "kernel-empty".into(),
                message: message.into(),
            };
            tell(&listener.socket, &failed(&text));
            let mut buffer = [0; MAX_MESSAGE_BYTES];
            let (len, _) = recv(&supervisor, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
            let got: Event = serde_json::from_slice(&buffer[..len]).unwrap();
            assert_eq!(got, failed(&text[..kept]));
        }
    }
}

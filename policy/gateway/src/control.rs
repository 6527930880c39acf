//! The control socket: tells the supervisor what happens, and answers it. Used by the process.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use bulkhead_network::control::{Command, Event, MAX_MESSAGE_BYTES};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Characters of a sentence that surely fit into a packet: JSON takes up to six bytes for each.
const MAX_TEXT_CHARS: usize = MAX_MESSAGE_BYTES / 8;

/// What the supervisor wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// This, now.
    Do(Command),
    /// Something that is no command; why not.
    Unknown(String),
    /// Nothing at the moment.
    None,
    /// Nothing any more: it is gone.
    Gone,
}

/// Sends `event`; a supervisor that is gone or does not read is not waited for.
pub(crate) fn tell(socket: impl AsFd, event: &Event) {
    // Events are plain data: they always serialise.
    if let Ok(message) = serde_json::to_vec(event) {
        let _ = send(socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// The beginning of `text` that fits into an event.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

/// The next command.
pub(crate) fn receive(socket: impl AsFd) -> Request {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    match recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Request::Gone,
        Ok((_, len)) => match serde_json::from_slice(buffer.get(..len).unwrap_or_default()) {
            Ok(command) => Request::Do(command),
            Err(error) => Request::Unknown(error.to_string()),
        },
        Err(error) => match std::io::Error::from(error).kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Request::None,
            _ => Request::Gone,
        },
    }
}

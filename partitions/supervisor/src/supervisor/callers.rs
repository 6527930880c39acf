//! Who has connected to the supervisor and has not said yet what they want. Requests are read as they
//! come: whoever is slow, or says nothing at all, holds nobody up.

use crate::control::{MAX_LINE, Request};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many are waited for at once. Of more, the one that waits longest is let go.
const MOST: usize = 32;

/// Callers by their numbers, which grow.
#[derive(Debug, Default)]
pub(super) struct Callers {
    callers: BTreeMap<u64, Caller>,
    next: u64,
}

#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    said: Vec<u8>,
    until: Instant,
}

/// What reading from a caller has brought.
enum Heard {
    /// A line, and so a request if it is one.
    Line,
    /// Nothing that ends.
    Part,
    /// It went away, or said too much.
    Gone,
}

impl Callers {
    /// Takes in whoever knocks; its request, where it has said that already.
    pub(super) fn accept(&mut self, listener: &UnixListener) -> Option<(UnixStream, Request)> {
        // It may be gone again by now.
        let (stream, _) = listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        while self.callers.len() >= MOST {
            self.callers.pop_first();
        }
        let number = self.next;
        self.next += 1;
        let caller = Caller {
            stream,
            said: Vec::new(),
            until: Instant::now() + PATIENCE,
        };
        self.callers.insert(number, caller);
        self.hear(number)
    }

    /// Whom to listen to.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        (self.callers.iter()).map(|(number, caller)| (*number, caller.stream.as_fd()))
    }

    /// Reads what the caller of this number says; its request once that is whole.
    pub(super) fn hear(&mut self, number: u64) -> Option<(UnixStream, Request)> {
        match self.callers.get_mut(&number)?.read() {
            Heard::Part => None,
            Heard::Gone => {
                self.callers.remove(&number);
                None
            }
            Heard::Line => {
                let Caller { stream, said, .. } = self.callers.remove(&number)?;
                let line = said.split(|byte| *byte == b'\n').next()?;
                Some((stream, serde_json::from_slice(line).ok()?))
            }
        }
    }

    /// When somebody has waited long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.callers.values().map(|caller| caller.until).min()
    }

    /// Lets go of those who have said nothing in time.
    pub(super) fn expire(&mut self, now: Instant) {
        self.callers.retain(|_, caller| now < caller.until);
    }
}

impl Caller {
    fn read(&mut self) -> Heard {
        let mut bytes = [0; 16 * 1024];
        while self.said.len() <= MAX_LINE {
            match self.stream.read(&mut bytes) {
                Ok(count @ 1..) => {
                    let new = bytes.get(..count).unwrap_or_default();
                    self.said.extend_from_slice(new);
                    if new.contains(&b'\n') {
                        return Heard::Line;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Part,
                Ok(0) | Err(_) => return Heard::Gone,
            }
        }
        Heard::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A listener in a directory of its own, and its callers.
    fn house() -> (tempfile::TempDir, UnixListener, Callers) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        (directory, listener, Callers::default())
    }

    fn call(directory: &tempfile::TempDir) -> UnixStream {
        UnixStream::connect(directory.path().join("s")).unwrap()
    }

    #[test]
    fn a_request_may_come_at_once_or_in_parts() {
        let (directory, listener, mut callers) = house();
        let mut first = call(&directory);
        first.write_all(b"{\"request\":\"status\"}\n").unwrap();
        let (_, request) = callers.accept(&listener).unwrap();
        assert_eq!(request, Request::Status);
        assert_eq!(callers.waiting().count(), 0);

        let mut second = call(&directory);
        assert!(callers.accept(&listener).is_none());
        let number = callers.waiting().next().unwrap().0;
        second.write_all(b"{\"request\"").unwrap();
        assert!(callers.hear(number).is_none());
        second.write_all(b":\"down\"}\n").unwrap();
        assert_eq!(callers.hear(number).unwrap().1, Request::Down);
    }

    #[test]
    fn who_says_nothing_or_nonsense_or_too_much_is_let_go() {
        let (directory, listener, mut callers) = house();
        let _silent = call(&directory);
        assert!(callers.accept(&listener).is_none());
        let deadline = callers.next_deadline().unwrap();
        callers.expire(deadline - Duration::from_millis(1));
        assert_eq!(callers.waiting().count(), 1);
        callers.expire(deadline);
        assert_eq!(callers.waiting().count(), 0);

        for said in ["what?\n", "\n", "\u{0}\n"] {
            let mut other = call(&directory);
            other.write_all(said.as_bytes()).unwrap();
            assert!(callers.accept(&listener).is_none());
            assert_eq!(callers.waiting().count(), 0, "{said:?}");
        }
        drop(call(&directory));
        assert!(callers.accept(&listener).is_none());
        assert_eq!(callers.waiting().count(), 0, "it is gone");

        let mut endless = call(&directory);
        assert!(callers.accept(&listener).is_none());
        endless.set_nonblocking(true).unwrap();
        let number = callers.waiting().next().unwrap().0;
        let mut sent = 0;
        while callers.waiting().next().is_some() {
            assert!(sent < 2 * MAX_LINE, "it is listened to for ever");
            sent += endless.write(&[b'x'; 4096]).unwrap_or(0);
            assert!(callers.hear(number).is_none());
        }
    }

    #[test]
    fn of_many_the_one_that_waits_longest_goes() {
        let (directory, listener, mut callers) = house();
        let streams: Vec<UnixStream> = (0..=MOST)
            .map(|_| {
                let stream = call(&directory);
                assert!(callers.accept(&listener).is_none());
                stream
            })
            .collect();
        assert_eq!(callers.waiting().count(), MOST);
        assert_eq!(callers.waiting().next().unwrap().0, 1);
        drop(streams);
    }
}

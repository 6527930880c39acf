//! The client's end of a socket to the ledger's writer.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::wire::{Answer, MAX_ANSWER_BYTES, Outcome, Request};
use crate::{Entry, MAX_ENTRY_BYTES, RecordError, Recorder};

/// Records through the writer process. Any number of threads may wait at once; what waits together
/// becomes durable together. It starts no thread: one of those that wait reads for all.
///
/// Once the writer is gone it stays gone: every later entry fails.
pub struct Client {
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    last: u64,
    gone: bool,
    /// Somebody reads from the socket.
    reading: bool,
    /// Entries that somebody has an interest in; with the outcome, where it has come.
    wanted: BTreeMap<u64, Option<Result<u64, RecordError>>>,
}

/// An entry on its way into the ledger.
#[must_use = "nothing is known to be durable before it was waited for"]
pub struct Ticket {
    client: Arc<Client>,
    id: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.id).finish()
    }
}

impl Client {
    /// The client on this end of a blocking `SOCK_SEQPACKET` socket, the other end of which the writer
    /// has.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Sends an entry without waiting for it to be durable: the ticket says when it is.
    ///
    /// # Errors
    /// It could not be sent, and is not recorded.
    pub fn begin(self: &Arc<Self>, entry: &Entry) -> Result<Ticket, RecordError> {
        let id = self.send(entry)?;
        let client = self.clone();
        Ok(Ticket { client, id })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, entry: &Entry) -> Result<u64, RecordError> {
        let not_sent = |error: serde_json::Error| RecordError::NotWritten(error.to_string());
        let length = serde_json::to_vec(entry).map_err(not_sent)?.len();
        if length > MAX_ENTRY_BYTES {
            return Err(RecordError::TooLong(length));
        }
        let id = {
            let mut state = self.state();
            if state.gone {
                return Err(RecordError::WriterGone);
            }
            state.last += 1;
            let id = state.last;
            state.wanted.insert(id, None);
            id
        };
        let entry = entry.clone();
        let request = serde_json::to_vec(&Request { id, entry }).map_err(not_sent)?;
        loop {
            // Waits where the writer has much to do.
            match send(&self.socket, &request, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(id),
                Err(Errno::INTR) => {}
                Err(_) => {
                    let mut state = self.state();
                    state.gone = true;
                    state.wanted.remove(&id);
                    self.changed.notify_all();
                    return Err(RecordError::WriterGone);
                }
            }
        }
    }

    /// Waits for the outcome of an entry that was sent.
    fn wait(&self, id: u64) -> Result<u64, RecordError> {
        let mut state = self.state();
        loop {
            match state.wanted.get(&id) {
                Some(Some(_)) => {
                    let outcome = state.wanted.remove(&id).flatten();
                    return outcome.unwrap_or(Err(RecordError::WriterGone));
                }
                Some(None) if !state.gone => {}
                Some(None) | None => {
                    state.wanted.remove(&id);
                    return Err(RecordError::WriterGone);
                }
            }
            if state.reading {
                let changed = self.changed.wait(state);
                state = changed.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.reading = true;
            drop(state);
            let answer = self.receive();
            state = self.state();
            state.reading = false;
            match answer {
                Some(Answer { id, outcome }) => {
                    // What nobody waits for any more is not kept.
                    if let Some(wanted) = state.wanted.get_mut(&id) {
                        *wanted = Some(match outcome {
                            Outcome::Recorded(index) => Ok(index),
                            Outcome::NotWritten(why) => Err(RecordError::NotWritten(why)),
                            Outcome::Refused(why) => Err(RecordError::Refused(why)),
                        });
                    }
                }
                None => state.gone = true,
            }
            // One of the others may have its answer, or has to read on.
            self.changed.notify_all();
        }
    }

    /// The next answer; nothing when there will be none.
    fn receive(&self) -> Option<Answer> {
        let mut buffer = vec![0; MAX_ANSWER_BYTES];
        loop {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length @ 1.., _)) => {
                    return serde_json::from_slice(buffer.get(..length)?).ok();
                }
                // A reset is told once, before what the writer said until it ended.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Ok((0, _)) | Err(_) => return None,
            }
        }
    }
}

impl Recorder for Client {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        let id = self.send(entry)?;
        self.wait(id)
    }
}

impl Ticket {
    /// Waits until the entry is durable; the record's index.
    ///
    /// # Errors
    /// It is not: the act it is about must not take effect.
    pub fn wait(self) -> Result<u64, RecordError> {
        self.client.wait(self.id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.client.state().wanted.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Verdict};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::thread;

    fn pair() -> (Arc<Client>, OwnedFd) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        (Arc::new(Client::new(ours)), theirs)
    }

    fn entry(object: &str) -> Entry {
        Entry {
            kind: Kind::Intent,
            actor: "a/b".to_owned(),
            action: "x".to_owned(),
            object: object.to_owned(),
            verdict: Verdict::Allowed,
            reason: String::new(),
            intent: None,
            detail: BTreeMap::new(),
        }
    }

    fn request(writer: &OwnedFd) -> Request {
        let mut buffer = vec![0; crate::wire::MAX_REQUEST_BYTES];
        let (length, _) = recv(writer, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..length]).unwrap()
    }

    /// Whether there is another request, or will be in a moment. Of threads that have all asked, none does.
    fn more_comes(writer: &OwnedFd) -> bool {
        let mut writer = [PollFd::new(writer, PollFlags::IN)];
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        poll(&mut writer, Some(&moment)).unwrap() > 0
    }

    fn answer(writer: &OwnedFd, id: u64, outcome: Outcome) {
        let answer = serde_json::to_vec(&Answer { id, outcome }).unwrap();
        send(writer, &answer, SendFlags::NOSIGNAL).unwrap();
    }

    #[test]
    fn many_threads_wait_and_each_gets_its_own_answer() {
        const THREADS: u64 = 8;
        const EACH: u64 = 50;
        let (client, writer) = pair();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let client = &client;
                scope.spawn(move || {
                    for number in 0..EACH {
                        let object = thread * 1000 + number;
                        let index = client.record(&entry(&object.to_string()));
                        assert_eq!(index, Ok(object));
                    }
                });
            }
            // Answers come in another order than requests, several at a time where there are several.
            let (mut held, mut left) = (Vec::new(), THREADS * EACH);
            while left > 0 {
                if held.len() < 3 && (held.is_empty() || more_comes(&writer)) {
                    held.push(request(&writer));
                    continue;
                }
                left -= held.len() as u64;
                for request in held.drain(..).rev() {
                    let index = request.entry.object.parse().unwrap();
                    answer(&writer, request.id, Outcome::Recorded(index));
                }
            }
        });
        assert!(client.state().wanted.is_empty());
    }

    #[test]
    fn a_writer_that_is_gone_stays_gone() {
        let (client, writer) = pair();
        let early = client.begin(&entry("early")).unwrap();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| client.record(&entry("x"))))
                .collect();
            for _ in 0..4 {
                let request = request(&writer);
                if request.entry.object == "early" {
                    answer(&writer, request.id, Outcome::Recorded(7));
                }
            }
            drop(writer);
            for waiting in waiting {
                assert_eq!(waiting.join().unwrap(), Err(RecordError::WriterGone));
            }
        });
        // What was durable before is.
        assert_eq!(early.wait(), Ok(7));
        assert_eq!(client.record(&entry("x")), Err(RecordError::WriterGone));
        assert!(client.begin(&entry("x")).is_err());
        assert!(client.state().wanted.is_empty());
    }

    /// A writer that ends with requests unread resets the socket; what it said before is heard.
    #[test]
    fn an_answer_before_a_reset_is_an_answer() {
        let (client, writer) = pair();
        let one = client.begin(&entry("1")).unwrap();
        let other = client.begin(&entry("2")).unwrap();
        let id = request(&writer).id;
        answer(&writer, id, Outcome::Recorded(5));
        drop(writer);
        assert_eq!(other.wait(), Err(RecordError::WriterGone));
        assert_eq!(one.wait(), Ok(5));
    }

    #[test]
    fn refusals_arrive_and_what_is_too_long_is_not_sent() {
        let (client, writer) = pair();
        let one = client.begin(&entry("1")).unwrap();
        let other = client.begin(&entry("2")).unwrap();
        drop(client.begin(&entry("3")).unwrap());
        let why = "why".to_owned();
        for id in [3, 2] {
            answer(&writer, id, Outcome::NotWritten(why.clone()));
        }
        answer(&writer, 1, Outcome::Refused(why.clone()));
        assert_eq!(one.wait(), Err(RecordError::Refused(why.clone())));
        assert_eq!(other.wait(), Err(RecordError::NotWritten(why)));
        assert!(client.state().wanted.is_empty());
        let long = entry(&"x".repeat(MAX_ENTRY_BYTES));
        assert!(matches!(client.record(&long), Err(RecordError::TooLong(_))));
        send(&writer, b"nonsense", SendFlags::NOSIGNAL).unwrap();
        assert_eq!(client.record(&entry("x")), Err(RecordError::WriterGone));
    }
}

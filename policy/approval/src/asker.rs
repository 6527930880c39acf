//! The end of a process that wants to act: it asks, and waits for the answer.
//!
//! Packets of a `SOCK_SEQPACKET` socket, each one request or one answer, as JSON. Any number of
//! threads may wait at once, and no thread is started: one of those that wait reads for all.

use crate::question::{Question, QuestionError};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Largest packet in bytes: a question at its bounds, each of its characters escaped.
pub const MAX_MESSAGE_BYTES: usize = 20 * 1024;

/// From a process to its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// A number that comes back with the answer.
    pub id: u64,
    /// What is asked.
    pub question: Question,
}

/// From the supervisor to the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's number.
    pub id: u64,
    /// Whether it may be done.
    pub allowed: bool,
    /// Why.
    pub reason: String,
}

/// Why there is no answer; it is as good as a no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody is there who could be asked.
    #[error("nobody can be asked")]
    Nobody,
    /// The question has no proper form.
    #[error(transparent)]
    Question(#[from] QuestionError),
}

/// See the top of this file.
pub struct Asker {
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
    /// Who waits, and the answer where it has come.
    waiting: BTreeMap<u64, Option<Answer>>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks on this end of a blocking socket, the other end of which the supervisor has.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Asks, and waits until somebody has answered: the supervisor sees to it that this is not for
    /// ever. The reason of a yes, and of a no.
    ///
    /// # Errors
    /// There is nobody to ask, or no proper question.
    pub fn ask(&self, question: Question) -> Result<Result<String, String>, NoAnswer> {
        question.check()?;
        let id = {
            let mut state = self.state();
            state.last += 1;
            let id = state.last;
            state.waiting.insert(id, None);
            id
        };
        let request = Request { id, question };
        let sent = serde_json::to_vec(&request).is_ok_and(|packet| self.send(&packet));
        let answer = if sent { self.wait(id) } else { None };
        self.state().waiting.remove(&id);
        match answer {
            Some(answer) if answer.allowed => Ok(Ok(answer.reason)),
            Some(answer) => Ok(Err(answer.reason)),
            None => Err(NoAnswer::Nobody),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, packet: &[u8]) -> bool {
        loop {
            match send(&self.socket, packet, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent.is_ok(),
            }
        }
    }

    fn wait(&self, id: u64) -> Option<Answer> {
        let mut state = self.state();
        loop {
            if let Some(answer) = state.waiting.get_mut(&id).and_then(Option::take) {
                return Some(answer);
            }
            if state.gone {
                return None;
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
                Some(answer) => {
                    if let Some(waiting) = state.waiting.get_mut(&answer.id) {
                        *waiting = Some(answer);
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
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length @ 1.., _)) => return serde_json::from_slice(buffer.get(..length)?).ok(),
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Ok((0, _)) | Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::thread;

    fn pair() -> (Asker, OwnedFd) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        (Asker::new(ours), theirs)
    }

    fn question(object: &str) -> Question {
        Question {
            capability: "tool.call".to_owned(),
            object: object.to_owned(),
            why: "x".to_owned(),
            task: None,
        }
    }

    fn request(supervisor: &OwnedFd) -> Request {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let (length, _) = recv(supervisor, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..length]).unwrap()
    }

    fn answer(supervisor: &OwnedFd, id: u64, allowed: bool, reason: &str) {
        let answer = Answer {
            id,
            allowed,
            reason: reason.to_owned(),
        };
        send(
            supervisor,
            &serde_json::to_vec(&answer).unwrap(),
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }

    #[test]
    fn many_threads_wait_and_each_gets_its_own_answer() {
        let (asker, supervisor) = pair();
        thread::scope(|scope| {
            for number in 0..8 {
                let asker = &asker;
                scope.spawn(move || {
                    let answer = asker.ask(question(&number.to_string())).unwrap();
                    let reason = number.to_string();
                    assert_eq!(
                        answer,
                        if number % 2 == 0 {
                            Ok(reason)
                        } else {
                            Err(reason)
                        }
                    );
                });
            }
            let mut requests: Vec<Request> = (0..8).map(|_| request(&supervisor)).collect();
            requests.reverse();
            for Request { id, question } in requests {
                let number: u32 = question.object.parse().unwrap();
                answer(&supervisor, id, number.is_multiple_of(2), &question.object);
            }
        });
        assert!(asker.state().waiting.is_empty());
    }

    #[test]
    fn without_a_supervisor_nothing_is_allowed() {
        let (asker, supervisor) = pair();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| asker.ask(question("x")));
            let _ = request(&supervisor);
            drop(supervisor);
            assert_eq!(waiting.join().unwrap(), Err(NoAnswer::Nobody));
        });
        assert_eq!(asker.ask(question("x")), Err(NoAnswer::Nobody));
    }

    #[test]
    fn nonsense_and_answers_to_others_allow_nothing() {
        let (asker, supervisor) = pair();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| asker.ask(question("x")));
            let Request { id, .. } = request(&supervisor);
            answer(&supervisor, id + 1, true, "somebody else's");
            send(&supervisor, b"{\"allowed\":true}", SendFlags::NOSIGNAL).unwrap();
            assert_eq!(waiting.join().unwrap(), Err(NoAnswer::Nobody));
        });
    }

    #[test]
    fn a_question_at_its_bounds_fits_into_a_packet() {
        let question = Question {
            capability: "\0".repeat(64),
            object: "\0".repeat(1700),
            why: "\0".repeat(1024),
            task: Some("\0".repeat(128)),
        };
        question.check().unwrap();
        let request = Request {
            id: u64::MAX,
            question,
        };
        assert!(serde_json::to_vec(&request).unwrap().len() <= MAX_MESSAGE_BYTES);
    }
}

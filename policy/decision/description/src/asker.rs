//! The end of a process that wants to act: it asks, and waits for the answer, but not for ever.

use crate::wire::{Answer, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Request};
use crate::{Act, Said};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer may take. A decision takes less than a millisecond; a host may be busy.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `bulkhead-decision`. No answer, one that is none and one that comes too late are denials, and so
/// is everything once the process is gone. Any number of threads may ask; each waits for those before
/// it. It starts no thread, and makes no system call that a process which asks the ledger does not.
pub struct Asker(Mutex<Way>);

struct Way {
    socket: OwnedFd,
    patience: Duration,
    last: u64,
    gone: bool,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks on this end of a blocking `SOCK_SEQPACKET` socket, the other end of which the process has.
    ///
    /// # Errors
    /// The host does not limit how long it is waited for.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Self::with_patience(socket, PATIENCE)
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// As there.
    pub fn with_patience(socket: OwnedFd, patience: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        Ok(Self(Mutex::new(Way {
            socket,
            patience,
            last: 0,
            gone: false,
        })))
    }

    /// Asks about an act, which announces so many bytes if it does.
    pub fn ask(&self, act: &Act, bytes: Option<u64>) -> Said {
        let mut way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        way.last += 1;
        let id = way.last;
        let act = act.clone();
        let request = match serde_json::to_vec(&Request { id, act, bytes }) {
            Ok(request) if request.len() <= MAX_REQUEST_BYTES => request,
            Ok(_) => return Said::nothing("it takes too many words"),
            Err(error) => return Said::nothing(error.to_string()),
        };
        match way.exchange(id, &request) {
            Ok(Answer {
                ruling, enforced, ..
            }) => Said { ruling, enforced },
            Err(why) => Said::nothing(why),
        }
    }
}

const GONE: &str = "their process is gone";
const LATE: &str = "their process does not answer";

impl Way {
    fn exchange(&mut self, id: u64, request: &[u8]) -> Result<Answer, &'static str> {
        if self.gone {
            return Err(GONE);
        }
        let until = Instant::now() + self.patience;
        loop {
            match send(&self.socket, request, SendFlags::NOSIGNAL) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(LATE),
                Err(_) => return Err(self.lost()),
            }
        }
        let mut buffer = vec![0; MAX_ANSWER_BYTES + 1];
        loop {
            let packet = match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length @ 1.., _)) => buffer.get(..length).unwrap_or_default(),
                // A reset is told once, before what was said until the end.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(Errno::AGAIN) => return Err(LATE),
                Ok((0, _)) | Err(_) => return Err(self.lost()),
            };
            // Whoever says what is no answer is not believed any more.
            let Ok(answer) = serde_json::from_slice::<Answer>(packet) else {
                return Err(self.lost());
            };
            match answer.id.cmp(&id) {
                std::cmp::Ordering::Equal => return Ok(answer),
                // One that came too late for whoever asked.
                std::cmp::Ordering::Less if Instant::now() < until => {}
                std::cmp::Ordering::Less => return Err(LATE),
                std::cmp::Ordering::Greater => return Err(self.lost()),
            }
        }
    }

    fn lost(&mut self) -> &'static str {
        self.gone = true;
        GONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ruling;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::thread;

    fn pair(patience: Duration) -> (Asker, OwnedFd) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        (Asker::with_patience(ours, patience).unwrap(), theirs)
    }

    fn request(process: &OwnedFd) -> Request {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        let (length, _) = recv(process, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..length]).unwrap()
    }

    fn answer(process: &OwnedFd, id: u64, ruling: Ruling, enforced: bool) {
        let answer = Answer {
            id,
            ruling,
            enforced,
        };
        let answer = serde_json::to_vec(&answer).unwrap();
        send(process, &answer, SendFlags::NOSIGNAL).unwrap();
    }

    fn model(name: &str) -> Act {
        Act::Model(name.to_owned())
    }

    fn permitted() -> Ruling {
        Ruling::Permitted(vec!["x".to_owned()])
    }

    #[test]
    fn many_threads_ask_and_each_gets_its_own_answer() {
        let (asker, process) = pair(PATIENCE);
        thread::scope(|scope| {
            for number in 0..8 {
                let asker = &asker;
                scope.spawn(move || {
                    let said = asker.ask(&model(&number.to_string()), Some(number));
                    assert_eq!(said.allows(), number % 2 == 0, "{number}");
                });
            }
            for _ in 0..8 {
                let Request { id, act, bytes } = request(&process);
                assert_eq!(act, model(&bytes.unwrap().to_string()));
                let ruling = match bytes.unwrap() % 2 {
                    0 => permitted(),
                    _ => Ruling::NotPermitted,
                };
                answer(&process, id, ruling, true);
            }
        });
    }

    #[test]
    fn what_is_learnt_from_denies_nothing_and_silence_does_all_the_same() {
        let (asker, process) = pair(PATIENCE);
        answer(&process, 1, Ruling::NotPermitted, false);
        let said = asker.ask(&model("x"), None);
        assert!(said.allows() && !said.ruling.is_permitted());
        drop(process);
        let said = asker.ask(&model("x"), None);
        assert!(!said.allows());
        assert!(said.ruling.to_string().contains("gone"), "{}", said.ruling);
    }

    #[test]
    fn an_answer_that_comes_too_late_is_nobody_elses() {
        let (asker, process) = pair(Duration::from_millis(50));
        let late = asker.ask(&model("x"), None);
        assert!(!late.allows());
        assert!(late.ruling.to_string().contains("does not answer"));
        answer(&process, 1, permitted(), true);
        answer(&process, 2, Ruling::NotPermitted, true);
        assert_eq!(asker.ask(&model("y"), None).ruling, Ruling::NotPermitted);
        answer(&process, 3, permitted(), true);
        assert!(asker.ask(&model("z"), None).allows());
    }

    #[test]
    fn nonsense_and_answers_to_what_was_not_asked_deny_from_then_on() {
        let unasked = serde_json::to_vec(&Answer {
            id: 9,
            ruling: permitted(),
            enforced: true,
        });
        let long = vec![b' '; MAX_ANSWER_BYTES + 9];
        for said in [
            b"{}".to_vec(),
            unasked.unwrap(),
            br#"{"id":1,"ruling":{"permitted":["x"]}}"#.to_vec(),
            br#"{"id":1,"ruling":"permitted","enforced":true}"#.to_vec(),
            long,
        ] {
            let (asker, process) = pair(PATIENCE);
            send(&process, &said, SendFlags::NOSIGNAL).unwrap();
            assert!(!asker.ask(&model("x"), None).allows());
            answer(&process, 2, permitted(), true);
            assert!(!asker.ask(&model("x"), None).allows());
        }
    }

    #[test]
    fn what_takes_too_many_words_is_denied_and_the_next_is_asked() {
        let (asker, process) = pair(PATIENCE);
        assert!(
            !asker
                .ask(&model(&"x".repeat(MAX_REQUEST_BYTES)), None)
                .allows()
        );
        answer(&process, 2, permitted(), true);
        assert!(asker.ask(&model("x"), None).allows());
    }
}

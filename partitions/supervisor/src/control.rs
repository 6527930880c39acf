//! What another process can ask a supervisor: a request and an answer, each one line of JSON on
//! the Unix socket in the system's directory.

use crate::conditions::PartitionConditions;
use crate::error::Error;
use crate::record::SystemRecord;
use crate::state_dir::{Found, Standing};
use bulkhead_approval::{Question, Scope};
use bulkhead_machine::control::Stats;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest request in bytes.
pub(crate) const MAX_LINE: usize = 1024 * 1024;
/// Longest answer in bytes: conditions, and all that they may speak of.
const MAX_ANSWER: u64 = 8 * 1024 * 1024;
/// How long a supervisor may take to say how it stands, for which there is its last record as well,
/// and either side to take what the other says.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to say what only it knows: it may be starting a partition again.
const ANSWER: Duration = Duration::from_secs(5);
/// How long other conditions may take to be checked.
pub(crate) const RELOAD: Duration = Duration::from_secs(20);
/// What a supervisor needs beyond the time that it gives others.
const MARGIN: Duration = Duration::from_secs(2);

/// From another process to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How does it stand? The answer is a [`SystemRecord`].
    Status,
    /// End every partition. The answer is a [`SystemRecord`].
    Down,
    /// Halt every partition. The answer is a [`SystemRecord`], once all of them are.
    Halt,
    /// Let every partition that was halted go on. The answer is a [`SystemRecord`].
    GoOn,
    /// Whose is this token, which was made for one start of a partition? The answer is a
    /// [`TokenOwner`], or nothing.
    Whose {
        /// The token.
        token: String,
    },
    /// What waits for a person? The answer is a list of [`OpenQuestion`].
    Questions,
    /// A person answers a question. The answer is an [`Answer`].
    Decide {
        /// Its number.
        question: u64,
        /// For how long it is allowed; without, it is denied.
        allow: Option<Scope>,
    },
    /// Which conditions hold for a partition? The answer is [`HeldConditions`], or nothing.
    Conditions {
        /// Its name.
        partition: String,
    },
    /// Other conditions for a partition. The answer is an [`Answer`].
    Reload {
        /// Its name.
        partition: String,
        /// The conditions.
        new: NewConditions,
    },
    /// Something with one partition. The answer is an [`Answer`].
    Partition {
        /// Its name.
        partition: String,
        /// What.
        act: Act,
    },
}

/// What can be done with a running partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Act {
    /// Stop it where it stands.
    Pause,
    /// Let it go on.
    Resume,
    /// Plug a device in.
    Attach(NewDevice),
    /// Take a device out, when its guest has let go of it.
    Detach {
        /// Its name.
        device: String,
    },
    /// Give it more or less memory: so much in all.
    ResizeMemory {
        /// MiB.
        mib: u64,
    },
    /// Ask it to give memory back.
    ResizeBalloon {
        /// MiB.
        mib: u64,
    },
    /// Look at a disk's length again.
    ResizeDisk {
        /// Its name.
        device: String,
    },
    /// Counters and state.
    Stats,
    /// Write memory and registers into a new file, as an ELF core.
    Dump {
        /// Its absolute path.
        file: PathBuf,
    },
}

/// Who holds a token that was made for one start of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenOwner {
    /// The partition, with its system before it.
    pub partition: String,
    /// The secret that it was made for.
    pub secret: String,
}

/// A question that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenQuestion {
    /// Its number within the system.
    pub id: u64,
    /// Which partition wants to act.
    pub partition: String,
    /// Those that it descends from, the nearest first.
    pub lineage: Vec<String>,
    /// What is asked.
    pub question: Question,
    /// How long it waits yet.
    pub seconds: u64,
}

/// A device as it was typed, still unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewDevice {
    /// Capabilities that become it: several for a user-mode network, else one.
    pub grants: Vec<String>,
    /// Its name, instead of the next free one.
    pub name: Option<String>,
    /// Tag of a shared directory.
    pub tag: Option<String>,
    /// Format of a disk.
    pub format: Option<String>,
    /// Where relative paths start.
    pub base: PathBuf,
}

/// The conditions that hold for a running partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldConditions {
    /// What they are, and what they may speak of.
    pub conditions: PartitionConditions,
    /// Somebody answers for them; else nothing is permitted.
    pub answered: bool,
}

/// Conditions that are to hold in the place of others, still unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewConditions {
    /// Where they come from, for the record.
    pub file: String,
    /// In Cedar.
    pub text: String,
    /// They may permit what the others do not.
    pub widen: bool,
    /// The ancestor whose they are; without, the partition's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// The answer to an [`Act`], or to [`NewConditions`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Done {
        /// Name of the device that was attached.
        device: Option<String>,
    },
    /// The answer to [`Act::Stats`].
    Stats(Stats),
    /// The answer to [`NewConditions`]: they hold.
    Reloaded {
        /// Their SHA-256.
        conditions: String,
        /// Why they permit what the others did not, if they do.
        widened: Option<String>,
    },
    /// Not done.
    Refused {
        /// Stable code.
        code: String,
        /// One sentence.
        message: String,
        /// What to do.
        help: Option<String>,
    },
}

impl Act {
    /// How long the VMM may take.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(match self {
            // The guest has to let go of it.
            Self::Detach { .. } => 30,
            // As much as there is memory to write.
            Self::Dump { .. } => 600,
            _ => 20,
        })
    }
}

/// The supervisor's side: answers. A client that does not wait for the answer, or takes it too slowly, has
/// made its request all the same.
pub(crate) fn reply(client: &UnixStream, answer: &impl Serialize) {
    let Ok(mut line) = serde_json::to_vec(answer) else {
        return;
    };
    line.push(b'\n');
    let end = Instant::now() + PATIENCE;
    let (mut to, mut rest) = (client, line.as_slice());
    // A time-out of the socket would begin anew with each piece that it takes.
    if client.set_nonblocking(true).is_err() {
        return;
    }
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(count @ 1..) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let left = end.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).unwrap_or_default();
                let mut room = [PollFd::new(client, PollFlags::OUT)];
                match poll(&mut room, Some(&left)) {
                    Ok(1..) | Err(Errno::INTR) => {}
                    Ok(0) | Err(_) => return,
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

pub(crate) fn ask<A: for<'de> Deserialize<'de>>(
    found: &Found,
    request: &Request,
    patience: Duration,
) -> Option<A> {
    ask_on(UnixStream::connect(found.socket()).ok()?, request, patience)
}

/// The same on a connection that is there.
pub(crate) fn ask_on<A: for<'de> Deserialize<'de>>(
    mut stream: UnixStream,
    request: &Request,
    patience: Duration,
) -> Option<A> {
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut line = serde_json::to_vec(request).ok()?;
    line.push(b'\n');
    stream.write_all(&line).ok()?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER))
        .read_line(&mut answer)
        .ok()?;
    serde_json::from_str(&answer).ok()
}

/// What a system's supervisor answers.
///
/// # Errors
/// The system has ended, or its supervisor does not answer in time.
fn answer<A: for<'de> Deserialize<'de>>(
    found: &Found,
    request: &Request,
    patience: Duration,
) -> Result<A, Error> {
    if found.standing == Standing::Finished {
        return Err(Error::NotRunning(found.name.clone()));
    }
    ask(found, request, patience).ok_or_else(|| Error::NoAnswer(found.name.clone()))
}

/// How a system stands now: its supervisor's answer, or its last written record when it gives none.
pub fn status(found: &Found) -> SystemRecord {
    let answer = match found.standing {
        Standing::Live => ask(found, &Request::Status, PATIENCE),
        Standing::Finished => None,
    };
    answer.unwrap_or_else(|| found.record.clone())
}

/// Asks a system's supervisor to do something with one of its partitions.
///
/// # Errors
/// The system has ended, or its supervisor does not answer. What it refuses is an [`Answer`].
pub fn act(found: &Found, partition: &str, act: Act) -> Result<Answer, Error> {
    let patience = act.patience() + MARGIN;
    let request = Request::Partition {
        partition: partition.to_owned(),
        act,
    };
    answer(found, &request, patience)
}

/// The conditions that hold for one of a system's partitions, if there are any.
///
/// # Errors
/// The system has ended, or its supervisor does not answer.
pub fn conditions(found: &Found, partition: &str) -> Result<Option<HeldConditions>, Error> {
    let partition = partition.to_owned();
    answer(found, &Request::Conditions { partition }, ANSWER)
}

/// Has other conditions hold for one of a system's partitions.
///
/// # Errors
/// The system has ended, or its supervisor does not answer. What it refuses is an [`Answer`].
pub fn reload(found: &Found, partition: &str, new: NewConditions) -> Result<Answer, Error> {
    let partition = partition.to_owned();
    let request = Request::Reload { partition, new };
    answer(found, &request, RELOAD + MARGIN)
}

/// Whose a token is that was made for one start of a partition; nothing where it is not of this
/// system, or is good no more.
///
/// # Errors
/// The supervisor does not answer.
pub fn whose(found: &Found, token: &str) -> Result<Option<TokenOwner>, Error> {
    if found.standing == Standing::Finished {
        return Ok(None);
    }
    let token = token.to_owned();
    answer(found, &Request::Whose { token }, ANSWER)
}

/// What waits for a person in a system.
///
/// # Errors
/// It has ended, or its supervisor does not answer.
pub fn questions(found: &Found) -> Result<Vec<OpenQuestion>, Error> {
    answer(found, &Request::Questions, ANSWER)
}

/// Answers a question: `allow` says for how long, without it is denied.
///
/// # Errors
/// The system has ended, or its supervisor does not answer. What it refuses is an [`Answer`].
pub fn decide(found: &Found, question: u64, allow: Option<Scope>) -> Result<Answer, Error> {
    answer(found, &Request::Decide { question, allow }, ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_an_answer_in_drops_does_not_hold_up_whoever_answers() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (finished, is_finished) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                reply(&ours, &"x".repeat(64 * 1024 * 1024));
                finished.send(()).unwrap();
            });
            // What is taken each time makes room for another write.
            let mut drop = vec![0; 64 * 1024];
            let (mut taken, pause) = (0, PATIENCE / 4);
            while is_finished.recv_timeout(pause).is_err() {
                taken += theirs.read(&mut drop).unwrap();
                assert!(
                    taken < 4 * 1024 * 1024,
                    "it is waited for as long as it reads"
                );
            }
        });
    }

    #[test]
    fn requests_are_what_they_are_documented_to_be() {
        for (text, request) in [
            (r#"{"request":"status"}"#, Request::Status),
            (
                r#"{"request":"partition","partition":"web","act":{"act":"pause"}}"#,
                Request::Partition {
                    partition: "web".to_owned(),
                    act: Act::Pause,
                },
            ),
            (
                r#"{"request":"partition","partition":"web","act":{"act":"attach","grants":["block.read:/d"]}}"#,
                Request::Partition {
                    partition: "web".to_owned(),
                    act: Act::Attach(NewDevice {
                        grants: vec!["block.read:/d".to_owned()],
                        ..NewDevice::default()
                    }),
                },
            ),
        ] {
            assert_eq!(
                serde_json::from_str::<Request>(text).unwrap(),
                request,
                "{text}"
            );
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request);
        }
        for text in [
            r#"{"request":"partition","partition":"web","act":{"act":"explode"}}"#,
            r#"{"request":"partition","act":{"act":"pause"}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}

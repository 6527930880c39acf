//! The ledger, seen from a supervisor: its writer is a process of the system, started before anything else
//! and asked for every step in a partition's life. What a step has to be recorded before waits here for it to be
//! durable; docs/ledger.md says what is recorded.

use crate::error::Error;
use crate::library::{Library, LibraryFile};
use crate::lifecycle::{Lifecycle, State};
use crate::open::Records;
use crate::process::{Process, packet_pair};
use crate::vmm::send_with;
use bulkhead_machine::{Fd, Jail};
use bulkhead_places::Place;
use bulkhead_record::description::{Command, Event, LedgerDescription, MAX_MESSAGE_BYTES, VERSION};
use bulkhead_record::{Client, Entry, Kind, RecordError, Recorder, Ticket, Verdict};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What starts and ends a partition's life, as records name it.
const START: &str = "partition.start";
/// A step in it.
const STATE: &str = "partition.state";
/// Most characters of a reason: of a text that a guest may have had a part in.
const MAX_REASON_CHARS: usize = 1024;

/// The ledger of one system.
#[derive(Debug)]
pub(crate) struct Ledger {
    system: String,
    client: Arc<Client>,
    /// Nobody, where a test is the writer.
    writer: Mutex<Option<Writer>>,
    /// What was asked for and not waited for; or why it could not even be asked for.
    pending: Mutex<Vec<Result<Ticket, RecordError>>>,
}

/// The process that writes it.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) process: Process,
    control: OwnedFd,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Starts it on this user's ledger, which is made if there is none.
    fn start(library: &Library, jail: Jail) -> Result<Self, Error> {
        let program = library.file(LibraryFile::Ledger)?;
        let directory = directory(Place::data()?.below("ledger").make()?)?;
        let second = directory_of(&Place::checkpoints()?)?;
        let keys = directory_of(&Place::config()?.below("keys"))?;
        let (control, theirs) = packet_pair()?;
        let fd = |descriptor: &OwnedFd| Fd(descriptor.as_raw_fd());
        let description = LedgerDescription {
            version: VERSION,
            directory: fd(&directory),
            second: fd(&second),
            keys: fd(&keys),
            control: fd(&theirs),
            jail,
        };
        let description = serde_json::to_vec(&description);
        let description = description.map_err(Error::system("describe the ledger"))?;
        let descriptors = vec![directory, second, keys, theirs];
        let process = Process::spawn(&program, &description, descriptors, None)?;
        Ok(Self { process, control })
    }

    /// Gives the writer a client that may name `actor`, and what is below it; our end of its socket.
    fn client(&self, actor: &str) -> Result<OwnedFd, Error> {
        let (ours, theirs) = packet_pair()?;
        let command = Command::Client {
            actor: actor.to_owned(),
        };
        let packet = serde_json::to_vec(&command);
        let packet = packet.map_err(Error::system("describe a request"))?;
        match send_with(self.control.as_fd(), &packet, &[theirs]) {
            // A writer that is gone is seen to be by the client, and says why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ours),
            Err(error) => Err(Error::system("send a request to the ledger's writer")(
                error,
            )),
            Ok(()) => Ok(ours),
        }
    }

    /// Why it is gone.
    fn last_words(&mut self) -> String {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            match recv(&self.control, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length @ 1.., _)) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    if let Ok(Event::Failed { message, .. }) = serde_json::from_slice(packet) {
                        return message.escape_debug().to_string();
                    }
                }
                // A reset is told once, before what was said.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Ok((0, _)) | Err(_) => break,
            }
        }
        // Its sockets are closed, so it ends.
        format!("its writer {}", self.process.reap())
    }
}

fn directory_of(place: &Place) -> Result<OwnedFd, Error> {
    directory(place.make()?)
}

fn directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty());
    opened.map_err(|errno| Error::Open {
        what: "directory",
        path: path.to_owned(),
        source: errno.into(),
    })
}

impl Recorder for Ledger {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        self.client.record(entry)
    }
}

impl Ledger {
    /// Starts the writer for a system. Nothing is known then: not even that there is a ledger. The first
    /// [`Ledger::settle`] tells.
    ///
    /// # Errors
    /// The host refuses, or the directories are not private.
    pub(crate) fn start(system: &str, library: &Library, jail: Jail) -> Result<Self, Error> {
        let writer = Writer::start(library, jail)?;
        let client = Client::new(writer.client(system)?);
        let ledger = Self::on(system, client);
        *locked(&ledger.writer) = Some(writer);
        Ok(ledger)
    }

    /// The ledger that is reached by `client`.
    pub(crate) fn on(system: &str, client: Client) -> Self {
        Self {
            system: system.to_owned(),
            client: Arc::new(client),
            writer: Mutex::default(),
            pending: Mutex::default(),
        }
    }

    /// A socket on which a back end of a partition can have recorded what it does, in the partition's name and in no
    /// other; nothing where a test is the writer.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn client(&self, partition: &str) -> Result<Option<OwnedFd>, Error> {
        let actor = format!("{}/{partition}", self.system);
        let writer = locked(&self.writer);
        writer
            .as_ref()
            .map(|writer| writer.client(&actor))
            .transpose()
    }

    /// Where the gateway of `partition` records what it does.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn records(&self, partition: &str) -> Result<Option<Records>, Error> {
        let way = self.client(partition)?;
        let actor = format!("{}/{partition}", self.system);
        Ok(way.map(|way| Records { way, actor }))
    }

    /// Waits until everything that was asked for is durable.
    ///
    /// # Errors
    /// Something is not.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        let pending = std::mem::take(&mut *locked(&self.pending));
        let mut outcome = Ok(());
        for ticket in pending {
            outcome = outcome.and(ticket.and_then(Ticket::wait).map(drop));
        }
        outcome.map_err(|error| self.failed(error))
    }

    /// Records something that must not take place unless it is recorded; its index.
    ///
    /// # Errors
    /// It is not recorded.
    pub(crate) fn record(&self, entry: &Entry) -> Result<u64, Error> {
        self.client
            .record(entry)
            .map_err(|error| self.failed(error))
    }

    /// Has something recorded that has taken place; [`Ledger::settle`] tells whether it was.
    fn note(&self, entry: &Entry) {
        let ticket = self.client.begin(entry);
        locked(&self.pending).push(ticket);
    }

    /// Why something was not recorded, as far as the writer has said it.
    fn failed(&self, error: RecordError) -> Error {
        let why = match (error, locked(&self.writer).as_mut()) {
            (RecordError::WriterGone, Some(writer)) => writer.last_words(),
            (RecordError::NotWritten(why), _) => why,
            (error, _) => error.to_string(),
        };
        Error::Ledger(why)
    }

    /// Records that the partitions of a system do not start, and why.
    pub(crate) fn refuse<'a>(&self, partitions: impl Iterator<Item = &'a str>, error: &Error) {
        for partition in partitions {
            let refusal = Entry {
                kind: Kind::Refusal,
                verdict: Verdict::Denied,
                reason: reason(&format!("{}: {error}", error.code())),
                detail: detail([("state", State::Rejected.as_str())]),
                ..self.entry(partition, START, "")
            };
            self.note(&refusal);
        }
        // It is refused whether that is known or not.
        let _ = self.settle();
    }

    fn entry(&self, partition: &str, action: &str, object: &str) -> Entry {
        Entry {
            kind: Kind::Intent,
            actor: format!("{}/{partition}", self.system),
            action: action.to_owned(),
            object: object.to_owned(),
            verdict: Verdict::Allowed,
            reason: String::new(),
            intent: None,
            detail: BTreeMap::new(),
        }
    }

    /// What the writer says on standard error; nothing where it has no more to say.
    pub(crate) fn listen(&self) -> Option<Vec<u8>> {
        let mut writer = locked(&self.writer);
        let process = &mut writer.as_mut()?.process;
        let text = process.listen();
        if text.is_none() {
            process.stderr = None;
        }
        text
    }

    /// A duplicate of the descriptor that is readable when the writer has something to say.
    pub(crate) fn voice(&self) -> Option<OwnedFd> {
        let writer = locked(&self.writer);
        let stderr = writer.as_ref()?.process.stderr.as_ref()?;
        stderr.as_fd().try_clone_to_owned().ok()
    }
}

fn detail<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn reason(text: &str) -> String {
    text.chars().take(MAX_REASON_CHARS).collect()
}

/// The life of a partition, each step of which is recorded.
#[derive(Debug)]
pub(crate) struct Life {
    partition: String,
    lifecycle: Lifecycle,
    ledger: Arc<Ledger>,
}

impl Life {
    /// Begins it: that the partition is to start is asked to be recorded, and is for certain when
    /// [`Ledger::settle`] has said so.
    /// `held` is what it is and what it is held to: of files the SHA-256, and nothing where there is none.
    pub(crate) fn begin<const N: usize>(
        partition: &str,
        held: [(&str, &str); N],
        ledger: &Arc<Ledger>,
    ) -> Self {
        let life = Self {
            partition: partition.to_owned(),
            lifecycle: Lifecycle::new(),
            ledger: ledger.clone(),
        };
        let start = Entry {
            detail: detail(held),
            ..ledger.entry(partition, START, "")
        };
        ledger.note(&start);
        life.note(None, "", "");
        life
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// Takes a step, and has it recorded. An illegal one is not taken, and `false` says so.
    #[must_use]
    pub(crate) fn step(&mut self, next: State) -> bool {
        let from = self.state();
        let legal = self.lifecycle.step(next);
        if legal {
            self.note(Some(from), "", "");
        }
        legal
    }

    /// Ends it, with an exit status and what there is to say about the end.
    pub(crate) fn end(&mut self, status: u8, why: &str) {
        let from = self.state();
        self.lifecycle.end();
        if self.state() != from {
            self.note(Some(from), &status.to_string(), why);
        }
    }

    fn note(&self, from: Option<State>, status: &str, why: &str) {
        let state = self.state();
        let transition = Entry {
            kind: Kind::Transition,
            verdict: match state {
                State::Rejected => Verdict::Failed,
                _ => Verdict::Done,
            },
            reason: reason(why),
            detail: detail([("from", from.map_or("", State::as_str)), ("status", status)]),
            ..self.ledger.entry(&self.partition, STATE, state.as_str())
        };
        self.ledger.note(&transition);
    }

    /// Records that somebody is about to do something to the partition; the record's index.
    ///
    /// # Errors
    /// It is not recorded, and must not be done.
    pub(crate) fn intend<const N: usize>(
        &self,
        action: &str,
        object: &str,
        details: [(&str, &str); N],
    ) -> Result<u64, Error> {
        let entry = self.ledger.entry(&self.partition, action, object);
        let entry = Entry {
            reason: "asked for by the operator".to_owned(),
            detail: detail(details),
            ..entry
        };
        self.ledger.record(&entry)
    }

    /// Has it recorded how that went: done, or not, and why.
    pub(crate) fn conclude<const N: usize>(
        &self,
        intent: u64,
        action: &str,
        outcome: Result<(), &str>,
        details: [(&str, &str); N],
    ) {
        let entry = self.ledger.entry(&self.partition, action, "");
        self.ledger.note(&Entry {
            kind: Kind::Outcome,
            verdict: match outcome {
                Ok(()) => Verdict::Done,
                Err(_) => Verdict::Failed,
            },
            reason: reason(outcome.err().unwrap_or_default()),
            intent: Some(intent),
            detail: detail(details),
            ..entry
        });
    }
}

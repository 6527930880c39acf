//! DNS over TCP (RFC 7766): one query after the other, each over a connection of its own to a
//! resolver. Used by the table of TCP connections, as one who is spoken to.

use std::io::{self, ErrorKind};

use bulkhead_proxy::records::{Act, NotDone};
use smoltcp::socket::tcp::Socket;
use smoltcp::time::{Duration, Instant};

use super::message::{Code, MAX_QUERY, Query};
use super::{UNANSWERED, Verdict, decide, learn, random_id, refuse, resolver};
use crate::core::Core;
use crate::host::{Host, Readiness, Stream};
use crate::journal::UNDECIDED;
use crate::table::Token;

/// How long a session may be silent, and a resolver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most queries of a session.
const MAX_QUERIES: u32 = 1000;

/// A connection of the guest to the DNS server.
pub(crate) struct Session<S> {
    stage: Stage<S>,
    until: Instant,
    queries: u32,
}

enum Stage<S> {
    /// The guest writes a query: its length in two bytes, and itself.
    Reading(Vec<u8>),
    /// Conditions are asked about it, and the ledger has it recorded.
    Deciding(Query),
    /// A resolver works on it.
    Asking(Box<Asking<S>>),
    /// The guest reads the answer; how much it has read.
    Answering(Vec<u8>, usize),
    /// Nothing more comes.
    Over,
}

struct Asking<S> {
    stream: S,
    query: Query,
    /// Its intent, where that is on record.
    act: Option<Act>,
    id: u16,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl<S: Stream> Session<S> {
    /// A session that waits for a query.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Reading(Vec::new()),
            until: now + TIMEOUT,
            queries: 0,
        }
    }

    /// Whether the connection is to be closed.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Whether it waits for the guest to ask.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    /// When it ends if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.is_over()).then_some(self.until)
    }

    /// Conditions permit the query and it is on record, or it must not be sent.
    pub(crate) fn decided<H: Host<Stream = S>>(
        &mut self,
        core: &mut Core<H>,
        act: Result<Act, NotDone>,
        ready: &mut Readiness,
        token: Token,
    ) {
        self.stage = match (std::mem::replace(&mut self.stage, Stage::Over), act) {
            (Stage::Deciding(query), Ok(act)) => ask(core, query, Some(act), ready, token),
            (Stage::Deciding(query), Err(error)) => {
                refuse(core, &query, &error.to_string());
                answering(&query.response(Code::Refused))
            }
            (other, late) => {
                core.journal.late(late);
                self.stage = other;
                return;
            }
        };
        self.until = core.now + TIMEOUT;
    }

    /// The act that is under way, which ends with the session.
    pub(crate) fn take_act(&mut self) -> Option<Act> {
        match &mut self.stage {
            Stage::Asking(asking) => asking.act.take(),
            _ => None,
        }
    }

    /// Goes on as far as possible; false when the guest speaks no DNS.
    pub(crate) fn turn<H: Host<Stream = S>>(
        &mut self,
        core: &mut Core<H>,
        socket: &mut Socket<'_>,
        ready: &mut Readiness,
        token: Token,
    ) -> bool {
        if !self.advance(core, socket, ready, token) {
            return false;
        }
        if self.until <= core.now {
            self.expire(core);
            return self.advance(core, socket, ready, token);
        }
        true
    }

    /// Takes one step after the other; false when the guest speaks no DNS.
    fn advance<H: Host<Stream = S>>(
        &mut self,
        core: &mut Core<H>,
        socket: &mut Socket<'_>,
        ready: &mut Readiness,
        token: Token,
    ) -> bool {
        // Each step either waits, or moves bytes that the buffers of the socket bound.
        loop {
            let moved = match &mut self.stage {
                Stage::Reading(bytes) => match read(socket, bytes) {
                    Read::Part(moved) => moved,
                    Read::Whole => {
                        let query = std::mem::take(bytes);
                        self.stage = begin(core, &query, ready, token);
                        self.queries += 1;
                        true
                    }
                    Read::TooLong => return false,
                },
                Stage::Asking(asking) => match asking.step(ready) {
                    Ok(false) => false,
                    Ok(true) => {
                        self.stage = asking.finish(core);
                        true
                    }
                    Err(_) => {
                        self.stage = asking.fail(core);
                        true
                    }
                },
                Stage::Answering(bytes, read) if *read == bytes.len() => {
                    self.stage = match self.queries < MAX_QUERIES {
                        true => Stage::Reading(Vec::new()),
                        false => Stage::Over,
                    };
                    true
                }
                Stage::Answering(bytes, read) => {
                    let rest = bytes.get(*read..).unwrap_or_default();
                    let sent = socket.send_slice(rest).unwrap_or(0);
                    *read += sent;
                    sent > 0
                }
                Stage::Deciding(_) | Stage::Over => false,
            };
            if !moved {
                break;
            }
            self.until = core.now + TIMEOUT;
        }
        true
    }

    /// Nothing has happened for long enough.
    fn expire<H: Host<Stream = S>>(&mut self, core: &mut Core<H>) {
        self.stage = match &mut self.stage {
            Stage::Asking(asking) => {
                self.until = core.now + TIMEOUT;
                asking.fail(core)
            }
            Stage::Deciding(query) => {
                refuse(core, query, UNDECIDED);
                // What is still said of it must not be taken for an answer about another.
                self.queries = MAX_QUERIES;
                self.until = core.now + TIMEOUT;
                answering(&query.response(Code::Refused))
            }
            _ => Stage::Over,
        };
    }
}

enum Read {
    /// Not all yet; whether something came.
    Part(bool),
    Whole,
    TooLong,
}

/// Reads on until `bytes` are a query with its length.
fn read(socket: &mut Socket<'_>, bytes: &mut Vec<u8>) -> Read {
    let mut moved = false;
    loop {
        let wanted = match bytes.first_chunk() {
            Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            None => 2,
        };
        if wanted > 2 + MAX_QUERY {
            return Read::TooLong;
        }
        if bytes.len() >= 2 && bytes.len() == wanted {
            return Read::Whole;
        }
        let taken = socket.recv(|available| {
            let part = available.get(..wanted - bytes.len()).unwrap_or(available);
            bytes.extend(part);
            (part.len(), part.len())
        });
        match taken {
            Ok(len) if len > 0 => moved = true,
            _ => return Read::Part(moved),
        }
    }
}

/// Decides on a query with its length, and begins to ask where it is allowed.
fn begin<H: Host>(
    core: &mut Core<H>,
    query: &[u8],
    ready: &mut Readiness,
    token: Token,
) -> Stage<H::Stream> {
    let (query, grant) = match decide(core, query.get(2..).unwrap_or_default()) {
        Verdict::Answer(answer) => return answering(&answer),
        Verdict::Ignore => return Stage::Over,
        Verdict::Ask(query, grant) => (query, grant),
    };
    match core.journal.is_kept() {
        true => {
            core.journal.resolve(token, &query.name, grant);
            Stage::Deciding(query)
        }
        false => ask(core, query, None, ready, token),
    }
}

/// Begins to ask a resolver.
fn ask<H: Host>(
    core: &mut Core<H>,
    query: Query,
    act: Option<Act>,
    ready: &mut Readiness,
    token: Token,
) -> Stage<H::Stream> {
    let id = random_id(core);
    *ready = Readiness::default();
    let stream = match resolver(core, 0) {
        Some(to) => core.host.connect(to, token),
        None => Err(ErrorKind::NotFound.into()),
    };
    match stream {
        Ok(stream) => Stage::Asking(Box::new(Asking {
            stream,
            id,
            request: with_length(&query.forwarded(id)),
            query,
            act,
            sent: 0,
            answer: Vec::new(),
        })),
        Err(_) => unanswered(core, &query, act.as_ref()),
    }
}

/// No resolver answers.
fn unanswered<H: Host>(core: &Core<H>, query: &Query, act: Option<&Act>) -> Stage<H::Stream> {
    if let Some(act) = act {
        core.journal.failed(act, UNANSWERED);
    }
    answering(&query.response(Code::ServerFailure))
}

impl<S: Stream> Asking<S> {
    /// Sends the request, receives the answer; true when it is whole.
    fn step(&mut self, ready: &mut Readiness) -> io::Result<bool> {
        while ready.writable && self.sent < self.request.len() {
            let rest = self.request.get(self.sent..).unwrap_or_default();
            match self.stream.send(rest) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 2048];
        while ready.readable {
            let wanted = match self.answer.first_chunk() {
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
                None => 2,
            };
            if self.answer.len() >= 2 && self.answer.len() == wanted {
                return Ok(true);
            }
            let room = (wanted - self.answer.len()).min(buffer.len());
            let room = buffer.get_mut(..room).unwrap_or_default();
            match self.stream.receive(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.answer.extend(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn finish<H: Host<Stream = S>>(&mut self, core: &mut Core<H>) -> Stage<S> {
        let answer = self.answer.get_mut(2..).unwrap_or_default();
        if !self.query.is_answered_by(self.id, answer) {
            return self.fail(core);
        }
        learn(core, &self.query, self.act.as_ref(), answer);
        self.query.hand_back(answer);
        answering(answer)
    }

    fn fail<H: Host<Stream = S>>(&self, core: &Core<H>) -> Stage<S> {
        unanswered(core, &self.query, self.act.as_ref())
    }
}

fn answering<S>(answer: &[u8]) -> Stage<S> {
    Stage::Answering(with_length(answer), 0)
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message.iter().take(length.into()));
    bytes
}

//! DNS: the server at the guest's address for it. It answers what no rule allows itself, sends the
//! rest to the host's resolvers, and lets the rules learn what names stand for. Queries over UDP
//! are here; those over TCP are in `session`. Used by [`crate::Gateway`].

pub mod message;
pub(crate) mod session;

use std::io::ErrorKind;
use std::net::SocketAddr;

use bulkhead_network::tools::Wanted;
use bulkhead_proxy::records::{Act, NotDone};
use smoltcp::time::Duration;

use crate::chatter::printable;
use crate::core::Core;
use crate::host::{Datagrams, Host};
use crate::journal::UNDECIDED;
use crate::requests;
use crate::schedule::{Schedule, Slot};
use crate::table::{Kind, Table, Token};
use message::{Code, Malformed, Query};

/// The port of DNS.
pub(crate) const PORT: u16 = 53;
/// Most queries that wait for a resolver. The guest asks again what does not fit in.
pub(crate) const MAX_PENDING: usize = 128;
/// How long conditions and ledger may take: longer than those that ask wait for an answer.
const ASKING: Duration = Duration::from_secs(6);
/// How long a resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most times a query is sent.
const MAX_TRIES: usize = 3;
/// Largest answer.
const MAX_ANSWER: usize = 4096;
/// How a query ends that was sent on in vain.
const UNANSWERED: &str = "no resolver answers";
/// Why one is not sent on that has no place.
const TOO_MANY: &str = "too many names are being resolved";

struct Pending<D> {
    slot: Slot,
    lookup: Lookup,
    id: u16,
    /// None until the query may be sent.
    socket: Option<D>,
    tries: usize,
}

/// What somebody wants to know.
struct Lookup {
    query: Query,
    asker: Asker,
    /// Its intent, where that is on record.
    act: Option<Act>,
}

/// Who asks.
enum Asker {
    /// The guest, from this port.
    Guest(u16),
    /// The partition's tools, who want to connect.
    Tools(Wanted),
}

/// Queries over UDP that wait for conditions, the ledger or a resolver.
pub(crate) struct Dns<H: Host> {
    pending: Table<Pending<H::Datagrams>>,
}

/// What to do with a query, over UDP and TCP alike.
enum Verdict {
    /// Answer so.
    Answer(Vec<u8>),
    /// Ask a resolver, as this grant allows.
    Ask(Query, String),
    /// Nothing.
    Ignore,
}

/// Decides on a query.
fn decide<H: Host>(core: &mut Core<H>, bytes: &[u8]) -> Verdict {
    core.stats.dns_queries += 1;
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(malformed) => {
            core.stats.dropped_out += 1;
            return malformed.map_or(Verdict::Ignore, |m: Malformed| {
                Verdict::Answer(m.response())
            });
        }
    };
    if core.rules.spend(&[], bytes.len() as u64).is_err() {
        return Verdict::Answer(query.response(Code::Refused));
    }
    if core.config.hosts.contains(&query.name) {
        return Verdict::Answer(query.local(core.config.router));
    }
    let Some(grant) = core.rules.resolves(core.now, &query.name) else {
        // Programs such as apt ask for services of a name before they ask for the name itself, and
        // do without.
        let name = without_service(&query.name);
        if core.rules.resolves(core.now, name).is_some() {
            core.stats.refused += 1;
        } else {
            let name = printable(&query.name);
            let help = format!("a rule such as tcp:{name}:443 would allow it");
            refuse(core, &query, &help);
        }
        return Verdict::Answer(query.response(Code::Refused));
    };
    match core.config.resolvers.is_empty() {
        true => Verdict::Answer(query.response(Code::ServerFailure)),
        false => Verdict::Ask(query, grant),
    }
}

/// A query must not be sent on: tells that, and why.
fn refuse<H: Host>(core: &mut Core<H>, query: &Query, why: &str) {
    let name = printable(&query.name);
    let said = format_args!("refused to resolve {name}: {why}");
    core.refuse_act("dns.resolve", &name, said, why);
}

/// A name without the labels of a service before it (RFC 2782): `_http._tcp.example.org` is about
/// `example.org`.
fn without_service(mut name: &str) -> &str {
    while name.starts_with('_')
        && let Some((_, rest)) = name.split_once('.')
    {
        name = rest;
    }
    name
}

/// Lets the rules know the addresses in an answer, and the ledger, where `act` is on record.
fn learn<H: Host>(core: &mut Core<H>, query: &Query, act: Option<&Act>, answer: &[u8]) {
    if let Some(act) = act {
        let addresses = query.addresses(answer).map(|(address, _)| address);
        core.journal.answered(act, addresses);
    }
    // This one is here already; the next may be one too many.
    let _ = core.rules.spend(&[], answer.len() as u64);
    for (address, ttl) in query.addresses(answer) {
        core.rules.learn(core.now, &query.name, address, ttl);
    }
}

/// The resolver for the n-th try.
fn resolver<H: Host>(core: &Core<H>, tries: usize) -> Option<SocketAddr> {
    let resolvers = &core.config.resolvers;
    resolvers.get(tries.checked_rem(resolvers.len())?).copied()
}

/// A number for a query that nobody else can guess.
fn random_id<H: Host>(core: &mut Core<H>) -> u16 {
    let [a, b, ..] = core.host.random().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

impl<H: Host> Dns<H> {
    /// Nothing pending.
    pub(crate) fn new() -> Self {
        Self {
            pending: Table::new(Kind::Dns, MAX_PENDING),
        }
    }

    /// A query of the guest over UDP.
    pub(crate) fn query(&mut self, core: &mut Core<H>, guest_port: u16, bytes: &[u8]) {
        match decide(core, bytes) {
            Verdict::Answer(answer) => reply(core, guest_port, &answer),
            Verdict::Ask(query, grant) => {
                let asker = Asker::Guest(guest_port);
                self.go_on(core, Lookup::new(query, asker), grant);
            }
            Verdict::Ignore => {}
        }
    }

    /// Finds the address that tools want to connect to. They are under the rules of the guest's queries.
    pub(crate) fn resolve(&mut self, core: &mut Core<H>, wanted: Wanted) {
        match message::address_of(&wanted.host).map(|query| decide(core, &query)) {
            Some(Verdict::Ask(query, grant)) => {
                self.go_on(core, Lookup::new(query, Asker::Tools(wanted)), grant);
            }
            Some(Verdict::Answer(_)) => {
                let (host, port) = (&wanted.host, wanted.port);
                let why =
                    format!("{host} does not resolve; the rule tcp:{host}:{port} would allow it");
                core.host.refuse_tools(&wanted, &why);
            }
            Some(Verdict::Ignore) | None => {
                requests::refuse(core, &wanted, "it is no name of a host")
            }
        }
    }

    /// Asks a resolver about a query that `grant` allows, once conditions permit it and it is on record.
    fn go_on(&mut self, core: &mut Core<H>, lookup: Lookup, grant: String) {
        if !core.journal.is_kept() {
            return self.ask(core, lookup, 0);
        }
        let name = lookup.query.name.clone();
        let pending = Pending {
            slot: Slot::default(),
            lookup,
            id: 0,
            socket: None,
            tries: 0,
        };
        match self.pending.insert(pending) {
            Ok(token) => {
                core.journal.resolve(token, &name, grant);
                if let Some(pending) = self.pending.get_mut(token) {
                    let until = core.now + ASKING;
                    core.schedule
                        .set_deadline(token, &mut pending.slot, Some(until));
                }
            }
            Err(pending) => {
                // The guest asks again.
                core.full("DNS queries");
                if let Asker::Tools(wanted) = &pending.lookup.asker {
                    core.host.refuse_tools(wanted, TOO_MANY);
                }
            }
        }
    }

    /// Conditions permit a query and it is on record, or it must not be sent.
    pub(crate) fn decided(&mut self, core: &mut Core<H>, token: Token, act: Result<Act, NotDone>) {
        let Some(Pending { mut lookup, .. }) = self.remove(core, token) else {
            return core.journal.late(act);
        };
        match act {
            Ok(act) => {
                lookup.act = Some(act);
                self.ask(core, lookup, 0);
            }
            Err(error) => {
                let why = error.to_string();
                refuse(core, &lookup.query, &why);
                deny(core, &lookup, &why);
            }
        }
    }

    /// Sends a query to the resolver whose turn it is.
    fn ask(&mut self, core: &mut Core<H>, lookup: Lookup, tries: usize) {
        let (Some(token), Some(to)) = (self.pending.next(), resolver(core, tries)) else {
            core.full("DNS queries");
            if let Some(act) = &lookup.act {
                core.journal.failed(act, TOO_MANY);
            }
            if let Asker::Tools(wanted) = &lookup.asker {
                core.host.refuse_tools(wanted, TOO_MANY);
            }
            return;
        };
        let id = random_id(core);
        // A socket for each: the port is as hard to guess as the number (RFC 5452).
        let sent = core.host.datagrams(to, token).and_then(|mut socket| {
            socket.send(&lookup.query.forwarded(id))?;
            Ok(socket)
        });
        let Ok(socket) = sent else {
            fail(core, &lookup);
            return;
        };
        let pending = Pending {
            slot: Slot::default(),
            lookup,
            id,
            socket: Some(socket),
            tries: tries + 1,
        };
        if let Ok(token) = self.pending.insert(pending)
            && let Some(pending) = self.pending.get_mut(token)
        {
            let until = core.now + TIMEOUT;
            core.schedule
                .set_deadline(token, &mut pending.slot, Some(until));
        }
    }

    /// The host told that something became possible.
    pub(crate) fn event(&mut self, core: &mut Core<H>, token: Token) {
        if let Some(pending) = self.pending.get_mut(token) {
            core.schedule.wake(token, &mut pending.slot);
        }
    }

    /// A resolver did not answer in time.
    pub(crate) fn due(&mut self, core: &mut Core<H>, token: Token) {
        match self.remove(core, token) {
            Some(pending) if pending.socket.is_some() => self.retry(core, pending),
            Some(pending) => {
                refuse(core, &pending.lookup.query, UNDECIDED);
                deny(core, &pending.lookup, UNDECIDED);
            }
            None => {}
        }
    }

    fn retry(&mut self, core: &mut Core<H>, pending: Pending<H::Datagrams>) {
        let Pending { lookup, tries, .. } = pending;
        match tries < MAX_TRIES {
            true => self.ask(core, lookup, tries),
            false => fail(core, &lookup),
        }
    }

    /// Ends all of them, since the guest is gone.
    pub(crate) fn end(&mut self, core: &mut Core<H>) {
        let tokens: Vec<Token> = self.pending.iter().map(|(token, _)| token).collect();
        for token in tokens {
            let pending = self.remove(core, token);
            if let Some(act) = pending.and_then(|pending| pending.lookup.act) {
                core.journal.unanswered(&act);
            }
        }
    }

    /// Takes the answer.
    pub(crate) fn turn(&mut self, core: &mut Core<H>, token: Token) {
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        Schedule::taken(&mut pending.slot);
        let mut buffer = [0; MAX_ANSWER];
        // What somebody forges is passed over; a bounded number at a time.
        for _ in 0..8 {
            let Some(socket) = &mut pending.socket else {
                return;
            };
            match socket.receive(&mut buffer) {
                Ok(len) => {
                    let answer = buffer.get_mut(..len).unwrap_or_default();
                    if pending.lookup.query.is_answered_by(pending.id, answer) {
                        if let Some(pending) = self.remove(core, token) {
                            finish(core, &pending.lookup, answer);
                        }
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    if let Some(pending) = self.remove(core, token) {
                        self.retry(core, pending);
                    }
                    return;
                }
            }
        }
        core.schedule.wake(token, &mut pending.slot);
    }

    fn remove(&mut self, core: &mut Core<H>, token: Token) -> Option<Pending<H::Datagrams>> {
        let mut pending = self.pending.remove(token)?;
        core.schedule.forget(token, &mut pending.slot);
        Some(pending)
    }
}

impl Lookup {
    fn new(query: Query, asker: Asker) -> Self {
        Self {
            query,
            asker,
            act: None,
        }
    }
}

fn finish<H: Host>(core: &mut Core<H>, lookup: &Lookup, answer: &mut [u8]) {
    let query = &lookup.query;
    learn(core, query, lookup.act.as_ref(), answer);
    let guest_port = match &lookup.asker {
        Asker::Guest(port) => *port,
        Asker::Tools(wanted) => {
            let address = query.addresses(answer).next();
            return match address {
                Some((address, _)) => requests::go_on(core, wanted, address),
                None => core
                    .host
                    .refuse_tools(wanted, "its host has no IPv4 address"),
            };
        }
    };
    query.hand_back(answer);
    match answer.len() > core.config.max_datagram() {
        true => reply(core, guest_port, &query.truncated()),
        false => reply(core, guest_port, answer),
    }
}

/// It is not permitted, or not on record.
fn deny<H: Host>(core: &mut Core<H>, lookup: &Lookup, why: &str) {
    match &lookup.asker {
        Asker::Guest(port) => reply(core, *port, &lookup.query.response(Code::Refused)),
        Asker::Tools(wanted) => core.host.refuse_tools(wanted, why),
    }
}

/// No resolver answers.
fn fail<H: Host>(core: &mut Core<H>, lookup: &Lookup) {
    if let Some(act) = &lookup.act {
        core.journal.failed(act, UNANSWERED);
    }
    match &lookup.asker {
        Asker::Guest(port) => reply(core, *port, &lookup.query.response(Code::ServerFailure)),
        Asker::Tools(wanted) => core
            .host
            .refuse_tools(wanted, "its host does not resolve now"),
    }
}

fn reply<H: Host>(core: &mut Core<H>, guest_port: u16, answer: &[u8]) {
    let to = (core.config.guest, guest_port);
    core.send_udp((core.config.dns, PORT), to, answer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_about_a_name() {
        for (name, about) in [
            ("_http._tcp.deb.debian.org", "deb.debian.org"),
            ("deb.debian.org", "deb.debian.org"),
            ("a._tcp.b", "a._tcp.b"),
            ("_dmarc", "_dmarc"),
            ("", ""),
        ] {
            assert_eq!(without_service(name), about);
        }
    }
}

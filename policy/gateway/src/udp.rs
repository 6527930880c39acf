//! UDP: the table of flows. Each pair of a port of the guest and a destination has a socket of the
//! host, until nothing was said for a while. Used by [`crate::Gateway`].

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};

use bulkhead_network::Protocol;
use bulkhead_proxy::ENDED;
use bulkhead_proxy::conditions::Question;
use bulkhead_proxy::quota::Exhausted;
use bulkhead_proxy::records::{Act, NotDone};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Icmpv4DstUnreachable, IpProtocol};

use crate::core::Core;
use crate::host::{Datagrams, Host, Readiness};
use crate::rules::{Refusal, Route, is_over};
use crate::schedule::{Schedule, Slot};
use crate::table::{Kind, Table, Token};

/// Most flows at a time; the one that was silent for longest makes room.
pub(crate) const MAX_FLOWS: usize = 512;
/// Silence after which a flow ends (RFC 4787 asks for two minutes or more).
const IDLE: Duration = Duration::from_secs(120);
/// Most datagrams to the guest before others have a turn.
const BURST: usize = 16;

/// The four numbers of a flow, without the guest's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest_port: u16,
    address: Ipv4Addr,
    port: u16,
}

struct Flow<D> {
    key: Key,
    slot: Slot,
    /// None until its intent is on record.
    socket: Option<D>,
    /// Where it is to lead, and the first datagram, until then.
    held: Option<(SocketAddr, Vec<u8>)>,
    consent: Consent,
    /// Its intent, and the bytes out and in since.
    act: Option<Act>,
    bytes: (u64, u64),
    heard: Instant,
    /// What its bytes are counted against.
    quotas: Vec<usize>,
}

/// What a person says to a flow.
enum Consent {
    /// It takes none, or has it.
    Given,
    /// Not yet anything. What is recorded of it then.
    Asked(Intent),
    /// No, which holds for the flow: what a program sends again asks nobody anew.
    Refused,
}

/// What is to be on record before a flow opens.
struct Intent {
    object: String,
    /// What allows it.
    grant: String,
    /// Seconds after the start for which that holds, if there is an end.
    lifetime: Option<u64>,
    question: Question,
}

/// All flows.
pub(crate) struct Udp<H: Host> {
    flows: Table<Flow<H::Datagrams>>,
    by_key: HashMap<Key, Token>,
    buffer: Box<[u8]>,
}

impl<H: Host> Udp<H> {
    /// No flows.
    pub(crate) fn new() -> Self {
        Self {
            flows: Table::new(Kind::Udp, MAX_FLOWS),
            by_key: HashMap::new(),
            buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Sends a datagram of the guest on.
    pub(crate) fn datagram(
        &mut self,
        core: &mut Core<H>,
        guest_port: u16,
        (address, port): (Ipv4Addr, u16),
        payload: &[u8],
    ) {
        let key = Key {
            guest_port,
            address,
            port,
        };
        let known = self.by_key.get(&key).copied();
        let first = known.is_none();
        let token = match known {
            Some(token) => token,
            None => match self.open(core, key, payload) {
                Some(token) => token,
                None => return,
            },
        };
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        if matches!(flow.consent, Consent::Refused) {
            core.stats.dropped_out += 1;
            tell(core, key, Icmpv4DstUnreachable::CommProhibited);
            return;
        }
        flow.heard = core.now;
        if let Err(what) = core.rules.spend(&flow.quotas, payload.len() as u64) {
            exhausted(core, key, what);
            return;
        }
        match &mut flow.socket {
            Some(socket) => match socket.send(payload) {
                Ok(()) => {
                    core.stats.bytes_out += payload.len() as u64;
                    flow.bytes.0 += payload.len() as u64;
                }
                Err(error) => report(core, key, &error),
            },
            // The first waits; programs send the others again.
            None => core.stats.dropped_out += u64::from(!first),
        }
    }

    /// A new flow, if a rule allows it.
    fn open(&mut self, core: &mut Core<H>, key: Key, first: &[u8]) -> Option<Token> {
        let (config, now) = (&core.config, core.now);
        let allowed = core
            .rules
            .outbound(config, now, Protocol::Udp, key.address, key.port);
        let route = match allowed {
            Ok(route) => route,
            Err(refusal) => {
                deny(core, key, &refusal);
                return None;
            }
        };
        if self.flows.is_full() {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.heard);
            let oldest = oldest.map(|(token, _)| token)?;
            core.stats.full += 1;
            self.close(core, oldest);
        }
        let next = self.flows.next()?;
        let intent = Intent {
            object: object(&route, key),
            grant: route.grant.clone(),
            lifetime: route.lifetime,
            question: route.question(Protocol::Udp, key.address, key.port),
        };
        let mut consent = Consent::Given;
        let recorded = core.journal.is_kept();
        if route.approval {
            if let Err(why) = core.consents.begin(next, &intent.object, &intent.grant) {
                refuse(core, key, why);
                return None;
            }
            consent = Consent::Asked(intent);
        } else if recorded {
            record(core, next, intent, None);
        }
        let waits = recorded || route.approval;
        let socket = match waits {
            true => None,
            false => match core.host.datagrams(route.to, next) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    report(core, key, &error);
                    return None;
                }
            },
        };
        let flow = Flow {
            key,
            slot: Slot::default(),
            socket,
            held: waits.then(|| (route.to, first.to_vec())),
            consent,
            act: None,
            bytes: (0, 0),
            heard: now,
            quotas: route.quotas,
        };
        let token = self.flows.insert(flow).ok()?;
        let slot = &mut self.flows.get_mut(token)?.slot;
        core.schedule.set_deadline(token, slot, Some(now + IDLE));
        core.stats.udp_flows += 1;
        self.by_key.insert(key, token);
        Some(token)
    }

    /// A person has said whether a flow may open, or nobody has.
    pub(crate) fn consented(
        &mut self,
        core: &mut Core<H>,
        token: Token,
        said: Result<String, String>,
    ) {
        // It may have made room.
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        let Consent::Asked(intent) = std::mem::replace(&mut flow.consent, Consent::Given) else {
            return;
        };
        flow.heard = core.now;
        let said = said.and_then(|how| match is_over(intent.lifetime, core.now) {
            true => Err(ENDED.to_owned()),
            false => Ok(how),
        });
        match said {
            Ok(how) if core.journal.is_kept() => record(core, token, intent, Some(how)),
            Ok(_) => self.go(core, token),
            Err(why) => {
                flow.consent = Consent::Refused;
                flow.held = None;
                let key = flow.key;
                refuse(core, key, why);
            }
        }
    }

    /// A flow is permitted and its intent on record, or it must not be.
    pub(crate) fn recorded(&mut self, core: &mut Core<H>, token: Token, act: Result<Act, NotDone>) {
        let Some(flow) = self.flows.get_mut(token) else {
            // It made room for another.
            return core.journal.late(act);
        };
        let key = flow.key;
        match act {
            Ok(act) => {
                flow.act = Some(act);
                self.go(core, token);
            }
            Err(NotDone::Denied(ruling)) => {
                let refusal = Refusal::Condition {
                    protocol: Protocol::Udp,
                    to: key.address,
                    port: key.port,
                    ruling,
                };
                deny(core, key, &refusal);
                self.close(core, token);
            }
            Err(NotDone::NotRecorded(error)) => {
                let (to, port) = (key.address, key.port);
                core.stats.refused += 1;
                let text = format_args!("refused udp to {to}:{port}: {error}");
                core.chatter.say(core.now, text);
                report(core, key, &ErrorKind::ConnectionRefused.into());
                self.close(core, token);
            }
        }
    }

    /// Opens a flow, and sends what waits for that.
    fn go(&mut self, core: &mut Core<H>, token: Token) {
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        let key = flow.key;
        let Some((to, first)) = flow.held.take() else {
            return;
        };
        let sent = core.host.datagrams(to, token).and_then(|mut socket| {
            socket.send(&first)?;
            Ok(socket)
        });
        match sent {
            Ok(socket) => {
                core.stats.bytes_out += first.len() as u64;
                flow.bytes.0 += first.len() as u64;
                flow.socket = Some(socket);
                core.schedule.wake(token, &mut flow.slot);
            }
            Err(error) => {
                report(core, key, &error);
                self.close(core, token);
            }
        }
    }

    /// The host told that something became possible.
    pub(crate) fn event(&mut self, core: &mut Core<H>, token: Token, ready: Readiness) {
        if let Some(flow) = self.flows.get_mut(token)
            && ready.readable
        {
            core.schedule.wake(token, &mut flow.slot);
        }
    }

    /// A deadline has passed: ends the flow, or waits for the rest of the time.
    pub(crate) fn due(&mut self, core: &mut Core<H>, token: Token) {
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        let until = match flow.consent {
            // Whoever asks a person sees to it that this has an end.
            Consent::Asked(_) => core.now + IDLE,
            Consent::Given | Consent::Refused => flow.heard + IDLE,
        };
        match until <= core.now {
            true => self.close(core, token),
            false => core
                .schedule
                .set_deadline(token, &mut flow.slot, Some(until)),
        }
    }

    /// Hands datagrams of the host to the guest.
    pub(crate) fn turn(&mut self, core: &mut Core<H>, token: Token) {
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        Schedule::taken(&mut flow.slot);
        let key = flow.key;
        for _ in 0..BURST {
            if !core.outbox.is_clear() {
                core.schedule.stall(token, &mut flow.slot);
                return;
            }
            let Some(socket) = &mut flow.socket else {
                return;
            };
            let len = match socket.receive(&mut self.buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    report(core, key, &error);
                    continue;
                }
            };
            flow.heard = core.now;
            if let Err(what) = core.rules.spend(&flow.quotas, len as u64) {
                exhausted(core, key, what);
                continue;
            }
            core.stats.bytes_in += len as u64;
            flow.bytes.1 += len as u64;
            let to = (core.config.guest, key.guest_port);
            let payload = self.buffer.get(..len).unwrap_or_default();
            core.send_udp((key.address, key.port), to, payload);
        }
        core.schedule.wake(token, &mut flow.slot);
    }

    /// Ends all of them, since the guest is gone.
    pub(crate) fn end(&mut self, core: &mut Core<H>) {
        let tokens: Vec<Token> = self.flows.iter().map(|(token, _)| token).collect();
        for token in tokens {
            let flow = self.flows.get_mut(token);
            if let Some((act, bytes)) = flow.and_then(|flow| Some((flow.act.take()?, flow.bytes))) {
                core.journal.gone(&act, bytes);
            }
            self.close(core, token);
        }
    }

    fn close(&mut self, core: &mut Core<H>, token: Token) {
        if let Some(mut flow) = self.flows.remove(token) {
            core.schedule.forget(token, &mut flow.slot);
            self.by_key.remove(&flow.key);
            if let Some(act) = &flow.act {
                let failure = flow.socket.is_none().then_some("the host refused it");
                core.journal.outcome(act, failure, flow.bytes);
            }
        }
    }
}

/// What people and records are told of a flow: the name that it was granted for, or the address.
fn object(route: &Route, key: Key) -> String {
    let names = route.names.as_ref().filter(|_| !route.granted);
    match names.and_then(|names| names.first()) {
        Some(name) => format!("udp {name}:{}", key.port),
        None => format!("udp {}:{}", key.address, key.port),
    }
}

/// Has a flow recorded before it opens; `how` a person consented, if one had to.
fn record<H: Host>(core: &mut Core<H>, token: Token, intent: Intent, how: Option<String>) {
    let Intent {
        object,
        grant,
        question,
        ..
    } = intent;
    core.journal.begin(token, object, grant, how, question);
}

/// Refuses a flow, and tells the guest.
fn deny<H: Host>(core: &mut Core<H>, key: Key, refusal: &Refusal) {
    core.refuse(refusal);
    tell(core, key, Icmpv4DstUnreachable::CommProhibited);
}

/// Nobody consented: says so, and tells the guest.
fn refuse<H: Host>(core: &mut Core<H>, key: Key, why: String) {
    let refusal = Refusal::NoConsent {
        protocol: Protocol::Udp,
        to: key.address,
        port: key.port,
        why,
    };
    deny(core, key, &refusal);
}

/// An amount that the flow is counted against is used up: says so, and tells the guest.
fn exhausted<H: Host>(core: &mut Core<H>, key: Key, what: Exhausted) {
    let refusal = Refusal::Exhausted {
        protocol: Protocol::Udp,
        to: key.address,
        port: key.port,
        what,
    };
    deny(core, key, &refusal);
}

/// Tells the guest what its own system would have said about an error of the socket, where it
/// would have said something.
fn report<H: Host>(core: &mut Core<H>, key: Key, error: &io::Error) {
    let reason = match error.kind() {
        ErrorKind::ConnectionRefused => Icmpv4DstUnreachable::PortUnreachable,
        ErrorKind::HostUnreachable => Icmpv4DstUnreachable::HostUnreachable,
        ErrorKind::NetworkUnreachable => Icmpv4DstUnreachable::NetUnreachable,
        _ => {
            // As a full queue on the way would.
            core.stats.dropped_out += 1;
            return;
        }
    };
    tell(core, key, reason);
}

fn tell<H: Host>(core: &mut Core<H>, key: Key, reason: Icmpv4DstUnreachable) {
    let [a, b] = key.guest_port.to_be_bytes();
    let [c, d] = key.port.to_be_bytes();
    let head = [a, b, c, d, 0, 8, 0, 0];
    core.send_unreachable(key.address, IpProtocol::Udp, head, reason);
}

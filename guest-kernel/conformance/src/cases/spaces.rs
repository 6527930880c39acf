//! Capability spaces: copy, mint, move, mutate, rotate, delete; addresses through many CNodes.

use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_runtime::abi::object::RIGHTS_ALL;
use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{CNode, Configuration, Endpoint, Place};

use super::bench::{Bench, inside, is_occupied, shared, stop, until};
use super::{check, check_eq, named};

/// Slots of the cases' CNodes in bits.
const RADIX: u64 = 3;

/// A CNode with an endpoint in slot 0; the others are empty.
fn table(bench: &Bench) -> Result<(impl Fn(u64) -> Place + use<>, CNode), String> {
    let cnode = bench.cnode(RADIX)?;
    let at = inside(cnode, RADIX);
    let endpoint = bench.endpoint()?;
    at(0).copy(endpoint.place(), RIGHTS_ALL).map_err(named)?;
    Ok((at, cnode))
}

pub(super) fn copy() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    check_eq!(at(1).copy(at(0), RIGHTS_ALL), Ok(()), "C1");
    check!(
        is_occupied(at(0)) && is_occupied(at(1)),
        "C1: both are there"
    );
    // They name one object: what is revoked by the other way is gone from both.
    check_eq!(
        at(1).copy(at(0), RIGHTS_ALL),
        Err(Status::DeleteFirst),
        "C2"
    );
    check_eq!(
        at(1).copy(at(2), RIGHTS_ALL),
        Err(Status::DeleteFirst),
        "C3"
    );
    check_eq!(
        at(3).copy(at(2), RIGHTS_ALL),
        Err(Status::FailedLookup),
        "C4"
    );
    check!(
        !is_occupied(at(2)) && !is_occupied(at(3)),
        "C4: nothing changed"
    );
    check_eq!(
        at(8 + 4).copy(at(0), RIGHTS_ALL),
        Ok(()),
        "an index is taken modulo the radix"
    );
    bench.finish()
}

/// A copy names the same object: a message sent by one arrives at the other.
pub(super) fn copy_is_the_same() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    let copy = bench.minted(endpoint.0, RIGHTS_ALL, 0)?;
    extern "C" fn send(own: u64, to: u64, _: u64, _: u64) -> ! {
        let _ = Endpoint(to).send(&Message::new(3).word(17));
        stop(own)
    }
    bench.start(super::bench::OWN, send, [copy, 0, 0])?;
    let received = endpoint.receive(None).map_err(named)?;
    check_eq!(
        (received.label, received.words()),
        (3, &[17][..]),
        "message"
    );
    bench.finish()
}

pub(super) fn delete() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    check_eq!(at(0).delete(), Ok(()), "C5");
    check!(!is_occupied(at(0)), "C5: empty");
    check_eq!(at(0).delete(), Ok(()), "C5: an empty slot");
    bench.finish()
}

pub(super) fn mint() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, cnode) = table(&bench)?;
    check_eq!(at(1).mint(at(0), RIGHTS_ALL, 5), Ok(()), "a badge");
    check_eq!(
        at(1).mint(at(0), RIGHTS_ALL, 5),
        Err(Status::DeleteFirst),
        "C8"
    );
    check_eq!(
        at(1).mint(at(2), RIGHTS_ALL, 5),
        Err(Status::DeleteFirst),
        "C8, both"
    );
    check_eq!(
        at(2).mint(at(3), RIGHTS_ALL, 5),
        Err(Status::FailedLookup),
        "C8"
    );
    let reply = bench.reply()?;
    check_eq!(
        at(2).mint(reply.place(), RIGHTS_ALL, 5),
        Err(Status::IllegalOperation),
        "a badge for what has none"
    );
    check_eq!(
        at(2).mint_guard(cnode.place(), 4, 2),
        Err(Status::InvalidArgument),
        "a guard longer than it says"
    );
    check_eq!(
        at(2).mint_guard(cnode.place(), 0, 62),
        Err(Status::InvalidArgument),
        "guard and radix beyond an address"
    );
    bench.finish()
}

pub(super) fn relocate() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    check_eq!(at(1).relocate(at(0)), Ok(()), "C9");
    check!(!is_occupied(at(0)) && is_occupied(at(1)), "C9: moved");
    at(0).copy(at(1), RIGHTS_ALL).map_err(named)?;
    check_eq!(at(1).relocate(at(0)), Err(Status::DeleteFirst), "C11");
    check!(
        is_occupied(at(0)) && is_occupied(at(1)),
        "C11: both are there"
    );
    check_eq!(
        at(3).relocate(at(2)),
        Err(Status::FailedLookup),
        "an empty source"
    );
    check_eq!(
        at(0).relocate(at(0)),
        Err(Status::DeleteFirst),
        "onto itself"
    );
    bench.finish()
}

pub(super) fn mutate() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    let inner = bench.cnode(2)?;
    at(1).copy(inner.place(), RIGHTS_ALL).map_err(named)?;
    check_eq!(at(2).mutate(at(1), 1, 1), Ok(()), "a guard");
    check!(!is_occupied(at(1)) && is_occupied(at(2)), "moved");
    check_eq!(
        at(3).mutate(at(0), 0, 0),
        Err(Status::IllegalOperation),
        "no CNode"
    );
    check_eq!(
        at(0).mutate(at(2), 0, 0),
        Err(Status::DeleteFirst),
        "in use"
    );
    check_eq!(
        at(3).mutate(at(4), 0, 0),
        Err(Status::FailedLookup),
        "empty"
    );
    check_eq!(
        at(3).mutate(at(2), 0, 64),
        Err(Status::InvalidArgument),
        "guard"
    );
    bench.finish()
}

pub(super) fn cancel() -> Result<(), String> {
    let bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    check_eq!(endpoint.cancel_badged_sends(), Ok(()), "C13");
    check!(is_occupied(endpoint.place()), "C13: it remains");
    let weak = Endpoint(bench.minted(endpoint.0, 7, 0)?);
    check_eq!(
        weak.cancel_badged_sends(),
        Err(Status::IllegalOperation),
        "without all rights"
    );
    bench.finish()
}

pub(super) fn revoke() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    check_eq!(at(0).revoke(), Ok(()), "C15");
    check!(is_occupied(at(0)), "C15: it remains");
    check_eq!(at(1).revoke(), Ok(()), "C15: an empty slot");
    check!(!is_occupied(at(1)), "C15: still empty");
    bench.finish()
}

pub(super) fn rotate() -> Result<(), String> {
    let bench = Bench::new()?;
    let (at, _) = table(&bench)?;
    let notification = bench.notification()?;
    at(1)
        .copy(notification.place(), RIGHTS_ALL)
        .map_err(named)?;
    check_eq!(at(2).rotate(at(1), at(0)), Ok(()), "C17");
    let there = [0, 1, 2].map(|n| is_occupied(at(n)));
    check_eq!(there, [false, true, true], "C17");
    at(0).copy(at(1), RIGHTS_ALL).map_err(named)?;
    check_eq!(at(2).rotate(at(1), at(0)), Err(Status::DeleteFirst), "C18");
    check!(
        [0, 1, 2].into_iter().all(|n| is_occupied(at(n))),
        "C18: unchanged"
    );
    check_eq!(
        at(3).rotate(at(0), at(0)),
        Err(Status::IllegalOperation),
        "C20"
    );
    check_eq!(
        at(0).rotate(at(0), at(1)),
        Err(Status::IllegalOperation),
        "pivot is destination"
    );
    check_eq!(at(0).rotate(at(1), at(0)), Ok(()), "an exchange");
    check_eq!(
        at(3).rotate(at(4), at(0)),
        Err(Status::FailedLookup),
        "an empty pivot"
    );
    check_eq!(
        at(3).rotate(at(0), at(4)),
        Err(Status::FailedLookup),
        "an empty source"
    );
    bench.finish()
}

/// A handle of 64 bits that each lead one CNode further: the message arrives; one bit changed,
/// and nothing is there.
pub(super) fn chain() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let handle = 0xa5c3_9617_f00d_1e2b_u64;
    let endpoint = bench.endpoint()?;
    let nodes: Vec<CNode> = (0..64).map(|_| bench.cnode(1)).collect::<Result<_, _>>()?;
    for (level, node) in nodes.iter().enumerate() {
        let bit = handle >> (63 - level) & 1;
        let next = nodes
            .get(level + 1)
            .map_or(endpoint.place(), |next| next.place());
        inside(*node, 1)(bit)
            .copy(next, RIGHTS_ALL)
            .map_err(named)?;
    }
    extern "C" fn send(own: u64, handle: u64, flips: u64, _: u64) -> ! {
        for bit in 0..64 {
            let wrong = Endpoint(handle ^ (1 << bit)).send(&Message::new(0));
            if wrong == Err(Status::InvalidCapability) {
                shared(0).fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            }
        }
        for small in 0..flips {
            if Endpoint(small).send(&Message::new(0)) == Err(Status::InvalidCapability) {
                shared(1).fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            }
        }
        let _ = Endpoint(handle).send(&Message::new(24).word(handle));
        stop(own)
    }
    let assistant = bench.assistant(super::bench::OWN)?;
    let cspace = nodes.first().ok_or("no node")?.0;
    let configuration = Configuration {
        cspace,
        ..Configuration::OWN
    };
    assistant.thread.configure(configuration).map_err(named)?;
    assistant.begin(send, [handle, 8, 0])?;
    let received = endpoint.receive(None).map_err(named)?;
    check_eq!(
        (received.label, received.words()),
        (24, &[handle][..]),
        "C24"
    );
    let wrong = [0, 1].map(|n| shared(n).load(core::sync::atomic::Ordering::Relaxed));
    check_eq!(wrong, [64, 8], "C25");
    check!(until(|| true), "the assistant ends");
    assistant.thread.suspend().map_err(named)?;
    bench.finish()
}

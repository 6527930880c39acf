//! Revocation: complete, also of what meets itself, and without keeping urgent threads waiting.

use alloc::string::String;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::object::{RIGHTS_ALL, TYPE_CNODE, TYPE_ENDPOINT, TYPE_UNTYPED};
use bulkhead_runtime::abi::syscall::{Status, slot};
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{CNODE, CNode, Endpoint, Place, Untyped};
use bulkhead_runtime::{environment, println, time};

use super::bench::{Bench, OWN, inside, is_occupied, shared, stop, until};
use super::{check, check_eq, named};

pub(super) fn copies() -> Result<(), String> {
    let bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    let nodes = [bench.cnode(6)?, bench.cnode(6)?, bench.cnode(6)?];
    let place = |n: u64| inside(nodes[n as usize % 3], 6)(n / 3);
    for n in 0..100 {
        // Copies of the original and copies of copies.
        let from = if n % 2 == 0 {
            endpoint.place()
        } else {
            place(n - 1)
        };
        place(n).copy(from, RIGHTS_ALL).map_err(named)?;
    }
    check_eq!(endpoint.place().revoke(), Ok(()), "R1");
    check!(
        (0..100).all(|n| !is_occupied(place(n))),
        "R1: a copy is left"
    );
    check!(is_occupied(endpoint.place()), "R1: the original is gone");
    check_eq!(endpoint.try_send(&Message::new(1)), Ok(()), "R1: it works");
    bench.finish()
}

pub(super) fn badges() -> Result<(), String> {
    let bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    let minted = [bench.badged(endpoint.0, 1)?, bench.badged(endpoint.0, 2)?];
    let copies = [
        bench.minted(minted[0], RIGHTS_ALL, 0)?,
        bench.minted(minted[1], RIGHTS_ALL, 0)?,
        bench.minted(minted[0], 1, 0)?,
        bench.minted(minted[1], 1, 0)?,
    ];
    check_eq!(Place::own(minted[0]).revoke(), Ok(()), "R2");
    let there = copies.map(|copy| is_occupied(Place::own(copy)));
    check_eq!(there, [false, true, false, true], "R2");
    check!(
        minted.into_iter().all(|mint| is_occupied(Place::own(mint))),
        "R2: the badged ones remain"
    );
    bench.finish()
}

/// An untyped goes with a thread, an endpoint on which somebody sends, and a CNode with more in it.
pub(super) fn untyped() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let inner = Untyped(bench.make(TYPE_UNTYPED, 13)?);
    let (at, node) = (bench.slot()?, bench.slot()?);
    inner
        .retype(TYPE_ENDPOINT, 0, CNODE, at, 1)
        .map_err(named)?;
    inner.retype(TYPE_CNODE, 2, CNODE, node, 1).map_err(named)?;
    let outside = bench.notification()?;
    let held = inside(CNode(node), 2)(1);
    held.copy(outside.place(), RIGHTS_ALL).map_err(named)?;
    extern "C" fn send(own: u64, to: u64, _: u64, _: u64) -> ! {
        shared(0).store(1, Ordering::Relaxed);
        let ended = Endpoint(to).send(&Message::new(1));
        shared(1).store(
            1 + u64::from(ended == Err(Status::Aborted)),
            Ordering::Relaxed,
        );
        stop(own)
    }
    bench.start(OWN, send, [at, 0, 0])?;
    check!(
        until(|| shared(0).load(Ordering::Relaxed) == 1),
        "R3: it sends"
    );
    bulkhead_runtime::thread::yield_now();
    check_eq!(inner.place().revoke(), Ok(()), "R3");
    check!(
        !is_occupied(Place::own(at)) && !is_occupied(Place::own(node)),
        "R3: something is left"
    );
    check!(
        until(|| shared(1).load(Ordering::Relaxed) != 0),
        "R3: the sender hangs"
    );
    check_eq!(
        shared(1).load(Ordering::Relaxed),
        2,
        "R3: the send was aborted"
    );
    // The last capability of what the CNode held is the case's own again: nothing derives from it.
    check_eq!(
        outside.signal(),
        Ok(()),
        "R3: what was not of the untyped remains"
    );
    check_eq!(
        inner.inspect().map(|(bits, _)| bits),
        Ok(13),
        "R3: the untyped remains"
    );
    bench.finish()
}

/// Thousands of capabilities go while a more urgent thread, woken by the clock, runs again and
/// again.
pub(super) fn preemption() -> Result<(), String> {
    const RADIX: u64 = 12;
    const AT_ONCE: u64 = 256;
    let mut bench = Bench::new()?;
    let node = bench.cnode(RADIX)?;
    let inner = Untyped(bench.make(TYPE_UNTYPED, RADIX + 6)?);
    let at = inside(node, RADIX);
    let fill = || {
        (0..1 << RADIX).step_by(AT_ONCE as usize).try_for_each(|n| {
            let made = inner.retype(TYPE_ENDPOINT, 0, node, n, AT_ONCE);
            made.map_err(named)
        })
    };
    fill()?;
    extern "C" fn tick(own: u64, _: u64, _: u64, _: u64) -> ! {
        while shared(1).load(Ordering::Relaxed) == 0 {
            time::sleep_ns(shared(2).load(Ordering::Relaxed));
            shared(0).fetch_add(1, Ordering::Relaxed);
        }
        stop(own)
    }
    // Once without it, to know how often it can run meanwhile.
    let start = time::ticks();
    check_eq!(inner.place().revoke(), Ok(()), "R4: alone");
    let alone = time::ticks() - start;
    let khz = environment::boot_info().map_or(1, |info| info.head().tsc_khz);
    let mut pause = time::ticks_to_ns(alone, khz) / 8;
    shared(2).store(pause, Ordering::Relaxed);
    bench.start(OWN + 1, tick, [0; 3])?;
    let mut ticks = 0;
    // The host may have been busy with something else: then it took longer than it does now.
    for _ in 0..6 {
        fill()?;
        let before = shared(0).load(Ordering::Relaxed);
        check_eq!(inner.place().revoke(), Ok(()), "R4");
        ticks = shared(0).load(Ordering::Relaxed) - before;
        if ticks >= 2 {
            break;
        }
        pause /= 2;
        shared(2).store(pause, Ordering::Relaxed);
    }
    shared(1).store(1, Ordering::Relaxed);
    time::sleep_ns(1_000_000);
    check!(
        ticks >= 2,
        "R4: the urgent thread ran {ticks} times meanwhile"
    );
    check!(
        (0..1 << RADIX).step_by(61).all(|n| !is_occupied(at(n))),
        "R4: a capability is left"
    );
    bench.finish()
}

/// The status of [`a_hundred_thousand`] where it did not go as it should.
const STATUS_FAILED: u8 = 1;

/// An untyped from which a hundred thousand capabilities derive is revoked, while a more urgent thread
/// sleeps and wakes. It takes more memory than a partition has unless it is told, and where kernel mode
/// is interpreted many seconds.
pub(super) fn a_hundred_thousand() -> u8 {
    match revoke_a_hundred_thousand() {
        Ok((count, ticks, ms)) => {
            println!(
                "{count} capabilities revoked in {ms} ms; a more urgent thread ran {ticks} times"
            );
            0
        }
        Err(why) => {
            println!("FAILED: {why}");
            STATUS_FAILED
        }
    }
}

/// How many went, how often the urgent thread ran meanwhile, and the milliseconds that it took.
fn revoke_a_hundred_thousand() -> Result<(u64, u64, u64), String> {
    const RADIX: u64 = 17;
    const AT_ONCE: u64 = 256;
    const OBJECTS: u64 = 98_304;
    const COPIES: u64 = 2_048;
    /// The urgent thread sleeps so long.
    const PAUSE_MS: u64 = 5;
    extern "C" fn tick(own: u64, _: u64, _: u64, _: u64) -> ! {
        while shared(1).load(Ordering::Relaxed) == 0 {
            time::sleep_ns(PAUSE_MS * 1_000_000);
            shared(0).fetch_add(1, Ordering::Relaxed);
        }
        stop(own)
    }
    let mut bench = Bench::new()?;
    let memory = Untyped(slot::MEMORY);
    let node = memory.cnode(RADIX).map_err(named)?;
    let at = inside(node, RADIX);
    // An endpoint has 64 bytes.
    let bits = RADIX + 6;
    let inner = memory.make(TYPE_UNTYPED, bits).map_err(named)?;
    let inner = Untyped(inner);
    for n in (0..OBJECTS).step_by(AT_ONCE as usize) {
        let made = inner.retype(TYPE_ENDPOINT, 0, node, n, AT_ONCE);
        made.map_err(named)?;
    }
    for n in 0..COPIES {
        let from = at(n * 41 % OBJECTS);
        at(OBJECTS + n).copy(from, RIGHTS_ALL).map_err(named)?;
    }
    bench.start(OWN + 1, tick, [0; 3])?;
    let before = shared(0).load(Ordering::Relaxed);
    let since = time::monotonic_ns();
    check_eq!(inner.place().revoke(), Ok(()), "the revoke");
    let ms = (time::monotonic_ns() - since) / 1_000_000;
    let ticks = shared(0).load(Ordering::Relaxed) - before;
    shared(1).store(1, Ordering::Relaxed);
    // How long it takes depends on the host; how late a timer comes there too.
    check!(
        ticks >= 2 && ticks * PAUSE_MS * 10 >= ms,
        "the urgent thread ran {ticks} times in {ms} ms"
    );
    // Slots in use are noticed before there is too little memory.
    let small = Untyped(bench.make(TYPE_UNTYPED, 12)?);
    for n in (0..1 << RADIX).step_by(AT_ONCE as usize) {
        check_eq!(
            small.retype(TYPE_ENDPOINT, 0, node, n, AT_ONCE),
            Err(Status::NotEnoughMemory),
            "a slot is in use"
        );
    }
    check_eq!(
        inner.retype(TYPE_UNTYPED, bits, node, 0, 1),
        Ok(()),
        "all of the memory is there again"
    );
    bench.finish()?;
    Ok((OBJECTS + COPIES, ticks, ms))
}

/// A CNode that holds its own capability, and the one that is revoked.
pub(super) fn itself() -> Result<(), String> {
    let bench = Bench::new()?;
    for radix in [1, 4] {
        let inner = Untyped(bench.make(TYPE_UNTYPED, 12)?);
        let slot = bench.slot()?;
        inner
            .retype(TYPE_CNODE, radix, CNODE, slot, 1)
            .map_err(named)?;
        let node = CNode(slot);
        let at = inside(node, radix);
        at(0).copy(node.place(), RIGHTS_ALL).map_err(named)?;
        // The only capability to it lies in itself: it is out of reach, and goes with its memory.
        check_eq!(at(1).relocate(node.place()), Ok(()), "R9: into itself");
        check_eq!(inner.place().revoke(), Ok(()), "R9");
        check_eq!(
            inner.retype(TYPE_CNODE, 12 - 5, CNODE, slot, 1),
            Ok(()),
            "R9: its memory is there again"
        );
        // Two that hold one another, deleted from outside.
        Place::own(slot).delete().map_err(named)?;
        inner
            .retype(TYPE_CNODE, radix, CNODE, slot, 1)
            .map_err(named)?;
        let other = bench.slot()?;
        inner
            .retype(TYPE_CNODE, radix, CNODE, other, 1)
            .map_err(named)?;
        inside(CNode(other), radix)(0)
            .relocate(Place::own(slot))
            .map_err(named)?;
        inside(CNode(other), radix)(1)
            .copy(Place::own(other), RIGHTS_ALL)
            .map_err(named)?;
        check_eq!(Place::own(other).delete(), Ok(()), "R9: one of them");
        check_eq!(inner.place().revoke(), Ok(()), "R9: and the rest");
        // What is revoked lies in what goes.
        inner
            .retype(TYPE_CNODE, radix, CNODE, slot, 1)
            .map_err(named)?;
        at(0).copy(node.place(), RIGHTS_ALL).map_err(named)?;
        at(1).relocate(inner.place()).map_err(named)?;
        check_eq!(at(1).revoke(), Ok(()), "R9: revoked from within");
        check!(!is_occupied(Place::own(slot)), "R9: the CNode is gone");
    }
    bench.finish()
}

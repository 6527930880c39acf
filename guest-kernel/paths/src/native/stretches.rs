//! Operations that can take long, and how long they keep an urgent thread waiting: of each the longest
//! stretch counts in which the kernel does not look for one.

use bulkhead_paths::{MARK_STRETCH, ROUNDS, is_marked};
use bulkhead_runtime::abi::object::{
    RIGHTS_ALL, TYPE_ADDRESS_SPACE, TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION,
    TYPE_PAGE_TABLE, TYPE_REPLY, TYPE_SCHED_CONTEXT, TYPE_THREAD, TYPE_UNTYPED,
};
use bulkhead_runtime::abi::syscall::{CANCEL_BADGED_SENDS, RECV, SEND, rights, slot};
use bulkhead_runtime::object::{
    ADDRESS_SPACE, CNODE, CNode, Configuration, Endpoint, FIRST_THREAD, Frame, Notification,
    PageTable, Place, SchedContext, Thread, Untyped,
};

use super::{MAPPED, TURN_NS, call, start, tables};

/// Slots of the program's own CNode that the paths here use, after those of the others.
const INNER: Untyped = Untyped(slot::FREE + 110);
const OBJECTS: u64 = slot::FREE + 120;
const ENDPOINT: Endpoint = Endpoint(OBJECTS);
const NOTIFICATION: Notification = Notification(OBJECTS + 1);
const REPLY: u64 = OBJECTS + 2;
const CONTEXT: SchedContext = SchedContext(OBJECTS + 3);
const THREAD: Thread = Thread(OBJECTS + 4);
const NODE: CNode = CNode(OBJECTS + 5);
const FRAME: Frame = Frame(OBJECTS + 6);
const TABLE: PageTable = PageTable(OBJECTS + 7);
const SPACE: u64 = OBJECTS + 8;
/// Endpoint capabilities with a badge.
const OFTEN: Endpoint = Endpoint(OBJECTS + 9);
const RARE: Endpoint = Endpoint(OBJECTS + 10);

/// Bytes of the untyped, in bits: so many threads fit, and as many endpoints as one call makes.
const INNER_BITS: u64 = 18;
/// Slots of a CNode that is full, and of one that is empty, in bits: more than one step passes over.
const RADIX: u64 = 4;
const EMPTY_RADIX: u64 = 6;
/// The most objects of one retype.
const MOST: u64 = 256;
/// Threads that wait on one endpoint: more than are passed over in one step.
const SENDERS: u64 = 34;
/// How many of them wait when the endpoint goes.
const LEFT: u64 = 4;
/// Above the program's own priority: who is started runs at once, until it waits.
const URGENT: u64 = 129;

/// Every path here.
pub(super) fn all() {
    let memory = Untyped(slot::MEMORY);
    if memory
        .retype(TYPE_UNTYPED, INNER_BITS, CNODE, INNER.0, 1)
        .is_err()
    {
        return;
    }
    for round in 0..ROUNDS {
        for path in [
            revoke_of_everything,
            retype_of_many,
            delete_of_a_cnode,
            many_senders,
            long_way,
        ] {
            path(is_marked(round));
            let _ = INNER.place().revoke();
        }
    }
}

/// The longest stretch of the next entry into the kernel is the path `name`.
fn mark(is_marked: bool, name: &str) {
    if is_marked {
        let name = [name.as_ptr() as u64, name.len() as u64, 0, 1];
        call(MARK_STRETCH, name);
    }
}

fn make(kind: u64, size: u64, at: u64) {
    let _ = INNER.retype(kind, size, CNODE, at, 1);
}

/// A thread in `at` that runs `entry` on time of its own, until it waits.
fn thread(at: Thread, context: SchedContext, entry: extern "C" fn(u64, u64) -> !) {
    let _ = at.configure(Configuration::OWN);
    let _ = at.set_priority(FIRST_THREAD, URGENT, 0);
    let _ = context.configure(TURN_NS, TURN_NS);
    let _ = context.bind(at);
    start(at, entry, false);
}

/// One object of each kind, each in use: the thread waits for messages and signals, the frame and the
/// table are mapped, the CNode is full.
fn revoke_of_everything(is_marked: bool) {
    extern "C" fn receive(_: u64, _: u64) -> ! {
        loop {
            call(RECV, [ENDPOINT.0, REPLY, 0, 0]);
        }
    }
    for (kind, size, at) in [
        (TYPE_ENDPOINT, 0, ENDPOINT.0),
        (TYPE_NOTIFICATION, 0, NOTIFICATION.0),
        (TYPE_REPLY, 0, REPLY),
        (TYPE_SCHED_CONTEXT, 0, CONTEXT.0),
        (TYPE_THREAD, 0, THREAD.0),
        (TYPE_CNODE, RADIX, NODE.0),
        (TYPE_FRAME, 0, FRAME.0),
        (TYPE_PAGE_TABLE, 0, TABLE.0),
        (TYPE_ADDRESS_SPACE, 0, SPACE),
    ] {
        make(kind, size, at);
    }
    tables(ADDRESS_SPACE, MAPPED);
    // SAFETY: nothing is there, and nobody uses it.
    let _ = unsafe { FRAME.map(ADDRESS_SPACE, MAPPED + 8 * 4096, rights::READ) };
    let _ = TABLE.map(ADDRESS_SPACE, MAPPED + (1 << 30));
    let _ = THREAD.bind(NOTIFICATION);
    thread(THREAD, CONTEXT, receive);
    fill(NODE);
    mark(is_marked, "revoke, all kinds of objects, longest stretch");
    let _ = INNER.place().revoke();
}

/// Copies in all slots of a CNode.
fn fill(node: CNode) {
    for n in 0..1 << RADIX {
        let _ = Place::of(node, RADIX, n).copy(ENDPOINT.place(), RIGHTS_ALL);
    }
}

fn retype_of_many(is_marked: bool) {
    make(TYPE_CNODE, MOST.ilog2().into(), NODE.0);
    // Memory that was never used: zeroing it would be other stretches.
    let memory = Untyped(slot::MEMORY);
    mark(is_marked, "retype, 256 endpoints, longest stretch");
    let _ = memory.retype(TYPE_ENDPOINT, 0, NODE, 0, MOST);
}

fn delete_of_a_cnode(is_marked: bool) {
    make(TYPE_ENDPOINT, 0, ENDPOINT.0);
    make(TYPE_CNODE, RADIX, NODE.0);
    fill(NODE);
    mark(is_marked, "delete, a full CNode, longest stretch");
    let _ = NODE.place().delete();
    // What is empty is passed over.
    make(TYPE_CNODE, EMPTY_RADIX, NODE.0);
    mark(is_marked, "delete, an empty CNode, longest stretch");
    let _ = NODE.place().delete();
    // Its memory was used, and is zeroed.
    let _ = INNER.place().revoke();
    mark(is_marked, "retype, a frame of used memory, longest stretch");
    make(TYPE_FRAME, 0, FRAME.0);
}

/// Senders on an endpoint whose badge is not the one that is cancelled, but for the last.
fn many_senders(is_marked: bool) {
    extern "C" fn send_often(own: u64, _: u64) -> ! {
        send(own, OFTEN)
    }
    extern "C" fn send_rarely(own: u64, _: u64) -> ! {
        send(own, RARE)
    }
    fn send(own: u64, by: Endpoint) -> ! {
        loop {
            call(SEND, [by.0, 0, 0, 0]);
            let _ = Thread(own).suspend();
        }
    }
    make(TYPE_ENDPOINT, 0, ENDPOINT.0);
    for (badge, badged) in [(1, OFTEN), (2, RARE)] {
        let _ = badged.place().mint(ENDPOINT.place(), RIGHTS_ALL, badge);
    }
    for n in 0..SENDERS {
        let own = OBJECTS + 20 + 2 * n;
        make(TYPE_THREAD, 0, own);
        make(TYPE_SCHED_CONTEXT, 0, own + 1);
        let rare = n + 1 == SENDERS;
        let entry = if rare { send_rarely } else { send_often };
        thread(Thread(own), SchedContext(own + 1), entry);
        // They share a stack: none runs again.
        let _ = Thread(own).set_priority(FIRST_THREAD, 0, 0);
    }
    mark(
        is_marked,
        "cancel badged sends, 34 senders, longest stretch",
    );
    call(CANCEL_BADGED_SENDS, [RARE.0, 0, 0, 0]);
    for n in LEFT..SENDERS {
        let _ = Thread(OBJECTS + 20 + 2 * n).suspend();
    }
    for badged in [OFTEN, RARE] {
        let _ = badged.place().delete();
    }
    mark(
        is_marked,
        "delete, an endpoint with 4 senders, longest stretch",
    );
    let _ = ENDPOINT.place().delete();
}

/// Two slots, reached through as many CNodes as an address has bits.
fn long_way(is_marked: bool) {
    const DEPTH: u64 = 64;
    let first = OBJECTS + 20;
    make(TYPE_ENDPOINT, 0, ENDPOINT.0);
    for n in 0..DEPTH {
        make(TYPE_CNODE, 1, first + n);
    }
    for n in 1..DEPTH {
        let _ = Place::of(CNode(first + n - 1), 1, 0).copy(Place::own(first + n), RIGHTS_ALL);
    }
    let at = |index| Place::of(CNode(first), DEPTH, index);
    let _ = at(0).copy(ENDPOINT.place(), RIGHTS_ALL);
    let _ = at(1).copy(ENDPOINT.place(), RIGHTS_ALL);
    mark(
        is_marked,
        "rotate, each slot behind 63 CNodes, longest stretch",
    );
    let _ = at(0).rotate(at(1), at(0));
}

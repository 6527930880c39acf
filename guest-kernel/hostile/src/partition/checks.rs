//! What the supervisor holds the kernel to.

use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_hostile::random::Random;
use bulkhead_runtime::abi::decode::{Operation, Register};
use bulkhead_runtime::abi::object::{
    RIGHTS_ALL, TYPE_CNODE, TYPE_ENDPOINT, TYPE_THREAD, TYPE_UNTYPED,
};
use bulkhead_runtime::abi::syscall::{Status, slot};
use bulkhead_runtime::object::{CNODE, CNode, Place, Untyped};
use bulkhead_runtime::syscall::raw;

/// Numbers that are no system call, which are tried.
pub(super) const UNKNOWN_NUMBERS: u64 = 1_000;
/// Words that nobody but the supervisor can reach.
const CANARIES: usize = 4096;

/// What is no error of the kernel's, in words.
pub(super) fn named(status: Status) -> String {
    alloc::format!("{status:?}")
}

/// Every number that is no call is answered so, whatever comes with it.
pub(super) fn unknown_numbers(random: &mut Random) -> Result<(), String> {
    let mut tried = 0;
    while tried < UNKNOWN_NUMBERS {
        let number = if random.one_in(2) {
            random.word()
        } else {
            random.below(256)
        };
        let is = |register| match register {
            Register::Rax => number,
            _ => 0,
        };
        if Operation::find(is).is_some() {
            continue;
        }
        let arguments = [random.word(), random.word(), random.word(), random.word()];
        // SAFETY: there is no such call.
        let (status, _) = unsafe { raw(number, arguments) };
        if status != Status::UnknownCall as u64 {
            return Err(alloc::format!("call {number:#x} was answered {status}"));
        }
        tried += 1;
    }
    Ok(())
}

/// Memory, slots and threads are used up; each time the kernel says so, and each time all is there again
/// afterwards. The untyped is empty, and `node` and `made` are empty slots of the supervisor's.
pub(super) fn exhaustion(untyped: Untyped, node: u64, made: u64) -> Result<(), String> {
    const RADIX: u64 = 10;
    let (bits, _) = untyped.inspect().map_err(named)?;
    for (kind, size, at_once) in [
        (TYPE_THREAD, 0, 1),
        (TYPE_ENDPOINT, 0, 16),
        (TYPE_CNODE, 2, 16),
    ] {
        untyped
            .retype(TYPE_CNODE, RADIX, CNODE, node, 1)
            .map_err(named)?;
        let mut count = 0;
        let ended = loop {
            match untyped.retype(kind, size, CNode(node), count, at_once) {
                Ok(()) => count += at_once,
                Err(status) => break status,
            }
        };
        let no_slot = count == 1 << RADIX && ended == Status::OutOfRange;
        if count == 0 || !(no_slot || ended == Status::NotEnoughMemory) {
            return Err(alloc::format!("after {count} objects: {ended:?}"));
        }
        // Nor is there room for a copy in a slot that is taken.
        let copied = Place::of(CNode(node), RADIX, 0).copy(Place::own(node), RIGHTS_ALL);
        if copied != Err(Status::DeleteFirst) {
            return Err(alloc::format!("a copy over another: {copied:?}"));
        }
        untyped.place().revoke().map_err(named)?;
        untyped
            .retype(TYPE_UNTYPED, bits, CNODE, made, 1)
            .map_err(|status| alloc::format!("afterwards: {status:?}"))?;
        untyped.place().revoke().map_err(named)?;
    }
    Ok(())
}

/// What must stay as it is, whatever the cells do.
pub(super) struct Invariants {
    seed: u64,
    canaries: Vec<u64>,
    memory: (u64, u64),
}

impl Invariants {
    /// As things are now.
    pub(super) fn now(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed, u64::MAX);
        Ok(Self {
            seed,
            canaries: (0..CANARIES).map(|_| random.word()).collect(),
            memory: Untyped(slot::MEMORY).inspect().map_err(named)?,
        })
    }

    /// Whether they still are, with these slots in use.
    pub(super) fn check(&self, slots: impl Iterator<Item = u64>) -> Result<(), String> {
        let mut random = Random::new(self.seed, u64::MAX);
        let canaries = core::hint::black_box(&self.canaries);
        if canaries.iter().any(|word| *word != random.word()) {
            return Err(String::from("the supervisor's memory has changed"));
        }
        let memory = Untyped(slot::MEMORY).inspect();
        if memory != Ok(self.memory) {
            return Err(alloc::format!("the memory's untyped is {memory:?}"));
        }
        for slot in slots {
            // The destination is looked at first: nothing can be copied over what is there.
            let over = Place::own(slot).copy(CNODE.place(), RIGHTS_ALL);
            if over != Err(Status::DeleteFirst) {
                return Err(alloc::format!("slot {slot} of the supervisor: {over:?}"));
            }
        }
        Ok(())
    }
}

//! How a program tells the counter of kernel instructions (`bulkhead-bench instructions`) what it
//! measures: by a system call that no kernel knows, a mark, right before the path.
//!
//! A mark has its number in `rax` and, in the order of a system call's arguments, where the path's
//! name lies and its length in bytes, how many entries into the kernel are passed over after the
//! mark's own, and how many of those that follow make the path.
#![no_std]

/// The number of a mark. What its caller gets for an answer does not matter.
pub const MARK: u64 = u64::from_le_bytes(*b"BHKmark\0");
/// The number of a mark of which not all instructions count, but the longest stretch of them in which
/// the kernel does not look for an urgent thread.
pub const MARK_STRETCH: u64 = u64::from_le_bytes(*b"BHKlong\0");

/// The most instructions that some paths may take, by the name in their marks.
pub const BARS: [(&str, u64); 13] = [
    ("Linux getpid", 120),
    ("call, 0 words", 184),
    ("reply-receive, 0 words", 211),
    ("call, 10 words", 300),
    ("reply-receive, 10 words", 300),
    ("revoke, all kinds of objects, longest stretch", LONGEST),
    ("retype, 256 endpoints, longest stretch", LONGEST),
    ("delete, a full CNode, longest stretch", LONGEST),
    ("delete, an empty CNode, longest stretch", LONGEST),
    ("retype, a frame of used memory, longest stretch", LONGEST),
    ("cancel badged sends, 34 senders, longest stretch", LONGEST),
    (
        "delete, an endpoint with 4 senders, longest stretch",
        LONGEST,
    ),
    (
        "rotate, each slot behind 63 CNodes, longest stretch",
        LONGEST,
    ),
];

/// The longest that an urgent thread may have to wait for the kernel: 50 us of a processor that executes
/// an instruction in a nanosecond, which is three cycles of one at 3 GHz.
const LONGEST: u64 = 50_000;

/// Takes the path often enough that nothing is done for the first time any more, then twice more
/// behind a mark: the counter demands that both take the same instructions.
pub fn steady(mark: impl Fn(), mut path: impl FnMut()) {
    for round in 0..ROUNDS {
        if is_marked(round) {
            mark();
        }
        path();
    }
}

/// How often a path is taken.
pub const ROUNDS: u32 = 6;

/// True for the rounds that the counter is to hear of.
#[must_use]
pub const fn is_marked(round: u32) -> bool {
    round + 2 >= ROUNDS
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::RefCell;
    use std::string::String;

    use super::*;

    #[test]
    fn the_last_two_rounds_are_marked() {
        let taken = RefCell::new(String::new());
        let say = |what| taken.borrow_mut().push(what);
        steady(|| say('m'), || say('p'));
        assert_eq!(taken.into_inner(), "ppppmpmp");
    }
}

//! Credit (virtio 1.2, section 5.10.6.3): how much each side may send before the other has passed on
//! what it got. Counters run modulo 2^32. Used by vsock connections alone.

use std::num::Wrapping;

/// Bytes from the guest that a connection holds for a host process that does not read: what the
/// guest is told it may send ahead.
pub(super) const BUFFER_BYTES: u32 = 64 * 1024;

/// Both directions of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    /// The guest's buffer, and how much it has passed on, as it says.
    guest_alloc: u32,
    guest_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// Bytes from the guest that were passed on, and as many as the guest knows of.
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl Credit {
    /// Takes what a packet of the guest says.
    pub(super) fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_alloc = buf_alloc;
        self.guest_forwarded = Wrapping(fwd_cnt);
    }

    /// Bytes that may be sent to the guest now. A guest whose count is nonsense gets none.
    pub(super) fn room(&self) -> u32 {
        let in_flight = (self.sent - self.guest_forwarded).0;
        self.guest_alloc.saturating_sub(in_flight)
    }

    /// `bytes` go to the guest.
    pub(super) fn send(&mut self, bytes: u32) {
        self.sent += bytes;
    }

    /// `bytes` of the guest's were passed on, or thrown away.
    pub(super) fn forward(&mut self, bytes: usize) {
        // Never more than a packet or a buffer.
        self.forwarded += bytes as u32;
    }

    /// What a packet to the guest says: `buf_alloc` and `fwd_cnt`. The guest knows now.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (BUFFER_BYTES, self.forwarded.0)
    }

    /// The guest should be told, lest it wait: it counts a quarter of the buffer as full that is
    /// free.
    pub(super) fn is_stale(&self) -> bool {
        (self.forwarded - self.announced).0 >= BUFFER_BYTES / 4
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    #[test]
    fn nonsense_gives_no_credit() {
        let mut credit = Credit::default();
        assert_eq!(credit.room(), 0);
        credit.learn(1000, 1);
        assert_eq!(credit.room(), 0, "more passed on than was sent");
        credit.learn(u32::MAX, u32::MAX);
        assert_eq!(credit.room(), u32::MAX - 1);
        credit.learn(1000, 0);
        credit.send(1000);
        assert_eq!(credit.room(), 0);
        credit.learn(500, 600);
        assert_eq!(credit.room(), 100);
    }

    proptest! {
        /// A side that keeps to the credit never overruns the other's buffer, wherever the counters
        /// start and in whatever order news arrive; and never stands still while there is room.
        #[test]
        fn nobody_overruns_a_buffer(
            start in prop_oneof![any::<u32>(), u32::MAX - 100_000..],
            alloc in 1u32..200_000,
            steps in vec((0u8..3, 1u32..70_000), 1..300),
        ) {
            let (mut credit, mut held, mut passed) = (Credit::default(), 0u32, Wrapping(start));
            credit.sent = Wrapping(start);
            credit.learn(alloc, start);
            let mut news: VecDeque<u32> = VecDeque::new();
            for (step, amount) in steps {
                match step {
                    0 => {
                        let bytes = amount.min(credit.room());
                        credit.send(bytes);
                        held += bytes;
                        prop_assert!(held <= alloc);
                    }
                    1 => {
                        let bytes = amount.min(held);
                        held -= bytes;
                        passed += bytes;
                        news.push_back(passed.0);
                    }
                    _ => {
                        if let Some(count) = news.pop_front() {
                            credit.learn(alloc, count);
                        }
                    }
                }
            }
            if let Some(last) = news.back() {
                credit.learn(alloc, *last);
            }
            prop_assert_eq!(credit.room(), alloc - held);
        }

        /// A guest that fills the buffer is told when it is free again, whatever the portions.
        #[test]
        fn a_guest_that_waits_is_told(portions in vec(1usize..30_000, 1..100)) {
            let (mut credit, mut knows_free) = (Credit::default(), BUFFER_BYTES);
            let mut held = 0usize;
            for portion in portions {
                // The guest sends all that it may.
                held += knows_free as usize;
                knows_free = 0;
                prop_assert!(held <= BUFFER_BYTES as usize);
                let passed = portion.min(held);
                held -= passed;
                credit.forward(passed);
                if credit.is_stale() {
                    knows_free += (credit.forwarded - credit.announced).0;
                    credit.announce();
                }
                prop_assert!(held > 0 || knows_free > 0, "both wait for each other");
            }
        }
    }
}

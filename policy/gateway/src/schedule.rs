//! Who is to be looked after, and when. Used by the tables of flows and queries.

use std::collections::{BTreeSet, VecDeque};

use smoltcp::time::Instant;

use crate::table::Token;

/// An entry's place in the schedule; part of the entry.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    queued: bool,
    deadline: Option<Instant>,
}

/// Entries that have work now, entries that wait for the link, and deadlines.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    ready: VecDeque<Token>,
    stalled: Vec<Token>,
    deadlines: BTreeSet<(Instant, Token)>,
}

impl Schedule {
    /// The entry has work.
    pub(crate) fn wake(&mut self, token: Token, slot: &mut Slot) {
        if !slot.queued {
            slot.queued = true;
            self.ready.push_back(token);
        }
    }

    /// The entry has work as soon as the link takes frames again.
    pub(crate) fn stall(&mut self, token: Token, slot: &mut Slot) {
        if !slot.queued {
            slot.queued = true;
            self.stalled.push(token);
        }
    }

    /// The link takes frames again.
    pub(crate) fn unstall(&mut self) {
        self.ready.extend(self.stalled.drain(..));
    }

    /// The entry has work at `deadline`, and no longer at the one before.
    pub(crate) fn set_deadline(
        &mut self,
        token: Token,
        slot: &mut Slot,
        deadline: Option<Instant>,
    ) {
        if slot.deadline == deadline {
            return;
        }
        if let Some(old) = slot.deadline {
            self.deadlines.remove(&(old, token));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, token));
        }
        slot.deadline = deadline;
    }

    /// The entry is gone. It may come out of the queues once more.
    pub(crate) fn forget(&mut self, token: Token, slot: &mut Slot) {
        self.set_deadline(token, slot, None);
    }

    /// How many entries have work.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The next entry with work; call [`Self::taken`] with its slot.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        self.ready.pop_front()
    }

    /// An entry came out of the queue.
    pub(crate) fn taken(slot: &mut Slot) {
        slot.queued = false;
    }

    /// The next entry whose deadline is `now` or before.
    pub(crate) fn due(&self, now: Instant) -> Option<Token> {
        let (deadline, token) = self.deadlines.first()?;
        (*deadline <= now).then_some(*token)
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Kind;

    #[test]
    fn work_comes_once_and_in_order() {
        let mut schedule = Schedule::default();
        let tokens: Vec<_> = (0..3).map(|n| Token::lone(Kind::Tcp, n)).collect();
        let mut slots: Vec<_> = tokens.iter().map(|_| Slot::default()).collect();
        schedule.stall(tokens[2], &mut slots[2]);
        for _ in 0..2 {
            schedule.wake(tokens[0], &mut slots[0]);
            schedule.wake(tokens[1], &mut slots[1]);
            schedule.wake(tokens[2], &mut slots[2]);
        }
        assert_eq!(schedule.ready(), 2);
        schedule.unstall();
        for token in &tokens {
            assert_eq!(schedule.pop(), Some(*token));
        }
        assert_eq!(schedule.pop(), None);
        Schedule::taken(&mut slots[0]);
        schedule.wake(tokens[0], &mut slots[0]);
        assert_eq!(schedule.ready(), 1);
    }

    #[test]
    fn an_entry_has_one_deadline() {
        let mut schedule = Schedule::default();
        let (a, b) = (Token::lone(Kind::Udp, 1), Token::lone(Kind::Udp, 2));
        let (mut slot_a, mut slot_b) = (Slot::default(), Slot::default());
        let at = Instant::from_millis;
        schedule.set_deadline(a, &mut slot_a, Some(at(5)));
        schedule.set_deadline(b, &mut slot_b, Some(at(7)));
        schedule.set_deadline(a, &mut slot_a, Some(at(9)));
        assert_eq!(schedule.next_deadline(), Some(at(7)));
        assert_eq!(schedule.due(at(6)), None);
        assert_eq!(schedule.due(at(7)), Some(b));
        schedule.forget(b, &mut slot_b);
        assert_eq!(schedule.due(at(9)), Some(a));
        schedule.set_deadline(a, &mut slot_a, None);
        assert_eq!(schedule.next_deadline(), None);
    }
}

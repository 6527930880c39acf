//! How much there was in the last minute: requests or tokens.

use std::collections::VecDeque;
use std::time::Duration;

/// How long something counts.
const SPAN: Duration = Duration::from_secs(60);

/// A bound on what may be taken in any minute. At most one entry for each thing taken, so who
/// bounds the number of those bounds the memory.
#[derive(Debug)]
pub(crate) struct Window {
    limit: u64,
    taken: VecDeque<Taken>,
    sum: u64,
    next: u64,
}

#[derive(Debug)]
struct Taken {
    at: Duration,
    id: u64,
    amount: u64,
}

/// What was taken, to correct its amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Window {
    /// A window of a minute in which at most `limit` is taken.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            taken: VecDeque::new(),
            sum: 0,
            next: 0,
        }
    }

    /// Whether `amount` could be taken at `now`; else the time to wait for it. What is more than
    /// the limit by itself can be taken when nothing else was.
    pub(crate) fn ready(&mut self, now: Duration, amount: u64) -> Result<(), Duration> {
        while let Some(oldest) = self.taken.front().filter(|one| one.at + SPAN <= now) {
            self.sum = self.sum.saturating_sub(oldest.amount);
            self.taken.pop_front();
        }
        let mut sum = self.sum;
        let mut wait = Duration::ZERO;
        for oldest in &self.taken {
            // What was corrected to nothing is in nobody's way.
            if sum == 0 || sum.saturating_add(amount) <= self.limit {
                break;
            }
            sum = sum.saturating_sub(oldest.amount);
            wait = (oldest.at + SPAN).saturating_sub(now);
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes `amount` at `now`.
    pub(crate) fn take(&mut self, now: Duration, amount: u64) -> Ticket {
        let id = self.next;
        self.next += 1;
        self.sum = self.sum.saturating_add(amount);
        self.taken.push_back(Taken {
            at: now,
            id,
            amount,
        });
        Ticket(id)
    }

    /// It turned out that `amount` was taken.
    pub(crate) fn correct(&mut self, ticket: Ticket, amount: u64) {
        if let Ok(place) = self.taken.binary_search_by_key(&ticket.0, |one| one.id)
            && let Some(one) = self.taken.get_mut(place)
        {
            self.sum = self.sum.saturating_sub(one.amount).saturating_add(amount);
            one.amount = amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn no_minute_has_more_than_the_limit() {
        let mut window = Window::new(3);
        for at in [0, 10, 20] {
            assert_eq!(window.ready(s(at), 1), Ok(()));
            window.take(s(at), 1);
        }
        assert_eq!(window.ready(s(20), 1), Err(s(40)));
        assert_eq!(window.ready(s(59), 2), Err(s(11)));
        assert_eq!(window.ready(s(60), 1), Ok(()));
        window.take(s(60), 1);
        assert_eq!(window.ready(s(60), 1), Err(s(10)));
        assert_eq!(window.ready(s(200), 3), Ok(()));
    }

    #[test]
    fn what_was_less_than_feared_makes_room() {
        let mut window = Window::new(100);
        let ticket = window.take(s(0), 90);
        assert_eq!(window.ready(s(1), 20), Err(s(59)));
        window.correct(ticket, 10);
        assert_eq!(window.ready(s(1), 90), Ok(()));
        assert_eq!(window.ready(s(61), 1), Ok(()));
        window.correct(ticket, 50);
        assert_eq!(window.sum, 0, "what has left the window is not corrected");
    }

    #[test]
    fn what_never_fits_goes_alone() {
        let mut window = Window::new(10);
        assert_eq!(window.ready(s(0), 50), Ok(()));
        window.take(s(0), 50);
        assert_eq!(window.ready(s(1), 1), Err(s(59)));
        let ticket = window.take(s(61), 50);
        window.correct(ticket, 0);
        assert_eq!(window.ready(s(62), 50), Ok(()));
    }
}

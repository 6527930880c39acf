//! What a partition may spend, kept so that calls at the same time cannot overspend it together:
//! each reserves the most that it can cost before it is made, and settles when it is known what it
//! did cost. A reservation whose cost never becomes known stays spent.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_models::{Budget, Money, Spent};

/// Percent of a budget at which an alert is given.
pub const ALERT_PERCENT: u128 = 80;

/// Tokens and money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens, of input and output together.
    pub tokens: u64,
    /// What they cost.
    pub money: Money,
}

/// Why nothing more is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Of tokens too few are left.
    #[error("the call may take {needed} tokens, and {left} are left of the budget of {limit}")]
    Tokens {
        /// What the call may take.
        needed: u64,
        /// What is left.
        left: u64,
        /// The budget.
        limit: u64,
    },
    /// Of money too little is left.
    #[error("the call may cost {needed}, and {left} is left of the budget of {limit}")]
    Money {
        /// What the call may cost.
        needed: Money,
        /// What is left.
        left: Money,
        /// The budget.
        limit: Money,
    },
}

/// Who is told what is spent and reserved together, whenever that changes and before anybody acts on
/// it.
pub type Carry = Arc<dyn Fn(Spent) + Send + Sync>;

/// The account of one partition.
pub struct Account {
    limits: Budget,
    carry: Option<Carry>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    spent: Cost,
    reserved: Cost,
    alerted: bool,
}

impl Account {
    /// An account of which `spent` is gone already. What `carry` is told last is what the next account
    /// begins with, however this one ends.
    pub fn new(limits: Budget, spent: Spent, carry: Option<Carry>) -> Arc<Self> {
        let spent = Cost {
            tokens: spent.tokens,
            money: spent.money,
        };
        // Who spent so much has been told so.
        let alerted = alarming(limits, spent);
        let state = Mutex::new(State {
            spent,
            reserved: Cost::default(),
            alerted,
        });
        Arc::new(Self {
            limits,
            carry,
            state,
        })
    }

    fn tell(&self, state: &State) {
        if let Some(carry) = &self.carry {
            carry(state.snapshot());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made whole or not at all, whatever a thread does elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `worst` aside, the most that a call can cost.
    ///
    /// # Errors
    /// With what is spent and reserved it would be more than the budget.
    pub fn reserve(self: &Arc<Self>, worst: Cost) -> Result<Reservation, Exhausted> {
        let mut state = self.state();
        let taken = state.taken();
        if let Some(limit) = self.limits.tokens {
            let left = limit.saturating_sub(taken.tokens);
            if worst.tokens > left {
                return Err(Exhausted::Tokens {
                    needed: worst.tokens,
                    left,
                    limit,
                });
            }
        }
        if let Some(limit) = self.limits.money {
            let left = limit.saturating_sub(taken.money);
            if worst.money > left {
                return Err(Exhausted::Money {
                    needed: worst.money,
                    left,
                    limit,
                });
            }
        }
        state.reserved = state.reserved.plus(worst);
        self.tell(&state);
        drop(state);
        Ok(Reservation {
            account: Arc::clone(self),
            worst,
            open: true,
        })
    }

    /// What is spent, and what calls that have not ended may still cost. Handed to the account of
    /// the next process, nothing is forgotten.
    pub fn spent(&self) -> Spent {
        self.state().snapshot()
    }

    /// True once: when [`ALERT_PERCENT`] of a limit is spent for the first time.
    pub fn take_alert(&self) -> bool {
        let mut state = self.state();
        let alert = alarming(self.limits, state.spent) && !state.alerted;
        state.alerted |= alert;
        alert
    }
}

/// Whether so much is spent that it is told.
fn alarming(limits: Budget, spent: Cost) -> bool {
    let reached =
        |spent: u64, limit: u64| u128::from(spent) * 100 >= u128::from(limit) * ALERT_PERCENT;
    let money = |limit: Money| reached(spent.money.micro_cents(), limit.micro_cents());
    limits
        .tokens
        .is_some_and(|limit| reached(spent.tokens, limit))
        || limits.money.is_some_and(money)
}

impl State {
    fn snapshot(&self) -> Spent {
        let Cost { tokens, money } = self.taken();
        Spent { tokens, money }
    }

    fn taken(&self) -> Cost {
        self.spent.plus(self.reserved)
    }
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_add(other.tokens);
        Self {
            tokens,
            money: self.money.saturating_add(other.money),
        }
    }

    fn minus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_sub(other.tokens);
        Self {
            tokens,
            money: self.money.saturating_sub(other.money),
        }
    }
}

/// What one call has set aside. Dropped, it is spent.
#[must_use = "a reservation that is dropped is spent"]
pub struct Reservation {
    account: Arc<Account>,
    worst: Cost,
    open: bool,
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reservation").field(&self.worst).finish()
    }
}

impl Reservation {
    /// The most that the call can cost.
    pub fn worst(&self) -> Cost {
        self.worst
    }

    /// The call did cost `actual`, and not a bit more.
    pub fn settle(mut self, actual: Cost) {
        self.close(actual);
    }

    fn close(&mut self, actual: Cost) {
        if std::mem::take(&mut self.open) {
            let mut state = self.account.state();
            state.reserved = state.reserved.minus(self.worst);
            state.spent = state.spent.plus(actual);
            self.account.tell(&state);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.close(self.worst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cost(tokens: u64, micro_cents: u64) -> Cost {
        Cost {
            tokens,
            money: Money::from_micro_cents(micro_cents),
        }
    }

    fn account(tokens: Option<u64>, micro_cents: Option<u64>) -> Arc<Account> {
        let money = micro_cents.map(Money::from_micro_cents);
        Account::new(Budget { tokens, money }, Spent::default(), None)
    }

    #[test]
    fn what_is_reserved_cannot_be_reserved_again() {
        let account = account(Some(100), Some(1000));
        let first = account.reserve(cost(60, 10)).unwrap();
        let refused = account.reserve(cost(41, 10)).unwrap_err();
        assert_eq!(
            refused,
            Exhausted::Tokens {
                needed: 41,
                left: 40,
                limit: 100
            }
        );
        first.settle(cost(50, 10));
        let second = account.reserve(cost(50, 990)).unwrap();
        assert!(matches!(
            account.reserve(cost(0, 1)),
            Err(Exhausted::Money { .. })
        ));
        drop(second);
        assert_eq!(
            account.spent(),
            Spent {
                tokens: 100,
                money: Money::from_micro_cents(1000)
            }
        );
        assert!(
            account.reserve(cost(0, 0)).is_ok(),
            "what costs nothing is always possible"
        );
    }

    #[test]
    fn what_is_carried_on_is_never_less_than_what_may_be_spent() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = told.clone();
        let carry: Carry = Arc::new(move |spent: Spent| hears.lock().unwrap().push(spent.tokens));
        let limits = Budget {
            tokens: Some(100),
            money: None,
        };
        let account = Account::new(limits, Spent::default(), Some(carry));
        let first = account.reserve(cost(60, 0)).unwrap();
        let second = account.reserve(cost(30, 0)).unwrap();
        assert!(account.reserve(cost(11, 0)).is_err());
        first.settle(cost(5, 0));
        drop(second);
        assert_eq!(*told.lock().unwrap(), [60, 90, 35, 35]);
        let next = Account::new(limits, account.spent(), None);
        assert!(next.reserve(cost(66, 0)).is_err());
        assert!(next.reserve(cost(65, 0)).is_ok());
    }

    #[test]
    fn the_alert_comes_once_at_four_fifths() {
        let account = account(Some(10), None);
        account.reserve(cost(7, 0)).unwrap().settle(cost(7, 0));
        assert!(!account.take_alert());
        let open = account.reserve(cost(1, 0)).unwrap();
        assert!(!account.take_alert(), "what is only reserved is not spent");
        open.settle(cost(1, 0));
        assert!(account.take_alert());
        assert!(!account.take_alert());
    }

    #[test]
    fn threads_together_do_not_overspend() {
        let account = account(Some(1000), None);
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let account = Arc::clone(&account);
                std::thread::spawn(move || {
                    let mut spent = 0;
                    for round in 0_u64..1000 {
                        let Ok(reservation) = account.reserve(cost(7, 0)) else {
                            continue;
                        };
                        let actual = (round + number) % 8;
                        reservation.settle(cost(actual, 0));
                        spent += actual;
                    }
                    spent
                })
            })
            .collect();
        let spent: u64 = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        assert_eq!(account.spent().tokens, spent);
        assert!(spent <= 1000, "{spent}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(Cost),
        Settle(usize, u8),
        Drop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..50, 0_u64..500).prop_map(|(tokens, money)| Step::Reserve(cost(tokens, money))),
            (any::<usize>(), 0_u8..=100).prop_map(|(which, percent)| Step::Settle(which, percent)),
            any::<usize>().prop_map(Step::Drop),
        ]
    }

    proptest! {
        #[test]
        fn no_order_of_calls_overspends(
            tokens in prop::option::of(0_u64..300),
            money in prop::option::of(0_u64..3000),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let account = account(tokens, money);
            let mut open: Vec<Reservation> = Vec::new();
            let mut billed = Cost::default();
            for step in steps {
                match step {
                    Step::Reserve(worst) => open.extend(account.reserve(worst)),
                    Step::Settle(which, percent) if !open.is_empty() => {
                        let one = open.swap_remove(which % open.len());
                        let of = |part: u64| part * u64::from(percent) / 100;
                        let worst = one.worst();
                        let actual = cost(of(worst.tokens), of(worst.money.micro_cents()));
                        billed = billed.plus(actual);
                        one.settle(actual);
                    }
                    Step::Drop(which) if !open.is_empty() => {
                        let one = open.swap_remove(which % open.len());
                        billed = billed.plus(one.worst());
                    }
                    Step::Settle(..) | Step::Drop(_) => {}
                }
                let worst = open.iter().fold(billed, |sum, one| sum.plus(one.worst()));
                prop_assert_eq!(account.spent(), Spent { tokens: worst.tokens, money: worst.money });
                prop_assert!(tokens.is_none_or(|limit| worst.tokens <= limit));
                prop_assert!(money.is_none_or(|limit| worst.money.micro_cents() <= limit));
            }
        }
    }
}

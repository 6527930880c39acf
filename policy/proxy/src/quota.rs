//! How much was used: calls in a minute, bytes in all. Shared by everybody who spends for one
//! partition.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_network::Quota;
use governor::{DefaultDirectRateLimiter, RateLimiter};

/// The amounts of a description, by their places in it.
#[derive(Clone)]
pub struct Quotas(Arc<[Amount]>);

struct Amount {
    name: String,
    calls: Option<DefaultDirectRateLimiter>,
    most_bytes: Option<u64>,
    bytes: AtomicU64,
}

/// An amount is used up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Too many calls in this minute.
    #[error("the calls per minute of {0} are used up")]
    Calls(String),
    /// Too many bytes.
    #[error("the bytes of {0} are used up")]
    Bytes(String),
}

impl Quotas {
    /// Nothing is used yet.
    pub fn new(quotas: &[Quota]) -> Self {
        let amount = |quota: &Quota| Amount {
            name: quota.name.clone(),
            // None at all cannot be written; who forges it gets one a minute.
            calls: quota.calls_per_minute.map(|calls| {
                let calls = NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN);
                RateLimiter::direct(governor::Quota::per_minute(calls))
            }),
            most_bytes: quota.bytes,
            bytes: AtomicU64::new(0),
        };
        Self(quotas.iter().map(amount).collect())
    }

    fn amounts(&self, places: &[usize]) -> impl Iterator<Item = &Amount> {
        places.iter().filter_map(|place| self.0.get(*place))
    }

    /// Counts a call, if all of them have one left and bytes too.
    ///
    /// # Errors
    /// What is used up. A call that one of several amounts refuses may be counted by another.
    pub fn call(&self, places: &[usize]) -> Result<(), Exhausted> {
        self.bytes(places, 0)?;
        for amount in self.amounts(places) {
            if amount
                .calls
                .as_ref()
                .is_some_and(|calls| calls.check().is_err())
            {
                return Err(Exhausted::Calls(amount.name.clone()));
            }
        }
        Ok(())
    }

    /// Counts bytes that were moved, or are about to be.
    ///
    /// # Errors
    /// What was used up already; these may be the last.
    pub fn bytes(&self, places: &[usize], count: u64) -> Result<(), Exhausted> {
        for amount in self.amounts(places) {
            let before = amount.bytes.fetch_add(count, Ordering::Relaxed);
            if amount.most_bytes.is_some_and(|most| before >= most) {
                return Err(Exhausted::Bytes(amount.name.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        let quota = |name: &str, calls_per_minute, bytes| Quota {
            name: name.to_owned(),
            calls_per_minute,
            bytes,
        };
        Quotas::new(&[quota("a", Some(2), None), quota("b", None, Some(10))])
    }

    #[test]
    fn calls_run_out() {
        let quotas = quotas();
        assert_eq!(quotas.call(&[0]), Ok(()));
        assert_eq!(quotas.call(&[1, 0]), Ok(()));
        assert_eq!(quotas.call(&[1, 0]), Err(Exhausted::Calls("a".into())));
        assert_eq!(quotas.call(&[1]), Ok(()));
        assert_eq!(quotas.call(&[]), Ok(()));
    }

    #[test]
    fn bytes_run_out_for_everybody_who_shares_them() {
        let quotas = quotas();
        assert_eq!(quotas.clone().bytes(&[0, 1], 9), Ok(()));
        assert_eq!(quotas.bytes(&[1], 5), Ok(()), "the last");
        let out = Err(Exhausted::Bytes("b".into()));
        assert_eq!(quotas.bytes(&[1], 1), out);
        assert_eq!(quotas.call(&[1]), out);
        assert_eq!(quotas.call(&[0]), Ok(()));
    }
}

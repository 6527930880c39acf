//! How much was used: calls in a minute, bytes in all. Shared by everybody who spends for one
//! partition, and kept in a file for the gateway that comes after this one: a guest that resets
//! itself begins anew, and its amounts do not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_network::{Quota, USED_BYTES, Used};
use rustix::time::{ClockId, clock_gettime};

/// Most bytes that are noted before they are used: so seldom is the file written.
const AHEAD: u64 = 64 * 1024;

/// The amounts of a description, by their places in it.
#[derive(Clone)]
pub struct Quotas(Arc<All>);

struct All {
    amounts: Vec<Amount>,
    file: Option<File>,
}

struct Amount {
    name: String,
    calls_per_minute: Option<u32>,
    most_bytes: Option<u64>,
    bytes: AtomicU64,
    /// How many of them the file has; changed with `used` locked.
    noted: AtomicU64,
    used: Mutex<Used>,
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
    /// Nothing is used yet, and nobody keeps what will be.
    pub fn new(quotas: &[Quota]) -> Self {
        Self::kept_in(quotas, None)
    }

    /// What `file` says is used already, which is kept there from now on.
    pub fn kept_in(quotas: &[Quota], file: Option<File>) -> Self {
        let amount = |(place, quota): (usize, &Quota)| {
            let mut record = [0; USED_BYTES];
            if let Some(file) = &file {
                // A file that is shorter says that nothing was used.
                let _ = file.read_exact_at(&mut record, offset(place));
            }
            let used = Used::from_bytes(&record);
            Amount {
                name: quota.name.clone(),
                calls_per_minute: quota.calls_per_minute,
                most_bytes: quota.bytes,
                bytes: AtomicU64::new(used.bytes),
                noted: AtomicU64::new(used.bytes),
                used: Mutex::new(used),
            }
        };
        let amounts = quotas.iter().enumerate().map(amount).collect();
        // The first look at the clock finds out how to look at it, for which the process has no system
        // call later.
        let _ = second();
        Self(Arc::new(All { amounts, file }))
    }

    fn amounts(&self, places: &[usize]) -> impl Iterator<Item = (usize, &Amount)> {
        let amount = |place: &usize| Some((*place, self.0.amounts.get(*place)?));
        places.iter().filter_map(amount)
    }

    /// Counts a call, if all of them have one left and bytes too.
    ///
    /// # Errors
    /// What is used up. A call that one of several amounts refuses may be counted by another.
    pub fn call(&self, places: &[usize]) -> Result<(), Exhausted> {
        self.call_at(places, second())
    }

    fn call_at(&self, places: &[usize], second: u64) -> Result<(), Exhausted> {
        self.bytes(places, 0)?;
        for (place, amount) in self.amounts(places) {
            let Some(most) = amount.calls_per_minute else {
                continue;
            };
            let mut used = amount.used();
            used.pass_to(second);
            if used.calls_in_minute() >= u64::from(most) {
                return Err(Exhausted::Calls(amount.name.clone()));
            }
            used.count_call();
            self.write(place, &used);
        }
        Ok(())
    }

    /// Counts bytes that were moved, or are about to be.
    ///
    /// # Errors
    /// What was used up already; these may be the last.
    pub fn bytes(&self, places: &[usize], count: u64) -> Result<(), Exhausted> {
        for (place, amount) in self.amounts(places) {
            let Some(most) = amount.most_bytes else {
                continue;
            };
            let before = amount.bytes.fetch_add(count, Ordering::Relaxed);
            if before.saturating_add(count) > amount.noted.load(Ordering::Relaxed) {
                self.note(place, amount, AHEAD.min(most / 16));
            }
            if before >= most {
                return Err(Exhausted::Bytes(amount.name.clone()));
            }
        }
        Ok(())
    }

    /// Notes what is used, without the bytes that were noted ahead. For a process that ends.
    pub fn settle(&self) {
        for (place, amount) in self.0.amounts.iter().enumerate() {
            self.note(place, amount, 0);
        }
    }

    fn note(&self, place: usize, amount: &Amount, ahead: u64) {
        let mut used = amount.used();
        let bytes = amount.bytes.load(Ordering::Relaxed).saturating_add(ahead);
        used.bytes = bytes;
        amount.noted.store(bytes, Ordering::Relaxed);
        self.write(place, &used);
    }

    fn write(&self, place: usize, used: &Used) {
        if let Some(file) = &self.0.file {
            // A file in memory that is there already takes it, or the host has no memory at all.
            let _ = file.write_all_at(&used.to_bytes(), offset(place));
        }
    }
}

/// The second since the host started: the same for all its processes.
fn second() -> u64 {
    u64::try_from(clock_gettime(ClockId::Monotonic).tv_sec).unwrap_or(0)
}

fn offset(place: usize) -> u64 {
    (place * USED_BYTES) as u64
}

impl Amount {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_network::USED_SECONDS;

    fn described() -> [Quota; 2] {
        let quota = |name: &str, calls_per_minute, bytes| Quota {
            name: name.to_owned(),
            calls_per_minute,
            bytes,
        };
        [quota("a", Some(2), None), quota("b", None, Some(10))]
    }

    #[test]
    fn calls_run_out() {
        let quotas = Quotas::new(&described());
        assert_eq!(quotas.call(&[0]), Ok(()));
        assert_eq!(quotas.call(&[1, 0]), Ok(()));
        assert_eq!(quotas.call(&[1, 0]), Err(Exhausted::Calls("a".into())));
        assert_eq!(quotas.call(&[1]), Ok(()));
        assert_eq!(quotas.call(&[]), Ok(()));
    }

    #[test]
    fn no_minute_has_more_calls_than_that() {
        let quotas = Quotas::new(&described());
        let mut taken: Vec<u64> = Vec::new();
        for second in (0..600).chain(4_000_000_000..4_000_000_100) {
            if quotas.call_at(&[0], second).is_ok() {
                taken.push(second);
            }
        }
        assert_eq!(taken[..3], [0, 1, USED_SECONDS as u64]);
        for (at, second) in taken.iter().enumerate().skip(2) {
            assert!(second - taken[at - 2] > 60, "{taken:?}");
        }
        // A clock that goes back, as no clock of ours does, opens nothing.
        assert!(quotas.call_at(&[0], 4_000_000_200).is_ok());
        assert!(quotas.call_at(&[0], 4_000_000_200).is_ok());
        assert!(quotas.call_at(&[0], 5).is_err());
    }

    #[test]
    fn bytes_run_out_for_everybody_who_shares_them() {
        let quotas = Quotas::new(&described());
        assert_eq!(quotas.clone().bytes(&[0, 1], 9), Ok(()));
        assert_eq!(quotas.bytes(&[1], 5), Ok(()), "the last");
        let out = Err(Exhausted::Bytes("b".into()));
        assert_eq!(quotas.bytes(&[1], 1), out);
        assert_eq!(quotas.call(&[1]), out);
        assert_eq!(quotas.call(&[0]), Ok(()));
    }

    #[test]
    fn the_next_gateway_goes_on_where_this_one_was() {
        let file = tempfile::tempfile().unwrap();
        let mut described = described();
        described[1].bytes = Some(1_000_000);
        let next = || Quotas::kept_in(&described, Some(file.try_clone().unwrap()));
        let first = next();
        assert_eq!(first.call_at(&[0], 100), Ok(()));
        assert_eq!(first.bytes(&[1], 900_000), Ok(()));
        first.settle();
        let second = next();
        assert_eq!(second.call_at(&[0], 101), Ok(()));
        let out = Err(Exhausted::Calls("a".into()));
        assert_eq!(second.call_at(&[0], 102), out);
        assert_eq!(second.bytes(&[1], 30_000), Ok(()));
        // It is killed: what it may have used is used.
        let third = next();
        assert_eq!(third.call_at(&[0], 103), out);
        let last = third.bytes(&[1], 30_000);
        assert_eq!(last, Ok(()), "930,000 and 62,500 ahead were used");
        assert!(third.bytes(&[1], 0).is_err());
        assert_eq!(third.call_at(&[0], 162), Ok(()));
    }
}

//! How often tools are called: a count of the calls of the last 60 seconds, of this partition and,
//! in a file that all share, of all partitions together. Asked by the pipeline.
//!
//! At most so many calls begin in any 60 seconds, exactly: one that began 60 seconds ago no longer
//! counts. What a partition has called is kept while it lives, for the process after this one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_toolbox::{Limits, Rates, Risk};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::counters::{Counters, Found};
use crate::registry::Facts;

/// What "a minute" is.
const WINDOW: u64 = 60_000;

/// Milliseconds that all processes of the host count alike.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> u64;

    /// The date, since 1970.
    fn date(&self) -> Duration;
}

/// The host's clock since it started, which nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
        seconds.saturating_mul(1000).saturating_add(millis)
    }

    fn date(&self) -> Duration {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 is broken: nothing that ends is in force then.
        since.unwrap_or(Duration::MAX)
    }
}

/// When calls of each kind began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Counts {
    calls: VecDeque<u64>,
    writes: VecDeque<u64>,
    destructive: VecDeque<u64>,
    network: VecDeque<u64>,
    /// When it was found that what had been counted is lost.
    lost: Option<u64>,
}

impl Counts {
    /// What stands in a file; where that is damaged, that it is.
    fn found(found: Found<Self>, now: u64) -> Self {
        match found {
            Found::Whole(counts) => counts,
            Found::Damaged => Self {
                lost: Some(now),
                ..Self::default()
            },
        }
    }

    /// How many milliseconds until what is lost would no longer count.
    fn unknown(&self, now: u64) -> Option<u64> {
        let lost = self.lost.filter(|lost| *lost <= now)?;
        let over = lost.saturating_add(WINDOW);
        (now < over).then(|| over - now)
    }

    fn of(&mut self, kind: Counted) -> &mut VecDeque<u64> {
        match kind {
            Counted::Calls => &mut self.calls,
            Counted::Writes => &mut self.writes,
            Counted::Destructive => &mut self.destructive,
            Counted::Network => &mut self.network,
        }
    }

    /// How many milliseconds until one more fits; nothing when it fits now.
    fn wait(&mut self, kind: Counted, rates: Rates, now: u64) -> Option<u64> {
        let most = match kind {
            Counted::Calls => rates.calls,
            Counted::Writes => rates.writes,
            Counted::Destructive => rates.destructive,
            Counted::Network => rates.network,
        };
        wait(self.of(kind), most, now)
    }
}

/// Forgets what is too long ago, and what is in the future: another start of the host counted it.
fn wait(times: &mut VecDeque<u64>, most: u32, now: u64) -> Option<u64> {
    times.retain(|time| *time <= now && now - *time < WINDOW);
    if times.len() < most as usize {
        return None;
    }
    let oldest = times.front().copied().unwrap_or(now);
    Some(oldest.saturating_add(WINDOW).saturating_sub(now))
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Calls,
    Writes,
    Destructive,
    Network,
}

impl Counted {
    fn plural(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Writes => "calls that write",
            Self::Destructive => "destructive calls",
            Self::Network => "calls that use the network",
        }
    }
}

/// Why a call has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooOften {
    /// One sentence.
    pub reason: String,
    /// It is the first that is refused since one was let through.
    pub first: bool,
}

/// As many calls as nobody makes: how many there were is lost.
const UNKNOWN: u64 = u64::MAX;
/// Percent of the budget at which an alert is given.
pub const ALERT_PERCENT: u64 = 80;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Own {
    counts: Counts,
    /// Calls that were permitted, ever.
    spent: u64,
    /// By their names.
    tools: BTreeMap<String, VecDeque<u64>>,
    /// Of the grants' quotas, by their names.
    quotas: BTreeMap<String, VecDeque<u64>>,
    /// Calls, and calls that are permitted otherwise, are being refused; the budget is spent, and it
    /// was said.
    #[serde(skip)]
    refusing: [bool; 3],
    /// That most of the budget is spent was told, or was so before this process.
    #[serde(skip)]
    alerted: bool,
}

impl Own {
    fn read(file: &Counters, now: u64) -> Self {
        match file.read() {
            Ok(Found::Whole(own)) => own,
            Ok(Found::Damaged) | Err(_) => Self {
                counts: Counts::found(Found::Damaged, now),
                // What nobody knows is no reason to begin anew.
                spent: UNKNOWN,
                ..Self::default()
            },
        }
    }
}

/// Counts calls, and says which have to wait.
pub struct Limiter {
    limits: Limits,
    /// Most calls while the partition lives.
    budget: Option<u64>,
    clock: Box<dyn Clock>,
    shared: Option<Counters>,
    own: Mutex<Own>,
    /// Where `own` stands.
    kept: Option<Counters>,
}

impl Limiter {
    /// With these limits, and for so many calls in all. `shared` is the file that all partitions count
    /// in, `kept` the one in which this one does while it lives.
    pub fn new(
        limits: Limits,
        budget: Option<u64>,
        shared: Option<File>,
        kept: Option<File>,
        clock: Box<dyn Clock>,
    ) -> Self {
        let kept = kept.map(Counters::new);
        let own = kept.as_ref().map(|file| Own::read(file, clock.now()));
        let mut own = own.unwrap_or_default();
        own.alerted = is_alarming(own.spent, budget);
        Self {
            limits,
            budget,
            clock,
            shared: shared.map(Counters::new),
            own: Mutex::new(own),
            kept,
        }
    }

    /// True when a call of this risk waits for a person.
    pub fn asks(&self, risk: Risk) -> bool {
        self.limits.confirm.contains(&risk)
    }

    /// The date, since 1970.
    pub fn date(&self) -> Duration {
        self.clock.date()
    }

    /// Counts a call, whatever becomes of it.
    ///
    /// # Errors
    /// There were too many.
    pub fn begin(&self) -> Result<(), TooOften> {
        self.count(&[Counted::Calls], None, &[])
    }

    /// Counts a call of this tool that is permitted, against these quotas of its grant and the budget
    /// too.
    ///
    /// # Errors
    /// There were too many of its kind, or of all.
    pub fn permit(&self, facts: &Facts, quotas: &[(&str, u64)]) -> Result<(), TooOften> {
        let kinds: &[Counted] = match facts.risk {
            Risk::Read => &[],
            Risk::Write => &[Counted::Writes],
            Risk::Destructive => &[Counted::Writes, Counted::Destructive],
            Risk::Network => &[Counted::Network],
        };
        self.count(kinds, Some(facts.name), quotas)
    }

    /// True once: when [`ALERT_PERCENT`] of the budget is spent for the first time.
    pub fn take_alert(&self) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let alert = is_alarming(own.spent, self.budget) && !own.alerted;
        own.alerted |= alert;
        alert
    }

    fn count(
        &self,
        kinds: &[Counted],
        tool: Option<&'static str>,
        quotas: &[(&str, u64)],
    ) -> Result<(), TooOften> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let spent = tool.and(self.budget).filter(|budget| own.spent >= *budget);
        let counted = match spent {
            Some(budget) if own.spent == UNKNOWN => Err(format!(
                "how often the partition called is lost, so its budget of {budget} calls counts as spent"
            )),
            Some(budget) => Err(format!(
                "the partition has made the {budget} calls of its budget, and may make no more"
            )),
            None => self.count_at(&mut own, kinds, tool, quotas, now),
        };
        let refusing = counted.is_err();
        let [begin, permit, over] = &mut own.refusing;
        let refused = match tool {
            // Whatever was refused before: it is the last word.
            Some(_) if spent.is_some() => std::mem::replace(over, true),
            None => std::mem::replace(begin, refusing),
            Some(_) => std::mem::replace(permit, refusing),
        };
        counted.map_err(|reason| TooOften {
            reason,
            first: !refused,
        })
    }

    fn count_at(
        &self,
        own: &mut Own,
        kinds: &[Counted],
        tool: Option<&'static str>,
        quotas: &[(&str, u64)],
        now: u64,
    ) -> Result<(), String> {
        let limit = tool.and_then(|tool| Some((tool, self.limits.tool.get(tool)?)));
        if let Some((tool, limit)) = limit {
            let times = own.tools.entry(tool.to_owned()).or_default();
            let last = times.back().copied();
            if let Some(most) = limit.per_minute
                && let Some(left) = wait(times, most, now)
            {
                return Err(format!(
                    "{tool} may be called {most} times a minute; again in {}",
                    seconds(left)
                ));
            }
            let rest = u64::from(limit.cooldown.unwrap_or(0)).saturating_mul(1000);
            let passed = last.filter(|last| *last <= now).map(|last| now - last);
            if let Some(passed) = passed.filter(|passed| *passed < rest) {
                return Err(format!(
                    "{tool} has to cool down; again in {}",
                    seconds(rest - passed)
                ));
            }
        }
        for (name, most) in quotas {
            let times = own.quotas.entry((*name).to_owned()).or_default();
            let most = u32::try_from(*most).unwrap_or(u32::MAX);
            if let Some(left) = wait(times, most, now) {
                return Err(format!(
                    "the grant {name} allows {most} calls a minute; again in {}",
                    seconds(left)
                ));
            }
        }
        let rates = self.limits.partition;
        fits(&mut own.counts, kinds, rates, now, "a partition")?;
        self.count_shared(kinds, now)?;
        for kind in kinds {
            own.counts.of(*kind).push_back(now);
        }
        for (name, _) in quotas {
            own.quotas
                .entry((*name).to_owned())
                .or_default()
                .push_back(now);
        }
        if let Some((tool, limit)) = limit {
            let times = own.tools.entry(tool.to_owned()).or_default();
            times.push_back(now);
            // The last one is needed for the cool-down however long ago it was.
            let most = limit.per_minute.unwrap_or(1).max(1) as usize;
            while times.len() > most {
                times.pop_front();
            }
        }
        if tool.is_some() {
            own.spent = own.spent.saturating_add(1);
        }
        let kept = self.kept.as_ref().map_or(Ok(()), |kept| kept.write(own));
        kept.map_err(uncounted)
    }

    /// Counts in the file that all partitions share.
    fn count_shared(&self, kinds: &[Counted], now: u64) -> Result<(), String> {
        let Some(file) = self.shared.as_ref().filter(|_| !kinds.is_empty()) else {
            return Ok(());
        };
        let rates = self.limits.all;
        let count = |found| {
            let mut counts = Counts::found(found, now);
            let fits = fits(&mut counts, kinds, rates, now, "all partitions");
            if fits.is_ok() {
                kinds
                    .iter()
                    .for_each(|kind| counts.of(*kind).push_back(now));
            }
            (Some(counts), fits)
        };
        file.change(count).map_err(uncounted).flatten()
    }
}

/// Most of the budget is spent.
fn is_alarming(spent: u64, budget: Option<u64>) -> bool {
    let most = |budget: u64| u128::from(budget) * u128::from(ALERT_PERCENT);
    budget.is_some_and(|budget| u128::from(spent) * 100 >= most(budget))
}

fn uncounted(error: io::Error) -> String {
    format!("calls cannot be counted: {error}")
}

fn fits(
    counts: &mut Counts,
    kinds: &[Counted],
    rates: Rates,
    now: u64,
    whose: &str,
) -> Result<(), String> {
    if let Some(left) = counts.unknown(now) {
        let again = seconds(left);
        return Err(format!(
            "how often {whose} called is lost, so it counts as too often; again in {again}"
        ));
    }
    for kind in kinds {
        if let Some(left) = counts.wait(*kind, rates, now) {
            let (kind, again) = (kind.plural(), seconds(left));
            return Err(format!(
                "too many {kind} of {whose} in a minute; again in {again}"
            ));
        }
    }
    Ok(())
}

fn seconds(millis: u64) -> String {
    match millis.div_ceil(1000) {
        1 => "1 second".to_owned(),
        many => format!("{many} seconds"),
    }
}

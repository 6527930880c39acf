//! How often tools are called: a count of the calls of the last 60 seconds, of this partition and,
//! in a file that all share, of all partitions together. Asked by the pipeline.
//!
//! At most so many calls begin in any 60 seconds, exactly: one that began 60 seconds ago no longer
//! counts.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_toolbox::{Limits, Rates, Risk};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::registry::Facts;

/// What "a minute" is.
const WINDOW: u64 = 60_000;
/// Most bytes of the shared file.
const MAX_FILE: u64 = 1024 * 1024;

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
}

impl Counts {
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

#[derive(Debug, Default)]
struct Own {
    counts: Counts,
    tools: BTreeMap<&'static str, VecDeque<u64>>,
    /// Of the grants' quotas, by their names.
    quotas: BTreeMap<String, VecDeque<u64>>,
    /// Calls, and calls that are permitted otherwise, are being refused.
    refusing: [bool; 2],
}

/// Counts calls, and says which have to wait.
pub struct Limiter {
    limits: Limits,
    clock: Box<dyn Clock>,
    shared: Option<Mutex<File>>,
    own: Mutex<Own>,
}

impl Limiter {
    /// With these limits. `shared` is the file that all partitions count in.
    pub fn new(limits: Limits, shared: Option<File>, clock: Box<dyn Clock>) -> Self {
        Self {
            limits,
            clock,
            shared: shared.map(Mutex::new),
            own: Mutex::default(),
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

    /// Counts a call of this tool that is permitted, against these quotas of its grant too.
    ///
    /// # Errors
    /// There were too many of its kind.
    pub fn permit(&self, facts: &Facts, quotas: &[(&str, u64)]) -> Result<(), TooOften> {
        let kinds: &[Counted] = match facts.risk {
            Risk::Read => &[],
            Risk::Write => &[Counted::Writes],
            Risk::Destructive => &[Counted::Writes, Counted::Destructive],
            Risk::Network => &[Counted::Network],
        };
        self.count(kinds, Some(facts.name), quotas)
    }

    fn count(
        &self,
        kinds: &[Counted],
        tool: Option<&'static str>,
        quotas: &[(&str, u64)],
    ) -> Result<(), TooOften> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let counted = self.count_at(&mut own, kinds, tool, quotas, now);
        let refusing = counted.is_err();
        let [begin, permit] = &mut own.refusing;
        let refused = match tool {
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
            let times = own.tools.entry(tool).or_default();
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
        let rates = self.limits.partition.rates();
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
            let times = own.tools.entry(tool).or_default();
            times.push_back(now);
            // The last one is needed for the cool-down however long ago it was.
            let most = limit.per_minute.unwrap_or(1).max(1) as usize;
            while times.len() > most {
                times.pop_front();
            }
        }
        Ok(())
    }

    /// Counts in the file that all partitions share.
    fn count_shared(&self, kinds: &[Counted], now: u64) -> Result<(), String> {
        let Some(file) = self.shared.as_ref().filter(|_| !kinds.is_empty()) else {
            return Ok(());
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = |error: io::Error| format!("calls cannot be counted: {error}");
        // Whoever holds it is a process of ours, and holds it for a moment.
        flock(&*file, FlockOperation::LockExclusive).map_err(|errno| broken(errno.into()))?;
        let counted = (|| {
            let mut counts = read_counts(&mut file).map_err(broken)?;
            fits(
                &mut counts,
                kinds,
                self.limits.all.rates(),
                now,
                "all partitions",
            )?;
            for kind in kinds {
                counts.of(*kind).push_back(now);
            }
            write_counts(&mut file, &counts).map_err(broken)
        })();
        flock(&*file, FlockOperation::Unlock).map_err(|errno| broken(errno.into()))?;
        counted
    }
}

fn fits(
    counts: &mut Counts,
    kinds: &[Counted],
    rates: Rates,
    now: u64,
    whose: &str,
) -> Result<(), String> {
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

/// Nothing that was counted stands in a file that is empty, or not ours.
fn read_counts(file: &mut File) -> io::Result<Counts> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(MAX_FILE).read_to_end(&mut text)?;
    match text.is_empty() {
        true => Ok(Counts::default()),
        false => serde_json::from_slice(&text).map_err(Into::into),
    }
}

fn write_counts(file: &mut File, counts: &Counts) -> io::Result<()> {
    let text = serde_json::to_vec(counts)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&text)?;
    file.set_len(text.len() as u64)
}

fn seconds(millis: u64) -> String {
    match millis.div_ceil(1000) {
        1 => "1 second".to_owned(),
        many => format!("{many} seconds"),
    }
}

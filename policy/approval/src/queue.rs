//! What waits for a person, and what a person has allowed: logic alone, told what time it is.

use crate::question::Question;
use crate::scope::Scope;
use std::time::{Duration, Instant};

/// How long a question waits. At this moment, and not before, it is denied.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Most questions of one partition that wait. One more is denied at once.
pub const MAX_PENDING: usize = 5;

/// The questions of one system.
#[derive(Debug, Default)]
pub struct Queue {
    last: u64,
    pending: Vec<Pending>,
    consents: Vec<Consent>,
}

/// A question that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number; none is used twice.
    pub id: u64,
    /// Which partition.
    pub partition: String,
    /// What is asked.
    pub question: Question,
    /// When it is denied.
    pub deadline: Instant,
}

/// What a person has allowed beyond one question.
#[derive(Debug)]
struct Consent {
    /// The question that was answered.
    id: u64,
    partition: String,
    question: Question,
    scope: Scope,
    /// When it ends by time.
    until: Option<Instant>,
}

/// What becomes of a question at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It waits, under this number.
    Waits(u64),
    /// It is decided.
    Decided(Decision),
}

/// How a question was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A person allowed it.
    Allowed(Scope),
    /// A person allowed the same before, when this question was answered, for as long as this.
    Remembered(u64, Scope),
    /// A person denied it.
    Denied,
    /// Nobody answered in time.
    TimedOut,
    /// Too many wait already.
    TooMany,
    /// The partition ended.
    Ended,
}

/// A question that waits no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Which.
    pub pending: Pending,
    /// How it was decided.
    pub decision: Decision,
}

/// No question of this number waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no question {0} waits for an answer")]
pub struct NotPending(pub u64);

impl Decision {
    /// True where the act may be done.
    pub fn allows(self) -> bool {
        matches!(self, Self::Allowed(_) | Self::Remembered(..))
    }

    /// Why, for the process that asked and for the record.
    pub fn reason(self) -> String {
        match self {
            Self::Allowed(scope) => format!("a person allowed it: {scope}"),
            Self::Remembered(id, scope) => {
                format!("a person allowed it with question {id}: {scope}")
            }
            Self::Denied => "a person denied it".to_owned(),
            Self::TimedOut => format!("nobody answered within {} seconds", PATIENCE.as_secs()),
            Self::TooMany => format!("{MAX_PENDING} questions of the partition wait already"),
            Self::Ended => "the partition has ended".to_owned(),
        }
    }
}

impl Queue {
    /// Takes a question of `partition`.
    pub fn ask(&mut self, partition: &str, question: Question, now: Instant) -> Asked {
        self.consents
            .retain(|consent| consent.until.is_none_or(|until| now < until));
        let consent = self
            .consents
            .iter()
            .find(|consent| consent.covers(partition, &question));
        if let Some(consent) = consent {
            return Asked::Decided(Decision::Remembered(consent.id, consent.scope));
        }
        let own = self
            .pending
            .iter()
            .filter(|pending| pending.partition == partition);
        if own.count() >= MAX_PENDING {
            return Asked::Decided(Decision::TooMany);
        }
        self.last += 1;
        self.pending.push(Pending {
            id: self.last,
            partition: partition.to_owned(),
            question,
            deadline: now + PATIENCE,
        });
        Asked::Waits(self.last)
    }

    /// A person allows a question, for as much as `scope` says: with it, whatever else waits that
    /// the scope covers.
    ///
    /// # Errors
    /// It does not wait, or no more.
    pub fn allow(
        &mut self,
        id: u64,
        scope: Scope,
        now: Instant,
    ) -> Result<Vec<Settled>, NotPending> {
        let pending = self.take(id, now)?;
        let consent = Consent {
            id,
            partition: pending.partition.clone(),
            question: pending.question.clone(),
            scope,
            until: match scope {
                Scope::For(time) => Some(now + time),
                _ => None,
            },
        };
        let covered = |other: &Pending| {
            now < other.deadline && consent.covers(&other.partition, &other.question)
        };
        let mut settled = vec![Settled {
            pending,
            decision: Decision::Allowed(scope),
        }];
        settled.extend(self.settle(Decision::Remembered(id, scope), covered));
        if scope != Scope::Once {
            self.consents.push(consent);
        }
        Ok(settled)
    }

    /// A person denies a question. The next of the same kind is asked again.
    ///
    /// # Errors
    /// It does not wait, or no more.
    pub fn deny(&mut self, id: u64, now: Instant) -> Result<Settled, NotPending> {
        let pending = self.take(id, now)?;
        Ok(Settled {
            pending,
            decision: Decision::Denied,
        })
    }

    fn take(&mut self, id: u64, now: Instant) -> Result<Pending, NotPending> {
        let waits = |pending: &Pending| pending.id == id && now < pending.deadline;
        let at = self.pending.iter().position(waits).ok_or(NotPending(id))?;
        Ok(self.pending.remove(at))
    }

    /// Denies what has waited long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<Settled> {
        self.settle(Decision::TimedOut, |pending| pending.deadline <= now)
    }

    /// The partition has ended: what it asked is denied, what it was allowed is forgotten.
    pub fn end(&mut self, partition: &str) -> Vec<Settled> {
        self.consents
            .retain(|consent| consent.partition != partition);
        self.settle(Decision::Ended, |pending| pending.partition == partition)
    }

    fn settle(&mut self, decision: Decision, wanted: impl Fn(&Pending) -> bool) -> Vec<Settled> {
        let (settled, kept) = self.pending.drain(..).partition(|pending| wanted(pending));
        self.pending = kept;
        let settled: Vec<Pending> = settled;
        let settled = settled
            .into_iter()
            .map(|pending| Settled { pending, decision });
        settled.collect()
    }

    /// What waits, the oldest first.
    pub fn pending(&self) -> &[Pending] {
        &self.pending
    }

    /// When [`Queue::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.deadline).min()
    }
}

impl Consent {
    /// Whether it counts for a question. The reason may be another: it is the asker's words.
    fn covers(&self, partition: &str, question: &Question) -> bool {
        let same = self.partition == partition
            && self.question.capability == question.capability
            && self.question.object == question.object;
        same && match self.scope {
            Scope::Once => false,
            Scope::Task => self.question.task.is_some() && self.question.task == question.task,
            Scope::Session | Scope::For(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;

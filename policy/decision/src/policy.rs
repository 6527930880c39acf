//! Grants and conditions together: what an act of one partition comes to, and why.

use crate::entities::Circumstances;
use crate::family::Family;
use bulkhead_capability::table::{Decision, Table, Verdict};
use bulkhead_capability::{Grants, Quota};
use bulkhead_conditions::{Act, Ruling};

/// The policy of one partition.
#[derive(Debug)]
pub struct Policy<'c> {
    table: Table,
    conditions: Option<&'c Family>,
}

/// What policy says of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'p> {
    /// What is to be done.
    pub verdict: Verdict,
    /// What the grants say.
    pub decision: Decision<'p>,
    /// What the conditions say, where the grants do not deny and there are any.
    pub ruling: Option<Ruling>,
}

impl<'c> Policy<'c> {
    /// The policy of who has these grants, and is held to these conditions.
    pub fn new(grants: &Grants, conditions: Option<&'c Family>) -> Self {
        Self {
            table: Table::compile(grants),
            conditions,
        }
    }

    /// Decides on an act. Conditions narrow what the grants allow, and never allow anything.
    pub fn decide(&self, act: &Act, who: &Circumstances) -> Answer<'_> {
        let decision = self.table.decide(&act.request(), who.moment);
        let said = match decision.verdict {
            Verdict::Denied => None,
            Verdict::Allowed | Verdict::Ask => self.conditions.map(|all| all.ask(act, who)),
        };
        let verdict = match &said {
            Some(said) if !said.allows() => Verdict::Denied,
            _ => decision.verdict,
        };
        let ruling = said.map(|said| said.ruling);
        Answer {
            verdict,
            decision,
            ruling,
        }
    }
}

impl Answer<'_> {
    /// Why, in one clause.
    pub fn reason(&self) -> String {
        match &self.ruling {
            Some(ruling) if !ruling.is_permitted() => ruling.to_string(),
            Some(ruling) => format!("{}, {ruling}", self.decision.reason),
            None => self.decision.reason.to_string(),
        }
    }

    /// What the act counts against, where a grant allows it.
    pub fn quota(&self) -> Quota {
        match &self.decision.reason {
            bulkhead_capability::table::Reason::Granted(grant) => grant.constraints().quota(),
            _ => Quota::default(),
        }
    }
}

//! Decisions: what grants say of one act, compiled so that an answer takes no time worth counting.
//!
//! Whoever enforces a grant (the gateway, the tools, the supervisor) makes a [`Table`] of a
//! partition's [`Grants`] once, and asks it for each act. What it does not know, as how much was
//! used already, the caller answers for each grant.

mod index;
mod request;

pub use request::Request;

use crate::capability::Capability;
use crate::constraints::{Constraints, is_plain_directory};
use crate::grant::Grant;
use crate::grants::Grants;
use index::{Index, Purpose};
use std::fmt;
use std::time::Duration;

/// When an act takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since 1970, UTC.
    pub now: Duration,
    /// Since the partition's start.
    pub age: Duration,
}

/// What is to be done about an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may be done.
    Allowed,
    /// It may be done if a person consents; without one it may not.
    Ask,
    /// It may not.
    Denied,
}

/// A verdict and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'t> {
    /// What is to be done.
    pub verdict: Verdict,
    /// Why; its text is one clause, for a record or a person.
    pub reason: Reason<'t>,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason<'t> {
    /// This grant allows it, or would with a person's consent: its quotas are what the act counts
    /// against.
    Granted(&'t Grant),
    /// This denial forbids it.
    Denied(&'t Capability),
    /// This grant speaks of it, and its constraints do not let it through.
    Constrained(&'t Grant, Hindrance),
    /// The act is not one that a grant can be about, such as one on a path that leads upwards.
    Malformed,
    /// No grant speaks of it.
    NoGrant,
}

/// What in the constraints of a grant an act does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hindrance {
    /// Its time is over.
    Over,
    /// It is for web requests alone.
    NotWeb,
    /// It has other methods.
    Method,
    /// It has other paths.
    Path,
    /// A path of the call lies outside its directories.
    Outside,
    /// The caller says that it is used up.
    UsedUp,
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(grant) => write!(f, "granted by {grant}"),
            Self::Denied(capability) => write!(f, "denied by {capability}"),
            Self::Constrained(grant, hindrance) => {
                let what = match hindrance {
                    Hindrance::Over => "its time is over",
                    Hindrance::NotWeb => "it is for web requests alone",
                    Hindrance::Method => "it has other methods",
                    Hindrance::Path => "it has other paths",
                    Hindrance::Outside => "a path lies outside of its directories",
                    Hindrance::UsedUp => "it is used up",
                };
                write!(f, "granted by {grant}, but {what}")
            }
            Self::Malformed => f.write_str("no grant can be about it"),
            Self::NoGrant => f.write_str("no grant speaks of it"),
        }
    }
}

/// The grants and denials of one partition, ready to be asked.
#[derive(Clone, Debug)]
pub struct Table {
    grants: Vec<Grant>,
    denials: Vec<Capability>,
    granted: Index,
    denied: Index,
}

impl Table {
    /// Compiles a set of grants.
    pub fn compile(grants: &Grants) -> Self {
        let mut table = Self {
            grants: grants.iter().cloned().collect(),
            denials: grants.denied().cloned().collect(),
            granted: Index::new(Purpose::Grant),
            denied: Index::new(Purpose::Denial),
        };
        for (number, grant) in table.grants.iter().enumerate() {
            table.granted.add(number, grant.capability());
        }
        for (number, denied) in table.denials.iter().enumerate() {
            table.denied.add(number, denied);
        }
        table
    }

    /// Decides on an act, amounts left aside.
    pub fn decide(&self, request: &Request<'_>, moment: Moment) -> Decision<'_> {
        self.decide_among(request, moment, |_| true)
    }

    /// Decides on an act with those grants of which something is left. Of several that allow it,
    /// the first as written counts, and one that takes nobody's consent before those that do.
    pub fn decide_among(
        &self,
        request: &Request<'_>,
        moment: Moment,
        is_left: impl Fn(&Grant) -> bool,
    ) -> Decision<'_> {
        if !is_well_formed(request) {
            return denied(Reason::Malformed);
        }
        let mut first = None;
        self.denied
            .each(request, &mut |number| keep_first(&mut first, number));
        if let Some(capability) = first.and_then(|number| self.denials.get(number)) {
            return denied(Reason::Denied(capability));
        }
        let (mut free, mut asking, mut hindered) = (None, None, None);
        self.granted.each(request, &mut |number| {
            let Some(grant) = self.grants.get(number) else {
                return;
            };
            let constraints = grant.constraints();
            let hindrance = hindrance(constraints, request, moment);
            let used_up = || (!is_left(grant)).then_some(Hindrance::UsedUp);
            match hindrance.or_else(used_up) {
                Some(hindrance) => {
                    if hindered.is_none_or(|(first, _)| number < first) {
                        hindered = Some((number, hindrance));
                    }
                }
                None if constraints.approval => keep_first(&mut asking, number),
                None => keep_first(&mut free, number),
            }
        });
        let verdict = if free.is_some() {
            Verdict::Allowed
        } else {
            Verdict::Ask
        };
        if let Some(grant) = free.or(asking).and_then(|number| self.grants.get(number)) {
            let reason = Reason::Granted(grant);
            return Decision { verdict, reason };
        }
        let hindered = hindered.and_then(|(number, why)| Some((self.grants.get(number)?, why)));
        denied(match hindered {
            Some((grant, hindrance)) => Reason::Constrained(grant, hindrance),
            None => Reason::NoGrant,
        })
    }
}

fn denied(reason: Reason<'_>) -> Decision<'_> {
    Decision {
        verdict: Verdict::Denied,
        reason,
    }
}

fn keep_first(first: &mut Option<usize>, number: usize) {
    *first = Some(first.map_or(number, |first| first.min(number)));
}

/// Paths that are compared by their text lead nowhere else.
fn is_well_formed(request: &Request<'_>) -> bool {
    match request {
        Request::File { path, .. } => is_plain_directory(path),
        Request::Connect { name, address, .. } => name.is_some() || address.is_some(),
        _ => true,
    }
}

/// What of the constraints the act does not meet.
fn hindrance(
    constraints: &Constraints,
    request: &Request<'_>,
    moment: Moment,
) -> Option<Hindrance> {
    if constraints.is_over(moment.now, moment.age) {
        return Some(Hindrance::Over);
    }
    if let Some(rule) = &constraints.http {
        let Request::Connect {
            http: Some((method, path)),
            ..
        } = *request
        else {
            return Some(Hindrance::NotWeb);
        };
        if !rule.allows(method, path) {
            let named = |allowed: &bulkhead_network::http::Method| allowed.as_str() == method;
            let by_method = match rule.methods.is_empty() {
                true => method != "CONNECT",
                false => rule.methods.iter().any(named),
            };
            return Some(if by_method {
                Hindrance::Path
            } else {
                Hindrance::Method
            });
        }
    }
    if let (Some(below), Request::Tool(_, paths)) = (&constraints.below, request) {
        let inside = |path: &std::path::PathBuf| {
            is_plain_directory(path) && below.iter().any(|below| path.starts_with(below))
        };
        if !paths.iter().all(inside) {
            return Some(Hindrance::Outside);
        }
    }
    None
}

#[cfg(test)]
mod tests;

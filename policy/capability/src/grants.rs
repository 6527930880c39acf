//! All that one partition holds: its grants in the order they were written, and what is denied.

use crate::capability::Capability;
use crate::constraints::Quota;
use crate::grant::Grant;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A set of grants and of denials. A use is allowed when a grant allows it and nothing denies it.
/// The order of grants is kept, since a partition numbers its disks by it. The empty set allows
/// nothing, and is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    grants: Vec<Grant>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    deny: BTreeSet<Capability>,
}

impl Grants {
    /// No grants: no devices.
    pub fn none() -> Self {
        Self::default()
    }

    /// The same without what these capabilities allow.
    #[must_use]
    pub fn denying(mut self, deny: impl IntoIterator<Item = Capability>) -> Self {
        self.deny.extend(deny);
        self
    }

    /// True when a grant of the set includes `wanted` and no denial takes anything of it away.
    pub fn allows(&self, wanted: &Grant) -> bool {
        self.holds(wanted) && self.denial(wanted.capability()).is_none()
    }

    fn holds(&self, wanted: &Grant) -> bool {
        (self.grants.iter()).any(|held| wanted.is_narrower_or_equal(held))
    }

    /// The first denial that takes something of `wanted` away.
    pub fn denial(&self, wanted: &Capability) -> Option<&Capability> {
        self.deny.iter().find(|denied| wanted.is_denied_by(denied))
    }

    /// True when `other` allows everything that the set allows, in the same amounts, and denies
    /// nothing that the set has a grant of, unless the set denies it too.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        let denies = |denied: &Capability| {
            (self.deny.iter()).any(|own| denied.is_narrower_or_equal(own))
                || !(self.grants.iter()).any(|held| held.capability().is_denied_by(denied))
        };
        self.grants.iter().all(|held| other.holds(held))
            && other.deny.iter().all(denies)
            && self.keeps_the_quotas_of(other)
    }

    /// True when all grants of the set together use no more than what the quotas of `other` allow:
    /// those that are counted against the quota itself share it, the others add up.
    fn keeps_the_quotas_of(&self, other: &Self) -> bool {
        let mut uses: BTreeMap<&str, Uses> = BTreeMap::new();
        for held in &self.grants {
            let is_counted = |wider: &&Grant| is_counted(held, wider);
            let all = || {
                other
                    .grants
                    .iter()
                    .filter(|wider| held.is_narrower_or_equal(wider))
            };
            let counted = all().find(is_counted);
            let wider = counted.or_else(|| all().next());
            for (name, quota) in wider.into_iter().flat_map(|g| &g.constraints().quotas) {
                let uses = uses.entry(name).or_insert(Uses {
                    quota: *quota,
                    shared: false,
                    apart: Vec::new(),
                });
                match counted.is_some() {
                    true => uses.shared = true,
                    false => uses.apart.push(held.constraints().quota()),
                }
            }
        }
        uses.values().all(Uses::are_within)
    }

    /// What both sets allow; never more than either. This is what delegation uses: a child has
    /// what its parent has and it asks for.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let pairs = self
            .grants
            .iter()
            .flat_map(|a| other.grants.iter().map(move |b| a.intersect(b)));
        let mut both: Vec<Grant> = Vec::new();
        // What another includes is left out, or a chain of delegations would double with each link.
        let includes =
            |wide: &Grant, one: &Grant| one.is_narrower_or_equal(wide) && is_counted(one, wide);
        for grant in pairs.flatten() {
            if !both.iter().any(|other| includes(other, &grant)) {
                both.retain(|other| !includes(&grant, other));
                both.push(grant);
            }
        }
        let both: Self = both.into_iter().collect();
        both.denying(self.deny.union(&other.deny).cloned())
    }

    /// The grants in the order they were written, each once.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.grants.iter()
    }

    /// What they are grants of.
    pub fn capabilities(&self) -> impl Iterator<Item = &Capability> {
        self.grants.iter().map(Grant::capability)
    }

    /// What is denied whatever is granted, sorted.
    pub fn denied(&self) -> impl Iterator<Item = &Capability> {
        self.deny.iter()
    }
}

/// True when what `held` uses is counted against every quota of `wider`, in at most its amounts.
fn is_counted(held: &Grant, wider: &Grant) -> bool {
    let own = &held.constraints().quotas;
    (wider.constraints().quotas.iter()).all(|(name, wider)| {
        let own = own.get(name);
        own.is_some_and(|own| own.is_narrower_or_equal(*wider))
    })
}

/// What the grants of a set use of one quota of another set.
struct Uses {
    quota: Quota,
    /// Some are counted against the quota itself.
    shared: bool,
    /// Most that each of the others uses.
    apart: Vec<Quota>,
}

impl Uses {
    fn are_within(&self) -> bool {
        let shared = self.shared.then_some(self.quota);
        let all = self.apart.iter().copied().chain(shared);
        let sum = all.reduce(|a, b| {
            // No limit and another have no sum.
            let add = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.saturating_add(b));
            Quota {
                calls_per_minute: add(a.calls_per_minute, b.calls_per_minute),
                bytes: add(a.bytes, b.bytes),
            }
        });
        sum.is_none_or(|sum| sum.is_narrower_or_equal(self.quota))
    }
}

impl FromIterator<Grant> for Grants {
    fn from_iter<I: IntoIterator<Item = Grant>>(grants: I) -> Self {
        let mut set = Vec::new();
        for grant in grants {
            if !set.contains(&grant) {
                set.push(grant);
            }
        }
        Self {
            grants: set,
            deny: BTreeSet::new(),
        }
    }
}

impl FromIterator<Capability> for Grants {
    fn from_iter<I: IntoIterator<Item = Capability>>(grants: I) -> Self {
        grants.into_iter().map(Grant::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraints::Constraints;

    fn grants(all: &[(&str, Option<u64>)]) -> Grants {
        let grant = |(text, calls): &(&str, Option<u64>)| {
            let capability: Capability = text.parse().unwrap();
            let quota = calls.map(|calls| Quota {
                calls_per_minute: Some(calls),
                bytes: None,
            });
            let quotas = quota.map(|quota| (capability.to_string(), quota));
            let constraints = Constraints {
                quotas: quotas.into_iter().collect(),
                ..Constraints::default()
            };
            Grant::new(capability, constraints).unwrap()
        };
        all.iter().map(grant).collect()
    }

    #[test]
    fn many_narrow_grants_use_no_more_than_the_wide_one() {
        let wide = grants(&[("tool.call:*", Some(60))]);
        for (calls, expected) in [(30, true), (31, false), (60, false)] {
            let narrow = grants(&[("tool.call:a", Some(calls)), ("tool.call:b", Some(calls))]);
            assert_eq!(narrow.is_narrower_or_equal(&wide), expected, "{calls}");
            // Of the intersection both are counted against the wide one's quota too.
            let both = narrow.intersect(&wide);
            assert!(both.is_narrower_or_equal(&wide) && both.is_narrower_or_equal(&narrow));
            let shared = "tool.call:*";
            assert!(
                both.iter()
                    .all(|g| g.constraints().quotas.contains_key(shared))
            );
        }
        let unlimited = grants(&[("tool.call:a", None)]);
        assert!(!unlimited.is_narrower_or_equal(&wide));
        assert!(wide.is_narrower_or_equal(&grants(&[("tool.call:*", None)])));
    }

    #[test]
    fn denials_hold_against_every_grant() {
        let denied = |text: &str| [text.parse::<Capability>().unwrap()];
        let all = grants(&[("tool.call:*", None)]);
        let some = all.clone().denying(denied("tool.call:fs.*"));
        assert!(some.is_narrower_or_equal(&all) && !all.is_narrower_or_equal(&some));
        let git = grants(&[("tool.call:git.*", None)]);
        assert!(git.is_narrower_or_equal(&some), "nothing of it is denied");
        assert!(!grants(&[("tool.call:fs.read", None)]).is_narrower_or_equal(&some));
        let both = some.intersect(&all.clone().denying(denied("tool.call:git.push")));
        assert_eq!(both.denied().count(), 2);
        let allows = |text: &str| both.allows(&text.parse::<Capability>().unwrap().into());
        assert!(allows("tool.call:git.log"));
        assert!(!allows("tool.call:git.push") && !allows("tool.call:fs.read"));
        assert!(!allows("tool.call:git.*"), "a part of it is denied");
    }

    #[test]
    fn grants_are_written_and_read_back() {
        let set = grants(&[("tool.call:a", Some(1)), ("net.connect:a.org:443", None)])
            .denying(["net.connect:10.0.0.0/8:*".parse().unwrap()]);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<Grants>(&text).unwrap(), set);
        for wrong in [
            r#"{"grants":[{"capability":"time","constraints":{"approval":true}}]}"#,
            r#"{"grants":[{"capability":"net.connect:udp:a.org:53","constraints":{"http":{}}}]}"#,
            r#"{"grants":[{"capability":"tool.call:a","constraints":{"below":["/a/../b"]}}]}"#,
            r#"{"grants":[{"capability":"tool.call:a","constrains":{}}]}"#,
            r#"{"grants":[{"capability":"tool.cal:a"}]}"#,
            r#"{"grants":[],"allow":[]}"#,
        ] {
            assert!(serde_json::from_str::<Grants>(wrong).is_err(), "{wrong}");
        }
    }
}

//! All that one partition holds: its capabilities in the order they were written.

use crate::capability::Capability;
use serde::{Deserialize, Serialize};

/// A set of grants. The order is kept, since a partition numbers its disks by it. The empty set
/// allows nothing, and is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants(Vec<Capability>);

impl Grants {
    /// No grants: no devices.
    pub fn none() -> Self {
        Self::default()
    }

    /// True when a grant of the set includes `wanted`.
    pub fn allows(&self, wanted: &Capability) -> bool {
        self.0.iter().any(|held| wanted.is_narrower_or_equal(held))
    }

    /// True when every grant of the set is included in `other`.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        self.0.iter().all(|held| other.allows(held))
    }

    /// What both sets allow; never more than either.
    pub fn intersect(&self, other: &Self) -> Self {
        let pairs = self
            .0
            .iter()
            .flat_map(|a| other.0.iter().map(move |b| a.intersect(b)));
        pairs.flatten().collect()
    }

    /// The grants in the order they were written, each once.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.iter()
    }
}

impl FromIterator<Capability> for Grants {
    fn from_iter<I: IntoIterator<Item = Capability>>(grants: I) -> Self {
        let mut set = Vec::new();
        for grant in grants {
            if !set.contains(&grant) {
                set.push(grant);
            }
        }
        Self(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::any_capability;
    use proptest::prelude::*;

    fn any_grants() -> impl Strategy<Value = Grants> {
        prop::collection::vec(any_capability(), 0..6).prop_map(|all| all.into_iter().collect())
    }

    proptest! {
        #[test]
        fn intersection_never_widens(
            a in any_grants(), b in any_grants(), wanted in any_capability()
        ) {
            let both = a.intersect(&b);
            prop_assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
            prop_assert_eq!(both.allows(&wanted), a.allows(&wanted) && b.allows(&wanted));
        }

        #[test]
        fn nothing_is_narrower_than_anything(a in any_grants(), wanted in any_capability()) {
            prop_assert!(Grants::none().is_narrower_or_equal(&a));
            prop_assert!(!Grants::none().allows(&wanted));
            prop_assert_eq!(Grants::none().intersect(&a), Grants::none());
        }
    }
}

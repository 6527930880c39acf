//! Conditions of a partition and of its ancestors. A child has no more than its parent, so what it does
//! has to be permitted by the conditions of each.

use crate::conditions::Conditions;
use crate::entities::Circumstances;
use bulkhead_conditions::{Act, Ruling, Said};

/// Conditions that hold for one partition.
#[derive(Debug)]
pub struct Family {
    own: Kin,
    ancestors: Vec<Kin>,
}

/// Whose conditions hold.
#[derive(Debug)]
pub struct Kin {
    /// The ancestor whose they are; none where they are the partition's own.
    pub ancestor: Option<String>,
    /// Its conditions.
    pub conditions: Conditions,
    /// What they would deny is told, and done all the same.
    pub learn: bool,
}

impl Family {
    /// These hold, and those of its ancestors, the nearest first.
    pub fn new(own: Kin, ancestors: Vec<Kin>) -> Self {
        Self { own, ancestors }
    }

    /// The partition's own conditions.
    pub fn own(&self) -> &Conditions {
        &self.own.conditions
    }

    /// Those of this ancestor, or the partition's own.
    pub fn of(&mut self, ancestor: Option<&str>) -> Option<&mut Kin> {
        let mut members = std::iter::once(&mut self.own).chain(&mut self.ancestors);
        members.find(|kin| kin.ancestor.as_deref() == ancestor)
    }

    fn members(&self) -> impl Iterator<Item = &Kin> {
        std::iter::once(&self.own).chain(&self.ancestors)
    }

    /// Asks all of them about an act. Of several that do not permit it those count first that are
    /// enforced, then those that forbid it, then the nearest.
    pub fn ask(&self, act: &Act, who: &Circumstances) -> Said {
        let mut permitted = Vec::new();
        let mut denied: Option<Said> = None;
        for kin in self.members() {
            let said = Said {
                ruling: kin.ask(act, who),
                enforced: !kin.learn,
            };
            let weight = |said: &Said| (said.enforced, !said.ruling.is_silent());
            match said.ruling {
                Ruling::Permitted(by) => permitted.extend(by),
                _ if denied
                    .as_ref()
                    .is_none_or(|first| weight(first) < weight(&said)) =>
                {
                    denied = Some(said);
                }
                _ => {}
            }
        }
        denied.unwrap_or_else(|| Said {
            ruling: Ruling::Permitted(permitted),
            enforced: self.members().all(|kin| !kin.learn),
        })
    }
}

impl From<Conditions> for Family {
    /// Of a partition that nobody has started.
    fn from(conditions: Conditions) -> Self {
        let own = Kin {
            ancestor: None,
            conditions,
            learn: false,
        };
        Self::new(own, Vec::new())
    }
}

impl Kin {
    /// What they say, and whose they are.
    fn ask(&self, act: &Act, who: &Circumstances) -> Ruling {
        let ruling = self.conditions.ask(act, who);
        let Some(ancestor) = &self.ancestor else {
            return ruling;
        };
        let of = |names: Vec<String>| {
            let names = names.into_iter();
            names.map(|name| format!("{name} of {ancestor}")).collect()
        };
        match ruling {
            Ruling::Permitted(by) => Ruling::Permitted(of(by)),
            Ruling::Forbidden(by) => Ruling::Forbidden(of(by)),
            Ruling::NotPermitted => Ruling::NotPermittedBy(ancestor.clone()),
            Ruling::Failed(why) => Ruling::Failed(format!("of {ancestor}: {why}")),
            unanswered => unanswered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use bulkhead_capability::table::Moment;
    use bulkhead_capability::{Capability, Grants};
    use std::time::Duration;

    fn kin(ancestor: Option<&str>, text: &str, learn: bool) -> Kin {
        let grants = ["secret.use:key", "secret.use:other"];
        let grants = grants.map(|grant| grant.parse::<Capability>().unwrap());
        let grants: Grants = grants.into_iter().collect();
        let world = World {
            partitions: vec![(ancestor.unwrap_or("child"), &grants)],
        };
        Kin {
            ancestor: ancestor.map(str::to_owned),
            conditions: Conditions::parse(text, &world).unwrap(),
            learn,
        }
    }

    fn ask(own: Kin, ancestors: Vec<Kin>) -> (String, bool) {
        let who = Circumstances {
            system: "s".to_owned(),
            partition: "child".to_owned(),
            lineage: vec!["parent".to_owned()],
            moment: Moment {
                now: Duration::ZERO,
                age: Duration::ZERO,
            },
            bytes: None,
        };
        let said = Family::new(own, ancestors).ask(&Act::Secret("key".to_owned()), &who);
        (said.ruling.to_string(), said.allows())
    }

    const ALL: &str = "@id(\"all\") permit(principal, action, resource);";
    const NONE: &str = "@id(\"other\") permit(principal, action, resource == Secret::\"other\");";
    const NEVER: &str = "@id(\"never\") forbid(principal, action, resource == Secret::\"key\");";

    #[test]
    fn each_has_to_permit() {
        let parent = Some("parent");
        for (own, above, says, allows) in [
            (
                kin(None, ALL, false),
                kin(parent, ALL, false),
                "permitted by condition all, all of parent",
                true,
            ),
            (
                kin(None, ALL, false),
                kin(parent, NONE, false),
                "permitted by no condition of parent",
                false,
            ),
            (
                kin(None, ALL, false),
                kin(parent, NEVER, false),
                "forbidden by condition never of parent",
                false,
            ),
            // What forbids says more than what is silent.
            (
                kin(None, NONE, false),
                kin(parent, NEVER, false),
                "forbidden by condition never of parent",
                false,
            ),
            // Whoever learns from his own conditions is held to those of his parent.
            (
                kin(None, NEVER, true),
                kin(parent, NONE, false),
                "permitted by no condition of parent",
                false,
            ),
            (
                kin(None, NEVER, true),
                kin(parent, ALL, false),
                "forbidden by condition never",
                true,
            ),
        ] {
            assert_eq!(ask(own, vec![above]), (says.to_owned(), allows));
        }
    }

    #[test]
    fn a_child_is_in_its_parent_for_the_parents_conditions() {
        let family = |text: &str| {
            ask(
                kin(None, ALL, false),
                vec![kin(Some("parent"), text, false)],
            )
            .1
        };
        assert!(family(
            "permit(principal in Partition::\"parent\", action, resource);"
        ));
        assert!(!family(
            "permit(principal == Partition::\"parent\", action, resource);"
        ));
    }
}

//! What conditions may speak of: what the grants of the manifest's partitions are about.

use crate::conditions::ConditionsError;
use bulkhead_capability::{Capability, Grants, NamePattern};
use bulkhead_conditions::Member;
use bulkhead_network::{Addresses, Host};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;

/// The partitions that conditions are written for, by name.
#[derive(Clone, Debug, Default)]
pub struct World<'g> {
    /// Names and grants.
    pub partitions: Vec<(&'g str, &'g Grants)>,
}

impl<'g> World<'g> {
    /// That of these partitions, as a process is told of them.
    pub fn of(members: &'g [Member]) -> Self {
        let members = members.iter();
        Self {
            partitions: members
                .map(|member| (member.name.as_str(), &member.grants))
                .collect(),
        }
    }
}

const NO_GRANT: &str = "which no grant is about";

impl World<'_> {
    /// Checks every entity that a policy, in Cedar's JSON form, names.
    pub(crate) fn check(&self, policy: &Value) -> Result<(), ConditionsError> {
        match policy {
            Value::Object(map) => {
                if let (2, Some(Value::String(kind)), Some(Value::String(id))) =
                    (map.len(), map.get("type"), map.get("id"))
                {
                    return self.check_entity(kind, id);
                }
                map.values().try_for_each(|value| self.check(value))
            }
            Value::Array(list) => list.iter().try_for_each(|value| self.check(value)),
            _ => Ok(()),
        }
    }

    fn check_entity(&self, kind: &str, id: &str) -> Result<(), ConditionsError> {
        let plain_path = || bulkhead_capability::is_plain_directory(Path::new(id));
        let (known, why) = match kind {
            // The schema knows the actions.
            "Action" => (true, ""),
            "Partition" => (
                self.partitions.iter().any(|(name, _)| *name == id),
                "which is no partition of the manifest",
            ),
            "Host" => (self.any(|capability| names_host(capability, id)), NO_GRANT),
            "Domain" => (
                self.any(|capability| meets_domain(capability, id)),
                NO_GRANT,
            ),
            "Tool" => (
                self.any(|c| matches!(c, Capability::ToolCall(tools) if tools.matches(id))),
                NO_GRANT,
            ),
            "ToolFamily" => (
                self.any(|c| matches!(c, Capability::ToolCall(tools) if meets_family(tools, id))),
                NO_GRANT,
            ),
            "Secret" => (
                self.any(|c| matches!(c, Capability::SecretUse(name) if name == id)),
                NO_GRANT,
            ),
            "Model" => (
                self.any(|c| matches!(c, Capability::ModelChat(models) if models.matches(id))),
                NO_GRANT,
            ),
            "Role" => (
                self.any(|c| matches!(c, Capability::PartitionSpawn(spawn) if spawn.role() == id)),
                NO_GRANT,
            ),
            "Path" | "Directory" => (plain_path(), "which is no absolute path without . and .."),
            _ => (false, "which is of no kind that there is"),
        };
        match known {
            true => Ok(()),
            false => Err(ConditionsError::Unknown {
                kind: kind.to_owned(),
                id: id.to_owned(),
                why,
            }),
        }
    }

    fn any(&self, speaks: impl Fn(&Capability) -> bool) -> bool {
        let mut all = self
            .partitions
            .iter()
            .flat_map(|(_, grants)| grants.capabilities());
        all.any(speaks)
    }
}

fn host_of(capability: &Capability) -> Option<&Host> {
    match capability {
        Capability::NetConnect(rule) => Some(&rule.host),
        Capability::DnsResolve(host) => Some(host),
        _ => None,
    }
}

pub(crate) fn names_host(capability: &Capability, id: &str) -> bool {
    // Services on the host's loopback are at the router's address.
    if let Capability::NetLoopback(_) = capability {
        return id == Addresses::default().router.to_string();
    }
    host_of(capability).is_some_and(|host| match id.parse::<Ipv4Addr>() {
        Ok(address) => host.allows(address),
        Err(_) => host.names(id),
    })
}

/// Whether a grant is about a name below the domain.
pub(crate) fn meets_domain(capability: &Capability, domain: &str) -> bool {
    let below = Host::Below(domain.to_owned());
    host_of(capability).is_some_and(|host| match host {
        Host::Any => true,
        Host::Name(name) => below.names(name),
        Host::Below(parent) => parent == domain || below.names(parent) || host.names(domain),
        Host::Subnet { .. } => false,
    })
}

fn meets_family(tools: &NamePattern, family: &str) -> bool {
    let family = format!("{family}.");
    let start = tools.start();
    start.starts_with(&family) || (tools.exact().is_none() && family.starts_with(start))
}

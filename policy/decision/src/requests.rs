//! Conditions on web requests hold where somebody looks into requests, which is where a grant is narrowed
//! to some of them. A condition that speaks of a method or path, and that may be about connections which
//! nobody looks into, would not hold there: it is refused before a partition starts.

use crate::conditions::ConditionsError;
use crate::world::{World, meets_domain, names_host};
use bulkhead_capability::Capability;
use bulkhead_network::Protocol;
use serde_json::Value;

/// What makes a condition hold although a part of it does not.
const NOT_ALL: [&str; 3] = ["!", "||", "if-then-else"];

/// Checks a policy, in Cedar's JSON form, that people call `name`.
pub(crate) fn check(policy: &Value, name: &str, world: &World<'_>) -> Result<(), ConditionsError> {
    if speaks_of(policy, &["bytes"]) {
        return Err(ConditionsError::Invalid {
            policy: name.to_owned(),
            problem: "nobody tells how many bytes an act announces while a partition runs"
                .to_owned(),
        });
    }
    // No other context than that of `net.connect` has these.
    if !speaks_of(policy, &["method", "path"]) || denies_without_them(policy) {
        return Ok(());
    }
    let acting = only(policy);
    let host = entity(policy, "resource", "Host");
    let domain = entity(policy, "resource", "Domain");
    let grants = world
        .partitions
        .iter()
        .filter(|(partition, _)| acting.is_none_or(|acting| acting == *partition));
    for grant in grants.flat_map(|(_, grants)| grants.iter()) {
        let capability = grant.capability();
        let over_tcp =
            matches!(capability, Capability::NetConnect(rule) if rule.protocol == Protocol::Tcp);
        let is_about = host.is_none_or(|id| names_host(capability, id))
            && domain.is_none_or(|id| meets_domain(capability, id));
        if over_tcp && is_about && grant.constraints().http.is_none() {
            return Err(ConditionsError::NotLookedInto {
                policy: name.to_owned(),
                grant: capability.to_string(),
            });
        }
    }
    Ok(())
}

/// The partition that a policy is about, where it is about one alone: `in` one are its children too.
fn only(policy: &Value) -> Option<&str> {
    let op = policy.get("principal")?.get("op")?.as_str()?;
    entity(policy, "principal", "Partition").filter(|_| op == "==")
}

/// The id of the entity of this kind in the scope of a policy, where it is of that kind.
fn entity<'p>(policy: &'p Value, part: &str, kind: &str) -> Option<&'p str> {
    let part = policy.get(part)?;
    let entity = match part.get("in") {
        // `is Host in Domain::"x"`.
        Some(within) => within.get("entity")?,
        None => part.get("entity")?,
    };
    let is_kind = entity.get("type").and_then(Value::as_str) == Some(kind);
    entity.get("id")?.as_str().filter(|_| is_kind)
}

/// Whether a policy looks at one of these attributes.
fn speaks_of(policy: &Value, attributes: &[&str]) -> bool {
    any(policy, &|map| {
        let attribute = map.get("attr").and_then(Value::as_str);
        attribute.is_some_and(|attribute| attributes.contains(&attribute))
    })
}

/// Whether it is a permit, all of whose parts have to hold: without a request it permits nothing.
fn denies_without_them(policy: &Value) -> bool {
    let permits = policy.get("effect").and_then(Value::as_str) == Some("permit");
    permits
        && !any(policy, &|map| {
            let unless = map.get("kind").and_then(Value::as_str) == Some("unless");
            unless || NOT_ALL.iter().any(|operator| map.contains_key(*operator))
        })
}

fn any(value: &Value, is_it: &dyn Fn(&serde_json::Map<String, Value>) -> bool) -> bool {
    match value {
        Value::Object(map) => is_it(map) || map.values().any(|value| any(value, is_it)),
        Value::Array(list) => list.iter().any(|value| any(value, is_it)),
        _ => false,
    }
}

//! Whether conditions permit anything that others do not, as far as it shows in their parsed form: how a
//! running partition may be given new ones without a word. What cannot be told counts as wider.

use crate::conditions::{Conditions, ConditionsError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Most operators inside of one another with which a condition is sure to be evaluated: Cedar gives up
/// where its stack ends, which is some hundred further down.
const MAX_DEPTH: usize = 32;
/// Operators that cannot fail on what the schema lets stand there. Arithmetic overflows.
const SAFE: [&str; 19] = [
    "!",
    "==",
    "!=",
    "in",
    "<",
    "<=",
    ">",
    ">=",
    "&&",
    "||",
    "contains",
    "containsAll",
    "containsAny",
    "isEmpty",
    ".",
    "has",
    "like",
    "is",
    "if-then-else",
];
/// Where those have what they are about.
const OPERANDS: [&str; 7] = ["left", "right", "arg", "in", "if", "then", "else"];

/// One way in which new conditions may permit what the old do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Widening {
    /// A permit that was not there.
    NewPermit(String),
    /// A forbid that is not there any more.
    GoneForbid(String),
    /// A permit that is not there any more; while one cannot be evaluated, nothing at all is permitted.
    GoneFailing(String),
}

impl fmt::Display for Widening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewPermit(name) => write!(f, "permit `{name}` is new"),
            Self::GoneForbid(name) => write!(f, "forbid `{name}` is gone"),
            Self::GoneFailing(name) => write!(
                f,
                "permit `{name}` is gone, and where it could not be evaluated nothing was permitted"
            ),
        }
    }
}

/// Why the conditions that were there would deny something that `new` permits; nothing where they would not:
/// all forbids stand, and no permit came in.
///
/// # Errors
/// Cedar does not tell what it has parsed.
pub fn widenings(old: &Conditions, new: &Conditions) -> Result<Vec<Widening>, ConditionsError> {
    let (old, new) = (Forms::of(old)?, Forms::of(new)?);
    let missing = |from: &Named, other: &Named| -> Vec<(String, bool)> {
        let missing = from.iter().filter(|(form, _)| !other.contains_key(*form));
        missing.map(|(_, found)| found.clone()).collect()
    };
    let came = missing(&new.permits, &old.permits);
    let forbids = missing(&old.forbids, &new.forbids);
    let permits = missing(&old.permits, &new.permits);
    let failing = permits.into_iter().filter(|(_, can_fail)| *can_fail);
    Ok(
        (came.into_iter().map(|(name, _)| Widening::NewPermit(name)))
            .chain(
                forbids
                    .into_iter()
                    .map(|(name, _)| Widening::GoneForbid(name)),
            )
            .chain(failing.map(|(name, _)| Widening::GoneFailing(name)))
            .collect(),
    )
}

/// Conditions in canonical JSON, each with its name and whether it may be impossible to evaluate.
type Named = BTreeMap<Vec<u8>, (String, bool)>;

struct Forms {
    permits: Named,
    forbids: Named,
}

impl Forms {
    fn of(conditions: &Conditions) -> Result<Self, ConditionsError> {
        let (mut permits, mut forbids) = (Named::new(), Named::new());
        for (name, is_permit, mut form) in conditions.forms()? {
            if let Value::Object(form) = &mut form {
                // What it is called, and what is said about it, changes nothing.
                form.remove("annotations");
            }
            let can_fail = can_fail(&form);
            let canonical = serde_jcs::to_vec(&form);
            let canonical =
                canonical.map_err(|error| ConditionsError::NotAsked(error.to_string()))?;
            let named = match is_permit {
                true => &mut permits,
                false => &mut forbids,
            };
            named.insert(canonical, (name.to_owned(), can_fail));
        }
        Ok(Self { permits, forbids })
    }
}

/// Whether a condition, in Cedar's JSON form, may be impossible to evaluate.
fn can_fail(policy: &Value) -> bool {
    let clauses = policy.get("conditions").and_then(Value::as_array);
    let Some(clauses) = clauses else { return true };
    let fails = |clause: &Value| {
        clause
            .get("body")
            .is_none_or(|body| expression(body, MAX_DEPTH))
    };
    clauses.iter().any(fails)
}

/// The same of an expression in it, which may have so many inside of one another.
fn expression(value: &Value, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return true;
    };
    let Some(map) = value.as_object().filter(|map| map.len() == 1) else {
        return true;
    };
    let Some((operator, operands)) = map.iter().next() else {
        return true;
    };
    let fails = |operand: &Value| expression(operand, depth);
    match (operator.as_str(), operands) {
        ("Value" | "Var", _) => false,
        ("Set", Value::Array(members)) => members.iter().any(fails),
        ("Record", Value::Object(members)) => members.values().any(fails),
        // Of an entity that is named there is nothing to be had: only those of the question are known.
        (".", Value::Object(map)) => map.get("left").and_then(|left| left.get("Var")).is_none(),
        (operator, Value::Object(map)) if SAFE.contains(&operator) => {
            OPERANDS.iter().filter_map(|name| map.get(*name)).any(fails)
        }
        _ => true,
    }
}

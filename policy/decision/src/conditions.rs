//! Conditions in Cedar (<https://www.cedarpolicy.com>), checked strictly against one fixed schema.

use crate::entities::{self, Circumstances};
use crate::requests;
use crate::world::World;
use bulkhead_conditions::{Act, MAX_TEXT_BYTES, Ruling};
use cedar_policy::{
    Authorizer, Decision, Effect, PolicyId, PolicySet, Schema, ValidationMode, Validator,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The schema, in Cedar's own form.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The conditions of a manifest's partitions.
#[derive(Debug)]
pub struct Conditions {
    policies: PolicySet,
    /// What people call each: its `@id`, else its number in the file.
    names: BTreeMap<String, String>,
    schema: &'static Schema,
    authorizer: Authorizer,
}

/// Why conditions are refused, or cannot be asked; whatever it is, nothing is permitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionsError {
    /// The text is too long.
    #[error("the conditions are {0} bytes long; {MAX_TEXT_BYTES} are possible")]
    TooLong(usize),
    /// The text is no Cedar.
    #[error("the conditions are no Cedar: {0}")]
    Syntax(String),
    /// A policy does not fit the schema.
    #[error("condition `{policy}`: {problem}")]
    Invalid {
        /// Which.
        policy: String,
        /// What Cedar says.
        problem: String,
    },
    /// It names something that there is not.
    #[error("the conditions speak of {kind} `{id}`, {why}")]
    Unknown {
        /// Type of the entity.
        kind: String,
        /// Its id.
        id: String,
        /// Why it is not known.
        why: &'static str,
    },
    /// It speaks of requests that nobody would look into.
    #[error(
        "condition `{policy}` speaks of requests, and nobody looks into those that {grant} allows; narrow \
         the grant, were it by paths = [\"/**\"]"
    )]
    NotLookedInto {
        /// Which condition.
        policy: String,
        /// Which grant.
        grant: String,
    },
    /// The act cannot be put as a question.
    #[error("the conditions cannot be asked: {0}")]
    NotAsked(String),
}

/// A message on one line.
fn one_line(error: &dyn fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Bytes of stack that Cedar is given where there is less than a quarter of it left.
const STACK: usize = 4 * 1024 * 1024;

/// Calls `f` with stack enough for Cedar, which refuses to go on where it sees less than 100 KiB: a
/// process's first thread has as much as it has used, as far as musl can tell.
pub(crate) fn with_stack<T>(f: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK / 4, STACK, f)
}

/// [`SCHEMA`], read once.
fn schema() -> Result<&'static Schema, ConditionsError> {
    static READ: OnceLock<Result<Schema, ConditionsError>> = OnceLock::new();
    let read = READ.get_or_init(|| {
        let schema = Schema::from_cedarschema_str(SCHEMA).map(|(schema, _)| schema);
        schema.map_err(|error| ConditionsError::NotAsked(one_line(&error)))
    });
    read.as_ref().map_err(Clone::clone)
}

impl Conditions {
    /// Parses and checks conditions for the partitions of `world`. Actions and kinds of entities
    /// that the schema does not have, and tools, hosts and other things that no grant is about, are
    /// refused: such a condition would never hold.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str, world: &World<'_>) -> Result<Self, ConditionsError> {
        with_stack(|| Self::parse_here(text, world))
    }

    fn parse_here(text: &str, world: &World<'_>) -> Result<Self, ConditionsError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ConditionsError::TooLong(text.len()));
        }
        let policies = PolicySet::from_str(text);
        let policies = policies.map_err(|error| ConditionsError::Syntax(one_line(&error)))?;
        let schema = schema()?;
        if policies.templates().next().is_some() {
            return Err(ConditionsError::Syntax(
                "templates mean nothing here".to_owned(),
            ));
        }
        let name = |policy: &cedar_policy::Policy| {
            let id = policy.id().to_string();
            let name = policy
                .annotation("id")
                .map_or_else(|| id.clone(), str::to_owned);
            (id, name)
        };
        let names: BTreeMap<String, String> = policies.policies().map(name).collect();
        let checked = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if let Some(error) = checked.validation_errors().next() {
            let id = error.policy_id().to_string();
            return Err(ConditionsError::Invalid {
                policy: names.get(&id).cloned().unwrap_or(id),
                problem: one_line(error),
            });
        }
        // A warning is of a policy that never holds, or that reads as another than it is.
        if let Some(warning) = checked.validation_warnings().next() {
            let id = warning.policy_id().to_string();
            return Err(ConditionsError::Invalid {
                policy: names.get(&id).cloned().unwrap_or(id),
                problem: one_line(warning),
            });
        }
        for policy in policies.policies() {
            let json = policy.to_json();
            let json = json.map_err(|error| ConditionsError::Syntax(one_line(&error)))?;
            world.check(&json)?;
        }
        Ok(Self {
            policies,
            names,
            schema,
            authorizer: Authorizer::new(),
        })
    }

    /// The same, for partitions that are to be held to them.
    ///
    /// # Errors
    /// As there; and one speaks of requests where nobody would look into them.
    pub fn parse_to_hold(text: &str, world: &World<'_>) -> Result<Self, ConditionsError> {
        Self::parse_inherited(text, world, world)
    }

    /// The same of conditions that are written for the partitions of `world`, and that those of `held`, which
    /// are children of one of them, are to be held to.
    ///
    /// # Errors
    /// As there.
    pub fn parse_inherited(
        text: &str,
        world: &World<'_>,
        held: &World<'_>,
    ) -> Result<Self, ConditionsError> {
        let conditions = Self::parse(text, world)?;
        for (name, _, form) in conditions.forms()? {
            requests::check(&form, name, held)?;
        }
        Ok(conditions)
    }

    /// Each condition by its name: whether it permits, and Cedar's JSON form of it.
    pub(crate) fn forms(&self) -> Result<Vec<(&str, bool, Value)>, ConditionsError> {
        let all = self.policies.policies().map(|policy| {
            let json = policy.to_json();
            let json = json.map_err(|error| ConditionsError::Syntax(one_line(&error)))?;
            let permits = policy.effect() == Effect::Permit;
            Ok((self.name(policy.id()), permits, json))
        });
        all.collect()
    }

    /// What people call a condition.
    fn name<'c>(&'c self, id: &'c PolicyId) -> &'c str {
        let id: &str = id.as_ref();
        self.names.get(id).map_or(id, String::as_str)
    }

    /// Asks about an act.
    pub fn ask(&self, act: &Act, who: &Circumstances) -> Ruling {
        with_stack(|| self.ask_here(act, who))
    }

    fn ask_here(&self, act: &Act, who: &Circumstances) -> Ruling {
        let (request, entities) = match entities::build(act, who, self.schema) {
            Ok(question) => question,
            Err(error) => return Ruling::Failed(error.to_string()),
        };
        let response = self
            .authorizer
            .is_authorized(&request, &self.policies, &entities);
        // Cedar leaves out a policy that fails, and it may be the one that forbids.
        if let Some(error) = response.diagnostics().errors().next() {
            return Ruling::Failed(one_line(error));
        }
        let by = response.diagnostics().reason();
        let mut by: Vec<String> = by.map(|id| self.name(id).to_owned()).collect();
        by.sort();
        match response.decision() {
            Decision::Allow => Ruling::Permitted(by),
            Decision::Deny if by.is_empty() => Ruling::NotPermitted,
            Decision::Deny => Ruling::Forbidden(by),
        }
    }

    /// Each condition by its name: whether it permits, and its text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, bool, String)> {
        self.policies.policies().map(|policy| {
            let permits = policy.effect() == Effect::Permit;
            (self.name(policy.id()), permits, policy.to_string())
        })
    }
}

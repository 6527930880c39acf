//! What a tool is, and all tools there are. The families in `families` describe themselves here;
//! the pipeline and `tools/list` read it; the table in docs/tools.md is made from it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_toolbox::Risk;
use jsonschema::Validator;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::backups::Draft;
use crate::error::{Error, ToolError};
use crate::families;
use crate::host::Host;

/// What a call needs beside `tool.call`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// `fs.read` of this path.
    Read(PathBuf),
    /// `fs.write` of this path.
    Write(PathBuf),
    /// `exec` of this program.
    Exec(PathBuf),
    /// `net.connect` for this request; its path is without the query.
    Request {
        /// The server.
        host: String,
        /// The port there.
        port: u16,
        /// What is asked.
        method: String,
        /// Of what.
        path: String,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, path) = match self {
            Self::Read(path) => ("fs.read", path),
            Self::Write(path) => ("fs.write", path),
            Self::Exec(path) => ("exec", path),
            Self::Request {
                host,
                port,
                method,
                path,
            } => {
                let path = path.escape_debug();
                return write!(f, "net.connect:{host}:{port} {method} {path}");
            }
        };
        write!(f, "{name}:{}", path.display().to_string().escape_debug())
    }
}

/// What is known about a tool before anybody calls it.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// `family.action`.
    pub name: &'static str,
    /// Of its arguments and its result.
    pub version: &'static str,
    /// What it does, in one sentence, for agents and people.
    pub summary: &'static str,
    /// Which capabilities it needs, for the table in the book.
    pub needs: &'static str,
    /// What harm it can do.
    pub risk: Risk,
    /// Doing it twice is doing it once.
    pub idempotent: bool,
    /// The tool that takes it back.
    pub rollback: Option<&'static str>,
    /// How long it may take.
    pub timeout: Duration,
}

/// When a call has to be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    seconds: u64,
}

impl Deadline {
    /// So long from now.
    pub fn after(time: Duration) -> Self {
        Self {
            at: Instant::now() + time,
            seconds: time.as_secs(),
        }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// # Errors
    /// It has passed.
    pub fn check(&self) -> Result<(), ToolError> {
        match self.left().is_zero() {
            true => Err(self.passed()),
            false => Ok(()),
        }
    }

    /// The error of a call that took too long.
    pub fn passed(&self) -> ToolError {
        ToolError::TimedOut(self.seconds)
    }
}

/// How a tool is written.
pub trait Action {
    /// Its arguments.
    type Input: DeserializeOwned;
    /// What is known about it.
    const FACTS: Facts;

    /// JSON Schema of the arguments.
    fn input() -> Value;

    /// JSON Schema of the result.
    fn output() -> Value;

    /// What a call needs.
    fn needs(host: &Host, input: &Self::Input) -> Result<Vec<Need>, ToolError>;

    /// Takes down what rolling back needs.
    fn back_up(
        _host: &Host,
        _input: &Self::Input,
        _draft: &mut Draft<'_>,
    ) -> Result<(), ToolError> {
        Ok(())
    }

    /// Does it.
    fn run(host: &Host, input: &Self::Input, deadline: &Deadline) -> Result<Value, ToolError>;
}

type Needs = fn(&Host, &Value) -> Result<Vec<Need>, ToolError>;
type BackUp = fn(&Host, &Value, &mut Draft<'_>) -> Result<(), ToolError>;
type Run = fn(&Host, &Value, &Deadline) -> Result<Value, ToolError>;

/// A tool.
pub struct Tool {
    /// What is known about it.
    pub facts: Facts,
    /// JSON Schema of the arguments, an object.
    pub input: Map<String, Value>,
    /// JSON Schema of the result, an object.
    pub output: Map<String, Value>,
    arguments: Validator,
    result: Validator,
    needs: Needs,
    back_up: BackUp,
    run: Run,
}

fn parse<A: Action>(arguments: &Value) -> Result<A::Input, ToolError> {
    A::Input::deserialize(arguments).map_err(|error| ToolError::refused(error.to_string()))
}

impl Tool {
    fn of<A: Action>() -> Result<Self, Error> {
        let name = A::FACTS.name;
        let compile = |schema: &Value| {
            let validator = jsonschema::validator_for(schema);
            validator.map_err(|_| Error::Schema(name))
        };
        let (input, output) = (A::input(), A::output());
        let (arguments, result) = (compile(&input)?, compile(&output)?);
        let (Value::Object(input), Value::Object(output)) = (input, output) else {
            return Err(Error::Schema(name));
        };
        Ok(Self {
            facts: A::FACTS,
            input,
            output,
            arguments,
            result,
            needs: |host, arguments| A::needs(host, &parse::<A>(arguments)?),
            back_up: |host, arguments, draft| A::back_up(host, &parse::<A>(arguments)?, draft),
            run: |host, arguments, deadline| A::run(host, &parse::<A>(arguments)?, deadline),
        })
    }

    /// # Errors
    /// The arguments do not fit their schema; the text says where.
    pub fn check_arguments(&self, arguments: &Value) -> Result<(), String> {
        check(&self.arguments, arguments)
    }

    /// # Errors
    /// The result does not fit its schema.
    pub fn check_result(&self, result: &Value) -> Result<(), String> {
        check(&self.result, result)
    }

    /// What a call with these arguments needs.
    ///
    /// # Errors
    /// The arguments make no sense.
    pub fn needs(&self, host: &Host, arguments: &Value) -> Result<Vec<Need>, ToolError> {
        (self.needs)(host, arguments)
    }

    /// Takes down what rolling back a call needs.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn back_up(
        &self,
        host: &Host,
        arguments: &Value,
        draft: &mut Draft<'_>,
    ) -> Result<(), ToolError> {
        (self.back_up)(host, arguments, draft)
    }

    /// Does it.
    ///
    /// # Errors
    /// It failed, or took too long.
    pub fn run(
        &self,
        host: &Host,
        arguments: &Value,
        deadline: &Deadline,
    ) -> Result<Value, ToolError> {
        (self.run)(host, arguments, deadline)
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("facts", &self.facts).finish()
    }
}

fn check(validator: &Validator, value: &Value) -> Result<(), String> {
    validator.validate(value).map_err(|error| {
        let at = error.instance_path().to_string();
        // The value itself may be long, and is the caller's own.
        let what = error.masked().to_string();
        match at.is_empty() {
            true => what,
            false => format!("{what} at {at}"),
        }
    })
}

/// All tools, by name.
#[derive(Debug)]
pub struct Registry(BTreeMap<&'static str, Tool>);

macro_rules! registry {
    ($($action:ty),* $(,)?) => {
        impl Registry {
            /// Every tool that Bulkhead has.
            ///
            /// # Errors
            /// A tool is described wrongly, which tests keep from happening.
            pub fn new() -> Result<Self, Error> {
                let tools = [$(Tool::of::<$action>()?),*];
                Ok(Self(tools.into_iter().map(|tool| (tool.facts.name, tool)).collect()))
            }
        }
    };
}

registry! {
    families::files::Roots,
    families::files::Read,
    families::files::List,
    families::files::Stat,
    families::files::Search,
    families::changes::Write,
    families::changes::Append,
    families::changes::Edit,
    families::changes::Copy,
    families::changes::Move,
    families::changes::Delete,
    families::changes::MakeDirectory,
    families::changes::RemoveDirectory,
    families::changes::ChangeMode,
    families::processes::Run,
    families::processes::Start,
    families::processes::List,
    families::processes::Output,
    families::processes::Kill,
    families::git::Status,
    families::git::Log,
    families::git::Show,
    families::git::Diff,
    families::git::Add,
    families::git::Commit,
    families::git::Branch,
    families::git::Checkout,
    families::http::Get,
    families::http::Any,
    families::network::NetGrants,
    families::network::Allowed,
    families::calls::Calls,
    families::calls::RollBack,
}

impl Registry {
    /// The tool of this name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.0.get(name)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.values()
    }
}

/// A schema of an object that has these properties and no others.
pub(crate) fn object(properties: Value, required: &[&str]) -> Value {
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// The schema of a path.
pub(crate) fn path(what: &str) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 4095, "description": what })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- tools: begin -->\n";
    const END: &str = "<!-- tools: end -->\n";

    #[test]
    fn every_tool_is_whole() {
        let registry = Registry::new().unwrap();
        for tool in registry.iter() {
            let facts = tool.facts;
            let (family, action) = facts.name.split_once('.').unwrap();
            let plain = |text: &str| {
                text.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            };
            assert!(plain(family) && plain(action), "{}", facts.name);
            assert!(facts.timeout <= Duration::from_secs(120));
            assert!(!facts.summary.ends_with('.'), "{}", facts.name);
            if let Some(rollback) = facts.rollback {
                assert!(registry.get(rollback).is_some(), "{}", facts.name);
                assert_ne!(facts.risk, Risk::Read, "{}", facts.name);
            }
            for schema in [&tool.input, &tool.output] {
                assert_eq!(schema["additionalProperties"], false, "{}", facts.name);
            }
            assert!(tool.check_arguments(&json!({"surely-unknown": 1})).is_err());
            assert!(tool.check_arguments(&json!([])).is_err());
        }
    }

    #[test]
    fn those_that_reach_the_network_are_known_to_the_supervisor() {
        let registry = Registry::new().unwrap();
        let reach = registry
            .iter()
            .filter(|tool| tool.facts.risk == Risk::Network);
        let names: Vec<_> = reach.map(|tool| tool.facts.name).collect();
        assert_eq!(names, bulkhead_toolbox::WEB_TOOLS);
    }

    #[test]
    fn the_book_shows_the_tools() {
        let mut table = String::from(
            "| tool | version | what it does | needs beside `tool.call` | risk | idempotent | rollback | seconds |\n|---|---|---|---|---|---|---|---|\n",
        );
        for tool in Registry::new().unwrap().iter() {
            let facts = tool.facts;
            table += &format!(
                "| `{}` | {} | {} | {} | {} | {} | {} | {} |\n",
                facts.name,
                facts.version,
                facts.summary,
                facts.needs,
                facts.risk.as_str(),
                if facts.idempotent { "yes" } else { "" },
                facts
                    .rollback
                    .map(|name| format!("`{name}`"))
                    .unwrap_or_default(),
                facts.timeout.as_secs(),
            );
        }
        let text = include_str!("../../../docs/tools.md");
        let (_, rest) = text.split_once(BEGIN).unwrap();
        let (documented, _) = rest.split_once(END).unwrap();
        assert!(
            documented == table,
            "docs/tools.md needs this table:\n{table}"
        );
    }
}

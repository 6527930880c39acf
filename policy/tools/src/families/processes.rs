//! `process.run`, `process.start`, `process.list`, `process.output` and `process.kill`: granted programs
//! of the host, each in a jail with one directory.

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_toolbox::Risk;
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::Nothing;
use crate::error::ToolError;
use crate::host::Host;
use crate::jobs::Standing;
use crate::programs::{self, MAX_OUTPUT, Program};
use crate::registry::{Action, Deadline, Facts, Need, object, path};

/// Most arguments of a program, and the longest.
const MAX_ARGUMENTS: usize = 256;
const MAX_ARGUMENT: usize = 16 * 1024;
/// Longest input of a program.
const MAX_INPUT: usize = 256 * 1024;

/// What is to run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    program: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    directory: PathBuf,
    #[serde(default)]
    write: bool,
    #[serde(default)]
    input: String,
}

fn command() -> Value {
    object(
        json!({
            "program": path("the program, by its absolute path"),
            "arguments": {
                "type": "array", "maxItems": MAX_ARGUMENTS,
                // The host would take it for the end.
                "items": { "type": "string", "maxLength": MAX_ARGUMENT, "pattern": "^[^\\u0000]*$" },
            },
            "directory": path("where it works, and the only directory that it sees"),
            "write": { "type": "boolean", "description": "it may change what is in there" },
            "input": { "type": "string", "maxLength": MAX_INPUT },
        }),
        &["program", "directory"],
    )
}

impl Command {
    fn needs(&self) -> Vec<Need> {
        let directory = self.directory.clone();
        let directory = match self.write {
            true => Need::Write(directory),
            false => Need::Read(directory),
        };
        vec![Need::Exec(self.program.clone()), directory]
    }

    fn program(&self, host: &Host) -> Result<Program, ToolError> {
        Ok(Program {
            path: self.program.clone(),
            arguments: self.arguments.clone(),
            environment: vec![
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                ("HOME".to_owned(), "/nonexistent".to_owned()),
                ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
            ],
            directory: host.directories.place(&self.directory)?.directory()?,
            write: self.write,
            input: self.input.clone(),
        })
    }
}

const fn facts(name: &'static str, summary: &'static str, risk: Risk) -> Facts {
    Facts {
        name,
        version: "1",
        summary,
        needs: "",
        risk,
        idempotent: false,
        rollback: None,
        timeout: Duration::from_secs(5),
    }
}

const NEEDS: &str = "`exec` of the program; `fs.read` of the directory, or `fs.write`";

/// `process.run`.
pub(crate) struct Run;

impl Action for Run {
    type Input = Command;
    const FACTS: Facts = Facts {
        needs: NEEDS,
        timeout: Duration::from_secs(120),
        ..facts(
            "process.run",
            "runs a program to its end, and gives back what it wrote",
            Risk::Destructive,
        )
    };

    fn input() -> Value {
        command()
    }

    fn output() -> Value {
        object(
            json!({
                "status": { "type": "integer", "minimum": 0, "maximum": 255 },
                "stdout": { "type": "string" },
                "stderr": { "type": "string" },
                "truncated": { "type": "boolean" },
            }),
            &["status", "stdout", "stderr", "truncated"],
        )
    }

    fn needs(_: &Host, input: &Command) -> Result<Vec<Need>, ToolError> {
        Ok(input.needs())
    }

    fn run(host: &Host, input: &Command, deadline: &Deadline) -> Result<Value, ToolError> {
        let ended = programs::run(&host.launcher, input.program(host)?, deadline)?;
        Ok(json!({
            "status": ended.status,
            "stdout": ended.stdout,
            "stderr": ended.stderr,
            "truncated": ended.truncated,
        }))
    }
}

/// `process.start`.
pub(crate) struct Start;

impl Action for Start {
    type Input = Command;
    const FACTS: Facts = Facts {
        needs: NEEDS,
        ..facts(
            "process.start",
            "starts a program that goes on while other calls are done, for an hour at most",
            Risk::Destructive,
        )
    };

    fn input() -> Value {
        command()
    }

    fn output() -> Value {
        object(
            json!({ "job": { "type": "integer", "minimum": 1 } }),
            &["job"],
        )
    }

    fn needs(_: &Host, input: &Command) -> Result<Vec<Need>, ToolError> {
        Ok(input.needs())
    }

    fn run(host: &Host, input: &Command, _: &Deadline) -> Result<Value, ToolError> {
        let job = host.jobs.begin(&host.launcher, input.program(host)?)?;
        Ok(json!({ "job": job }))
    }
}

fn standing(standing: &Standing) -> Value {
    let Standing { job, program, end } = standing;
    match end {
        None => json!({ "job": job, "program": program, "running": true }),
        Some(Ok(status)) => {
            json!({ "job": job, "program": program, "running": false, "status": status })
        }
        Some(Err(why)) => {
            json!({ "job": job, "program": program, "running": false, "error": why })
        }
    }
}

fn standing_schema() -> Value {
    json!({
        "job": { "type": "integer" },
        "program": { "type": "string" },
        "running": { "type": "boolean" },
        "status": { "type": "integer" },
        "error": { "type": "string" },
    })
}

/// `process.list`.
pub(crate) struct List;

impl Action for List {
    type Input = Nothing;
    const FACTS: Facts = Facts {
        idempotent: true,
        ..facts(
            "process.list",
            "lists the programs that process.start started",
            Risk::Read,
        )
    };

    fn input() -> Value {
        object(json!({}), &[])
    }

    fn output() -> Value {
        let job = object(standing_schema(), &["job", "program", "running"]);
        object(
            json!({ "jobs": { "type": "array", "items": job } }),
            &["jobs"],
        )
    }

    fn needs(_: &Host, _: &Nothing) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, _: &Nothing, _: &Deadline) -> Result<Value, ToolError> {
        let jobs: Vec<_> = host.jobs.list().iter().map(standing).collect();
        Ok(json!({ "jobs": jobs }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    job: u64,
}

fn which() -> Value {
    object(
        json!({ "job": { "type": "integer", "minimum": 1 } }),
        &["job"],
    )
}

/// `process.output`.
pub(crate) struct Output;

impl Action for Output {
    type Input = Which;
    const FACTS: Facts = facts(
        "process.output",
        "gives back what a started program has written since it was last asked",
        Risk::Read,
    );

    fn input() -> Value {
        which()
    }

    fn output() -> Value {
        let mut properties = standing_schema();
        let text = json!({ "type": "string", "maxLength": MAX_OUTPUT });
        properties["stdout"] = text.clone();
        properties["stderr"] = text;
        properties["truncated"] = json!({ "type": "boolean" });
        let required = ["job", "program", "running", "stdout", "stderr", "truncated"];
        object(properties, &required)
    }

    fn needs(_: &Host, _: &Which) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, input: &Which, _: &Deadline) -> Result<Value, ToolError> {
        let (stands, output) = host.jobs.output(input.job)?;
        let mut result = standing(&stands);
        result["stdout"] = json!(String::from_utf8_lossy(&output.stdout));
        result["stderr"] = json!(String::from_utf8_lossy(&output.stderr));
        result["truncated"] = json!(output.truncated);
        Ok(result)
    }
}

/// `process.kill`.
pub(crate) struct Kill;

impl Action for Kill {
    type Input = Which;
    const FACTS: Facts = Facts {
        idempotent: true,
        ..facts(
            "process.kill",
            "ends a program that process.start started, with all that it started",
            Risk::Write,
        )
    };

    fn input() -> Value {
        which()
    }

    fn output() -> Value {
        object(json!({}), &[])
    }

    fn needs(_: &Host, _: &Which) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, input: &Which, _: &Deadline) -> Result<Value, ToolError> {
        host.jobs.kill(input.job)?;
        Ok(json!({}))
    }
}

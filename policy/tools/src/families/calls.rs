//! `tool.calls` and `tool.rollback`: what was called, and taking it back.

use std::time::Duration;

use bulkhead_toolbox::Risk;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ToolError;
use crate::host::Host;
use crate::registry::{Action, Deadline, Facts, Need, object};

/// `tool.calls`.
pub(crate) struct Calls;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

impl Action for Calls {
    type Input = Nothing;
    const FACTS: Facts = Facts {
        name: "tool.calls",
        version: "1",
        summary: "lists the calls that can be rolled back, the oldest first",
        needs: "",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(5),
    };

    fn input() -> Value {
        object(json!({}), &[])
    }

    fn output() -> Value {
        let call = object(
            json!({ "call": { "type": "integer" }, "tool": { "type": "string" } }),
            &["call", "tool"],
        );
        object(
            json!({ "calls": { "type": "array", "items": call } }),
            &["calls"],
        )
    }

    fn needs(_: &Host, _: &Nothing) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, _: &Nothing, _: &Deadline) -> Result<Value, ToolError> {
        let calls = host.backups.calls().into_iter();
        let calls = calls.map(|(call, tool)| json!({ "call": call, "tool": tool }));
        Ok(json!({ "calls": calls.collect::<Vec<_>>() }))
    }
}

/// `tool.rollback`.
pub(crate) struct RollBack;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    call: u64,
    #[serde(default)]
    force: bool,
}

impl Action for RollBack {
    type Input = Which;
    const FACTS: Facts = Facts {
        name: "tool.rollback",
        version: "1",
        summary: "puts back what a call changed, unless somebody changed it since",
        needs: "`fs.write` of what the call changed",
        risk: Risk::Write,
        idempotent: false,
        rollback: None,
        timeout: Duration::from_secs(60),
    };

    fn input() -> Value {
        object(
            json!({
                "call": {
                    "type": "integer", "minimum": 0,
                    "description": "the number that the call's result had",
                },
                "force": {
                    "type": "boolean",
                    "description": "put it back even where it was changed since",
                },
            }),
            &["call"],
        )
    }

    fn output() -> Value {
        object(
            json!({ "restored": { "type": "array", "items": { "type": "string" } } }),
            &["restored"],
        )
    }

    fn needs(host: &Host, input: &Which) -> Result<Vec<Need>, ToolError> {
        let kept = host.backups.find(input.call);
        let paths = kept.iter().flat_map(|kept| kept.paths());
        Ok(paths.map(|path| Need::Write(path.to_owned())).collect())
    }

    fn run(host: &Host, input: &Which, _: &Deadline) -> Result<Value, ToolError> {
        let backups = &host.backups;
        let restored = backups.roll_back(&host.directories, input.call, input.force)?;
        let restored: Vec<_> = restored.iter().map(|path| path.to_string_lossy()).collect();
        Ok(json!({ "restored": restored }))
    }
}

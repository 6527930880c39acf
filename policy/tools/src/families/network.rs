//! `net.grants` and `net.allowed`: what the partition's own network lets through. They look grants up and
//! reach nothing: the gateway decides, for each connection, by the same grants.

use std::time::Duration;

use bulkhead_capability::{Capability, CapabilityName, Enforcer, Grant};
use bulkhead_toolbox::Risk;
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::Nothing;
use crate::error::ToolError;
use crate::host::Host;
use crate::registry::{Action, Deadline, Facts, Need, object};

const fn facts(name: &'static str, summary: &'static str) -> Facts {
    Facts {
        name,
        version: "1",
        summary,
        needs: "",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(5),
    }
}

fn texts() -> Value {
    json!({ "type": "array", "items": { "type": "string" } })
}

/// `net.grants`.
pub(crate) struct NetGrants;

impl Action for NetGrants {
    type Input = Nothing;
    const FACTS: Facts = facts(
        "net.grants",
        "lists what the partition's network is granted and denied",
    );

    fn input() -> Value {
        object(json!({}), &[])
    }

    fn output() -> Value {
        object(
            json!({ "grants": texts(), "denied": texts() }),
            &["grants", "denied"],
        )
    }

    fn needs(_: &Host, _: &Nothing) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, _: &Nothing, _: &Deadline) -> Result<Value, ToolError> {
        let is_network = |capability: &Capability| {
            let name = capability.name();
            let models = matches!(name, CapabilityName::ModelChat | CapabilityName::SecretUse);
            name.enforcer() == Enforcer::Gateway && !models
        };
        let grants = host.grants.iter();
        let grants = grants.filter(|grant| is_network(grant.capability()));
        let denied = host.grants.denied().filter(|denied| is_network(denied));
        Ok(json!({
            "grants": grants.map(Grant::to_string).collect::<Vec<_>>(),
            "denied": denied.map(Capability::to_string).collect::<Vec<_>>(),
        }))
    }
}

/// `net.allowed`.
pub(crate) struct Allowed;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Destination {
    host: String,
    port: u16,
    #[serde(default = "tcp")]
    protocol: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

impl Action for Allowed {
    type Input = Destination;
    const FACTS: Facts = facts(
        "net.allowed",
        "tells which grants let a connection through, with what narrows them, or what denies it",
    );

    fn input() -> Value {
        object(
            json!({
                "host": {
                    "type": "string", "minLength": 1, "maxLength": 255,
                    "pattern": "^[A-Za-z0-9._-]+$", "description": "a name, or an IPv4 address",
                },
                "port": { "type": "integer", "minimum": 1, "maximum": 65535 },
                "protocol": { "enum": ["tcp", "udp"], "description": "tcp if absent" },
            }),
            &["host", "port"],
        )
    }

    fn output() -> Value {
        object(
            json!({
                "allowed": { "type": "boolean" },
                "grants": texts(),
                "denied_by": { "type": "string" },
            }),
            &["allowed", "grants"],
        )
    }

    fn needs(_: &Host, _: &Destination) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, input: &Destination, _: &Deadline) -> Result<Value, ToolError> {
        let Destination {
            host: to,
            port,
            protocol,
        } = input;
        let rule = format!("{protocol}:{to}:{port}");
        let wanted = Capability::new(CapabilityName::NetConnect, Some(&rule));
        let wanted = wanted.map_err(|error| ToolError::refused(error.to_string()))?;
        let denied = host.grants.denial(&wanted).map(Capability::to_string);
        let grants = host.grants.iter();
        let grants = grants.filter(|grant| wanted.is_narrower_or_equal(grant.capability()));
        let grants: Vec<_> = grants.map(Grant::to_string).collect();
        let allowed = denied.is_none() && !grants.is_empty();
        Ok(match denied {
            Some(denied) => json!({ "allowed": false, "grants": grants, "denied_by": denied }),
            None => json!({ "allowed": allowed, "grants": grants }),
        })
    }
}

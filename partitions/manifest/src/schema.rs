//! The JSON Schema of `partition.toml`, for editors that complete from it. Its tables have exactly the
//! keys that the reader knows; it says less about values than the rules do, and never more.

use crate::parse::{
    BACKING_KEYS, BALLOON_KEYS, GRANT_KEYS, LIMITS_KEYS, MEMORY_KEYS, MOUNT_KEYS, NETWORK_KEYS,
    RATE_KEYS,
};
use crate::partition_toml::{
    BOOT_KEYS, BUDGET_KEYS, IDENTITY_KEYS, LIFETIME_KEYS, MANIFEST_KEYS, RESOURCES_KEYS,
    SECRET_KEYS, SPAWN_KEYS, TOOLS_KEYS,
};
use crate::system::KernelKind;
use bulkhead_capability::{Adherence, Autonomy, CapabilityName, ObjectKind};
use serde_json::{Map, Value, json};

const NAME: &str = "^[a-z0-9][a-z0-9-]{0,39}$";
const MEMORY: &str = "^[0-9]+ *(M|MiB|G|GiB|TiB)$";
const BYTES: &str = "^[0-9]+ *(B|KiB|MiB|GiB|TiB)$";
const MAC: &str = "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$";
const TIME: &str = "^[0-9]+ *(s|m|h|d)$";
const MONEY: &str = "^[0-9]+([.][0-9]{1,8})?$";

/// The schema, in the form of JSON Schema 2020-12.
pub fn schema() -> Value {
    let mut schema = table(
        "A partition of Bulkhead",
        MANIFEST_KEYS,
        &["identity", "boot", "lifetime"],
        manifest,
    );
    if let Some(map) = schema.as_object_mut() {
        map.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        map.insert("title".to_owned(), json!("partition.toml"));
    }
    schema
}

/// A table with `keys`, and no others.
fn table(
    description: &str,
    keys: &[&str],
    required: &[&str],
    of: impl Fn(&str) -> Option<Value>,
) -> Value {
    let properties: Map<String, Value> = (keys.iter())
        .filter_map(|key| Some(((*key).to_owned(), of(key)?)))
        .collect();
    json!({
        "type": "object",
        "description": description,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn manifest(key: &str) -> Option<Value> {
    Some(match key {
        "conditions" => choice(
            "Whether conditions hold, or are learnt from; else enforce",
            &Adherence::ALL.map(|(name, _)| name),
        ),
        "grants" => json!({
            "type": "array",
            "description": "What it may touch",
            "items": { "anyOf": [capability(), grant()] },
        }),
        "deny" => list_of("What it may not touch, whatever is granted", capability()),
        "identity" => {
            let text = "Who it is";
            table(text, IDENTITY_KEYS, &["name", "role"], identity)
        }
        "boot" => table("What runs", BOOT_KEYS, &["kernel"], boot),
        "resources" => table("Its machine", RESOURCES_KEYS, &[], resources),
        "lifetime" => table("How long it may run", LIFETIME_KEYS, &[], lifetime),
        "network" => {
            let text = "Options of the user-mode network";
            table(text, NETWORK_KEYS, &[], network)
        }
        "secrets" => {
            let text = "A secret of the vault, and the one place where it may go";
            let secret = table(text, SECRET_KEYS, &["name", "host"], secret);
            list_of("Secrets that are used in its name", secret)
        }
        "tools" => table("Tools of the host that it may call", TOOLS_KEYS, &[], tools),
        "spawn" => {
            let text = "Partitions that it may start";
            table(text, SPAWN_KEYS, &["roles", "count"], spawn)
        }
        "budget" => table("What it may use while it lives", BUDGET_KEYS, &[], budget),
        _ => return None,
    })
}

fn identity(key: &str) -> Option<Value> {
    Some(match key {
        "name" => pattern("What it is called, among all partitions of this host", NAME),
        "role" => pattern(
            "Whose ceiling it stays below",
            "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        ),
        "owner" => text("On whose behalf it runs, in words"),
        "parent" => pattern("Identity of the running partition it is a child of", NAME),
        _ => return None,
    })
}

fn boot(key: &str) -> Option<Value> {
    Some(match key {
        "kernel" => choice("Which kernel", &KernelKind::ALL.map(KernelKind::as_str)),
        "program" => text("native: path of a static ELF program"),
        "args" => strings("native: its arguments"),
        "command" => strings("Program and arguments"),
        "env" => json!({
            "type": "object",
            "description": "Environment",
            "additionalProperties": { "type": "string" },
        }),
        "root" => text("Host directory that is the guest's /"),
        "mounts" => {
            let text = "A file or directory that is copied into the guest's memory";
            let mount = table(text, MOUNT_KEYS, &["source", "target"], mount);
            list_of("Files and directories laid over the root", mount)
        }
        "image" => text("linux: bzImage or vmlinux"),
        "initrd" => text("linux: initial RAM filesystem, instead of a command"),
        "cmdline" => text("linux: kernel arguments"),
        "transport" => choice("linux: how the kernel finds its devices", &["mmio", "pci"]),
        "watchdog" => boolean("linux: ends a partition that does not feed it"),
        "trace_syscalls" => boolean("linux-abi: one line for each system call"),
        _ => return None,
    })
}

fn mount(key: &str) -> Option<Value> {
    Some(match key {
        "source" => text("File or directory of the host, or @name"),
        "target" => pattern("Absolute path in the guest", "^/"),
        _ => return None,
    })
}

fn resources(key: &str) -> Option<Value> {
    Some(match key {
        "memory" => json!({ "anyOf": [
            pattern("Memory", MEMORY),
            table("Memory", MEMORY_KEYS, &[], memory),
        ]}),
        "vcpus" => number("Virtual CPUs", 1, 32),
        "cpu" => choice("What its CPUs can do", &["host", "v2", "v3"]),
        "limits" => {
            let text = "What its processes may use of the host";
            table(text, LIMITS_KEYS, &[], limits)
        }
        _ => return None,
    })
}

fn memory(key: &str) -> Option<Value> {
    Some(match key {
        "size" => pattern("Memory from the start", MEMORY),
        "max" => pattern("Up to here more can be plugged in", MEMORY),
        "hugepages" => boolean("Pages of 2 MiB from the host's pool"),
        "prefault" => boolean("Every page is there before it starts"),
        "shared" => boolean("Other processes can map it"),
        "balloon" => json!({ "anyOf": [
            boolean("A balloon"),
            table("A balloon", BALLOON_KEYS, &[], balloon),
        ]}),
        _ => return None,
    })
}

fn balloon(key: &str) -> Option<Value> {
    Some(match key {
        "size" => pattern("Asked for from the start", MEMORY),
        "deflate_on_oom" => boolean("The guest may take pages back"),
        "free_page_reporting" => boolean("The guest tells which pages are free"),
        _ => return None,
    })
}

fn limits(key: &str) -> Option<Value> {
    Some(match key {
        "cpu" => pattern("CPU time in percent of one CPU", "^[0-9]+ *%$"),
        "memory_overhead" => pattern("Memory beyond the guest's own", MEMORY),
        "pids" => number("Processes and threads", 8, i64::MAX),
        _ => return None,
    })
}

fn lifetime(key: &str) -> Option<Value> {
    Some(match key {
        "max" => pattern("It is ended after so long", TIME),
        "unlimited" => boolean("It is not ended; takes the approval of a second person"),
        "on_reboot" => choice("linux: what a reset of the guest does", &["restart", "end"]),
        _ => return None,
    })
}

fn network(key: &str) -> Option<Value> {
    Some(match key {
        "mac" => pattern("Address of the guest's interface", MAC),
        "mtu" => number("Largest IP packet", 576, 65_520),
        "max_connections" => number("TCP connections at a time", 1, 4096),
        "hosts" => strings("Names of the host's own services"),
        "trust" => strings("Files with authorities of servers beside the host's"),
        "receive_rate" | "transmit_rate" => rate(),
        _ => return None,
    })
}

fn rate() -> Value {
    table("How fast it may be", RATE_KEYS, &[], |key| {
        Some(match key {
            "bytes" => pattern("Bytes a second", "^[0-9]+ *(B|KiB|MiB|GiB|TiB)/s$"),
            "bytes_burst" => pattern("Bytes at once after a pause", BYTES),
            "operations" => pattern("Operations a second", "^[0-9]+ */s$"),
            "operations_burst" => pattern("Operations at once after a pause", "^[0-9]+ *$"),
            _ => return None,
        })
    })
}

fn secret(key: &str) -> Option<Value> {
    Some(match key {
        "name" => pattern("Its name in the vault", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
        "host" => text("The one host that it is sent to"),
        "port" => number("The port there; else 443", 1, 65_535),
        "header" => text("The header it stands in; else authorization"),
        "path" => pattern("Requests that it is for; else all", "^/"),
        "env" => pattern(
            "Variable in which the guest finds the placeholder",
            "^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        ),
        "ephemeral" => boolean("Made at the start, void at the end"),
        _ => return None,
    })
}

fn tools(key: &str) -> Option<Value> {
    Some(match key {
        "allow" => strings("Tools, or patterns such as fs.*"),
        "limits" => text("The file of their limits"),
        "autonomy" => choice(
            "Which calls wait for a person; else full, none for this",
            &Autonomy::ALL.map(|(name, _)| name),
        ),
        _ => return None,
    })
}

fn spawn(key: &str) -> Option<Value> {
    Some(match key {
        "roles" => strings("Roles, and how many of each: worker=4"),
        "count" => number("Most at a time, of all roles together", 1, 256),
        "depth" => number("Generations; else 1", 1, 8),
        _ => return None,
    })
}

fn budget(key: &str) -> Option<Value> {
    Some(match key {
        "bytes" => pattern("Bytes over the network, both ways", BYTES),
        "calls" => number("Calls of tools", 1, (1 << 53) - 1),
        "tokens" => number("Tokens of models", 1, (1 << 53) - 1),
        "money" => pattern("Dollars for models", MONEY),
        _ => return None,
    })
}

/// A grant with options.
fn grant() -> Value {
    let text_of_grant = "A grant with options";
    table(text_of_grant, GRANT_KEYS, &["capability"], |key| {
        Some(match key {
            "capability" => capability(),
            "path" => text("Its object, where that is a path"),
            "name" => pattern("What its device is called", "^[A-Za-z0-9._-]{1,20}$"),
            "format" => choice("Format of a disk image", &["raw", "qcow2"]),
            "backing" => {
                let image = table("An image", BACKING_KEYS, &["path"], |key| {
                    Some(match key {
                        "path" => text("The file"),
                        "format" => choice("Its format", &["raw", "qcow2"]),
                        _ => return None,
                    })
                });
                list_of("What a qcow2 image is based on, to the last", image)
            }
            "overlay" => text("A file for what the guest writes"),
            "direct" => boolean("Past the host's page cache"),
            "queues" => number("Queues, or pairs of queues", 1, i64::from(u16::MAX)),
            "rate" | "receive_rate" | "transmit_rate" => rate(),
            "mac" => pattern("Address of the guest's interface", MAC),
            "mtu" => number("Largest IP packet", 68, 65_520),
            "tag" => text("What the guest mounts"),
            "owner" => pattern(
                "Whose the files are: UID:GID, or guest",
                "^(guest|[0-9]+ *:[0-9]+ *)$",
            ),
            "cid" => number("The guest's address", 3, i64::from(u32::MAX)),
            "methods" => strings("Methods of web requests"),
            "paths" => strings("Paths of web requests, such as /v1/**"),
            "below" => strings("Directories that calls may name"),
            "expires" => pattern(
                "When the grant is void",
                "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
            ),
            "lifetime" => pattern("How long after the start it is void", TIME),
            "calls" => pattern("Calls a minute", "^[0-9]+ */min$"),
            "bytes" => pattern("Bytes, both ways together", BYTES),
            "approval" => boolean("Each use takes a person's consent"),
            _ => return None,
        })
    })
}

/// `name` or `name:object`. An object may be absent where it stands in a key of its own.
fn capability() -> Value {
    let names = CapabilityName::ALL.map(|name| {
        let text = name.as_str().replace('.', "[.]");
        match name.object() {
            ObjectKind::None => text,
            ObjectKind::Path(_) => format!("{text}(:.*)?"),
            _ => format!("{text}:.+"),
        }
    });
    pattern("name, or name:object", &format!("^({})$", names.join("|")))
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn pattern(description: &str, pattern: &str) -> Value {
    json!({ "type": "string", "description": description, "pattern": pattern })
}

fn choice(description: &str, words: &[&str]) -> Value {
    json!({ "type": "string", "description": description, "enum": words })
}

fn boolean(description: &str) -> Value {
    json!({ "type": "boolean", "description": description })
}

fn number(description: &str, minimum: i64, maximum: i64) -> Value {
    json!({
        "type": "integer",
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
    })
}

fn strings(description: &str) -> Value {
    list_of(description, json!({ "type": "string" }))
}

fn list_of(description: &str, items: Value) -> Value {
    json!({ "type": "array", "description": description, "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_manifest;
    use std::path::Path;

    /// What `of` says of each of `keys`.
    fn covers(keys: &[&str], of: impl Fn(&str) -> Option<Value>) {
        for key in keys {
            assert!(of(key).is_some(), "`{key}` is not in the schema");
        }
    }

    fn keys_of(table: &Value) -> Vec<String> {
        table["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }

    #[test]
    fn every_key_of_the_reader_is_in_it() {
        covers(MANIFEST_KEYS, manifest);
        covers(IDENTITY_KEYS, identity);
        covers(BOOT_KEYS, boot);
        covers(MOUNT_KEYS, mount);
        covers(RESOURCES_KEYS, resources);
        covers(MEMORY_KEYS, memory);
        covers(BALLOON_KEYS, balloon);
        covers(LIMITS_KEYS, limits);
        covers(LIFETIME_KEYS, lifetime);
        covers(NETWORK_KEYS, network);
        covers(SECRET_KEYS, secret);
        covers(TOOLS_KEYS, tools);
        covers(SPAWN_KEYS, spawn);
        covers(BUDGET_KEYS, budget);
        assert_eq!(keys_of(&grant()).len(), GRANT_KEYS.len());
        assert_eq!(keys_of(&rate()).len(), RATE_KEYS.len());
        let backing = &grant()["properties"]["backing"]["items"];
        assert_eq!(keys_of(backing).len(), BACKING_KEYS.len());
    }

    fn validates(validator: &jsonschema::Validator, text: &str) -> Result<(), String> {
        let table: toml::Table = text.parse().unwrap();
        let value = serde_json::to_value(table).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors.join("; ")),
        }
    }

    #[test]
    fn it_is_a_schema_that_the_examples_keep() {
        let schema = schema();
        jsonschema::meta::validate(&schema).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let everything = crate::manifest::tests::EVERYTHING;
        let agent = include_str!("../../../docs/examples/agent/partition.toml");
        for text in [everything, crate::manifest::tests::MINIMAL, agent] {
            parse_manifest(text.as_bytes(), Path::new("/srv/partition.toml")).unwrap();
            validates(&validator, text).unwrap();
        }
    }

    #[test]
    fn what_it_refuses_the_reader_refuses_too() {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let minimal = crate::manifest::tests::MINIMAL;
        for (from, to) in [
            ("role = \"coder\"", "rol = \"coder\""),
            ("name = \"agent\"", "name = \"Agent\""),
            ("name = \"agent\"", "name = 7"),
            (
                "grants = [\"console\"]",
                "conditions = \"never\"\ngrants = [\"console\"]",
            ),
            ("kernel = \"linux\"", "kernel = \"windows\""),
            ("max = \"8h\"", "max = 8"),
            ("max = \"8h\"", "max = \"8 weeks\""),
            (
                "[lifetime]",
                "[budget]\nmoney = \"1.000000001\"\n[lifetime]",
            ),
            ("[lifetime]", "[resources]\nvcpus = 0\n[lifetime]"),
            ("[lifetime]", "[spawn]\nroles = [1]\n[lifetime]"),
            ("grants = [\"console\"]", "grants = [\"consol\"]"),
            ("grants = [\"console\"]", "grants = [\"console:1\"]"),
            ("grants = [\"console\"]", "grants = [\"net.connect\"]"),
            ("grants = [\"console\"]", "grants = [{ path = \"x\" }]"),
            ("[lifetime]\nmax = \"8h\"", ""),
        ] {
            assert!(minimal.contains(from), "{from}");
            let text = minimal.replace(from, to);
            assert!(validates(&validator, &text).is_err(), "schema: {to}");
            let parsed = parse_manifest(text.as_bytes(), Path::new("/srv/partition.toml"));
            assert!(parsed.is_err(), "reader: {to}");
        }
    }
}

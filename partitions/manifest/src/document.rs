//! The document of a manifest: what is signed. It is the manifest as JSON, with the same keys, with
//! absolute paths and in canonical form, so that it means the same wherever it lies.

use crate::diagnostic::Code;
use crate::draft::PartitionDraft;
use crate::partition_toml::read_manifest;
use crate::reader::Report;
use bulkhead_capability::{CapabilityName, ObjectKind};
use bulkhead_signature::canonical;
use serde_json::{Map, Value};
use std::path::Path;
use toml::de::DeTable;

/// The type of the payload of a signed manifest.
pub const PAYLOAD_TYPE: &str = "application/vnd.bulkhead.partition+json";

/// What is wrong with a text that should have become a document, or the other way round.
pub(crate) type Problem = (Code, String);

/// The document of the manifest `text`, whose relative paths start at `base`. The text has been
/// checked.
pub(crate) fn of_text(text: &str, base: &Path) -> Result<Vec<u8>, Problem> {
    let form = |error: String| {
        (
            Code::Form,
            format!("the manifest has no canonical form: {error}"),
        )
    };
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| form(error.message().to_owned()))?;
    let mut value = serde_json::to_value(table).map_err(|error| form(error.to_string()))?;
    if let Some(manifest) = value.as_object_mut() {
        make_absolute(manifest, base);
    }
    canonical::to_vec(&value).map_err(|error| form(error.to_string()))
}

/// The manifest that a document is, as people write it.
pub(crate) fn to_text(document: &[u8]) -> Result<String, Problem> {
    let form = |error: String| (Code::Form, format!("the payload is no manifest: {error}"));
    let value = canonical::from_slice(document).map_err(|error| form(error.to_string()))?;
    toml::to_string_pretty(&value).map_err(|error| form(error.to_string()))
}

/// The manifest that a document is, unchecked.
pub(crate) fn to_draft(document: &[u8]) -> Result<PartitionDraft, Problem> {
    let text = to_text(document)?;
    let form = |message: &str| (Code::Form, format!("the payload is no manifest: {message}"));
    let root = DeTable::parse(&text).map_err(|error| form(error.message()))?;
    let mut report = Report::new(&text);
    let mut draft = read_manifest(&mut report, root.get_ref());
    if let Some(mandate) = &mut draft.mandate {
        mandate.value.document = document.to_vec();
    }
    match report.diagnostics.is_empty() {
        true => Ok(draft),
        false => Err(form("it is not what a manifest may be")),
    }
}

/// Joins every path of the host to `base`. Names of the library, which start with `@`, and what is
/// no path of the host stay as they are.
fn make_absolute(manifest: &mut Map<String, Value>, base: &Path) {
    for grant in elements(manifest, "grants") {
        match grant {
            Value::String(text) => join_object(text, base),
            Value::Object(grant) => {
                if let Some(Value::String(text)) = grant.get_mut("capability") {
                    join_object(text, base);
                }
                join(grant, &["path", "overlay"], base);
                for image in elements(grant, "backing").filter_map(Value::as_object_mut) {
                    join(image, &["path"], base);
                }
            }
            _ => {}
        }
    }
    for denial in elements(manifest, "deny") {
        if let Value::String(text) = denial {
            join_object(text, base);
        }
    }
    if let Some(Value::Object(network)) = manifest.get_mut("network") {
        for authority in elements(network, "trust") {
            if let Value::String(path) = authority {
                *path = joined(path, base);
            }
        }
    }
    if let Some(Value::Object(tools)) = manifest.get_mut("tools") {
        join(tools, &["limits"], base);
    }
    if let Some(Value::Object(boot)) = manifest.get_mut("boot") {
        join(boot, &["program", "root", "image", "initrd"], base);
        for mount in elements(boot, "mounts").filter_map(Value::as_object_mut) {
            join(mount, &["source"], base);
        }
    }
}

fn elements<'m>(
    map: &'m mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'m mut Value> + use<'m> {
    let array = map.get_mut(key).and_then(Value::as_array_mut);
    array.into_iter().flatten()
}

fn join(map: &mut Map<String, Value>, keys: &[&str], base: &Path) {
    for key in keys {
        if let Some(Value::String(path)) = map.get_mut(*key)
            && !path.starts_with('@')
        {
            *path = joined(path, base);
        }
    }
}

/// The object of a capability, where it is a path.
fn join_object(text: &mut String, base: &Path) {
    let Some((name, object)) = text.split_once(':') else {
        return;
    };
    let of = name.parse().map(CapabilityName::object);
    if let Ok(ObjectKind::Path(_)) = of {
        *text = format!("{name}:{}", joined(object, base));
    }
}

fn joined(path: &str, base: &Path) -> String {
    base.join(path).to_string_lossy().into_owned()
}

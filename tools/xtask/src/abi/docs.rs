//! The tables of `docs/kernel-abi.md`, each between its markers.

use super::description::{Convention, Description, Module, Operation, Value};
use super::place::Place;
use super::text::{last, links};
use crate::failure::Result;
use crate::page::put;

/// `page` with every table as the description has it.
pub(super) fn fill(page: &str, description: &Description) -> Result<String> {
    let mut tables = vec![
        ("conventions".to_owned(), conventions(description)),
        ("operations".to_owned(), operations(description)?),
        ("statuses".to_owned(), statuses(description)),
        ("faults".to_owned(), faults(description)),
        ("slots".to_owned(), slots(description)),
        ("rights".to_owned(), rights(description)),
    ];
    for module in &description.modules {
        tables.push((module.name.clone(), room(module)));
    }
    let mut page = page.to_owned();
    for (name, table) in tables {
        page = put(&page, "docs/kernel-abi.md", &format!("abi {name}"), &table)?;
    }
    Ok(page)
}

fn conventions(description: &Description) -> String {
    let mut out = table(&[
        "convention",
        "number",
        "arguments",
        "status",
        "results",
        "lost",
        "meaning",
    ]);
    let places = |places: &[Place]| {
        let texts: Vec<String> = places.iter().map(|place| format!("`{place}`")).collect();
        texts.join(", ")
    };
    for convention in &description.conventions {
        let Convention {
            name,
            doc,
            number,
            arguments,
            status,
            results,
            lost,
        } = convention;
        let lost: Vec<String> = lost
            .iter()
            .map(|register| format!("`{register}`"))
            .collect();
        out += &format!(
            "| {name} | `{number}` | {} | `{status}` | {} | {} | {doc} |\n",
            places(arguments),
            places(results),
            lost.join(", ")
        );
    }
    out
}

fn operations(description: &Description) -> Result<String> {
    let mut out = table(&[
        "number",
        "operation",
        "on",
        "arguments",
        "results",
        "errors",
        "meaning",
    ]);
    for operation in &description.operations {
        let Operation {
            number,
            name,
            invokes,
            doc,
            errors,
            ..
        } = operation;
        let errors: Vec<String> = errors.iter().map(|error| format!("`{error}`")).collect();
        out += &format!(
            "| {number} | `{name}` | {} | {} | {} | {} | {} |\n",
            invokes.as_deref().unwrap_or_default(),
            values(&description.arguments(operation)?),
            values(&description.results(operation)?),
            errors.join(", "),
            prose(doc)
        );
    }
    Ok(out)
}

fn values(values: &[(Place, &Value)]) -> String {
    let texts: Vec<String> = (values.iter())
        .map(|(place, value)| match &value.doc {
            Some(doc) => format!("`{place}` {}: {doc}", value.name),
            None => format!("`{place}` {}", value.name),
        })
        .collect();
    texts.join("; ")
}

fn statuses(description: &Description) -> String {
    let mut out = table(&["number", "status", "at fault", "meaning"]);
    for status in &description.statuses {
        let (number, name) = (status.number, &status.name);
        let fault = status.fault.to_lowercase();
        out += &format!(
            "| {number} | `{name}` | {fault} | {} |\n",
            prose(&status.doc)
        );
    }
    out
}

fn faults(description: &Description) -> String {
    let mut out = table(&["at fault", "what that means"]);
    for party in &description.faults {
        out += &format!(
            "| {} | {} |\n",
            party.name.to_lowercase(),
            prose(&party.doc)
        );
    }
    out
}

fn slots(description: &Description) -> String {
    let mut out = table(&["slot", "name", "holds"]);
    for slot in &description.slots {
        out += &format!(
            "| {} | `{}` | {} |\n",
            slot.number,
            slot.name,
            prose(&slot.doc)
        );
    }
    out
}

fn rights(description: &Description) -> String {
    let mut out = table(&["bit", "name", "meaning"]);
    for right in &description.rights {
        out += &format!(
            "| {} | `{}` | {} |\n",
            right.bit,
            right.name,
            prose(&right.doc)
        );
    }
    out
}

fn room(module: &Module) -> String {
    let mut out = table(&["name", "type", "value", "meaning"]);
    for constant in &module.constants {
        let (name, kind) = (&constant.name, &constant.kind);
        let (value, doc) = (&constant.spelling, prose(&constant.doc));
        out += &format!("| `{name}` | `{kind}` | `{value}` | {doc} |\n");
    }
    for laid in &module.structs {
        out += &format!(
            "\n`{}`, {} bytes. {}\n\n",
            laid.name,
            laid.size,
            prose(&laid.doc)
        );
        out += &table(&["offset", "type", "field", "meaning"]);
        for field in &laid.fields {
            let doc = field.doc.as_deref().map(prose).unwrap_or_default();
            let (offset, kind, name) = (field.offset, &field.kind, &field.name);
            out += &format!("| {offset} | `{kind}` | `{name}` | {doc} |\n");
        }
    }
    out
}

/// The head of a table.
fn table(columns: &[&str]) -> String {
    let rule = vec!["---"; columns.len()];
    format!("| {} |\n| {} |\n", columns.join(" | "), rule.join(" | "))
}

fn prose(doc: &str) -> String {
    links(doc, |path| match path.rsplit_once("::") {
        Some((record, field))
            if field.starts_with(char::is_lowercase) && !record.starts_with("crate") =>
        {
            format!("`{record}::{field}`")
        }
        _ => format!("`{}`", last(path)),
    })
}

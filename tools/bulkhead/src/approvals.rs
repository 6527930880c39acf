//! `bulkhead approvals`: what partitions ask a person, and the answers.

use crate::cli::ListFormat;
use crate::failure::Failure;
use crate::table;
use bulkhead_supervisor::{Answer, OpenQuestion, Scope, Standing, StateRoot, decide, questions};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

/// How often `watch` looks.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// List the questions that wait for an answer
    Ls(ApprovalsListArgs),
    /// Print questions as they come, until it is ended
    Watch(ApprovalsListArgs),
    /// Let a partition do what it asks
    Approve {
        /// The question: SYSTEM/NUMBER
        id: String,
        /// For what else it counts: once, task, session, or a time such as 15m
        #[arg(long, default_value = "once")]
        scope: Scope,
    },
    /// Do not let it
    Deny {
        /// The question: SYSTEM/NUMBER
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApprovalsListArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
}

/// A question as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    id: String,
    partition: String,
    lineage: Vec<String>,
    capability: String,
    object: String,
    why: String,
    task: Option<String>,
    seconds: u64,
}

pub(crate) fn run(command: &ApprovalsCommand) -> Result<(), Failure> {
    match command {
        ApprovalsCommand::Ls(args) => list(args.format),
        ApprovalsCommand::Watch(args) => watch(args.format),
        ApprovalsCommand::Approve { id, scope } => answer(id, Some(*scope)),
        ApprovalsCommand::Deny { id } => answer(id, None),
    }
}

/// What waits in every system. One that ends meanwhile asks nothing any more.
fn open() -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for system in StateRoot::locate()?.list()? {
        if system.standing == Standing::Finished {
            continue;
        }
        let open = questions(&system).unwrap_or_default();
        rows.extend(open.into_iter().map(|open| row(&system.name, open)));
    }
    Ok(rows)
}

fn row(system: &str, open: OpenQuestion) -> Row {
    Row {
        id: format!("{system}/{}", open.id),
        partition: format!("{system}/{}", open.partition),
        lineage: open.lineage,
        capability: open.question.capability,
        object: open.question.object,
        why: open.question.why,
        task: open.question.task,
        seconds: open.seconds,
    }
}

fn list(format: ListFormat) -> Result<(), Failure> {
    let rows = open()?;
    let text = match format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&rows);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
        ListFormat::Table => {
            let header = ["ID", "PARTITION", "WHAT", "WHY", "LEFT"];
            table::lines(header, rows.iter().map(columns))
        }
    };
    crate::print(text.as_bytes())
}

/// For people. What a guest had a part in is not obeyed by their terminal.
fn columns(row: &Row) -> [String; 5] {
    let ancestors = row.lineage.iter().map(|name| format!(", child of {name}"));
    let task = row.task.as_ref().map(|task| format!(" [{task}]"));
    [
        row.id.clone(),
        row.partition.clone() + &ancestors.collect::<String>(),
        format!("{} {}", row.capability, row.object)
            .escape_debug()
            .to_string(),
        (row.why.clone() + &task.unwrap_or_default())
            .escape_debug()
            .to_string(),
        format!("{}s", row.seconds),
    ]
}

/// Prints each question once, and that it waits no more.
fn watch(format: ListFormat) -> Result<(), Failure> {
    let mut known = BTreeMap::<String, Row>::new();
    loop {
        let now: BTreeMap<String, Row> = open()?
            .into_iter()
            .map(|row| (row.id.clone(), row))
            .collect();
        for (id, row) in &now {
            if !known.contains_key(id) {
                say("asked", row, format)?;
            }
        }
        for (id, row) in &known {
            if !now.contains_key(id) {
                say("settled", row, format)?;
            }
        }
        known = now;
        thread::sleep(INTERVAL);
    }
}

/// One event, on a line of its own.
fn say(event: &str, row: &Row, format: ListFormat) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Event<'e> {
        event: &'e str,
        #[serde(flatten)]
        question: &'e Row,
    }
    let line = match format {
        ListFormat::Json => {
            let event = Event {
                event,
                question: row,
            };
            serde_json::to_string(&event)
                .map_err(|error| Failure::new("output", error.to_string()))?
        }
        ListFormat::Table => {
            let [id, who, what, why, left] = columns(row);
            match event {
                "asked" => format!("{id}: {who} asks for {what}: {why} ({left} left)"),
                _ => format!("{id}: settled"),
            }
        }
    };
    crate::print(format!("{line}\n").as_bytes())
}

fn answer(id: &str, allow: Option<Scope>) -> Result<(), Failure> {
    let named = id
        .split_once('/')
        .and_then(|(system, number)| Some((system, number.parse().ok()?)));
    let Some((system, number)) = named else {
        let message = format!("`{}` names no question", id.escape_debug());
        return Err(Failure::new("usage", message).help("list them with `bulkhead approvals ls`"));
    };
    let found = StateRoot::locate()?.find(system)?;
    match decide(&found, number, allow)? {
        Answer::Refused {
            code,
            message,
            help,
        } => Err(Failure::complain(code, message, help)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_supervisor::Question;

    #[test]
    fn what_a_guest_had_a_part_in_is_shown_and_not_obeyed() {
        let open = OpenQuestion {
            id: 3,
            partition: "agent".to_owned(),
            lineage: vec!["boss".to_owned(), "chief".to_owned()],
            question: Question {
                capability: "tool.call".to_owned(),
                object: "fs.delete /x\u{1b}[2J\nweb/4".to_owned(),
                why: "it may\tdestroy".to_owned(),
                task: Some("connection 2".to_owned()),
            },
            seconds: 100,
        };
        let row = row("web", open);
        assert_eq!(
            columns(&row),
            [
                "web/3",
                "web/agent, child of boss, child of chief",
                "tool.call fs.delete /x\\u{1b}[2J\\nweb/4",
                "it may\\tdestroy [connection 2]",
                "100s"
            ]
        );
        assert!(answer("web", None).is_err() && answer("web/x", None).is_err());
    }
}

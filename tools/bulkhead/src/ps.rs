//! `bulkhead ps`: systems and their partitions.

use crate::cli::{ListFormat, PsArgs};
use crate::failure::Failure;
use crate::table;
use bulkhead_capability::Adherence;
use bulkhead_supervisor::{PartitionRecord, Standing, StateRoot, SystemRecord, status};
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A system as JSON.
#[derive(Serialize)]
struct Row {
    system: String,
    live: bool,
    #[serde(flatten)]
    record: SystemRecord,
}

pub(crate) fn run(args: &PsArgs) -> Result<(), Failure> {
    let systems = StateRoot::locate()?.list()?;
    let rows: Vec<Row> = (systems.iter())
        .map(|found| Row {
            system: found.name.clone(),
            live: found.standing == Standing::Live,
            record: status(found),
        })
        .collect();
    match args.format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&rows);
            let json = json.map_err(|error| Failure::new("output", error.to_string()))?;
            crate::print(format!("{json}\n").as_bytes())
        }
        ListFormat::Table => crate::print(table(&rows, now()).as_bytes()),
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn table(rows: &[Row], now: u64) -> String {
    let lines = rows.iter().flat_map(|row| {
        let age = Duration::from_secs(now.saturating_sub(row.record.started));
        (row.record.partitions.iter()).map(move |partition| {
            let vmm = match row.live {
                true => partition.vmm.to_string(),
                false => "-".to_owned(),
            };
            [
                row.system.clone(),
                partition.name.clone(),
                partition.kernel.clone(),
                state(partition, row.record.halted),
                format!("{}MiB", partition.memory_mib),
                partition.vcpus.to_string(),
                vmm,
                format!("{} ago", short(age)),
            ]
        })
    });
    let header = [
        "SYSTEM",
        "PARTITION",
        "KERNEL",
        "STATE",
        "MEMORY",
        "VCPUS",
        "VMM",
        "STARTED",
    ];
    table::lines(header, lines)
}

fn state(partition: &PartitionRecord, halted: bool) -> String {
    match partition.status {
        None if halted => "halted".to_owned(),
        Some(status) => format!("{} ({status})", partition.state),
        None if partition.conditions == Some(Adherence::Learn) => {
            format!("{}, learns", partition.state)
        }
        None => partition.state.to_string(),
    }
}

/// A duration in its largest unit.
pub(crate) fn short(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_supervisor::State;

    #[test]
    fn the_table_has_a_row_for_each_partition() {
        let partition = |name: &str, status: Option<u8>| PartitionRecord {
            name: name.to_owned(),
            kernel: "native".to_owned(),
            state: if status.is_none() {
                State::Running
            } else {
                State::Terminated
            },
            vmm: 42,
            memory_mib: 16,
            vcpus: 1,
            jail_gaps: vec![],
            conditions: None,
            status,
        };
        let record = SystemRecord {
            supervisor: 41,
            started: 1000,
            finished: false,
            halted: false,
            partitions: vec![partition("a", None), partition("b", Some(7))],
            cgroups: vec![],
        };
        let rows = [Row {
            system: "hello".to_owned(),
            live: true,
            record,
        }];
        let text = table(&rows, 1000 + 7200);
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words.len(), 3);
        assert_eq!(
            words[1],
            [
                "hello", "a", "native", "running", "16MiB", "1", "42", "2h", "ago"
            ]
        );
        assert_eq!(words[2][3..5], ["terminated", "(7)"]);
        let partitions = &rows[0].record.partitions;
        assert_eq!(state(&partitions[0], true), "halted");
        assert_eq!(state(&partitions[1], true), "terminated (7)");
        for (adherence, text) in [
            (Adherence::Enforce, "running"),
            (Adherence::Learn, "running, learns"),
        ] {
            let mut partition = partitions[0].clone();
            partition.conditions = Some(adherence);
            assert_eq!(state(&partition, false), text);
        }
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7199, "1h"),
            (172_800, "2d"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}

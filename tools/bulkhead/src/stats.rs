//! `bulkhead stats`: counters of running partitions, as a table, as JSON, or for Prometheus.

use crate::act::ask;
use crate::cli::{StatsArgs, StatsFormat};
use crate::failure::Failure;
use crate::table;
use bulkhead_supervisor::{Act, Answer, State, StateRoot, Stats, status};
use serde::Serialize;

/// Counters of one partition.
#[derive(Serialize)]
struct Row {
    system: String,
    partition: String,
    #[serde(flatten)]
    stats: Stats,
}

pub(crate) fn run(args: &StatsArgs) -> Result<(), Failure> {
    let rows = if args.partition.contains('/') {
        vec![row(&args.partition)?]
    } else {
        let found = StateRoot::locate()?.find(&args.partition)?;
        let running = |state| matches!(state, State::Running | State::Suspended);
        let record = status(&found);
        let partitions = record.partitions.iter().filter(|p| running(p.state));
        partitions
            .map(|partition| row(&format!("{}/{}", found.name, partition.name)))
            .collect::<Result<_, _>>()?
    };
    let text = match args.format {
        StatsFormat::Json => {
            let json = serde_json::to_string_pretty(&rows);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
        StatsFormat::Table => table(&rows),
        StatsFormat::Prometheus => prometheus(&rows),
    };
    crate::print(text.as_bytes())
}

fn row(name: &str) -> Result<Row, Failure> {
    let (system, partition) = name.split_once('/').unwrap_or((name, ""));
    match ask(name, Act::Stats)? {
        Answer::Stats(stats) => Ok(Row {
            system: system.to_owned(),
            partition: partition.to_owned(),
            stats,
        }),
        _ => Err(Failure::new(
            "no-answer",
            format!("`{name}` has no counters"),
        )),
    }
}

/// Every counter: whose, its name, its value.
fn counters(stats: &Stats) -> impl Iterator<Item = (String, &str, u64)> {
    let vcpus = stats.vcpu_exits.iter().enumerate();
    let vcpus = vcpus.map(|(number, exits)| (format!("vcpu{number}"), "exits", *exits));
    let devices = stats.devices.iter().flat_map(|device| {
        let counters = device.counters.iter();
        counters.map(|(name, value)| (device.name.clone(), name.as_str(), *value))
    });
    vcpus.chain(devices)
}

fn table(rows: &[Row]) -> String {
    let lines = rows.iter().flat_map(|row| {
        counters(&row.stats).map(move |(device, counter, value)| {
            [
                format!("{}/{}", row.system, row.partition),
                device,
                counter.to_owned(),
                value.to_string(),
            ]
        })
    });
    table::lines(["PARTITION", "DEVICE", "COUNTER", "VALUE"], lines)
}

/// The text format of Prometheus, version 0.0.4. Names of systems, partitions and devices have no
/// character that would need escaping.
fn prometheus(rows: &[Row]) -> String {
    let mut text = "# TYPE bulkhead_paused gauge\n".to_owned();
    for row in rows {
        let (system, partition) = (&row.system, &row.partition);
        let paused = u8::from(row.stats.paused);
        text +=
            &format!("bulkhead_paused{{system=\"{system}\",partition=\"{partition}\"}} {paused}\n");
    }
    // All samples of one metric stand together.
    let mut names: Vec<String> = rows
        .iter()
        .flat_map(|row| counters(&row.stats))
        .map(|(_, counter, _)| metric(counter))
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        let kind = if is_gauge(name) { "gauge" } else { "counter" };
        text += &format!("# TYPE {name} {kind}\n");
        for row in rows {
            let (system, partition) = (&row.system, &row.partition);
            for (device, counter, value) in counters(&row.stats) {
                if metric(counter) == *name {
                    text += &format!(
                        "{name}{{system=\"{system}\",partition=\"{partition}\",device=\"{device}\"}} \
                         {value}\n"
                    );
                }
            }
        }
    }
    text
}

/// A counter's name as a metric's.
fn metric(counter: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = counter.chars().map(plain).collect();
    match name.ends_with("_open") || name.ends_with("_mib") || name.ends_with("_size") {
        true => format!("bulkhead_{name}"),
        false => format!("bulkhead_{name}_total"),
    }
}

fn is_gauge(metric: &str) -> bool {
    !metric.ends_with("_total")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_supervisor::DeviceStats;

    fn rows() -> Vec<Row> {
        let device = |name: &str, counters: &[(&str, u64)]| DeviceStats {
            name: name.to_owned(),
            counters: counters
                .iter()
                .map(|(n, v)| ((*n).to_owned(), *v))
                .collect(),
        };
        vec![Row {
            system: "shop".to_owned(),
            partition: "web".to_owned(),
            stats: Stats {
                paused: true,
                vcpu_exits: vec![7],
                devices: vec![
                    device("disk0", &[("read-bytes", 512)]),
                    device("net0-gateway", &[("tcp-open", 2)]),
                ],
            },
        }]
    }

    #[test]
    fn counters_are_told_as_prometheus_has_them() {
        let text = prometheus(&rows());
        let expected = "# TYPE bulkhead_paused gauge\n\
             bulkhead_paused{system=\"shop\",partition=\"web\"} 1\n\
             # TYPE bulkhead_exits_total counter\n\
             bulkhead_exits_total{system=\"shop\",partition=\"web\",device=\"vcpu0\"} 7\n\
             # TYPE bulkhead_read_bytes_total counter\n\
             bulkhead_read_bytes_total{system=\"shop\",partition=\"web\",device=\"disk0\"} 512\n\
             # TYPE bulkhead_tcp_open gauge\n\
             bulkhead_tcp_open{system=\"shop\",partition=\"web\",device=\"net0-gateway\"} 2\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_table_has_a_line_for_each_counter() {
        let text = table(&rows());
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words.len(), 4);
        assert_eq!(words[2], ["shop/web", "disk0", "read-bytes", "512"]);
    }
}

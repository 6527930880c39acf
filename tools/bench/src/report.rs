//! How a result looks: a table for people, the same as JSON for machines.

use std::fmt::Write as _;

use bulkhead_supervisor::host::KvmKind;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::decision::Latency;
use crate::gateway::Trip;
use crate::instructions::Counted;
use crate::linux::Figure;
use crate::policy::Rate;
use crate::stats::Stats;

/// The subject every other is compared with.
const BASE: &str = "probe";

/// The result of one benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Its name.
    pub(crate) benchmark: &'static str,
    /// What kind of KVM it ran on: figures of different kinds cannot be compared.
    pub(crate) kvm: KvmKind,
    /// How often each subject was measured.
    pub(crate) runs: u32,
    /// What the figures count.
    pub(crate) unit: &'static str,
    /// What was measured.
    pub(crate) subjects: Vec<Subject>,
    /// Resident KiB of the probe's VMM at its first byte, but for the guest's memory.
    pub(crate) own_kib: Option<Stats>,
    /// Why the figures may mislead.
    pub(crate) warnings: Vec<String>,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Subject {
    /// Stable name.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// How long it took.
    #[serde(flatten)]
    pub(crate) stats: Stats,
    /// Where that time went, where it is known.
    pub(crate) phases: Vec<Phase>,
}

/// A part of a subject's time. Medians of parts do not add up to the median of the whole.
#[derive(Debug, Serialize)]
pub(crate) struct Phase {
    /// Stable name: the mark of the VMM's trace that ends it.
    pub(crate) id: String,
    /// What it is.
    #[serde(skip)]
    pub(crate) what: &'static str,
    /// How long it took.
    #[serde(flatten)]
    pub(crate) stats: Stats,
}

impl Report {
    /// The tables.
    pub(crate) fn text(&self) -> String {
        let base = (self.subjects.iter())
            .find(|subject| subject.id == BASE)
            .map(|subject| subject.stats.median);
        let rows = self.subjects.iter().map(|subject| {
            let ratio = base.map_or(String::new(), |base| {
                format!("{:.2}", subject.stats.median / base)
            });
            row(subject.what, &subject.stats, ratio)
        });
        let kind = kind(self.kvm);
        let mut out = format!(
            "{}: medians of {} rounds; guest kernel mode: {kind}\n\n{}\n",
            self.benchmark,
            self.runs,
            table("subject", "median us", "to probe", rows)
        );
        for subject in self.subjects.iter().filter(|it| !it.phases.is_empty()) {
            let whole = subject.stats.median;
            let rows = subject.phases.iter().map(|phase| {
                let share = format!("{:.0} %", 100.0 * phase.stats.median / whole);
                row(phase.what, &phase.stats, share)
            });
            // Writing to a string cannot fail.
            let _ = write!(
                out,
                "\n{}\n{}\n",
                subject.what,
                table("phase", "median us", "share", rows)
            );
        }
        if let Some(own) = &self.own_kib {
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "\nthe probe's VMM at the first byte: {:.0} KiB resident besides the guest's memory \
                 (max {:.0})",
                own.median, own.max
            );
        }
        for warning in &self.warnings {
            let _ = write!(out, "\nwarning: {warning}");
        }
        if !self.warnings.is_empty() {
            out.push('\n');
        }
        out
    }
}

/// A table for each metric: every VMM's figure, and its ratio to the first's, which is ours.
pub(crate) fn figures(figures: &[Figure]) -> String {
    let mut out = String::new();
    for group in figures.chunk_by(|a, b| a.metric == b.metric) {
        let Some(ours) = group.first() else { continue };
        let rows = group.iter().map(|figure| {
            let stats = &figure.stats;
            let number = |value: f64| format!("{value:.1}");
            [
                figure.vmm.to_owned(),
                number(stats.median),
                number(stats.min),
                number(stats.max),
                number(stats.spread),
                format!("{:.2}", stats.median / ours.stats.median),
            ]
        });
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}\n", table(ours.what, "median", "ratio", rows));
    }
    out
}

/// A table of rates, each beside the floor of its kind and the bar it has to reach.
pub(crate) fn rates(rates: &[Rate]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["a second", "median", "min", "max", "of the floor", "bar"]);
    let floors = rates.iter().filter(|rate| rate.floor.is_none());
    let floors: Vec<(&str, f64)> = floors.map(|rate| (rate.id, rate.stats.median)).collect();
    let whole = |value: f64| format!("{value:.0}");
    table.add_rows(rates.iter().map(|rate| {
        let floor = floors.iter().find(|(id, _)| Some(*id) == rate.floor);
        let share = floor.map(|(_, floor)| 100.0 * rate.stats.median / floor);
        [
            rate.what.to_owned(),
            whole(rate.stats.median),
            whole(rate.stats.min),
            whole(rate.stats.max),
            share.map_or(String::new(), |share| format!("{share:.1} %")),
            rate.bar.map_or(String::new(), |bar| bar.to_string()),
        ]
    }));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// A table of latencies, each beside the bar of its 99th percentile.
pub(crate) fn latencies(latencies: &[Latency]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["one decision", "p50 us", "p99 us", "bar of p99"]);
    let us = |ns: u64| format!("{:.2}", ns as f64 / 1000.0);
    table.add_rows(latencies.iter().map(|latency| {
        [
            latency.what.to_owned(),
            us(latency.p50_ns),
            us(latency.p99_ns),
            latency.bar_ns.map_or(String::new(), us),
        ]
    }));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// A table of round trips, each by the gateway beside the direct one.
pub(crate) fn trips(trips: &[Trip]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "one round trip",
        "p50 us",
        "spread",
        "p99 us",
        "added to p50",
        "ratio",
    ]);
    let us = |value: f64| format!("{value:.1}");
    table.add_rows(trips.iter().map(|trip| {
        let beside = trips.iter().find(|other| Some(other.id) == trip.beside);
        let direct = beside.map(|direct| direct.p50.median);
        [
            trip.what.to_owned(),
            us(trip.p50.median),
            us(trip.p50.spread),
            us(trip.p99.median),
            direct.map_or(String::new(), |direct| us(trip.p50.median - direct)),
            direct.map_or(String::new(), |direct| us(trip.p50.median / direct)),
        ]
    }));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// Each path's instructions, beside the most that they may be.
pub(crate) fn instructions(counted: &Counted) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["path", "entries", "instructions", "at most"]);
    table.add_rows(counted.paths.iter().map(|path| {
        [
            path.name.clone(),
            path.entries.to_string(),
            path.instructions.to_string(),
            path.bar.map_or(String::new(), |bar| bar.to_string()),
        ]
    }));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let kind = kind(counted.kvm);
    format!("instructions of the microkernel; guest kernel mode: {kind}\n\n{table}\n")
}

fn kind(kvm: KvmKind) -> &'static str {
    match kvm {
        KvmKind::Native => "native",
        KvmKind::Interpreted => "interpreted by KVM",
        KvmKind::Absent => "absent",
        KvmKind::Unknown => "not measured",
    }
}

fn row(what: &str, stats: &Stats, last: String) -> [String; 6] {
    let us = |value: f64| format!("{value:.0}");
    [
        what.to_owned(),
        us(stats.median),
        us(stats.min),
        us(stats.max),
        us(stats.spread),
        last,
    ]
}

fn table(first: &str, median: &str, last: &str, rows: impl Iterator<Item = [String; 6]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([first, median, "min", "max", "spread", last]);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// How busy the machine is.
pub(crate) struct Load {
    /// Runnable tasks, averaged over a minute.
    average: Option<f64>,
}

impl Load {
    /// Reads it.
    pub(crate) fn now() -> Self {
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            average: text.split(' ').next().and_then(|first| first.parse().ok()),
        }
    }

    /// What a reader has to know about the load before and after. The benchmark itself keeps about
    /// one CPU busy.
    pub(crate) fn warnings(before: &Self, after: &Self) -> Vec<String> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let busy = |when: &str, load: &Self, limit: f64| {
            let average = load.average.filter(|average| *average > limit)?;
            Some(format!(
                "the machine was busy {when} the run: load {average:.2} on {cpus} CPUs; trust \
                 ratios and minima"
            ))
        };
        let warnings = [
            busy("before", before, cpus * 0.25),
            busy("after", after, cpus * 0.25 + 1.0),
        ];
        warnings.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(median: f64) -> Stats {
        Stats {
            runs: 3,
            median,
            min: 1.0,
            max: 2_000.0,
            spread: 4.0,
        }
    }

    #[test]
    fn ratios_are_to_the_probe_and_shares_to_the_whole() {
        let phase = Phase {
            id: "vm".into(),
            what: "VM",
            stats: stats(500.0),
        };
        let subject = |id, median, phases| Subject {
            id,
            what: id,
            stats: stats(median),
            phases,
        };
        let report = Report {
            benchmark: "boot",
            kvm: KvmKind::Native,
            runs: 3,
            unit: "us",
            subjects: vec![
                subject("probe", 2_000.0, vec![phase]),
                subject("qemu-microvm", 21_000.0, vec![]),
            ],
            own_kib: Some(stats(1_234.0)),
            warnings: vec!["busy".into()],
        };
        let text = report.text();
        for part in [
            "1.00",
            "10.50",
            "25 %",
            "native",
            ": 1234 KiB",
            "warning: busy\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_busy_machine_is_told() {
        let load = |average| Load { average };
        assert!(Load::warnings(&load(Some(0.0)), &load(Some(1.0))).is_empty());
        assert!(Load::warnings(&load(None), &load(None)).is_empty());
        assert_eq!(
            Load::warnings(&load(Some(900.0)), &load(Some(900.0))).len(),
            2
        );
    }
}

//! The table at the end of `cargo xtask test`, and its last line, which machines read.

use std::collections::BTreeMap;
use std::time::Duration;

/// Where a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Any machine.
    Host,
    /// A machine with `/dev/kvm`, else the lab.
    Kvm,
    /// The lab.
    Lab,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        }
    }
}

/// What a step counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests, or 1 for a step that is one check.
    pub(crate) passed: usize,
    /// The same.
    pub(crate) failed: usize,
    /// One reason for each skipped test or check.
    pub(crate) skipped: Vec<String>,
    /// What failed, or another remark for the table.
    pub(crate) notes: Vec<String>,
}

impl Counts {
    /// One check that passed.
    pub(crate) fn passed() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    /// One check that failed.
    pub(crate) fn failed(note: impl Into<String>) -> Self {
        Self {
            failed: 1,
            notes: vec![note.into()],
            ..Self::default()
        }
    }

    /// One check that did not run, and why.
    pub(crate) fn skipped(why: impl Into<String>) -> Self {
        Self {
            skipped: vec![why.into()],
            ..Self::default()
        }
    }

    /// Adds another step's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.notes.extend(other.notes);
    }
}

/// All steps that ran.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<(String, Tier, Counts, Duration)>,
}

impl Summary {
    /// Adds a step.
    pub(crate) fn push(&mut self, name: &str, tier: Tier, counts: Counts, time: Duration) {
        self.rows.push((name.to_owned(), tier, counts, time));
    }

    /// True when nothing failed and something passed.
    pub(crate) fn good(&self) -> bool {
        let total = self.total();
        total.failed == 0 && total.passed > 0
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, _, counts, _) in &self.rows {
            total.add(counts.clone());
        }
        total
    }

    /// The table, the reasons below it, and alone on the last line `N passed, N failed, N skipped`.
    pub(crate) fn render(&self) -> String {
        let mut text = format!(
            "{:<14} {:<5} {:>7} {:>7} {:>8} {:>8}\n",
            "step", "tier", "passed", "failed", "skipped", "seconds"
        );
        for (name, tier, counts, time) in &self.rows {
            text += &format!(
                "{:<14} {:<5} {:>7} {:>7} {:>8} {:>8.1}\n",
                name,
                tier.name(),
                counts.passed,
                counts.failed,
                counts.skipped.len(),
                time.as_secs_f32()
            );
        }
        for (name, _, counts, _) in &self.rows {
            let mut reasons = BTreeMap::new();
            for why in &counts.skipped {
                *reasons.entry(why).or_insert(0) += 1;
            }
            for (why, times) in reasons {
                text += &match times {
                    1 => format!("skipped  {name}: {why}\n"),
                    _ => format!("skipped  {name}: {why} ({times} times)\n"),
                };
            }
            for note in &counts.notes {
                let word = if counts.failed > 0 { "failed" } else { "note" };
                text += &format!("{word:<8} {name}: {note}\n");
            }
        }
        let total = self.total();
        text + &format!(
            "{} passed, {} failed, {} skipped\n",
            total.passed,
            total.failed,
            total.skipped.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_sums_up() {
        let mut summary = Summary::default();
        assert!(!summary.good(), "nothing passed");
        let second = Duration::from_secs(1);
        let tests = Counts {
            passed: 11,
            skipped: ["no hugepages", "too long", "too long"]
                .map(Into::into)
                .into(),
            ..Counts::default()
        };
        summary.push("format", Tier::Host, Counts::passed(), second);
        summary.push("suites", Tier::Kvm, tests, second);
        assert!(summary.good());
        let text = summary.render();
        assert_eq!(text.lines().last(), Some("12 passed, 0 failed, 3 skipped"));
        assert!(text.contains("skipped  suites: no hugepages\n"));
        assert!(text.contains("skipped  suites: too long (2 times)\n"));
        summary.push("docs", Tier::Host, Counts::failed("exit status 1"), second);
        assert!(!summary.good());
        let text = summary.render();
        assert_eq!(text.lines().last(), Some("12 passed, 1 failed, 3 skipped"));
        assert!(text.contains("failed   docs: exit status 1"));
    }
}

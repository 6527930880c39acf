//! Reads what Rust's test harness prints: counts, failures with what they said, and the suites' own
//! skip marks.

use std::collections::BTreeMap;
use std::mem;

use super::summary::Counts;

/// What `bulkhead_tests::skip` prints before the reason.
const SKIP: &str = "skipped: ";
/// How many lines of a failed test are kept: from its panic on, and again from its end.
const KEPT: usize = 12;

/// Collects counts from the lines of one or more test binaries.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    counts: Counts,
    results: usize,
    part: Part,
    /// What each failed test of this binary printed.
    printed: BTreeMap<String, Vec<String>>,
}

/// Where in a binary's output we are. The line `test NAME ... FAILED` is of no use: what a test's own
/// processes print gets between its words.
#[derive(Debug, Default)]
enum Part {
    /// Tests run, or those that passed show what they printed.
    #[default]
    Running,
    /// What the failed ones printed, the one of this name now.
    Printed(String),
    /// Their names.
    Names,
}

impl Reader {
    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(why) = line.strip_prefix(SKIP) {
            self.counts.skipped.push(why.to_owned());
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.results += 1;
            self.counts.passed += number_before(rest, "passed");
            self.counts.failed += number_before(rest, "failed");
            for _ in 0..number_before(rest, "ignored") {
                self.counts.skipped.push("marked #[ignore]".into());
            }
            self.part = Part::Running;
            self.printed.clear();
        } else if line == "failures:" {
            self.part = match mem::take(&mut self.part) {
                Part::Running => Part::Printed(String::new()),
                Part::Printed(_) | Part::Names => Part::Names,
            };
        } else {
            self.failed(line);
        }
    }

    /// Takes a line that may be about failures.
    fn failed(&mut self, line: &str) {
        let heading = (line.strip_prefix("---- ")).and_then(|rest| rest.strip_suffix(" ----"));
        match (&mut self.part, heading) {
            (Part::Running, _) => {}
            (Part::Printed(name), Some(heading)) => {
                let heading = heading.strip_suffix(" stdout").unwrap_or(heading);
                heading.clone_into(name);
            }
            (Part::Printed(name), None) => {
                let lines = self.printed.entry(name.clone()).or_default();
                lines.push(line.to_owned());
            }
            (Part::Names, _) => {
                if let Some(name) = line.strip_prefix("    ") {
                    let lines = self.printed.get(name).map(Vec::as_slice);
                    let note = format!("{name}{}", excerpt(lines.unwrap_or_default()));
                    self.counts.notes.push(note);
                }
            }
        }
    }

    /// The counts, `ok` being whether the command ended with 0. A skipped test counts once, as
    /// skipped: the harness takes it for passed.
    pub(crate) fn finish(mut self, ok: bool) -> Counts {
        let marks = (self.counts.skipped.iter())
            .filter(|why| *why != "marked #[ignore]")
            .count();
        self.counts.passed = self.counts.passed.saturating_sub(marks);
        if !ok && self.counts.failed == 0 {
            self.counts.add(Counts::failed(match self.results {
                0 => "did not get as far as a test".to_owned(),
                _ => "ended early".to_owned(),
            }));
        }
        self.counts
    }
}

/// The lines that tell most of what a failed test printed, each on a line of its own.
fn excerpt(lines: &[String]) -> String {
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let (_, told) = lines.split_at(panic.unwrap_or(0));
    // Where it panicked is told; the way there is the harness's.
    let end = told.iter().position(|line| line == "stack backtrace:");
    let (told, _) = told.split_at(end.unwrap_or(told.len()));
    let shown = |lines: &[String]| -> String {
        let lines = lines.iter().filter(|line| !line.is_empty());
        lines.map(|line| format!("\n  | {line}")).collect()
    };
    match told.len().checked_sub(2 * KEPT) {
        None | Some(0) => shown(told),
        Some(left_out) => {
            let (start, rest) = told.split_at(KEPT);
            let (_, end) = rest.split_at(left_out);
            format!("{}\n  | [{left_out} lines]{}", shown(start), shown(end))
        }
    }
}

fn number_before(text: &str, word: &str) -> usize {
    text.split([' ', ';', ','])
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .windows(2)
        .find_map(|pair| match pair {
            [number, next] if *next == word => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, ok: bool) -> Counts {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish(ok)
    }

    #[test]
    fn binaries_add_up() {
        let counts = read(
            "test a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\
             test b::c ... FAILED\nfailures:\n\nfailures:\n    b::c\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n",
            false,
        );
        assert_eq!((counts.passed, counts.failed), (4, 1));
        assert_eq!(counts.skipped, ["marked #[ignore]"]);
        assert_eq!(counts.notes, ["b::c"]);
    }

    #[test]
    fn a_failure_is_told_with_what_it_said() {
        let many: String = (0..100).map(|line| format!("log {line}\n")).collect();
        let counts = read(
            &format!(
                "test x ... Server listening\nFAILED\ntest y ... FAILED\ntest z ... ok\n\
                 successes:\n\n---- z stdout ----\nfine\n\nsuccesses:\n    z\n\n\
                 failures:\n\n---- x stdout ----\nchatter\n\nthread 'x' panicked at a.rs:1:\nno\n{many}\
                 \n---- y ----\nit is\n\nfailures:\n    x\n    y\n\n\
                 test result: FAILED. 1 passed; 2 failed; 0 ignored\n"
            ),
            false,
        );
        assert_eq!((counts.passed, counts.failed), (1, 2));
        let [x, y] = counts.notes.as_slice() else {
            panic!("{:?}", counts.notes)
        };
        assert!(x.starts_with("x\n  | thread 'x' panicked at a.rs:1:\n  | no\n  | log 0\n"));
        assert!(x.contains("lines]") && x.ends_with("log 99") && x.lines().count() < 2 * KEPT + 3);
        assert_eq!(y, "y\n  | it is");
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let counts = read(
            "---- x stdout ----\nskipped: no KVM\ntest result: ok. 2 passed; 0 failed; 0 ignored\n",
            true,
        );
        assert_eq!((counts.passed, counts.failed), (1, 0));
        assert_eq!(counts.skipped, ["no KVM"]);
    }

    #[test]
    fn a_compiler_error_or_a_crash_is_a_failure() {
        assert_eq!(read("error: no\n", false).failed, 1);
        assert_eq!(
            read("test result: ok. 2 passed; 0 failed\n", false).failed,
            1
        );
        assert_eq!(
            read("test result: ok. 2 passed; 0 failed\n", true).failed,
            0
        );
    }
}

//! Reads what Rust's test harness prints: counts, failures, and the suites' own skip marks.

use super::summary::Counts;

/// What `bulkhead_tests::skip` prints before the reason.
const SKIP: &str = "skipped: ";

/// Collects counts from the lines of one or more test binaries.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    counts: Counts,
    results: usize,
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
        } else if let Some(name) =
            (line.strip_prefix("test ")).and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.counts.notes.push(name.to_owned());
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
             test b::c ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n",
            false,
        );
        assert_eq!((counts.passed, counts.failed), (4, 1));
        assert_eq!(counts.skipped, ["marked #[ignore]"]);
        assert_eq!(counts.notes, ["b::c"]);
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

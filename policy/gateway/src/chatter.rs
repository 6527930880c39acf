//! Lines for people about what was refused, at a bounded rate. Used by everything that refuses.

use std::fmt;
use std::io::{self, Write};

use smoltcp::time::{Duration, Instant};

/// Lines at once.
const BURST: u32 = 20;
/// Time in which one more becomes possible.
const PER_LINE: Duration = Duration::from_millis(500);
/// A sentence is not said again within this time: programs try more than once.
const REPEAT: Duration = Duration::from_secs(5);

/// Writes `bulkhead-gateway: partition: sentence` to standard error.
#[derive(Debug)]
pub struct Chatter {
    name: String,
    silent: bool,
    left: u32,
    refilled: Instant,
    withheld: u64,
    last: (String, Instant),
}

impl Chatter {
    /// Speaks about the partition `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: printable(name),
            silent: false,
            left: BURST,
            refilled: Instant::ZERO,
            withheld: 0,
            last: (String::new(), Instant::ZERO),
        }
    }

    /// Says nothing.
    pub fn silent() -> Self {
        Self {
            silent: true,
            ..Self::new("")
        }
    }

    /// Says a sentence, unless it was just said, or counts it when there were too many.
    pub fn say(&mut self, now: Instant, sentence: fmt::Arguments<'_>) {
        let sentence = sentence.to_string();
        if self.is_repeated(now, &sentence) || !self.permits(now) || self.silent {
            return;
        }
        let mut text = String::new();
        if self.withheld > 0 {
            text = format!(
                "bulkhead-gateway: {}: {} more not shown\n",
                self.name, self.withheld
            );
            self.withheld = 0;
        }
        text += &format!("bulkhead-gateway: {}: {sentence}\n", self.name);
        // Nobody is left to tell when this fails.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn is_repeated(&mut self, now: Instant, sentence: &str) -> bool {
        let (last, said) = &self.last;
        if last == sentence && now - *said < REPEAT {
            return true;
        }
        self.last = (sentence.to_owned(), now);
        false
    }

    fn permits(&mut self, now: Instant) -> bool {
        let passed = (now - self.refilled).total_millis() / PER_LINE.total_millis();
        if passed > 0 {
            let gained = u32::try_from(passed).unwrap_or(BURST);
            self.left = self.left.saturating_add(gained).min(BURST);
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.withheld = self.withheld.saturating_add(1);
                false
            }
        }
    }
}

/// `text` without what a terminal would obey: names come from the guest.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_shown() {
        let mut chatter = Chatter::silent();
        let at = Instant::from_millis;
        let shown = (0..100).filter(|_| chatter.permits(at(1))).count();
        assert_eq!((shown, chatter.withheld), (20, 80));
        assert!(chatter.permits(at(600)));
        assert!(!chatter.permits(at(700)));
        let later = (0..100).filter(|_| chatter.permits(at(1_000_000))).count();
        assert_eq!(later, 20);
    }

    #[test]
    fn nothing_is_said_twice_in_a_row() {
        let mut chatter = Chatter::silent();
        let at = Instant::from_secs;
        assert!(!chatter.is_repeated(at(10), "a"));
        assert!(chatter.is_repeated(at(14), "a"));
        assert!(!chatter.is_repeated(at(15), "a"));
        assert!(!chatter.is_repeated(at(15), "b"));
        assert!(!chatter.is_repeated(at(15), "a"));
    }

    #[test]
    fn names_move_no_cursor() {
        assert_eq!(printable("a.example"), "a.example");
        assert_eq!(printable("\u{1b}[2J\r\nx\u{202e}"), "?[2J??x?");
    }
}

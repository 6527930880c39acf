//! Adds up what the entries of each marked path take, and holds the paths to what a figure needs:
//! it was taken twice at least, and took the same each time.

use super::Counts;
use crate::error::Error;

/// What a program says of the path that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its name.
    pub(super) name: String,
    /// Entries before it.
    pub(super) passed_over: u64,
    /// Entries that make it.
    pub(super) entries: u64,
    /// The most that it may take.
    pub(super) bar: Option<u64>,
    /// Which instructions count.
    pub(super) counted: Counted,
}

/// Which instructions of an entry make its path's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// All of them.
    All,
    /// The longest stretch in which the kernel does not look for an urgent thread.
    LongestStretch,
}

/// The instructions of one entry, the first and the last included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) all: u64,
    longest: u64,
    /// Since the kernel looked for an urgent thread.
    stretch: u64,
}

impl Steps {
    /// One more instruction; with `looks` the first of a look for an urgent thread.
    pub(super) fn add(&mut self, looks: bool) {
        self.all += 1;
        self.stretch = if looks { 1 } else { self.stretch + 1 };
        self.longest = self.longest.max(self.stretch);
    }
}

/// A path that is being taken.
#[derive(Debug)]
struct Begun {
    mark: Mark,
    instructions: u64,
    entries: u64,
}

/// The paths so far.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Each with how often it was taken.
    paths: Vec<(Counts, u32)>,
    begun: Option<Begun>,
}

impl Marked {
    /// A path begins.
    pub(super) fn begin(&mut self, mark: Mark) -> Result<(), Error> {
        if let Some(begun) = &self.begun {
            return Err(refused(&begun.mark.name, "has a mark within"));
        }
        if mark.name.is_empty() || mark.entries == 0 {
            return Err(refused(&mark.name, "has no name or no entries"));
        }
        self.begun = Some(Begun {
            mark,
            instructions: 0,
            entries: 0,
        });
        Ok(())
    }

    /// The timer's interrupt came, which no path may have in it.
    pub(super) fn interrupted(&self) -> Result<(), Error> {
        match &self.begun {
            None => Ok(()),
            Some(begun) => Err(refused(&begun.mark.name, "was interrupted by the timer")),
        }
    }

    /// Whether the entry that was just made counts.
    pub(super) fn wants_entry(&mut self) -> bool {
        match &mut self.begun {
            Some(Begun { mark, .. }) if mark.passed_over > 0 => {
                mark.passed_over -= 1;
                false
            }
            begun => begun.is_some(),
        }
    }

    /// It does, and took these instructions.
    pub(super) fn add_entry(&mut self, steps: Steps) -> Result<(), Error> {
        let Some(mut begun) = self.begun.take() else {
            return Ok(());
        };
        match begun.mark.counted {
            Counted::All => begun.instructions += steps.all,
            Counted::LongestStretch => begun.instructions = begun.instructions.max(steps.longest),
        }
        begun.entries += 1;
        if begun.entries < begun.mark.entries {
            self.begun = Some(begun);
            return Ok(());
        }
        let counts = Counts {
            name: begun.mark.name,
            instructions: begun.instructions,
            entries: begun.entries,
            bar: begun.mark.bar,
        };
        let known = self.paths.iter_mut();
        match known.into_iter().find(|(path, _)| path.name == counts.name) {
            None => self.paths.push((counts, 1)),
            Some((path, taken)) if *path == counts => *taken += 1,
            Some((path, _)) => {
                let what = format!(
                    "took {} instructions once and {} another time",
                    path.instructions, counts.instructions
                );
                return Err(refused(&path.name, &what));
            }
        }
        Ok(())
    }

    /// All of them, when the program has ended.
    pub(super) fn finish(self) -> Result<Vec<Counts>, Error> {
        if let Some(begun) = self.begun {
            return Err(refused(&begun.mark.name, "does not end"));
        }
        if let Some((path, _)) = self.paths.iter().find(|(_, taken)| *taken < 2) {
            return Err(refused(&path.name, "was taken only once"));
        }
        if self.paths.is_empty() {
            return Err(refused("", "was never taken: the program has no marks"));
        }
        Ok(self.paths.into_iter().map(|(path, _)| path).collect())
    }
}

fn refused(path: &str, why: &str) -> Error {
    Error::Path(format!("`{path}` {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(name: &str, passed_over: u64, entries: u64) -> Mark {
        Mark {
            name: name.into(),
            passed_over,
            entries,
            bar: None,
            counted: Counted::All,
        }
    }

    /// So many instructions, without a look for an urgent thread.
    fn steps(all: u64) -> Steps {
        let mut steps = Steps::default();
        (0..all).for_each(|_| steps.add(false));
        steps
    }

    /// Entries of so many instructions, as the counter makes them.
    fn take(marked: &mut Marked, entries: &[u64]) -> Result<(), Error> {
        for instructions in entries {
            if marked.wants_entry() {
                marked.add_entry(steps(*instructions))?;
            }
        }
        Ok(())
    }

    #[test]
    fn entries_behind_a_mark_add_up() {
        let mut marked = Marked::default();
        take(&mut marked, &[1000]).unwrap();
        for _ in 0..2 {
            marked.begin(mark("two", 1, 2)).unwrap();
            take(&mut marked, &[400, 30, 5, 2000]).unwrap();
            marked.begin(mark("one", 0, 1)).unwrap();
            take(&mut marked, &[7, 300]).unwrap();
        }
        let found = marked.finish().unwrap();
        let figures: Vec<_> = (found.iter())
            .map(|path| (path.name.as_str(), path.instructions, path.entries))
            .collect();
        assert_eq!(figures, [("two", 35, 2), ("one", 7, 1)]);
    }

    #[test]
    fn the_longest_stretch_without_a_look_counts() {
        let mut marked = Marked::default();
        for _ in 0..2 {
            let longest = Mark {
                counted: Counted::LongestStretch,
                ..mark("s", 0, 2)
            };
            marked.begin(longest).unwrap();
            for looks in [[3, 9], [5, 6]] {
                let mut steps = Steps::default();
                (0..20).for_each(|n| steps.add(looks.contains(&n)));
                assert_eq!(steps.all, 20);
                assert!(marked.wants_entry());
                marked.add_entry(steps).unwrap();
            }
        }
        let found = marked.finish().unwrap();
        assert_eq!(found.first().map(|path| path.instructions), Some(14));
    }

    #[test]
    fn a_path_that_varies_is_refused() {
        let mut marked = Marked::default();
        marked.begin(mark("p", 0, 1)).unwrap();
        take(&mut marked, &[7]).unwrap();
        marked.begin(mark("p", 0, 1)).unwrap();
        let error = take(&mut marked, &[8]).unwrap_err();
        let text = "the path `p` took 7 instructions once and 8 another time";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_path_that_is_interrupted_is_refused() {
        let mut marked = Marked::default();
        marked.interrupted().unwrap();
        marked.begin(mark("p", 0, 1)).unwrap();
        assert!(marked.interrupted().is_err());
        take(&mut marked, &[7]).unwrap();
        marked.interrupted().unwrap();
    }

    #[test]
    fn half_a_path_is_refused() {
        assert!(Marked::default().finish().is_err(), "no path at all");
        let mut marked = Marked::default();
        assert!(marked.begin(mark("", 0, 1)).is_err());
        assert!(marked.begin(mark("p", 0, 0)).is_err());
        marked.begin(mark("p", 0, 2)).unwrap();
        assert!(marked.begin(mark("q", 0, 1)).is_err(), "within another");
        take(&mut marked, &[7]).unwrap();
        assert!(marked.finish().is_err(), "one entry is missing");
        let mut marked = Marked::default();
        marked.begin(mark("p", 0, 1)).unwrap();
        take(&mut marked, &[7]).unwrap();
        let error = marked.finish().unwrap_err();
        assert_eq!(error.to_string(), "the path `p` was taken only once");
    }
}

//! The table of the kernel's paths: read from the page, joined with new figures, written, and
//! compared with them.

use serde::Deserialize;

use super::REMEDY;
use crate::failure::{Failure, Result};
use crate::page::thousands;

/// By how many percent a figure may grow before somebody has to record it.
const TOLERANCE: u64 = 3;
const HEAD: &str = "| path | entries | interpreted | native | at most |\n\
                    | --- | ---: | ---: | ---: | ---: |\n";

/// What `bulkhead-bench instructions` prints.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Counted {
    kvm: Kvm,
    paths: Vec<Counts>,
}

/// How the host's KVM runs guest kernel mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kvm {
    Interpreted,
    Native,
}

#[derive(Clone, Debug, Deserialize)]
struct Counts {
    name: String,
    instructions: u64,
    entries: u64,
    bar: Option<u64>,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table(Vec<Row>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    path: String,
    entries: u64,
    interpreted: Option<u64>,
    native: Option<u64>,
    bar: Option<u64>,
}

impl Row {
    fn on(&self, kvm: Kvm) -> Option<u64> {
        match kvm {
            Kvm::Interpreted => self.interpreted,
            Kvm::Native => self.native,
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let cells: Vec<_> = cells.collect();
        let [path, entries, interpreted, native, bar] = cells.as_slice() else {
            return None;
        };
        let number = |cell: &str| match cell {
            "-" => Some(None),
            digits => digits.replace(',', "").parse().ok().map(Some),
        };
        Some(Self {
            path: (*path).to_owned(),
            entries: entries.parse().ok()?,
            interpreted: number(interpreted)?,
            native: number(native)?,
            bar: number(bar)?,
        })
    }

    fn render(&self) -> String {
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), thousands);
        format!(
            "| {} | {} | {} | {} | {} |\n",
            self.path,
            self.entries,
            number(self.interpreted),
            number(self.native),
            number(self.bar)
        )
    }
}

impl Table {
    /// Reads what [`Self::render`] has written.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let row = |line: &str| {
            Row::parse(line)
                .ok_or_else(|| Failure::new(format!("no row of figures: {line}")).remedy(REMEDY))
        };
        text.lines()
            .skip(2)
            .map(row)
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The lines of the table.
    pub(super) fn render(&self) -> String {
        let rows = self.0.iter().map(Row::render);
        HEAD.to_owned() + &rows.collect::<String>()
    }

    fn row(&self, path: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.path == path)
    }

    /// The paths of `counted` with its figures; those of the other kind of KVM stay.
    pub(super) fn with(&self, counted: &Counted) -> Self {
        let row = |new: &Counts| {
            let mut row = Row {
                path: new.name.clone(),
                entries: new.entries,
                interpreted: None,
                native: None,
                bar: new.bar,
            };
            if let Some(old) = self.row(&new.name) {
                (row.interpreted, row.native) = (old.interpreted, old.native);
            }
            match counted.kvm {
                Kvm::Interpreted => row.interpreted = Some(new.instructions),
                Kvm::Native => row.native = Some(new.instructions),
            }
            row
        };
        Self(counted.paths.iter().map(row).collect())
    }

    /// What has grown, what is not in the table, and what is there and was not counted.
    pub(super) fn problems(&self, counted: &Counted) -> Vec<String> {
        let mut problems = Vec::new();
        for new in &counted.paths {
            let Counts {
                name, instructions, ..
            } = new;
            match self.row(name).and_then(|row| row.on(counted.kvm)) {
                None => problems.push(format!("`{name}` is not on the page: {REMEDY}")),
                Some(old) if 100 * instructions > (100 + TOLERANCE) * old => {
                    problems.push(format!(
                        "`{name}` takes {instructions} instructions and not {old}: more than \
                     {TOLERANCE} percent too many"
                    ))
                }
                Some(_) => {}
            }
        }
        let counted = |path: &str| counted.paths.iter().any(|new| new.name == path);
        for row in self.0.iter().filter(|row| !counted(&row.path)) {
            let path = &row.path;
            problems.push(format!(
                "`{path}` is on the page and was not counted: {REMEDY}"
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "| path | entries | interpreted | native | at most |\n\
                        | --- | ---: | ---: | ---: | ---: |\n\
                        | null call | 1 | 100 | 97 | - |\n\
                        | boot | 1 | 3,682 | - | 4,000 |\n";

    /// As `bulkhead-bench` prints it.
    fn counted(kvm: &str, paths: &[(&str, u64)]) -> Counted {
        let path = |(name, instructions): &(&str, u64)| {
            serde_json::json!({
                "name": name,
                "instructions": instructions,
                "entries": 1,
                "bar": (*name == "boot").then_some(4000),
            })
        };
        let paths: Vec<_> = paths.iter().map(path).collect();
        let json = serde_json::json!({ "kvm": kvm, "paths": paths });
        super::super::parse(&json.to_string()).unwrap()
    }

    fn problems(kvm: &str, paths: &[(&str, u64)]) -> Vec<String> {
        Table::parse(PAGE).unwrap().problems(&counted(kvm, paths))
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        assert_eq!(Table::parse(PAGE).unwrap().render(), PAGE);
        assert_eq!(Table::parse("").unwrap().render(), HEAD);
        for bad in [
            "| a | 1 | 2 | 3 |",
            "| a | - | 2 | 3 | 4 |",
            "| a | 1 | x | 3 | 4 |",
            "",
        ] {
            let text = format!("{HEAD}{bad}\n");
            assert!(Table::parse(&text).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn three_percent_are_allowed_and_no_more() {
        let boot = ("boot", 3792);
        assert_eq!(
            problems("interpreted", &[("null call", 103), boot]),
            [""; 0]
        );
        assert_eq!(problems("interpreted", &[("null call", 1), boot]), [""; 0]);
        let grown = problems("interpreted", &[("null call", 104), ("boot", 3793)]);
        assert_eq!(grown.len(), 2, "{grown:?}");
        let wanted = "`null call` takes 104 instructions and not 100: more than 3 percent too many";
        assert_eq!(grown[0], wanted);
        // The other kind of KVM has its own figures.
        assert_eq!(problems("native", &[("null call", 100), boot]).len(), 2);
    }

    #[test]
    fn page_and_paths_are_the_same() {
        let found = problems("interpreted", &[("null call", 100), ("new", 5)]);
        let wanted = [
            format!("`new` is not on the page: {REMEDY}"),
            format!("`boot` is on the page and was not counted: {REMEDY}"),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn new_figures_leave_those_of_the_other_kind() {
        let table = Table::parse(PAGE).unwrap();
        let new = table.with(&counted("native", &[("new", 5), ("null call", 90)]));
        let wanted =
            HEAD.to_owned() + "| new | 1 | - | 5 | - |\n| null call | 1 | 100 | 90 | - |\n";
        assert_eq!(new.render(), wanted);
        assert!(super::super::parse(r#"{"kvm":"absent","paths":[]}"#).is_err());
    }
}

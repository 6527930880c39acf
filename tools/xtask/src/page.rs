//! Tables of the documentation that are made by a chore: each stands between two comments. Numbers
//! in them are written alike.

use crate::failure::{Failure, Result};

/// `text` of the page `file` with `table` between the comments that name `marker`.
pub(crate) fn put(text: &str, file: &str, marker: &str, table: &str) -> Result<String> {
    let (begin, end) = markers(marker);
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some(format!("{before}{begin}{table}{end}{after}"))
    });
    parts.ok_or_else(|| no_place(file, marker))
}

/// The table that stands there now.
pub(crate) fn get<'t>(text: &'t str, file: &str, marker: &str) -> Result<&'t str> {
    let (begin, end) = markers(marker);
    let table = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end));
    table
        .map(|(table, _)| table)
        .ok_or_else(|| no_place(file, marker))
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn markers(marker: &str) -> (String, String) {
    let line = |edge| format!("<!-- {marker}: {edge} -->\n");
    (line("begin"), line("end"))
}

fn no_place(file: &str, marker: &str) -> Failure {
    let (begin, end) = markers(marker);
    Failure::new(format!("{file} has no place for the table {marker}"))
        .remedy(format!("add the lines\n{begin}{end}"))
}

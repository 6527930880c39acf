//! docs/security.md names the test that proves each mitigation. A page cannot promise what nobody
//! tests any more: each of them has to exist.
#![allow(clippy::expect_used, reason = "a test")]

use std::fs;
use std::path::Path;

/// The rows of the tables of mitigations and of what the red team tried.
fn rows(book: &str) -> Vec<&str> {
    let table = |name: &str| {
        let after = book.split_once(&format!("<!-- {name}: begin -->\n"));
        let (_, after) = after.expect("the table is between its markers");
        let table = after.split_once(&format!("<!-- {name}: end -->"));
        let (table, _) = table.expect("the table is between its markers");
        table.lines().skip(2)
    };
    table("mitigations").chain(table("red team")).collect()
}

/// The tests that a row names, as file and name.
fn named(row: &str) -> Vec<(&str, &str)> {
    let quoted = row.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once('#')).collect()
}

/// Whether a source has a test of that name: a function, or the title of one that is made.
fn has(source: &str, name: &str) -> bool {
    source.contains(&format!("fn {name}(")) || source.contains(&format!("\"{name}\""))
}

#[test]
fn every_mitigation_is_proved_by_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let book = fs::read_to_string(root.join("docs/security.md")).expect("the page");
    let rows = rows(&book);
    assert!(rows.len() > 20, "the table is read: {}", rows.len());
    let mut missing = Vec::new();
    for row in rows {
        let named = named(row);
        assert!(!named.is_empty(), "this proves nothing: {row}");
        missing.extend(named.into_iter().filter(|(file, name)| {
            !fs::read_to_string(root.join(file)).is_ok_and(|source| has(&source, name))
        }));
    }
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn a_test_is_told_from_a_mention() {
    let source = "fn there() {}\nlet title = format!(\"{thread} dies of {act}\");\n// gone";
    assert!(has(source, "there") && has(source, "{thread} dies of {act}"));
    assert!(!has(source, "gone") && !has(source, "the"));
}

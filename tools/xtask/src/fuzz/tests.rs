//! What is read of logs and sources, and that the page names every target.

use std::path::Path;

use super::coverage::{Lines, lines_of};
use super::targets::first_sentence;
use super::*;
use crate::page::thousands;

#[test]
fn the_page_names_every_target() {
    docs::check(&Repo::find()).unwrap();
}

#[test]
fn only_good_runs_count_and_several_add_up() {
    let run = "#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 38Mb\n\
        #18489\tDONE   cov: 1247 ft: 2634 corp: 190/1713b lim: 25 exec/s: 711 rss: 253Mb\n\
        Done 18489 runs in 26 second(s)\nstat::number_of_executed_units: 18489\n";
    let log = Log::parse(run).unwrap();
    let want = Log {
        executions: 18_489,
        seconds: 26,
        edges: 1247,
        inputs: 190,
    };
    assert_eq!(log, want);
    assert_eq!(
        log.line("ports"),
        "ports            passed: 18,489 executions in 26 s (711 a second), 1,247 edges, 190 inputs"
    );
    let twice = Log::parse(&format!("{run}{run}")).unwrap();
    assert_eq!((twice.executions, twice.seconds), (36_978, 52));
    assert_eq!((twice.edges, twice.inputs), (1247, 190));
    assert_eq!(Log::parse(""), None);
    let crash = format!("{run}SUMMARY: libFuzzer: deadly signal\n");
    assert_eq!(Log::parse(&crash), None);
}

#[test]
fn numbers_are_grouped() {
    for (number, want) in [
        (0, "0"),
        (999, "999"),
        (1000, "1,000"),
        (1_234_567, "1,234,567"),
    ] {
        assert_eq!(thousands(number), want);
    }
}

#[test]
fn what_a_target_plays_is_its_first_sentence() {
    for (text, want) in [
        (
            "//! A hostile\n//! guest. It lies.\n#![no_main]\n",
            Some("A hostile guest"),
        ),
        (
            "//! A hostile guest.\n\nfn f() {}\n",
            Some("A hostile guest"),
        ),
        ("//! As of 7.31: a guest\n", Some("As of 7.31: a guest")),
        ("fn f() {}\n", None),
    ] {
        assert_eq!(first_sentence(text).as_deref(), want, "{text}");
    }
}

fn target(name: &str, protects: &[&str]) -> Target {
    Target {
        name: name.into(),
        plays: "A guest".into(),
        protects: protects.iter().map(|p| (*p).to_owned()).collect(),
    }
}

#[test]
fn coverage_is_that_of_the_protected_files() {
    let file = |name: &str, count, covered| {
        format!(
            r#"{{"filename":"{name}","summary":{{"lines":{{"count":{count},"covered":{covered}}}}}}}"#
        )
    };
    let files = [
        file("/r/a/x.rs", 10, 5),
        file("/r/a/b/y.rs", 20, 20),
        file("/r/ab.rs", 100, 0),
        file("/r/c.rs", 7, 0),
    ];
    let export = format!(r#"{{"data":[{{"files":[{}]}}]}}"#, files.join(","));
    let of = |protects: &[&str]| lines_of(&export, Path::new("/r"), &target("t", protects));
    let lines = |count, covered| Lines { count, covered };
    assert_eq!(of(&["a"]).unwrap(), lines(30, 25));
    assert_eq!(of(&["a/b", "c.rs"]).unwrap(), lines(27, 20));
    let failure = of(&["a", "d.rs"]).unwrap_err().to_string();
    assert_eq!(failure, "t executes no code of d.rs");
}

#[test]
fn a_row_stays_until_its_target_runs_again_or_goes() {
    let all = [target("a", &["x"]), target("b", &["x", "y"])];
    assert!(docs::list(&all).ends_with("| `b` | A guest | `x`, `y` |\n"));
    let log = Log {
        executions: 5000,
        seconds: 600,
        edges: 7,
        inputs: 3,
    };
    let reached = Some(Lines {
        count: 10,
        covered: 9,
    });
    let row = |name| docs::row(name, "2026-01-01", &log, reached);
    let want = "| `a` | 2026-01-01 | 600 | 5,000 | 8 | 7 | 3 | 90 % | 10 |";
    assert_eq!(row("a"), want);
    assert!(docs::row("a", "2026-01-01", &log, None).ends_with("| 3 | - | - |"));
    let old = "| `a` | old |\n| `b` | old |\n| `gone` | old |\n";
    let table = docs::figures(&all, old, &[row("a")]);
    let rows: Vec<_> = table.lines().skip(2).collect();
    assert_eq!(rows, [want, "| `b` | old |"]);
}

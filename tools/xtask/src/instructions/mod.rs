//! `instructions`: the kernel instructions of each path, counted by the built `bulkhead-bench`, and
//! held against the page that says how many there may be. The step of the same name in
//! [`crate::test`] is this without options.
//!
//! [`table`] is the page's table, and what is made of two of them.

mod table;

use std::fs;
use std::process::Command;

use crate::build;
use crate::failure::{At, Failure, Result};
use crate::lab::{self, Lab};
use crate::page;
use crate::process::output;
use crate::repo::Repo;
use table::{Counted, Table};

/// The page, and its table.
const PAGE: &str = "docs/kernel-instructions.md";
const MARKER: &str = "kernel instructions";
/// What is said where the page does not fit.
const REMEDY: &str = "cargo xtask instructions --record";
/// Bound on boot and counting in the lab, in seconds.
const LAB_LIMIT_S: u64 = 15 * 60;

/// Options of `cargo xtask instructions`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Count in the lab, whose KVM runs guest kernel mode natively
    #[arg(long)]
    lab: bool,
    /// Write what was counted into docs/kernel-instructions.md
    #[arg(long)]
    record: bool,
}

/// Runs the chore; 0 when the page still holds, or was written.
pub(crate) fn run_chore(repo: &Repo, options: &Options) -> Result<i32> {
    build::run_all(repo)?;
    let problems = hold(repo, &count(repo, options.lab)?, options.record)?;
    for problem in &problems {
        eprintln!("instructions: {problem}");
    }
    Ok(i32::from(!problems.is_empty()))
}

/// Counts on this machine's KVM or in the lab; why the page does not hold any more.
pub(crate) fn check(repo: &Repo, lab: bool) -> Result<Vec<String>> {
    hold(repo, &count(repo, lab)?, false)
}

fn count(repo: &Repo, lab: bool) -> Result<Counted> {
    if lab { in_lab(repo) } else { on_host(repo) }
}

/// Shows the page's table with the new figures, and writes it where it is to be recorded; else what
/// is wrong with the page.
fn hold(repo: &Repo, counted: &Counted, record: bool) -> Result<Vec<String>> {
    let path = repo.root().join(PAGE);
    let text = fs::read_to_string(&path).at("read", &path)?;
    let old = Table::parse(page::get(&text, PAGE, MARKER)?)?;
    let new = old.with(counted);
    print!("{}", new.render());
    if record {
        let text = page::put(&text, PAGE, MARKER, &new.render())?;
        fs::write(&path, text).at("write", &path)?;
        return Ok(Vec::new());
    }
    Ok(old.problems(counted))
}

fn on_host(repo: &Repo) -> Result<Counted> {
    let mut bench = Command::new(repo.dist().join("bin/bulkhead-bench"));
    parse(&output(bench.args(["instructions", "--format", "json"]))?)
}

fn in_lab(repo: &Repo) -> Result<Counted> {
    let options = lab::Options {
        timeout: LAB_LIMIT_S,
        ..lab::Options::default()
    };
    let command = ["bulkhead-bench", "instructions", "--format", "json"].map(str::to_owned);
    let mut said = Vec::new();
    let mut stderr = std::io::stderr();
    match Lab::get(repo, &options)?.run(&command, &mut said, &mut stderr, false)? {
        0 => parse(&String::from_utf8_lossy(&said)),
        status => Err(Failure::new(format!(
            "counting in the lab failed: {status}"
        ))),
    }
}

fn parse(json: &str) -> Result<Counted> {
    serde_json::from_str(json)
        .map_err(|error| Failure::new(format!("bulkhead-bench said no figures: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_table_as_it_is_written() {
        let text = fs::read_to_string(Repo::find().root().join(PAGE)).unwrap();
        let table = page::get(&text, PAGE, MARKER).unwrap();
        assert_eq!(Table::parse(table).unwrap().render(), table);
    }
}

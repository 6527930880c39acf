//! The two tables of `docs/fuzzing.md`: what the targets are, from their sources, and the figures of
//! their last recorded runs.

use std::fs;
use std::process::Command;

use super::coverage::Lines;
use super::log::Log;
use super::targets::{self, Target};
use crate::failure::{At, Result};
use crate::page::{self, thousands};
use crate::process::output;
use crate::repo::Repo;

/// The page.
const PAGE: &str = "docs/fuzzing.md";

/// Writes the figures of `targets`, which reach `reached`; the rows of others stay.
pub(super) fn record(repo: &Repo, targets: &[Target], reached: &[Option<Lines>]) -> Result<()> {
    let path = repo.root().join(PAGE);
    let page = fs::read_to_string(&path).at("read", &path)?;
    let mut rows = Vec::new();
    for (target, lines) in targets.iter().zip(reached) {
        let log = super::log_of(repo, target);
        let figures = Log::read(&log)?;
        let mut date = Command::new("date");
        date.args(["--utc", "+%Y-%m-%d", "--reference"]).arg(&log);
        rows.push(row(
            &target.name,
            output(&mut date)?.trim(),
            &figures,
            *lines,
        ));
    }
    let old = page::get(&page, PAGE, "fuzz figures")?;
    let all = targets::all(repo)?;
    let page = page::put(&page, PAGE, "fuzz figures", &figures(&all, old, &rows))?;
    let page = page::put(&page, PAGE, "fuzz targets", &list(&all))?;
    fs::write(&path, page).at("write", &path)
}

/// Fails when the page lacks a target, or says of one what is not so.
#[cfg(test)]
pub(super) fn check(repo: &Repo) -> Result<()> {
    let path = repo.root().join(PAGE);
    let page = fs::read_to_string(&path).at("read", &path)?;
    let all = targets::all(repo)?;
    for target in &all {
        for protected in &target.protects {
            let path = repo.root().join(protected);
            fs::metadata(&path).at("find", &path)?;
        }
    }
    let remedy = "cargo xtask fuzz --seconds 600, then cargo xtask fuzz --record";
    if page::get(&page, PAGE, "fuzz targets")? != list(&all) {
        let what = format!("{PAGE} lists other targets than there are");
        return Err(crate::failure::Failure::new(what).remedy(remedy));
    }
    let figures = page::get(&page, PAGE, "fuzz figures")?;
    let names: Vec<_> = figures.lines().skip(2).filter_map(name_of).collect();
    match all.iter().find(|t| !names.contains(&t.name.as_str())) {
        Some(target) => {
            let what = format!("{PAGE} has no figures of {}", target.name);
            Err(crate::failure::Failure::new(what).remedy(remedy))
        }
        None if names.len() != all.len() => {
            let what = format!("{PAGE} has figures of a target that is not there");
            Err(crate::failure::Failure::new(what).remedy(remedy))
        }
        None => Ok(()),
    }
}

/// What each plays, and what it protects.
pub(super) fn list(all: &[Target]) -> String {
    let mut out = String::from("| target | plays | protects |\n| --- | --- | --- |\n");
    for target in all {
        let protects: Vec<_> = target.protects.iter().map(|p| format!("`{p}`")).collect();
        let (name, plays) = (&target.name, &target.plays);
        out += &format!("| `{name}` | {plays} | {} |\n", protects.join(", "));
    }
    out
}

/// The table of figures: of each target in `all` its new row, or else its old one.
pub(super) fn figures(all: &[Target], old: &str, rows: &[String]) -> String {
    let mut out = String::from(
        "| target | day | seconds | executions | a second | edges | inputs | lines | of |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for target in all {
        let is_its = |row: &&str| name_of(row) == Some(&target.name);
        let new = rows.iter().map(String::as_str).find(is_its);
        if let Some(row) = new.or_else(|| old.lines().find(is_its)) {
            out += &format!("{row}\n");
        }
    }
    out
}

/// The target whose row this is.
fn name_of(row: &str) -> Option<&str> {
    row.strip_prefix("| `")?.split('`').next()
}

pub(super) fn row(name: &str, day: &str, log: &Log, lines: Option<Lines>) -> String {
    let lines = match lines {
        Some(Lines { count, covered }) => {
            format!("{} % | {}", 100 * covered / count.max(1), thousands(count))
        }
        None => "- | -".to_owned(),
    };
    format!(
        "| `{name}` | {day} | {} | {} | {} | {} | {} | {lines} |",
        log.seconds,
        thousands(log.executions),
        thousands(log.rate()),
        thousands(log.edges),
        thousands(log.inputs),
    )
}

//! The cases, by what they are about.

mod attributes;
mod contents;
mod directories;
mod names;
mod users;

use crate::check::Case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        names::CASES,
        contents::CASES,
        directories::CASES,
        attributes::CASES,
        users::CASES,
    ]
    .into_iter()
    .flatten()
    .map(|(name, needs, run)| Case {
        name,
        needs: *needs,
        run: *run,
    })
    .collect()
}

/// Name, needs and body of a case.
type Entry = (
    &'static str,
    crate::check::Needs,
    fn(&std::path::Path) -> crate::check::Outcome,
);

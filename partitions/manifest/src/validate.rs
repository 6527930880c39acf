//! From a draft to a checked system. The one place where the rules of a manifest are enforced.

mod partition;
mod program;

use crate::diagnostic::{Code, Diagnostic, Rejected};
use crate::draft::{At, SystemDraft};
use crate::system::{System, Validated};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// Most partitions of one system.
const MAX_PARTITIONS: usize = 256;
/// Longest name of a system or partition; keeps socket paths below their limit of 108 bytes.
const MAX_NAME: usize = 40;

/// Where refusals go: code, span, message, help.
pub(crate) type Sink<'s> = dyn FnMut(Code, Option<Range<usize>>, String, String) + 's;

/// Checks a draft that was not read from a file. Relative paths start at `base`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn validate(draft: &SystemDraft, base: &Path) -> Result<Validated<System>, Rejected> {
    let mut diagnostics = Vec::new();
    let checked = validate_in(draft, base, &mut |code, _, message, help| {
        diagnostics.push(Diagnostic {
            code,
            message,
            help,
            place: None,
        });
    });
    match checked {
        Some(system) if diagnostics.is_empty() => Ok(Validated(system)),
        _ => Err(Rejected {
            file: None,
            diagnostics,
        }),
    }
}

/// Checks `draft` and tells `refuse` everything that is wrong; `Some` only if nothing was.
pub(crate) fn validate_in(
    draft: &SystemDraft,
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<System> {
    let name = check_name("the system", draft.name.as_ref(), None, refuse);
    if draft.partitions.is_empty() {
        refuse(
            Code::NoPartition,
            None,
            "the system has no partition".to_owned(),
            "add one: [[partition]]".to_owned(),
        );
    }
    if let Some(excess) = draft.partitions.get(MAX_PARTITIONS) {
        refuse(
            Code::NoPartition,
            excess.span.clone(),
            format!("the system has {} partitions", draft.partitions.len()),
            format!("split it: a system has at most {MAX_PARTITIONS}"),
        );
    }
    let mut seen = BTreeSet::new();
    let mut partitions = Vec::new();
    for partition in &draft.partitions {
        if let Some(name) = &partition.value.name
            && !seen.insert(name.value.as_str())
        {
            refuse(
                Code::DuplicateName,
                name.span.clone(),
                format!("a second partition is named `{}`", name.value),
                "give each partition a name of its own".to_owned(),
            );
        }
        partitions.push(partition::check(partition, base, refuse));
    }
    Some(System {
        name: name?,
        partitions: partitions.into_iter().collect::<Option<_>>()?,
    })
}

/// Names become directories, prefixes and device names, so they are plain.
fn check_name(
    whose: &str,
    name: Option<&At<String>>,
    span: Option<Range<usize>>,
    refuse: &mut Sink<'_>,
) -> Option<String> {
    let Some(name) = name else {
        refuse(
            Code::MissingKey,
            span,
            format!("{whose} has no `name`"),
            "add one: name = \"web\"".to_owned(),
        );
        return None;
    };
    let text = &name.value;
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if text.is_empty() || text.len() > MAX_NAME || !plain || text.starts_with('-') {
        refuse(
            Code::Name,
            name.span.clone(),
            format!("`{}` is no name for {whose}", text.escape_debug()),
            format!("a name is 1 to {MAX_NAME} of a-z, 0-9 and -, and does not start with -"),
        );
        return None;
    }
    Some(text.clone())
}

#[cfg(test)]
mod tests;

//! From a draft to a checked system. The one place where the rules of a manifest are enforced.

mod constraints;
mod grants;
mod machine;
mod mandate;
mod options;
mod partition;
mod program;

pub use grants::is_reserved_directory;
pub(crate) use grants::{denials, granted};
pub(crate) use machine::{adherence, autonomy, memory_size};
pub(crate) use mandate::Terms;

use crate::device::Device;
use crate::diagnostic::{Code, Diagnostic, Rejected};
use crate::draft::{At, GrantDraft, PartitionDraft, SystemDraft};
use crate::system::{KernelKind, Partition, System, Validated};
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
            field: None,
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

/// Checks grants for a partition that runs already, and gives back their devices. `taken` are the
/// names of the devices it has. Relative paths start at `base`.
///
/// # Errors
/// Everything that is wrong with them.
pub fn validate_devices(
    grants: &[GrantDraft],
    (system, partition): (&str, &str),
    (kernel, vcpus): (KernelKind, u32),
    taken: &[String],
    base: &Path,
) -> Result<Vec<Device>, Rejected> {
    let mut diagnostics = Vec::new();
    let whose = grants::Whose {
        system,
        partition,
        number: 0,
        kernel: Some(kernel),
        vcpus,
        base,
    };
    let drafts: Vec<At<GrantDraft>> = grants.iter().cloned().map(At::from).collect();
    let checked = grants::check(
        &drafts,
        &[],
        None,
        &whose,
        taken,
        &mut |code, _, message, help| {
            diagnostics.push(Diagnostic {
                code,
                message,
                help,
                place: None,
                field: None,
            });
        },
    );
    match checked {
        Some((_, devices)) if diagnostics.is_empty() => Ok(devices),
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
    let system = name.clone().unwrap_or_default();
    for (number, partition) in draft.partitions.iter().enumerate() {
        if let Some(name) = &partition.value.name
            && !seen.insert(name.value.as_str())
        {
            let at = match partition.value.mandate {
                Some(_) => &partition.span,
                None => &name.span,
            };
            refuse(
                Code::DuplicateName,
                at.clone(),
                format!("a second partition is named `{}`", name.value),
                "give each partition a name of its own".to_owned(),
            );
        }
        let place = (system.as_str(), number);
        partitions.push(check_partition(partition, place, base, refuse));
    }
    Some(System {
        name: name?,
        partitions: partitions.into_iter().collect::<Option<_>>()?,
    })
}

/// Checks a manifest as the only partition of a system of its name.
pub(crate) fn validate_alone(
    draft: &PartitionDraft,
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Partition> {
    let system = draft.name.as_ref().map_or("", |name| name.value.as_str());
    let partition = At {
        value: draft.clone(),
        span: Some(0..0),
    };
    partition::check(&partition, (system, 0), base, refuse)
}

/// Checks one partition. Of one that has a manifest of its own every place is that of its name in the
/// system, since those of its draft are in another text.
fn check_partition(
    partition: &At<PartitionDraft>,
    place: (&str, usize),
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Partition> {
    if let Some(reference) = &partition.value.manifest {
        refuse(
            Code::Reference,
            reference.span.clone(),
            format!(
                "nobody has read the manifest `{}`",
                reference.value.path.escape_debug()
            ),
            "start the system with `bulkhead up`".to_owned(),
        );
        return None;
    }
    match (&partition.value.mandate, &partition.span) {
        (Some(_), Some(span)) => {
            let span = span.clone();
            let refuse = &mut |code, _: Option<Range<usize>>, message, help| {
                refuse(code, Some(span.clone()), message, help);
            };
            partition::check(partition, place, base, refuse)
        }
        _ => partition::check(partition, place, base, refuse),
    }
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

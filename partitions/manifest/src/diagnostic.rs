//! What is wrong with a manifest, where, and what to do about it.

use std::fmt;
use std::ops::Range;

/// Stable name of a kind of refusal. Scripts may match on it; it never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The text is not TOML.
    Syntax,
    /// The file is longer than [`crate::MAX_BYTES`] or is not UTF-8.
    File,
    /// A key that no table of this kind has.
    UnknownKey,
    /// A key that this kind of kernel does not have.
    KeyNotForKernel,
    /// An option that this kind of grant does not have.
    KeyNotForGrant,
    /// A mandatory key is absent.
    MissingKey,
    /// A value of the wrong TOML type.
    WrongType,
    /// A name of a system or partition breaks the rules of names.
    Name,
    /// Two partitions of one name.
    DuplicateName,
    /// No partition at all.
    NoPartition,
    /// A kernel that does not exist.
    Kernel,
    /// A word that is none of those a key takes.
    Choice,
    /// Memory is no size, or out of bounds.
    Memory,
    /// The number of vCPUs is out of bounds.
    Vcpus,
    /// A capability that does not exist or is incomplete.
    Grant,
    /// An option of a device is malformed, out of bounds, or contradicts another.
    Device,
    /// A rate is malformed or out of bounds.
    Rate,
    /// A directory that must not be shared, or that overlaps another.
    Share,
    /// A limit is malformed or out of bounds.
    Limits,
    /// One disk, directory, file, socket or interface is granted twice.
    DuplicateGrant,
    /// A path on the host or in the library is malformed.
    Path,
    /// The target of a mount is not an absolute, plain path, or is reserved.
    MountTarget,
    /// Two mounts share a target, or one lies inside the other.
    OverlappingMount,
    /// The command, an argument or the environment is empty, malformed or too long.
    Command,
    /// `command` and `initrd` exclude each other.
    Boot,
    /// A role, an owner or a parent is malformed.
    Identity,
    /// A lifetime is malformed, or says two things.
    Lifetime,
    /// A secret is malformed, is there twice, or is for a host that is not reachable.
    Secret,
    /// What a partition may start is out of bounds.
    Spawn,
    /// A budget is malformed or out of bounds.
    Budget,
    /// A manifest that has no canonical form.
    Form,
    /// A partition names a manifest of its own, and something beside it; or nobody reads it.
    Reference,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 32] = [
        Self::Syntax,
        Self::File,
        Self::UnknownKey,
        Self::KeyNotForKernel,
        Self::KeyNotForGrant,
        Self::MissingKey,
        Self::WrongType,
        Self::Name,
        Self::DuplicateName,
        Self::NoPartition,
        Self::Kernel,
        Self::Choice,
        Self::Memory,
        Self::Vcpus,
        Self::Grant,
        Self::Device,
        Self::Rate,
        Self::Share,
        Self::Limits,
        Self::DuplicateGrant,
        Self::Path,
        Self::MountTarget,
        Self::OverlappingMount,
        Self::Command,
        Self::Boot,
        Self::Identity,
        Self::Lifetime,
        Self::Secret,
        Self::Spawn,
        Self::Budget,
        Self::Form,
        Self::Reference,
    ];

    /// The code as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "manifest-syntax",
            Self::File => "manifest-file",
            Self::UnknownKey => "manifest-unknown-key",
            Self::KeyNotForKernel => "manifest-key-not-for-kernel",
            Self::KeyNotForGrant => "manifest-key-not-for-grant",
            Self::MissingKey => "manifest-missing-key",
            Self::WrongType => "manifest-wrong-type",
            Self::Name => "manifest-name",
            Self::DuplicateName => "manifest-duplicate-name",
            Self::NoPartition => "manifest-no-partition",
            Self::Kernel => "manifest-kernel",
            Self::Choice => "manifest-choice",
            Self::Memory => "manifest-memory",
            Self::Vcpus => "manifest-vcpus",
            Self::Grant => "manifest-grant",
            Self::Device => "manifest-device",
            Self::Rate => "manifest-rate",
            Self::Share => "manifest-share",
            Self::Limits => "manifest-limits",
            Self::DuplicateGrant => "manifest-duplicate-grant",
            Self::Path => "manifest-path",
            Self::MountTarget => "manifest-mount-target",
            Self::OverlappingMount => "manifest-overlapping-mount",
            Self::Command => "manifest-command",
            Self::Boot => "manifest-boot",
            Self::Identity => "manifest-identity",
            Self::Lifetime => "manifest-lifetime",
            Self::Secret => "manifest-secret",
            Self::Spawn => "manifest-spawn",
            Self::Budget => "manifest-budget",
            Self::Form => "manifest-form",
            Self::Reference => "manifest-reference",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes of the text.
    pub span: Range<usize>,
    /// Line of the first byte, from 1.
    pub line: usize,
    /// Character in that line, from 1.
    pub column: usize,
}

impl Place {
    /// Finds `span` in `text`; a span beyond the end means the end.
    pub(crate) fn of(text: &str, span: Range<usize>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before
            .get(line_start..)
            .map_or(0, |line| line.chars().count())
            + 1;
        Self { span, line, column }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Its kind.
    pub code: Code,
    /// What is wrong, on what; lower case, no full stop, one line.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Where, when it came from a file.
    pub place: Option<Place>,
    /// The key there, by its path: `grants[2]`. None where the text is no TOML.
    pub field: Option<String>,
}

/// A manifest that was refused: at least one diagnostic, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct Rejected {
    /// Name of the file, where there is one.
    pub file: Option<String>,
    /// What is wrong with it.
    pub diagnostics: Vec<Diagnostic>,
}

impl Rejected {
    /// `file:line:column: message` of one diagnostic.
    pub fn locate(&self, diagnostic: &Diagnostic) -> String {
        match (&self.file, &diagnostic.place) {
            (Some(file), Some(place)) => {
                format!(
                    "{file}:{}:{}: {}",
                    place.line, place.column, diagnostic.message
                )
            }
            (Some(file), None) => format!("{file}: {}", diagnostic.message),
            (None, _) => diagnostic.message.clone(),
        }
    }

    fn summary(&self) -> String {
        let lines: Vec<String> = self.diagnostics.iter().map(|d| self.locate(d)).collect();
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nä = \"é\" # x\n\nb";
        for (start, line, column) in [(0, 1, 1), (4, 1, 5), (6, 2, 1), (8, 2, 2), (20, 3, 1)] {
            let place = Place::of(text, start..start);
            assert_eq!((place.line, place.column), (line, column), "byte {start}");
        }
        // Inside a character, or beyond the end: no panic, the end of the text.
        Place::of(text, 7..7);
        assert_eq!(Place::of(text, 900..901).line, 4);
    }

    #[test]
    fn codes_are_distinct() {
        let mut codes = Code::ALL.map(Code::as_str).to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Code::ALL.len());
    }

    #[test]
    fn the_documentation_lists_exactly_the_codes() {
        let documentation = include_str!("../../../docs/manifest.md");
        let rows = documentation
            .lines()
            .filter_map(|line| line.strip_prefix("| `manifest-"));
        let documented: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        let codes = Code::ALL.map(|code| code.as_str().trim_start_matches("manifest-"));
        assert_eq!(documented, codes);
    }
}

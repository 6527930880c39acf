//! The seventh rule: it asks for nothing that nobody may have, whatever role and signature say.

use super::{Case, Rejection, Rule};
use crate::diagnostic::Rejected;
use crate::draft::At;
use crate::parse::{parse_table, read_denial, text_of};
use crate::reader::{Reader, Report};
use crate::validate::denials;
use bulkhead_capability::{Capability, CapabilityName};
use std::path::{Path, PathBuf};

/// Denied on every host: what a link-local address leads to in a cloud is the host's own identity, and
/// the files are those that say who may become whom.
const BUILT_IN: [&str; 2] = [
    "net.connect:tcp:169.254.0.0/16:*",
    "net.connect:udp:169.254.0.0/16:*",
];
/// Files of which no partition gets a copy, and that lie in no directory or disk of one.
const BUILT_IN_FILES: [&str; 5] = [
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/ssh",
    "/root/.ssh",
];
/// Names of capabilities through which a file of the host can be reached.
const READERS: [CapabilityName; 3] = [
    CapabilityName::BlockRead,
    CapabilityName::FsRead,
    CapabilityName::PmemRead,
];

/// What nobody may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList(Vec<Capability>);

impl DenyList {
    /// What is denied on every host, and what lies in these directories: those of Bulkhead itself.
    pub fn built_in(own: &[PathBuf]) -> Self {
        let mut denied: Vec<Capability> = (BUILT_IN.iter())
            .filter_map(|text| text.parse().ok())
            .collect();
        let files = BUILT_IN_FILES.iter().map(PathBuf::from);
        for file in files.chain(own.iter().cloned()) {
            let text = file.to_string_lossy();
            let each = READERS.map(|name| Capability::new(name, Some(&text)));
            denied.extend(each.into_iter().flatten());
        }
        Self(denied)
    }

    /// The same and more: nothing that is built in can be taken away.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// Each denial.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.iter()
    }
}

/// Reads a `deny.toml`, which is `deny = ["net.connect:...", ...]`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_deny_list(bytes: &[u8], file: &Path) -> Result<DenyList, Rejected> {
    let name = file.display().to_string();
    let text = text_of(bytes, &name)?;
    let root = parse_table(text, &name)?;
    let mut report = Report::new(text);
    let mut reader = Reader::new(&mut report, root.get_ref(), &["deny"], "in a deny list");
    let drafts = reader.elements("deny", read_denial);
    let base = file.parent().unwrap_or(Path::new(""));
    report
        .check(|refuse| denials(&drafts, base, refuse), &name)
        .map(DenyList)
}

pub(super) fn check(case: &Case<'_>, deny: &DenyList) -> Result<(), Box<Rejection>> {
    let own: Vec<&Capability> = case.partition().grants.denied().collect();
    let reject = |field, span, what: &Capability, denied: &Capability| {
        let message = format!("`{what}` is denied to everybody on this host by `{denied}`");
        let help = "leave it out, make it narrower, or deny that part of it in the manifest too";
        Err(case.reject(Rule::Deny, field, span, message, help))
    };
    let forbids = |wanted: &Capability| {
        deny.iter().find(|denied| {
            // What the manifest denies itself, it does not ask for: where somebody takes that part
            // away. A file or directory is there as a whole.
            let divisible = wanted.path().is_none();
            let waived = divisible && own.iter().any(|own| denied.is_narrower_or_equal(own));
            wanted.is_denied_by(denied) && !waived
        })
    };
    let granted = case.manifest.grants().iter();
    let granted = granted.map(|at| (at.value.capability(), &at.span));
    let files = case.manifest.disk_files().iter();
    for (wanted, span) in granted.chain(files.map(|at| (&at.value, &at.span))) {
        // By the name that was written, and by the one that it leads to.
        for wanted in [Some(wanted.clone()), real(case, wanted)]
            .into_iter()
            .flatten()
        {
            if let Some(denied) = forbids(&wanted) {
                return reject("grants", span.clone(), &wanted, denied);
            }
        }
    }
    for At { value: file, span } in case.manifest.boot_files() {
        for path in [file.clone(), case.host.real_path(file)] {
            let wanted = Capability::FsRead(path);
            if let Some(denied) = forbids(&wanted) {
                return reject("boot", span.clone(), &wanted, denied);
            }
        }
    }
    Ok(())
}

/// The same capability of what its path leads to.
fn real(case: &Case<'_>, capability: &Capability) -> Option<Capability> {
    let path = case.host.real_path(capability.path()?);
    Capability::new(capability.name(), Some(&path.to_string_lossy())).ok()
}

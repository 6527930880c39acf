//! The nine rules that a manifest keeps before anything of its partition exists, in their order.
//!
//! The first, what a manifest may be, is kept by whoever holds a [`Manifest`]. [`admit`] judges the
//! others by what operators have configured ([`Policy`]) and by what runs ([`Host`]), neither of which
//! it looks up itself. The first rule that is not kept ends it.

mod approval;
mod bounds;
mod capacity;
mod ceiling;
mod denied;
mod family;
mod role;
mod signature;

#[cfg(test)]
mod tests;

pub use capacity::Capacity;
pub use denied::{DenyList, parse_deny_list};
pub use family::lineage;
pub use role::{Role, parse_role};

use crate::diagnostic::Place;
use crate::document;
use crate::draft::PartitionDraft;
use crate::mandate::Mandate;
use crate::manifest::Manifest;
use crate::system::Partition;
use bulkhead_capability::Capability;
use bulkhead_signature::{Envelope, Trusted};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// It is what a manifest may be.
    Schema,
    /// A trusted operator has signed it.
    Signature,
    /// It asks for no more than its role may have.
    Ceiling,
    /// It asks for no more than its parent has.
    Parent,
    /// Its parent may start it, and as many as there would be.
    Spawn,
    /// The host has what it asks for.
    Capacity,
    /// It asks for nothing that nobody may have.
    Deny,
    /// No running partition has its identity.
    Identity,
    /// A second person has approved of a lifetime without end.
    Approval,
}

impl Rule {
    /// Every rule, in order.
    pub const ALL: [Self; 9] = [
        Self::Schema,
        Self::Signature,
        Self::Ceiling,
        Self::Parent,
        Self::Spawn,
        Self::Capacity,
        Self::Deny,
        Self::Identity,
        Self::Approval,
    ];

    /// Its stable code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schema => "rule-schema",
            Self::Signature => "rule-signature",
            Self::Ceiling => "rule-ceiling",
            Self::Parent => "rule-parent",
            Self::Spawn => "rule-spawn",
            Self::Capacity => "rule-capacity",
            Self::Deny => "rule-deny",
            Self::Identity => "rule-identity",
            Self::Approval => "rule-approval",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A manifest that does not keep a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.located())]
pub struct Rejection {
    /// The first rule that it does not keep.
    pub rule: Rule,
    /// Identity of the partition that there will not be.
    pub identity: String,
    /// What in the manifest: `grants`, `resources.memory`.
    pub field: &'static str,
    /// What is wrong, in lower case.
    pub message: String,
    /// What to do.
    pub help: String,
    /// The manifest.
    pub file: String,
    /// Where in its text, where it says something about it.
    pub place: Option<Place>,
}

impl Rejection {
    fn of(
        manifest: &Manifest,
        rule: Rule,
        field: &'static str,
        span: Option<Range<usize>>,
        message: String,
        help: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self {
            rule,
            identity: manifest.identity().to_owned(),
            field,
            message,
            help: help.into(),
            file: manifest.file().to_owned(),
            place: manifest.place(span),
        })
    }

    fn located(&self) -> String {
        let Self { file, message, .. } = self;
        match &self.place {
            Some(place) => format!("{file}:{}:{}: {message}", place.line, place.column),
            None => format!("{file}: {message}"),
        }
    }
}

/// What operators have configured.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'p> {
    /// Whose signatures count.
    pub trusted: &'p [Trusted],
    /// The role that the manifest names, if there is one of that name.
    pub role: Option<&'p Role>,
    /// What nobody may have.
    pub deny: &'p DenyList,
}

/// What runs on the host, and what it is.
pub trait Host {
    /// Running partitions that have manifests.
    fn running(&self) -> &[Manifest];

    /// How long the running partition of this identity has run: not at all where it is about to start.
    fn age(&self, identity: &str) -> Duration;

    /// What the host has, and what is taken of it.
    fn capacity(&self) -> Capacity;

    /// The path of a file without symbolic links and `..`; what does not exist yet is named below
    /// what does.
    fn real_path(&self, path: &Path) -> PathBuf;
}

/// How a manifest was handed in.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'p> {
    /// In an envelope.
    Signed(&'p Envelope),
    /// As text, by an operator who says that this will do.
    Vouched,
    /// As text.
    None,
}

/// A manifest that keeps all nine rules. Only [`admit`] makes one.
#[derive(Clone, Debug)]
pub struct Admitted {
    draft: PartitionDraft,
    signers: Vec<String>,
}

impl Admitted {
    /// The partition, for [`crate::validate()`]. Its paths are absolute.
    pub fn into_draft(self) -> PartitionDraft {
        self.draft
    }

    /// The partition's name, which is its identity.
    pub fn name(&self) -> &str {
        self.draft.name.as_ref().map_or("", |name| &name.value)
    }

    /// Names of the trusted keys that signed it.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}

/// Judges `manifest` by the rules from the second to the last.
///
/// # Errors
/// The first rule that it does not keep.
pub fn admit(
    manifest: &Manifest,
    proof: Proof<'_>,
    policy: Policy<'_>,
    host: &dyn Host,
) -> Result<Admitted, Box<Rejection>> {
    let case = Case { manifest, host };
    let signers = signature::check(&case, proof, policy.trusted)?;
    ceiling::check(&case, policy.role)?;
    let parent = family::check_parent(&case)?;
    family::check_spawn(&case, parent)?;
    capacity::check(&case)?;
    denied::check(&case, policy.deny)?;
    family::check_identity(&case)?;
    approval::check(&case, &signers)?;
    let unreadable = |(_, message): document::Problem| {
        case.reject(Rule::Schema, "identity", None, message, "write it anew")
    };
    let mut draft = document::to_draft(manifest.document()).map_err(unreadable)?;
    if let Some(mandate) = &mut draft.mandate {
        mandate.value.leads = leads(manifest, host);
        mandate.value.lineage = family::lineage(manifest, host);
        mandate.value.left = family::left(&mandate.value.lineage, host);
    }
    Ok(Admitted {
        draft,
        signers: signers.iter().map(|signer| signer.name.clone()).collect(),
    })
}

/// Where the names of the files in a manifest lead.
fn leads(manifest: &Manifest, host: &dyn Host) -> BTreeMap<PathBuf, PathBuf> {
    let grants = manifest.grants().iter().map(|at| at.value.capability());
    let held = grants.chain(manifest.disk_files().iter().map(|at| &at.value));
    let boot = manifest.boot_files().iter().map(|at| at.value.as_path());
    let limits = manifest.mandate().tool_limits.as_deref();
    let files = held.filter_map(Capability::path).chain(boot).chain(limits);
    files
        .map(|path| (path.to_owned(), host.real_path(path)))
        .collect()
}

/// Judges `manifest`, which was admitted, once more by what runs, as of now: others may have been
/// admitted meanwhile.
///
/// # Errors
/// The first rule about other partitions and the host that it does not keep.
pub fn admit_beside(manifest: &Manifest, host: &dyn Host) -> Result<(), Box<Rejection>> {
    let case = Case { manifest, host };
    let parent = family::check_parent(&case)?;
    family::check_spawn(&case, parent)?;
    capacity::check(&case)?;
    family::check_identity(&case)
}

/// That the parent of `manifest` may not start it now, for a reason that the manifests do not know: its
/// conditions.
pub fn reject_spawn(manifest: &Manifest, why: &str) -> Box<Rejection> {
    let parent = manifest.mandate().parent.as_deref().unwrap_or_default();
    let role = &manifest.mandate().role;
    let message = format!("parent `{parent}` may not start a partition of role `{role}`: {why}");
    let help = "see the conditions of the parent: bulkhead policy explain";
    let span = manifest.spans().role.clone();
    Rejection::of(manifest, Rule::Spawn, "identity.role", span, message, help)
}

/// Judges the grants of a partition that runs, with those that are to be added to it
/// ([`Manifest::with_grants`]).
///
/// # Errors
/// The first rule about grants that it does not keep.
pub fn admit_grants(
    manifest: &Manifest,
    policy: Policy<'_>,
    host: &dyn Host,
) -> Result<(), Box<Rejection>> {
    let case = Case { manifest, host };
    ceiling::check(&case, policy.role)?;
    family::check_parent(&case)?;
    denied::check(&case, policy.deny)
}

/// A manifest that is being judged.
struct Case<'c> {
    manifest: &'c Manifest,
    host: &'c dyn Host,
}

impl Case<'_> {
    fn partition(&self) -> &Partition {
        self.manifest.partition()
    }

    fn mandate(&self) -> &Mandate {
        self.manifest.mandate()
    }

    fn reject(
        &self,
        rule: Rule,
        field: &'static str,
        span: Option<Range<usize>>,
        message: String,
        help: impl Into<String>,
    ) -> Box<Rejection> {
        Rejection::of(self.manifest, rule, field, span, message, help)
    }
}

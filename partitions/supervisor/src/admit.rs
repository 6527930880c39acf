//! Has manifests judged before anything of their partitions exists: reads what operators have
//! configured, looks at what runs, and records each judgement. The rules are those of
//! [`bulkhead_manifest::admit`].
//!
//! A running partition with a manifest has its document in the directory of its system
//! ([`write_documents`]), which is how those that start after it, children for instance, are judged by
//! it.

use crate::error::{Error, reason};
use crate::record::PartitionRecord;
use crate::state_dir::{Found, Standing, StateRoot, SystemDir};
use bulkhead_manifest::{
    Admitted, Capacity, DenyList, GrantDraft, Host, MAX_BYTES, Manifest, Partition, Policy, Proof,
    Rejected, Rejection, Role, Rule, Submission, System, parse_deny_list, parse_document,
    parse_role, parse_submission,
};
use bulkhead_places::{Place, PlaceError};
use bulkhead_record::{Entry, Kind, RecordError, Recorder, Verdict};
use bulkhead_signature::{KeyStore, MAX_ENVELOPE_BYTES, StoreError, Trusted};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

mod bounds;
mod children;

pub use bounds::{Bounds, manifest_of};
pub(crate) use children::check_inherited;
pub use children::{descendants, lock_lineage};

/// Where what roles may have is described, below the place of what operators configure.
const ROLES: &str = "roles";
/// Ending of the names of documents of running partitions.
const DOCUMENT: &str = ".manifest.json";

/// Why a manifest does not become a partition.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// It is no manifest: it does not keep the first rule.
    #[error(transparent)]
    Schema(#[from] Rejected),
    /// It does not keep another rule.
    #[error(transparent)]
    Rule(#[from] Box<Rejection>),
    /// What operators have configured is no role, or no deny list.
    #[error("{0}")]
    Policy(Rejected),
    /// The keys that are trusted cannot be told.
    #[error(transparent)]
    Keys(#[from] StoreError),
    /// A directory of Bulkhead's own cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file cannot be read.
    #[error("cannot read `{}`: {}", path.display(), reason(source))]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What runs on the host cannot be told.
    #[error(transparent)]
    Running(#[from] Error),
    /// The judgement cannot be recorded, so nothing follows from it.
    #[error("a judgement cannot be recorded: {0}")]
    Record(#[from] RecordError),
}

impl AdmissionError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Schema(_) => Rule::Schema.as_str(),
            Self::Rule(rejection) => rejection.rule.as_str(),
            Self::Policy(_) => "policy-invalid",
            Self::Keys(error) => error.code(),
            Self::Place(error) => error.code(),
            Self::Unreadable { .. } => "manifest-unreadable",
            Self::Running(error) => error.code(),
            Self::Record(_) => "not-recorded",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Rule(rejection) => Some(rejection.help.clone()),
            Self::Keys(error) => error.help(),
            Self::Running(error) => error.help(),
            _ => None,
        }
    }
}

/// Judges manifests, one after the other, for one start.
pub struct Admissions {
    trusted: Vec<Trusted>,
    roles: Place,
    deny: DenyList,
    host: LiveHost,
    recorder: Arc<dyn Recorder>,
}

/// The host as it is, and what this start adds to it.
struct LiveHost {
    running: Vec<Manifest>,
    /// Systems with manifests among their partitions.
    systems: Vec<Found>,
    capacity: Capacity,
}

impl LiveHost {
    /// Looks at what runs in `root`, without the system in the directory `but`.
    fn look(root: &StateRoot, but: Option<&Path>) -> Result<Self, Error> {
        let (mut running, mut systems) = (Vec::new(), Vec::new());
        let mut promised_mib = 0_u64;
        for found in root.list()? {
            if found.standing != Standing::Live || Some(found.path.as_path()) == but {
                continue;
            }
            let manifests = manifests(&found.path)?;
            let partitions = &found.record.partitions;
            // One that starts just now is not in the record yet.
            let known = |manifest: &&Manifest| {
                let is = |partition: &PartitionRecord| partition.name == manifest.identity();
                !partitions.iter().any(is)
            };
            promised_mib += manifests.iter().filter(known).map(promised).sum::<u64>();
            let runs = partitions
                .iter()
                .filter(|partition| partition.status.is_none());
            promised_mib += runs.map(|partition| partition.memory_mib).sum::<u64>();
            if !manifests.is_empty() {
                systems.push(found);
            }
            running.extend(manifests);
        }
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit);
        let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get());
        Ok(Self {
            running,
            systems,
            capacity: Capacity {
                memory_mib: (info.totalram + info.totalswap).saturating_mul(unit) / (1024 * 1024),
                promised_mib,
                cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            },
        })
    }

    /// The system in which a partition with this identity runs, where it ran before this start.
    fn system_of(&self, identity: &str) -> Option<&Found> {
        let has = |found: &&Found| document_path(&found.path, identity).exists();
        self.systems.iter().find(has)
    }

    /// One more starts.
    fn add(&mut self, manifest: Manifest) {
        self.capacity.promised_mib += promised(&manifest);
        self.running.push(manifest);
    }
}

/// MiB of memory that its partition may come to have.
fn promised(manifest: &Manifest) -> u64 {
    let memory = &manifest.partition().memory;
    memory.mib + memory.pluggable_mib
}

impl Host for LiveHost {
    fn running(&self) -> &[Manifest] {
        &self.running
    }

    fn age(&self, identity: &str) -> Duration {
        let of_system = |found: &Found| {
            let started = UNIX_EPOCH + Duration::from_secs(found.record.started);
            // A clock that was set back makes nobody younger than new.
            started.elapsed().unwrap_or_default()
        };
        self.system_of(identity).map_or(Duration::ZERO, of_system)
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn real_path(&self, path: &Path) -> PathBuf {
        real_path(path)
    }
}

impl Admissions {
    /// The same where Bulkhead's places are by default, for a partition that runs in a system with
    /// this directory.
    pub(crate) fn of_running(
        directory: &Path,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Self, AdmissionError> {
        let root = StateRoot::at(directory.parent().unwrap_or(directory))?;
        let own = [&Place::data()?, &Place::checkpoints()?];
        Self::new(&Place::config()?, &own, &root, recorder)
    }

    /// Reads what operators have configured in `config`, and looks at what runs in `root`. Nobody
    /// may have anything of these directories and of `own`, which are Bulkhead's too. Each judgement goes to `recorder`.
    ///
    /// # Errors
    /// Something of it cannot be read, or is not what it should be.
    pub fn new(
        config: &Place,
        own: &[&Place],
        root: &StateRoot,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Self, AdmissionError> {
        Ok(Self {
            trusted: KeyStore::new(config).trusted()?,
            roles: config.below(ROLES),
            deny: deny_list(config, own, root)?,
            host: LiveHost::look(root, None)?,
            recorder,
        })
    }

    /// Judges the manifest in `file`, which whoever starts it may say needs no signature.
    ///
    /// # Errors
    /// The first rule that it does not keep, or what stood in the way of judging it.
    pub fn admit(&mut self, file: &Path, unsigned: bool) -> Result<Admitted, AdmissionError> {
        let absent = || AdmissionError::Unreadable {
            path: file.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        };
        let bytes = read(file, MAX_ENVELOPE_BYTES)?.ok_or_else(absent)?;
        let place = std::path::absolute(file).map_err(|source| AdmissionError::Unreadable {
            path: file.to_owned(),
            source,
        })?;
        let submission = parse_submission(&bytes, &place).or_else(|mut rejected| {
            // Under the name that was typed.
            rejected.file = Some(file.display().to_string());
            self.record_schema(file, &rejected)?;
            Err(AdmissionError::Schema(rejected))
        })?;
        let Submission { manifest, envelope } = submission;
        let role = role(&self.roles, &manifest.mandate().role)?;
        let proof = match &envelope {
            Some(envelope) => Proof::Signed(envelope),
            None if unsigned => Proof::Vouched,
            None => Proof::None,
        };
        let policy = Policy {
            trusted: &self.trusted,
            role: role.as_ref(),
            deny: &self.deny,
        };
        match bulkhead_manifest::admit(&manifest, proof, policy, &self.host) {
            Ok(admitted) => {
                self.record_admitted(&manifest, &admitted)?;
                self.host.add(manifest);
                Ok(admitted)
            }
            Err(mut rejection) => {
                rejection.file = file.display().to_string();
                self.record_rejection(&rejection)?;
                Err(rejection.into())
            }
        }
    }

    /// Judges grants that are to be added to a running partition, by the rules about grants:
    /// `document` is what it was started with. Whoever adds them has it recorded.
    ///
    /// # Errors
    /// The first rule that it would not keep with them, or what stood in the way of judging it.
    pub(crate) fn admit_grants(
        &self,
        partition: &str,
        document: &[u8],
        added: &[GrantDraft],
        base: &Path,
    ) -> Result<(), AdmissionError> {
        let file = PathBuf::from(partition);
        let manifest = own_manifest(document, &file)?;
        // Devices were made of these grants before.
        let no_grant = || Error::NotEnforced("something that is attached".to_owned());
        let manifest = manifest.with_grants(added, base).ok_or_else(no_grant)?;
        let role = role(&self.roles, &manifest.mandate().role)?;
        let policy = Policy {
            trusted: &self.trusted,
            role: role.as_ref(),
            deny: &self.deny,
        };
        Ok(bulkhead_manifest::admit_grants(
            &manifest, policy, &self.host,
        )?)
    }

    /// The system in which a partition with this identity runs, where it ran before this start.
    pub fn system_of(&self, identity: &str) -> Option<&Found> {
        self.host.system_of(identity)
    }

    /// How many partitions of its role the parent of `partition` has, which was admitted, with this one.
    pub fn siblings(&self, partition: &Partition) -> u32 {
        let Some(mandate) = &partition.mandate else {
            return 0;
        };
        let same = |other: &&Manifest| {
            let other = other.mandate();
            (&other.parent, &other.role) == (&mandate.parent, &mandate.role)
        };
        u32::try_from(self.host.running.iter().filter(same).count()).unwrap_or(u32::MAX)
    }

    /// Records that `parent` (SYSTEM/PARTITION) starts `partition`, which was admitted, and what its
    /// conditions say of that.
    ///
    /// # Errors
    /// It cannot be recorded, and so must not be done.
    pub fn record_spawn(
        &self,
        parent: String,
        partition: &Partition,
        mut said: BTreeMap<String, String>,
    ) -> Result<(), AdmissionError> {
        if let Some(mandate) = &partition.mandate {
            said.insert("role".to_owned(), mandate.role.clone());
        }
        Ok(self.record(&Entry {
            kind: Kind::Intent,
            actor: parent,
            action: "partition.spawn".to_owned(),
            object: partition.name.clone(),
            verdict: Verdict::Allowed,
            reason: "it was admitted as a child".to_owned(),
            intent: None,
            detail: said,
        })?)
    }

    /// The parent of `partition`, which was admitted, may not start it after all: its conditions say so. It
    /// is recorded as what breaks a rule.
    pub fn refuse_spawn(&self, partition: &Partition, why: &str) -> AdmissionError {
        let mut running = self.host.running.iter();
        let own = running.find(|manifest| manifest.identity() == partition.name);
        let Some(manifest) = own else {
            let path = PathBuf::from(&partition.name);
            let source = io::ErrorKind::NotFound.into();
            return AdmissionError::Unreadable { path, source };
        };
        let rejection = bulkhead_manifest::reject_spawn(manifest, why);
        match self.record_rejection(&rejection) {
            Ok(()) => rejection.into(),
            Err(error) => error.into(),
        }
    }

    fn record(&self, entry: &Entry) -> Result<(), RecordError> {
        self.recorder.record(entry).map(drop)
    }

    fn record_schema(&self, file: &Path, rejected: &Rejected) -> Result<(), RecordError> {
        let first = rejected.diagnostics.first();
        let message = first.map_or_else(String::new, |first| rejected.locate(first));
        let mut detail = details(Rule::Schema, &file.display().to_string());
        if let Some(first) = first {
            detail.insert("code".to_owned(), first.code.to_string());
            if let Some(place) = &first.place {
                detail.insert("line".to_owned(), place.line.to_string());
            }
            if let Some(field) = &first.field {
                detail.insert("field".to_owned(), field.clone());
            }
        }
        self.record(&refusal(&file.display().to_string(), message, detail))
    }

    fn record_rejection(&self, rejection: &Rejection) -> Result<(), RecordError> {
        let mut detail = details(rejection.rule, &rejection.file);
        detail.insert("field".to_owned(), rejection.field.to_owned());
        if let Some(place) = &rejection.place {
            detail.insert("line".to_owned(), place.line.to_string());
        }
        self.record(&refusal(
            &rejection.identity,
            rejection.message.clone(),
            detail,
        ))
    }

    fn record_admitted(&self, manifest: &Manifest, admitted: &Admitted) -> Result<(), RecordError> {
        let reason = match admitted.signers() {
            [] => "not signed, and vouched for at the command line".to_owned(),
            signers => format!("signed by {}", signers.join(", ")),
        };
        let role = manifest.mandate().role.clone();
        self.record(&Entry {
            kind: Kind::Intent,
            verdict: Verdict::Allowed,
            detail: BTreeMap::from([("role".to_owned(), role)]),
            ..refusal(manifest.identity(), reason, BTreeMap::new())
        })
    }
}

fn details(rule: Rule, file: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("rule".to_owned(), rule.to_string()),
        ("file".to_owned(), file.to_owned()),
    ])
}

/// Most bytes of a reason that is recorded.
const MAX_REASON: usize = 1024;

fn refusal(object: &str, reason: String, detail: BTreeMap<String, String>) -> Entry {
    let reason = match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => reason.get(..end).unwrap_or_default().to_owned(),
        None => reason,
    };
    Entry {
        kind: Kind::Refusal,
        actor: "operator".to_owned(),
        action: "partition.admit".to_owned(),
        object: object.to_owned(),
        verdict: Verdict::Denied,
        reason,
        intent: None,
        detail,
    }
}

/// What the role of this name may have, if somebody has described it in `roles`. Names of roles have no
/// slashes.
fn role(roles: &Place, name: &str) -> Result<Option<Role>, AdmissionError> {
    let Some(directory) = roles.existing()? else {
        return Ok(None);
    };
    let path = directory.join(format!("{name}.toml"));
    let Some(bytes) = read(&path, MAX_BYTES)? else {
        return Ok(None);
    };
    let role = parse_role(&bytes, &path).map_err(AdmissionError::Policy)?;
    Ok(Some(role))
}

/// What nobody may have: the built-in list, the directories of Bulkhead itself (`config`, `own` and
/// `root`), and what operators add in `config`.
fn deny_list(config: &Place, own: &[&Place], root: &StateRoot) -> Result<DenyList, AdmissionError> {
    let own = own.iter().map(|place| place.path());
    let own = own.chain([config.path(), root.path()]);
    let own = own.flat_map(|path| [path.to_owned(), real_path(path)]);
    let deny = DenyList::built_in(&own.collect::<Vec<_>>());
    let Some(directory) = config.existing()? else {
        return Ok(deny);
    };
    let path = directory.join("deny.toml");
    Ok(match read(&path, MAX_BYTES)? {
        Some(bytes) => deny.and(parse_deny_list(&bytes, &path).map_err(AdmissionError::Policy)?),
        None => deny,
    })
}

/// The bytes of a file, if there is one; one more than `most` if it is longer than that.
fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, AdmissionError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AdmissionError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Manifests of a system's partitions that run.
fn manifests(directory: &Path) -> Result<Vec<Manifest>, Error> {
    let mut manifests = Vec::new();
    for path in documents(directory)? {
        manifests.extend(manifest_at(&path)?);
    }
    Ok(manifests)
}

/// The manifest of a running partition from its document; nothing of one that may have ended just now.
fn manifest_at(path: &Path) -> Result<Option<Manifest>, Error> {
    let unreadable = |error: AdmissionError| Error::StateDir {
        path: path.to_owned(),
        source: io::Error::other(error),
    };
    let bytes = read(path, MAX_ENVELOPE_BYTES).map_err(unreadable)?;
    bytes.map(|bytes| own_manifest(&bytes, path)).transpose()
}

/// Paths of the documents in the directory of a system.
fn documents(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::StateDir {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().ends_with(DOCUMENT) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn document_path(directory: &Path, partition: &str) -> PathBuf {
    directory.join(format!("{partition}{DOCUMENT}"))
}

/// Writes down the documents of a system's partitions, then looks once more whether there is room for
/// them beside what runs. Two that start at the same time both write first and look afterwards: at least
/// one of them sees the other.
///
/// # Errors
/// A rule about other partitions is not kept any more, or a document cannot be written.
pub(crate) fn write_documents(
    system: &System,
    root: &StateRoot,
    directory: &SystemDir,
) -> Result<(), Error> {
    let failed = |source| Error::StateDir {
        path: directory.path().to_owned(),
        source,
    };
    let mut manifests = Vec::new();
    for partition in &system.partitions {
        if let Some(mandate) = &partition.mandate {
            let path = document_path(directory.path(), &partition.name);
            // Whole or not at all: whoever reads it is judged by it.
            let new = path.with_extension("new");
            fs::write(&new, &mandate.document).map_err(failed)?;
            fs::rename(&new, &path).map_err(failed)?;
            manifests.push(own_manifest(&mandate.document, &path)?);
        }
    }
    if manifests.is_empty() {
        return Ok(());
    }
    let mut host = LiveHost::look(root, Some(directory.path()))?;
    for manifest in manifests {
        bulkhead_manifest::admit_beside(&manifest, &host).map_err(Error::Rejected)?;
        host.add(manifest);
    }
    Ok(())
}

/// The manifest of a document that was read and checked when its partition was admitted.
fn own_manifest(document: &[u8], path: &Path) -> Result<Manifest, Error> {
    let unreadable = |rejected: Rejected| Error::StateDir {
        path: path.to_owned(),
        source: io::Error::other(rejected),
    };
    parse_document(document, path).map_err(unreadable)
}

/// The partition has ended: its identity is free.
pub(crate) fn remove_document(directory: &Path, partition: &str) {
    // There is none of a partition without a manifest.
    let _ = fs::remove_file(document_path(directory, partition));
}

/// The path without links and `..`, as far as it exists; the rest as it is written.
fn real_path(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        if let Ok(real) = at.canonicalize() {
            return missing
                .iter()
                .rev()
                .fold(real, |path, name| path.join(name));
        }
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            break;
        };
        missing.push(name.to_owned());
        at = parent;
    }
    // A `..` behind something that does not exist leads, at most, to where it says.
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests;

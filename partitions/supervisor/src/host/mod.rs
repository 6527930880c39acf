//! What this host can run, and why not: typed findings for `bulkhead doctor`, and the one question
//! that `run` and `up` ask before they start a Linux partition, [`kvm_kind`].
//!
//! One file per topic. A topic reads the host in one function and judges what it read in another,
//! so that every judgement is tested without the host it speaks of. Nothing here changes the host.

mod cgroup;
mod cpu;
mod devices;
mod guest_mode;
mod kvm;
mod lab;
mod memory;
mod network;
mod probe;
mod sandbox;
mod verdict;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use guest_mode::{GuestMode, KvmKind, Outcome, SyscallLanding};
pub use network::EmptyNetwork;
pub use verdict::{PartitionKind, Verdict};

/// Version of [`Report`] as JSON: changed when a field changes its meaning or goes away.
pub const REPORT_VERSION: u32 = 1;

/// How good or bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something optional is missing, or weaker than it could be.
    Warn,
    /// Keeps at least one kind of partition from running here.
    Fail,
}

/// One fact about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name, kebab-case.
    pub id: &'static str,
    /// How good or bad.
    pub level: Level,
    /// One line: what was found.
    pub what: String,
    /// One line: what to do about it, unless there is nothing to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    fn warn(id: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Warn,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(id: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(id, what, remedy)
        }
    }
}

/// Everything that `bulkhead doctor` says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What kind of KVM this host has.
    pub kvm: KvmKind,
    /// Which kinds of partition run here.
    pub verdicts: Vec<Verdict>,
    /// The facts behind it.
    pub findings: Vec<Finding>,
    /// What the probe measured, where it could run.
    pub guest_mode: Option<GuestMode>,
}

impl Report {
    /// True when native partitions run here: the exit status of `bulkhead doctor`.
    pub fn runs_native(&self) -> bool {
        self.verdicts
            .iter()
            .any(|verdict| verdict.partition == PartitionKind::Native && verdict.runs)
    }
}

/// The installed files that an inspection uses: the `lib/bulkhead` of docs/process-model.md.
#[derive(Clone, Debug)]
pub struct Installation {
    library: PathBuf,
}

impl Installation {
    /// An installation whose library directory is `library`.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        Self {
            library: library.into(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.library.join(name)
    }

    /// The first of `names` that is not there.
    fn missing<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names
            .iter()
            .copied()
            .find(|name| !self.file(name).is_file())
    }
}

/// Inspects the host: boots the probe some forty times, each a few milliseconds.
pub fn inspect(installation: &Installation) -> Report {
    let (kvm_findings, usable) = kvm::inspect();
    let mut findings = kvm_findings;
    let mut guest_mode = None;
    let mut kvm = KvmKind::Absent;
    if usable {
        let measured = guest_mode::measure(installation);
        findings.extend(guest_mode::findings(&measured));
        match measured {
            Ok(measured) => {
                kvm = measured.kind;
                guest_mode = Some(measured);
            }
            Err(_) => kvm = KvmKind::Unknown,
        }
    }
    findings.push(cpu::inspect());
    findings.extend(memory::inspect());
    findings.push(cgroup::inspect());
    findings.extend(sandbox::inspect());
    findings.extend(devices::inspect());
    findings.push(lab::inspect(installation));
    findings.push(installed(installation));
    let verdicts = verdict::verdicts(kvm, guest_mode.as_ref(), &findings);
    Report {
        version: REPORT_VERSION,
        kvm,
        verdicts,
        findings,
        guest_mode,
    }
}

/// What kind of KVM this host has, measured by booting the probe once: a few milliseconds.
///
/// This is what decides whether a Linux partition is refused before it boots.
pub fn kvm_kind(installation: &Installation) -> KvmKind {
    if !kvm::usable() {
        return KvmKind::Absent;
    }
    guest_mode::measure_kind(installation).unwrap_or(KvmKind::Unknown)
}

/// The sentence with which a Linux partition is refused on a KVM of `kind`; none where it can run
/// or where only a try can tell.
pub fn linux_refusal(kind: KvmKind) -> Option<&'static str> {
    match kind {
        KvmKind::Native | KvmKind::Unknown => None,
        KvmKind::Interpreted => Some(
            "the kvm of this host interprets guest kernel mode and lacks instructions that a Linux \
             kernel needs",
        ),
        KvmKind::Absent => Some("this host has no usable /dev/kvm"),
    }
}

fn installed(installation: &Installation) -> Finding {
    let names = ["bulkhead-vmm", "kernel", "linux-personality", "probe"];
    let shown = installation.library.display();
    match installation.missing(&names) {
        None => Finding::ok("installation", format!("{shown} is complete")),
        Some(name) => Finding::fail(
            "installation",
            format!("{shown} has no {name}"),
            "run `cargo xtask build`, or name another directory in BULKHEAD_LIB",
        ),
    }
}

/// Reads a small file of /proc or /sys; `None` where the host does not have it.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The number in a file that holds only that.
fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

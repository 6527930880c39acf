//! Which kinds of partition run on this host, and why not.

use serde::Serialize;

use super::{Finding, GuestMode, KvmKind, Level, linux_refusal};

/// A kind of partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionKind {
    /// Programs on Bulkhead's own microkernel.
    Native,
    /// Unmodified Linux programs on the microkernel.
    LinuxAbi,
    /// An unmodified Linux kernel.
    Linux,
}

impl PartitionKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Native, Self::LinuxAbi, Self::Linux];

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::LinuxAbi => "linux-abi",
            Self::Linux => "linux",
        }
    }
}

/// Whether one kind of partition runs here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The kind.
    pub partition: PartitionKind,
    /// Whether it runs.
    pub runs: bool,
    /// Why not.
    pub because: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
}

/// Findings without which nothing runs, in the order in which they are named as the reason.
const FOUNDATIONS: [&str; 4] = ["kvm-device", "installation", "guest-syscall", "memory"];

/// One verdict for each kind.
pub(super) fn verdicts(
    kvm: KvmKind,
    mode: Option<&GuestMode>,
    findings: &[Finding],
) -> Vec<Verdict> {
    let failed = |id: &&str| {
        (findings.iter()).find(|finding| finding.id == *id && finding.level == Level::Fail)
    };
    let unmeasured = || failed(&"guest-kernel-mode").filter(|_| mode.is_none());
    let obstacle = FOUNDATIONS.iter().find_map(failed).or_else(unmeasured);
    let verdict = |partition: PartitionKind| {
        let lab = || {
            let name = partition.name();
            format!("`cargo xtask lab -- bulkhead run --kernel {name} ...`")
        };
        let (because, remedy) = match (obstacle, partition, linux_refusal(kvm)) {
            (Some(obstacle), ..) => {
                let remedy = match (obstacle.id, &obstacle.remedy) {
                    ("kvm-device", Some(remedy)) => Some(format!("{remedy}; or {}", lab())),
                    (_, remedy) => remedy.clone(),
                };
                (Some(obstacle.what.clone()), remedy)
            }
            (None, PartitionKind::Linux, Some(refusal)) => (Some(refusal.to_owned()), Some(lab())),
            _ => (None, None),
        };
        Verdict {
            partition,
            runs: because.is_none(),
            because,
            remedy,
        }
    };
    PartitionKind::ALL.into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(kvm: KvmKind, findings: &[Finding]) -> Vec<bool> {
        let verdicts = verdicts(kvm, None, findings);
        for verdict in &verdicts {
            assert_eq!(verdict.because.is_none(), verdict.runs);
            assert_eq!(verdict.remedy.is_none(), verdict.runs);
        }
        verdicts.iter().map(|verdict| verdict.runs).collect()
    }

    #[test]
    fn each_kind_of_host_has_its_verdicts() {
        assert_eq!(runs(KvmKind::Native, &[]), [true, true, true]);
        assert_eq!(runs(KvmKind::Interpreted, &[]), [true, true, false]);
        for id in FOUNDATIONS {
            let missing = Finding::fail(id, "gone", "bring it back");
            assert_eq!(runs(KvmKind::Native, &[missing]), [false; 3], "{id}");
        }
        let unmeasured = Finding::fail("guest-kernel-mode", "not measured", "look");
        assert_eq!(runs(KvmKind::Unknown, &[unmeasured]), [false; 3]);
    }

    #[test]
    fn weaknesses_do_not_decide() {
        let weak = [
            Finding::warn("memory", "little", "free some"),
            Finding::fail("lab", "x", "y"),
        ];
        assert_eq!(runs(KvmKind::Native, &weak), [true; 3]);
    }

    #[test]
    fn without_kvm_the_lab_is_a_remedy() {
        let gone = Finding::fail("kvm-device", "no /dev/kvm", "modprobe");
        for verdict in verdicts(KvmKind::Absent, None, &[gone]) {
            let name = verdict.partition.name();
            assert_eq!(
                verdict.remedy.unwrap(),
                format!("modprobe; or `cargo xtask lab -- bulkhead run --kernel {name} ...`")
            );
        }
    }
}

//! Guest kernel mode, measured: does the CPU run it, or does KVM interpret it? Which instruction
//! classes work there, and where does `syscall` land?
//!
//! Decided by the probe (`firmware/probe`) and never by the name of a CPU or a cloud: the same loop
//! is timed at CPL0 and at CPL3. Both run natively under hardware virtualization, and both are
//! slow under emulation of a whole machine; a KVM without hardware virtualization runs CPL3 natively
//! and takes over a thousand times as long at CPL0.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::probe::{self, Boot, ProbeError};
use super::{Finding, Installation};

/// From this ratio of CPL0 to CPL3 time on, guest kernel mode is interpreted. Measured: 0.9 to 1.1
/// with SVM, 1,000 to 2,000 where KVM interprets.
const INTERPRETED_FROM: u64 = 30;

/// What kind of KVM a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// The CPU runs guest kernel mode (VMX, SVM): everything works.
    Native,
    /// KVM interprets guest kernel mode: slow there, with a subset of instructions.
    Interpreted,
    /// No `/dev/kvm` that we can use.
    Absent,
    /// `/dev/kvm` is there and the probe did not tell.
    Unknown,
}

/// What came of one instruction at CPL0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Works,
    /// It ran, with another result than the architecture says.
    Wrong,
    /// It raised this exception. Right where CPUID does not offer the instruction.
    Fault(u8),
    /// KVM could not go on: the VM ended.
    EndsVm,
}

impl Outcome {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "ok" => Some(Self::Works),
            "wrong" => Some(Self::Wrong),
            _ => Some(Self::Fault(text.strip_prefix("fault-")?.parse().ok()?)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("ok"),
            Self::Wrong => f.write_str("wrong"),
            Self::Fault(vector) => write!(f, "fault-{vector}"),
            Self::EndsVm => f.write_str("ends-vm"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a `syscall` from CPL3 arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyscallLanding {
    /// At CPL0, at LSTAR, as the architecture says.
    Cpl0,
    /// At LSTAR, still at CPL3: a page fault on its supervisor page enters CPL0.
    PageFault,
}

/// What the probe measured.
#[derive(Clone, Debug, Serialize)]
pub struct GuestMode {
    /// The verdict.
    pub kind: KvmKind,
    /// Time stamp counter ticks for one instruction at CPL0.
    pub cpl0_ticks_per_instruction: f64,
    /// The same at CPL3.
    pub cpl3_ticks_per_instruction: f64,
    /// Where `syscall` lands, if it works.
    pub syscall: Option<SyscallLanding>,
    /// Ticks of one system call and its return.
    pub syscall_ticks: Option<u64>,
    /// Whether `iretq` reaches CPL3.
    pub iretq: Option<Outcome>,
    /// Whether `sysretq` reaches CPL3.
    pub sysretq: Option<Outcome>,
    /// Each instruction class tried at CPL0, by the probe's name for it.
    pub instructions: BTreeMap<String, Outcome>,
    /// Layers of the jail that this host does not offer.
    pub jail_gaps: Vec<String>,
}

/// Measures everything: one boot of the probe for each instruction class.
pub(super) fn measure(installation: &Installation) -> Result<GuestMode, ProbeError> {
    let speed = probe::boot(installation, "speed")?;
    let (kind, cpl0, cpl3) = judge_speed(&speed).ok_or(ProbeError::Silent)?;
    let syscall = probe::boot(installation, "syscall")?;
    let mut instructions = BTreeMap::new();
    for name in probe::boot(installation, "list")?.values("experiment") {
        let boot = probe::boot(installation, name)?;
        instructions.extend(judge(&boot, name).map(|outcome| (name.to_owned(), outcome)));
    }
    Ok(GuestMode {
        kind,
        cpl0_ticks_per_instruction: cpl0,
        cpl3_ticks_per_instruction: cpl3,
        syscall: match syscall.value("syscall") {
            Some("cpl0") => Some(SyscallLanding::Cpl0),
            Some("page-fault") => Some(SyscallLanding::PageFault),
            _ => None,
        },
        syscall_ticks: syscall.number("syscall-ticks"),
        iretq: judge(&syscall, "iretq"),
        sysretq: judge(&syscall, "sysretq"),
        instructions,
        jail_gaps: speed.jail_gaps,
    })
}

/// Measures the kind only: one boot.
pub(super) fn measure_kind(installation: &Installation) -> Result<KvmKind, ProbeError> {
    let speed = probe::boot(installation, "speed")?;
    judge_speed(&speed)
        .map(|(kind, ..)| kind)
        .ok_or(ProbeError::Silent)
}

/// The kind, and ticks for one instruction at CPL0 and at CPL3.
fn judge_speed(boot: &Boot) -> Option<(KvmKind, f64, f64)> {
    let instructions = boot.number("instructions").filter(|count| *count > 0)? as f64;
    let cpl0 = boot.number("cpl0-ticks")?;
    let cpl3 = boot.number("cpl3-ticks").filter(|ticks| *ticks > 0)?;
    let kind = if cpl0 / cpl3 >= INTERPRETED_FROM {
        KvmKind::Interpreted
    } else {
        KvmKind::Native
    };
    Some((kind, cpl0 as f64 / instructions, cpl3 as f64 / instructions))
}

/// What came of `name`: its line, or the end of the VM after its announcement.
fn judge(boot: &Boot, name: &str) -> Option<Outcome> {
    match boot.value(name) {
        Some(text) => Outcome::parse(text),
        None => {
            let last_words = boot.values("begin").last() == Some(name);
            (last_words && boot.cannot_run).then_some(Outcome::EndsVm)
        }
    }
}

/// The findings that follow.
pub(super) fn findings(measured: &Result<GuestMode, ProbeError>) -> Vec<Finding> {
    let id = "guest-kernel-mode";
    let mode = match measured {
        Ok(mode) => mode,
        Err(error) => {
            return vec![Finding::fail(
                id,
                format!("not measured: {error}"),
                error.remedy(),
            )];
        }
    };
    let speed = format!(
        "{:.1} ticks for an instruction at CPL0, {:.1} at CPL3",
        mode.cpl0_ticks_per_instruction, mode.cpl3_ticks_per_instruction
    );
    let lab = "run Linux partitions in the lab: `cargo xtask lab -- bulkhead ...`";
    let mut findings = vec![match mode.kind {
        KvmKind::Interpreted => Finding::fail(id, format!("interpreted by KVM: {speed}"), lab),
        _ => Finding::ok(id, format!("native: {speed}")),
    }];
    findings.push(instruction_finding(mode, lab));
    findings.push(syscall_finding(mode));
    findings.push(match mode.jail_gaps.as_slice() {
        [] => Finding::ok("jail", "every layer holds"),
        gaps => Finding::warn(
            "jail",
            format!("weaker here: {}", gaps.join("; ")),
            "see user-namespaces, landlock and seccomp",
        ),
    });
    findings
}

fn instruction_finding(mode: &GuestMode, lab: &str) -> Finding {
    let id = "guest-kernel-instructions";
    // An instruction that CPUID hides raises #UD by right; `EndsVm` and `Wrong` are never right.
    let names = |wanted: Outcome| -> Vec<&str> {
        (mode.instructions.iter())
            .filter(|(_, outcome)| **outcome == wanted)
            .map(|(name, _)| name.as_str())
            .collect()
    };
    let (fatal, wrong) = (names(Outcome::EndsVm), names(Outcome::Wrong));
    let tried = mode.instructions.len();
    if fatal.is_empty() && wrong.is_empty() {
        return Finding::ok(id, format!("none of {tried} classes tried harms the VM"));
    }
    let parts: Vec<_> = [("end the VM", fatal), ("give wrong results", wrong)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(harm, names)| {
            format!(
                "{} of {tried} classes {harm} ({})",
                names.len(),
                names.join(" ")
            )
        })
        .collect();
    Finding::fail(id, parts.join(", "), lab)
}

fn syscall_finding(mode: &GuestMode) -> Finding {
    let id = "guest-syscall";
    let ticks = mode.syscall_ticks.map_or(String::new(), |ticks| {
        format!(", {ticks} ticks there and back")
    });
    match mode.syscall {
        Some(SyscallLanding::Cpl0) => Finding::ok(id, format!("lands at CPL0{ticks}")),
        Some(SyscallLanding::PageFault) => Finding::ok(
            id,
            format!("lands as a page fault, which the microkernel expects{ticks}"),
        ),
        None => Finding::fail(
            id,
            "syscall from CPL3 does not reach CPL0",
            "report this host: the microkernel has no way to serve programs on it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    fn boot(text: &str, cannot_run: bool) -> Boot {
        Boot::from_output(text.as_bytes(), cannot_run, vec![])
    }

    #[test]
    fn the_ratio_decides() {
        for (cpl0, cpl3, kind) in [
            ("132278", "74", Some(KvmKind::Interpreted)),
            ("200", "199", Some(KvmKind::Native)),
            ("560", "556", Some(KvmKind::Native)),
            ("2220", "74", Some(KvmKind::Interpreted)),
            ("2219", "74", Some(KvmKind::Native)),
            ("50", "0", None),
            ("", "5", None),
            ("99999999999999999999999", "5", None),
        ] {
            let text = format!("\ninstructions=200\ncpl0-ticks={cpl0}\ncpl3-ticks={cpl3}\nend\n");
            assert_eq!(
                judge_speed(&boot(&text, false)).map(|it| it.0),
                kind,
                "{text}"
            );
        }
        assert!(
            judge_speed(&boot(
                "\ninstructions=0\ncpl0-ticks=1\ncpl3-ticks=1\n",
                false
            ))
            .is_none()
        );
    }

    #[test]
    fn a_vm_that_ends_after_begin_died_of_it() {
        for (text, cannot_run, outcome) in [
            (
                "begin=popcnt\npopcnt=ok\nend\n",
                false,
                Some(Outcome::Works),
            ),
            (
                "begin=popcnt\npopcnt=wrong\nend\n",
                false,
                Some(Outcome::Wrong),
            ),
            (
                "begin=popcnt\npopcnt=fault-6\nend\n",
                false,
                Some(Outcome::Fault(6)),
            ),
            ("begin=popcnt\n", true, Some(Outcome::EndsVm)),
            // It ended for another reason, or died of something else.
            ("begin=popcnt\n", false, None),
            ("begin=xadd\n", true, None),
            ("begin=popcnt\npopcnt=fault-999\n", true, None),
            ("", true, None),
        ] {
            assert_eq!(
                judge(&boot(text, cannot_run), "popcnt"),
                outcome,
                "{text:?}"
            );
        }
    }

    fn mode(kind: KvmKind) -> GuestMode {
        GuestMode {
            kind,
            cpl0_ticks_per_instruction: 1.0,
            cpl3_ticks_per_instruction: 1.0,
            syscall: Some(SyscallLanding::Cpl0),
            syscall_ticks: Some(100),
            iretq: Some(Outcome::Works),
            sysretq: Some(Outcome::Works),
            instructions: BTreeMap::new(),
            jail_gaps: vec![],
        }
    }

    #[test]
    fn only_harm_is_reported() {
        let mut mode = mode(KvmKind::Native);
        mode.instructions.insert("rdpid".into(), Outcome::Fault(6));
        assert!(
            findings(&Ok(mode.clone()))
                .iter()
                .all(|finding| finding.level == Level::Ok)
        );
        mode.instructions.insert("lzcnt".into(), Outcome::Wrong);
        mode.instructions
            .insert("cmpxchg16b".into(), Outcome::EndsVm);
        assert_eq!(
            instruction_finding(&mode, "").what,
            "1 of 3 classes end the VM (cmpxchg16b), 1 of 3 classes give wrong results (lzcnt)"
        );
    }

    #[test]
    fn outcomes_in_json_are_the_probes_words() {
        let all = [
            Outcome::Works,
            Outcome::Wrong,
            Outcome::Fault(13),
            Outcome::EndsVm,
        ];
        assert_eq!(
            serde_json::to_string(&all).unwrap(),
            r#"["ok","wrong","fault-13","ends-vm"]"#
        );
    }
}

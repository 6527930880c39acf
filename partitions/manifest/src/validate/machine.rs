//! The rules of a partition's machine: memory, CPUs, transport, watchdog, limits.

use super::Sink;
use super::options::Options;
use crate::diagnostic::Code;
use crate::draft::{At, BalloonDraft, LimitsDraft, PartitionDraft};
use crate::size::{parse_memory_mib, parse_percent};
use crate::system::{Balloon, KernelKind, Limits, Memory};
use bulkhead_abi::machine::MAX_CPUS;
use bulkhead_capability::{Adherence, Autonomy};
use bulkhead_cpu::CpuTemplate;
use bulkhead_machine::{MAX_VCPUS, MIN_MEMORY_MIB, Transport};

/// Most memory of one partition: 1 TiB. Whether the host has it is the supervisor's question.
const MAX_MEMORY_MIB: u64 = 1024 * 1024;
/// Blocks of pluggable memory: what Linux can add and remove.
const PLUGGABLE_STEP_MIB: u64 = 128;
/// Fewest processes and threads with which a partition's processes start.
const MIN_PIDS: i64 = 8;

/// What a partition's processes may use, when it says so at all.
pub(super) fn limits(draft: Option<&At<LimitsDraft>>, refuse: &mut Sink<'_>) -> Option<Limits> {
    let Some(At { value: draft, span }) = draft else {
        return Some(Limits::default());
    };
    let mut wrong = |at: &At<String>, message: String, help: &str| {
        refuse(Code::Limits, at.span.clone(), message, help.to_owned());
    };
    let mut complete = true;
    let mut cpu_percent = None;
    if let Some(cpu) = &draft.cpu {
        cpu_percent = parse_percent(&cpu.value)
            .ok()
            .filter(|cpu| (1..=100_000).contains(cpu));
        if cpu_percent.is_none() {
            let message = format!("`{}` is no share of CPUs", cpu.value.escape_debug());
            wrong(cpu, message, "write percent of one CPU: cpu = \"150%\"");
            complete = false;
        }
    }
    let mut memory_overhead_mib = None;
    if let Some(memory) = &draft.memory_overhead {
        let mib = parse_memory_mib(&memory.value).ok();
        memory_overhead_mib = mib.filter(|mib| (8..=MAX_MEMORY_MIB).contains(mib));
        if memory_overhead_mib.is_none() {
            let message = format!("`{}` is no overhead of memory", memory.value.escape_debug());
            wrong(
                memory,
                message,
                "write 8MiB or more, beyond the guest's own memory",
            );
            complete = false;
        }
    }
    let mut pids = None;
    if let Some(most) = &draft.pids {
        pids = u64::try_from(most.value)
            .ok()
            .filter(|_| most.value >= MIN_PIDS);
        if pids.is_none() {
            let message = format!("`pids` cannot be {}", most.value);
            let help = format!("choose {MIN_PIDS} or more: each vCPU is a thread");
            refuse(Code::Limits, most.span.clone(), message, help);
            complete = false;
        }
    }
    let limits = Limits {
        cpu_percent,
        memory_overhead_mib,
        pids,
    };
    if complete && !limits.any() {
        refuse(
            Code::Limits,
            span.clone(),
            "`limits` limits nothing".to_owned(),
            "write cpu = \"150%\", memory_overhead = \"64MiB\" or pids = 100".to_owned(),
        );
        complete = false;
    }
    complete.then_some(limits)
}

pub(super) fn memory(
    draft: &PartitionDraft,
    kind: KernelKind,
    refuse: &mut Sink<'_>,
) -> Option<Memory> {
    let Some(At { value: draft, span }) = &draft.memory else {
        return Some(plain(kind.default_memory_mib()));
    };
    let mib = match &draft.size {
        None => kind.default_memory_mib(),
        Some(text) => size(text, MIN_MEMORY_MIB..=MAX_MEMORY_MIB, refuse)?,
    };
    let mut memory = plain(mib);
    memory.hugepages = draft.hugepages.as_ref().is_some_and(|at| at.value);
    memory.prefault = draft.prefault.as_ref().is_some_and(|at| at.value);
    memory.shared = draft.shared.as_ref().is_some_and(|at| at.value);
    if let Some(max) = &draft.max {
        let most = size(max, mib..=MAX_MEMORY_MIB, refuse)?;
        memory.pluggable_mib = most - mib;
        if !memory.pluggable_mib.is_multiple_of(PLUGGABLE_STEP_MIB) {
            let message = format!("`max` is {} MiB more than `size`", memory.pluggable_mib);
            let help = format!("memory is plugged in blocks of {PLUGGABLE_STEP_MIB}MiB");
            refuse(Code::Memory, max.span.clone(), message, help);
            return None;
        }
    }
    if memory.hugepages && !mib.is_multiple_of(2) {
        refuse(
            Code::Memory,
            span.clone(),
            format!("{mib} MiB are no whole number of huge pages"),
            "with hugepages, choose an even number of MiB".to_owned(),
        );
        return None;
    }
    if let Some(draft) = &draft.balloon {
        memory.balloon = Some(balloon(&draft.value, mib, refuse)?);
    }
    Some(memory)
}

fn plain(mib: u64) -> Memory {
    Memory {
        mib,
        pluggable_mib: 0,
        hugepages: false,
        prefault: false,
        shared: false,
        balloon: None,
    }
}

fn balloon(draft: &BalloonDraft, mib: u64, refuse: &mut Sink<'_>) -> Option<Balloon> {
    let wanted = |at: &Option<At<bool>>| at.as_ref().is_none_or(|at| at.value);
    Some(Balloon {
        mib: match &draft.size {
            None => 0,
            Some(text) => size(text, 0..=mib - 1, refuse)?,
        },
        deflate_on_oom: wanted(&draft.deflate_on_oom),
        free_page_reporting: wanted(&draft.free_page_reporting),
    })
}

/// A size of memory, of any that a partition may have.
pub(crate) fn memory_size(text: &At<String>, refuse: &mut Sink<'_>) -> Option<u64> {
    size(text, MIN_MEMORY_MIB..=MAX_MEMORY_MIB, refuse)
}

fn size(
    text: &At<String>,
    bounds: std::ops::RangeInclusive<u64>,
    refuse: &mut Sink<'_>,
) -> Option<u64> {
    let written = text.value.escape_debug();
    let (message, help) = match parse_memory_mib(&text.value) {
        Ok(mib) if bounds.contains(&mib) => return Some(mib),
        Ok(_) => (
            format!("memory of `{written}` is out of bounds"),
            match *bounds.end() {
                MAX_MEMORY_MIB => format!(
                    "choose {}MiB to {}GiB",
                    bounds.start(),
                    MAX_MEMORY_MIB / 1024
                ),
                end => format!("choose {}MiB to {end}MiB", bounds.start()),
            },
        ),
        Err(why) => (
            format!("`{written}` is no size of memory: {why}"),
            "write a whole number and a unit: 64MiB, 2GiB".to_owned(),
        ),
    };
    refuse(Code::Memory, text.span.clone(), message, help);
    None
}

/// Bulkhead's kernel has room for fewer than the machine.
pub(super) fn vcpus(
    draft: &PartitionDraft,
    kind: Option<KernelKind>,
    refuse: &mut Sink<'_>,
) -> Option<u32> {
    let Some(vcpus) = &draft.vcpus else {
        return Some(1);
    };
    let (whose, most) = match kind {
        Some(KernelKind::Native | KernelKind::LinuxAbi) => {
            ("a partition on Bulkhead's kernel", MAX_CPUS as u32)
        }
        Some(KernelKind::Linux) | None => ("a partition", MAX_VCPUS),
    };
    match u32::try_from(vcpus.value) {
        Ok(count) if (1..=most).contains(&count) => Some(count),
        _ => {
            let message = format!("{whose} cannot have {} vCPUs", vcpus.value);
            let help = format!("choose 1 to {most}");
            refuse(Code::Vcpus, vcpus.span.clone(), message, help);
            None
        }
    }
}

pub(super) fn cpu(draft: &PartitionDraft, refuse: &mut Sink<'_>) -> Option<CpuTemplate> {
    let choices = [
        ("host", CpuTemplate::Host),
        ("v2", CpuTemplate::V2),
        ("v3", CpuTemplate::V3),
    ];
    choice(
        "cpu",
        draft.cpu.as_ref(),
        CpuTemplate::Host,
        &choices,
        refuse,
    )
}

pub(crate) fn autonomy(draft: Option<&At<String>>, refuse: &mut Sink<'_>) -> Option<Autonomy> {
    let default = Autonomy::default();
    choice("autonomy", draft, default, &Autonomy::ALL, refuse)
}

pub(crate) fn adherence(draft: Option<&At<String>>, refuse: &mut Sink<'_>) -> Option<Adherence> {
    let default = Adherence::default();
    choice("conditions", draft, default, &Adherence::ALL, refuse)
}

pub(super) fn transport(
    draft: &PartitionDraft,
    kind: KernelKind,
    refuse: &mut Sink<'_>,
) -> Option<Transport> {
    let choices = [("pci", Transport::Pci), ("mmio", Transport::Mmio)];
    let default = match kind {
        KernelKind::Linux => DEFAULT_TRANSPORT,
        KernelKind::Native | KernelKind::LinuxAbi => Transport::Mmio,
    };
    choice(
        "transport",
        draft.transport.as_ref(),
        default,
        &choices,
        refuse,
    )
}

/// How a Linux kernel finds its devices when nobody says.
const DEFAULT_TRANSPORT: Transport = Transport::Mmio;

/// Whether a reset starts the partition again. One that runs a single command ends with it; any
/// other is a computer, and computers reboot.
pub(super) fn restart(draft: &PartitionDraft, refuse: &mut Sink<'_>) -> Option<bool> {
    let default = draft.command.is_none();
    let choices = [("restart", true), ("end", false)];
    choice(
        "on_reboot",
        draft.on_reboot.as_ref(),
        default,
        &choices,
        refuse,
    )
}

fn choice<T: Copy>(
    key: &str,
    word: Option<&At<String>>,
    default: T,
    choices: &[(&str, T)],
    refuse: &mut Sink<'_>,
) -> Option<T> {
    let Some(word) = word else {
        return Some(default);
    };
    let mut refuse = |code, span, message, help| refuse(code, span, message, help);
    let mut options = Options {
        refuse: &mut refuse,
        grant: &word.span,
    };
    options.choice(key, word, choices)
}

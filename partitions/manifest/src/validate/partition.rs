//! The rules of one partition: its size, its grants, and which keys its kernel takes.

use super::program::{self, Context};
use super::{Sink, check_name};
use crate::diagnostic::Code;
use crate::draft::{At, PartitionDraft};
use crate::memory::parse_memory_mib;
use crate::system::{Kernel, KernelKind, LinuxBoot, Partition};
use bulkhead_abi::machine::MAX_DEVICES;
use bulkhead_capability::{Capability, CapabilityName, Grants};
use bulkhead_machine::{MAX_VCPUS, MIN_MEMORY_MIB};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most memory of one partition: 1 TiB. Whether the host has it is the supervisor's question.
const MAX_MEMORY_MIB: u64 = 1024 * 1024;
/// Most disks of one partition: all device windows but those of console and entropy.
const MAX_DISKS: usize = MAX_DEVICES - 2;
/// Longest kernel command line that x86 Linux takes, less what the VMM adds.
const MAX_CMDLINE: usize = 1500;
/// The kernel of a Linux partition that does not name one.
const DEFAULT_IMAGE: &str = "@linux/vmlinuz";

pub(super) fn check(
    draft: &At<PartitionDraft>,
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Partition> {
    let span = draft.span.clone();
    let draft = &draft.value;
    let name = check_name("a partition", draft.name.as_ref(), span.clone(), refuse);
    let kind = check_kind(draft, span.clone(), refuse);
    let vcpus = check_vcpus(draft, refuse);
    let grants = check_grants(draft, base, refuse);
    // What follows depends on the kernel; without one there is nothing sensible to say.
    let kind = kind?;
    let memory_mib = check_memory(draft, kind, refuse);
    check_keys(draft, kind, refuse);
    let mut context = Context {
        draft,
        base,
        span,
        refuse,
    };
    let kernel = check_kernel(&mut context, kind);
    Some(Partition {
        name: name?,
        memory_mib: memory_mib?,
        vcpus: vcpus?,
        grants: grants?,
        kernel: kernel?,
    })
}

fn check_kind(
    draft: &PartitionDraft,
    span: Option<Range<usize>>,
    refuse: &mut Sink<'_>,
) -> Option<KernelKind> {
    let kinds = KernelKind::ALL.map(KernelKind::as_str).join(", ");
    let Some(kernel) = &draft.kernel else {
        let message = "a partition has no `kernel`".to_owned();
        refuse(
            Code::MissingKey,
            span,
            message,
            format!("add one of {kinds}"),
        );
        return None;
    };
    let kind = KernelKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == kernel.value);
    if kind.is_none() {
        let message = format!("unknown kernel `{}`", kernel.value.escape_debug());
        refuse(
            Code::Kernel,
            kernel.span.clone(),
            message,
            format!("choose one of {kinds}"),
        );
    }
    kind
}

fn check_memory(draft: &PartitionDraft, kind: KernelKind, refuse: &mut Sink<'_>) -> Option<u64> {
    let Some(memory) = &draft.memory else {
        return Some(kind.default_memory_mib());
    };
    let text = memory.value.escape_debug();
    let (message, help) = match parse_memory_mib(&memory.value) {
        Ok(mib) if (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mib) => return Some(mib),
        Ok(_) => (
            format!("memory of `{text}` is out of bounds"),
            format!("choose {MIN_MEMORY_MIB}MiB to {}GiB", MAX_MEMORY_MIB / 1024),
        ),
        Err(why) => (
            format!("`{text}` is no size of memory: {why}"),
            "write a whole number and a unit: 64MiB, 2GiB".to_owned(),
        ),
    };
    refuse(Code::Memory, memory.span.clone(), message, help);
    None
}

fn check_vcpus(draft: &PartitionDraft, refuse: &mut Sink<'_>) -> Option<u32> {
    let Some(vcpus) = &draft.vcpus else {
        return Some(1);
    };
    match u32::try_from(vcpus.value) {
        Ok(count @ 1..=MAX_VCPUS) => Some(count),
        _ => {
            let message = format!("a partition cannot have {} vCPUs", vcpus.value);
            let help = format!("choose 1 to {MAX_VCPUS}");
            refuse(Code::Vcpus, vcpus.span.clone(), message, help);
            None
        }
    }
}

fn check_grants(draft: &PartitionDraft, base: &Path, refuse: &mut Sink<'_>) -> Option<Grants> {
    let mut grants: Vec<Capability> = Vec::new();
    let mut complete = true;
    for At {
        value: (name, path),
        span,
    } in &draft.grants
    {
        let path = path.as_ref().filter(|path| !path.is_empty());
        let path: Option<PathBuf> = path.map(|path| base.join(path));
        let parsed = (name.parse::<CapabilityName>().map_err(Into::into))
            .and_then(|name| Capability::new(name, path.as_deref()));
        let refusal = match parsed {
            Err(error) => Some((Code::Grant, error.to_string(), error.help())),
            Ok(grant) => match grant.path() {
                Some(disk) if disk.as_os_str().as_encoded_bytes().contains(&0) => Some((
                    Code::Path,
                    "the path of a disk contains a NUL byte".to_owned(),
                    "name the disk without it".to_owned(),
                )),
                Some(disk) if grants.iter().any(|other| other.path() == Some(disk)) => Some((
                    Code::DuplicateGrant,
                    format!("disk `{}` is granted twice", disk.display()),
                    "block.write includes block.read: keep one of the two".to_owned(),
                )),
                _ => {
                    grants.push(grant);
                    None
                }
            },
        };
        if let Some((code, message, help)) = refusal {
            refuse(code, span.clone(), message, help);
            complete = false;
        }
    }
    if grants.iter().filter(|grant| grant.path().is_some()).count() > MAX_DISKS {
        refuse(
            Code::Grant,
            draft.grants.last().and_then(|grant| grant.span.clone()),
            format!("a partition has more than {MAX_DISKS} disks"),
            format!("grant at most {MAX_DISKS}"),
        );
        complete = false;
    }
    complete.then(|| grants.into_iter().collect())
}

/// Refuses keys that the partition's kernel does not take: they would do nothing.
fn check_keys(draft: &PartitionDraft, kind: KernelKind, refuse: &mut Sink<'_>) {
    use KernelKind::{Linux, LinuxAbi, Native};
    /// A key, where it was written if it was, and the kernels that take it.
    type Key = (
        &'static str,
        Option<Option<Range<usize>>>,
        &'static [KernelKind],
    );
    fn span<T>(key: &Option<At<T>>) -> Option<Option<Range<usize>>> {
        key.as_ref().map(|at| at.span.clone())
    }
    let mounts = draft.mounts.first().map(|mount| mount.span.clone());
    let keys: [Key; 10] = [
        ("program", span(&draft.program), &[Native]),
        ("args", span(&draft.args), &[Native]),
        ("command", span(&draft.command), &[LinuxAbi, Linux]),
        ("env", span(&draft.env), &[Native, LinuxAbi, Linux]),
        ("root", span(&draft.root), &[LinuxAbi, Linux]),
        ("mounts", mounts, &[LinuxAbi, Linux]),
        ("trace_syscalls", span(&draft.trace_syscalls), &[LinuxAbi]),
        ("image", span(&draft.image), &[Linux]),
        ("initrd", span(&draft.initrd), &[Linux]),
        ("cmdline", span(&draft.cmdline), &[Linux]),
    ];
    for (key, span, kinds) in &keys {
        if let Some(span) = span
            && !kinds.contains(&kind)
        {
            let fitting: Vec<&str> = keys
                .iter()
                .filter(|key| key.2.contains(&kind))
                .map(|key| key.0)
                .collect();
            let message = format!("`{key}` means nothing to kernel `{kind}`");
            let help = format!("keys of `{kind}`: {}", fitting.join(", "));
            refuse(Code::KeyNotForKernel, span.clone(), message, help);
        }
    }
}

fn check_kernel(context: &mut Context<'_, '_>, kind: KernelKind) -> Option<Kernel> {
    let draft = context.draft;
    match kind {
        KernelKind::Native => {
            let program = context.required_source("program", draft.program.as_ref());
            let env = program::environment(context);
            let args = draft
                .args
                .as_ref()
                .map(|args| args.value.clone())
                .unwrap_or_default();
            let span = draft.args.as_ref().and_then(|args| args.span.clone());
            let args = context.strings_fit(span, args, &env);
            Some(Kernel::Native {
                program: program?,
                args: args?,
                env: env?,
            })
        }
        KernelKind::LinuxAbi => {
            let trace_syscalls = draft.trace_syscalls.as_ref().is_some_and(|at| at.value);
            Some(Kernel::LinuxAbi {
                program: program::check(context)?,
                trace_syscalls,
            })
        }
        KernelKind::Linux => {
            let image = match &draft.image {
                Some(image) => context.source("image", image),
                None => context.source("image", &At::from(DEFAULT_IMAGE.to_owned())),
            };
            let cmdline = check_cmdline(context);
            let boot = check_linux_boot(context);
            Some(Kernel::Linux {
                image: image?,
                boot: boot?,
                cmdline: cmdline?,
            })
        }
    }
}

fn check_linux_boot(context: &mut Context<'_, '_>) -> Option<LinuxBoot> {
    let draft = context.draft;
    match (&draft.command, &draft.initrd) {
        (Some(_), None) => program::check(context).map(LinuxBoot::Command),
        (Some(_), Some(initrd)) => {
            context.refuse(
                Code::Boot,
                initrd.span.clone(),
                "`command` and `initrd` exclude each other".to_owned(),
                "with an initrd, its /init decides what runs".to_owned(),
            );
            None
        }
        (None, Some(initrd)) => Some(LinuxBoot::Initrd(Some(context.source("initrd", initrd)?))),
        (None, None) if draft.cmdline.is_some() => Some(LinuxBoot::Initrd(None)),
        (None, None) => {
            context.refuse(
                Code::MissingKey,
                context.span.clone(),
                "a Linux partition has nothing to run".to_owned(),
                "add `command`, or `initrd`, or `cmdline` with a root= of its own".to_owned(),
            );
            None
        }
    }
}

fn check_cmdline(context: &mut Context<'_, '_>) -> Option<Option<String>> {
    let Some(cmdline) = &context.draft.cmdline else {
        return Some(None);
    };
    let text = &cmdline.value;
    if text.len() > MAX_CMDLINE || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        context.refuse(
            Code::Command,
            cmdline.span.clone(),
            "`cmdline` is too long or not plain text".to_owned(),
            format!("write at most {MAX_CMDLINE} printable ASCII characters"),
        );
        return None;
    }
    Some(Some(text.clone()))
}

//! The rules of one partition: its size, its grants, and which keys its kernel takes.

use super::grants::{self, Whose};
use super::machine;
use super::mandate;
use super::program::{self, Context};
use super::{Sink, check_name};
use crate::diagnostic::Code;
use crate::draft::{At, PartitionDraft};
use crate::system::{Kernel, KernelKind, LinuxBoot, Partition};
use std::ops::Range;
use std::path::Path;

/// Longest kernel command line that x86 Linux takes, less what the VMM adds.
const MAX_CMDLINE: usize = 1500;
/// The kernel of a Linux partition that does not name one.
const DEFAULT_IMAGE: &str = "@linux/vmlinuz";

/// Checks the partition that stands at `number`, from 0, in the system named `system`.
pub(super) fn check(
    draft: &At<PartitionDraft>,
    (system, number): (&str, usize),
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Partition> {
    let span = draft.span.clone();
    let draft = &draft.value;
    let name = check_name("a partition", draft.name.as_ref(), span.clone(), refuse);
    let kind = check_kind(draft, span.clone(), refuse);
    let vcpus = machine::vcpus(draft, kind, refuse);
    let whose = Whose {
        system,
        partition: name.as_deref().unwrap_or_default(),
        number,
        kernel: kind,
        vcpus: vcpus.unwrap_or(1),
        base,
    };
    let network = draft.network.as_ref();
    let granted = grants::check(&draft.grants, &draft.deny, network, &whose, &[], refuse);
    let limits = machine::limits(draft.limits.as_ref(), refuse);
    let cpu = machine::cpu(draft, refuse);
    let autonomy = machine::autonomy(draft.autonomy.as_ref(), refuse);
    let conditions = machine::adherence(draft.conditions.as_ref(), refuse);
    // What follows depends on the kernel; without one there is nothing sensible to say.
    let kind = kind?;
    let memory = machine::memory(draft, kind, refuse);
    let transport = machine::transport(draft, kind, refuse);
    let restart = machine::restart(draft, refuse);
    check_keys(draft, kind, refuse);
    let mut context = Context {
        draft,
        base,
        span,
        refuse,
    };
    let kernel = check_kernel(&mut context, kind);
    let mandate = match &draft.mandate {
        None => Some(None),
        Some(mandate) => {
            let grants = granted.as_ref().map(|(grants, _)| grants);
            let span = context.span.clone();
            mandate::check(mandate, span, grants, base, context.refuse).map(Some)
        }
    };
    let (grants, devices) = granted?;
    Some(Partition {
        name: name?,
        memory: memory?,
        vcpus: vcpus?,
        cpu: cpu?,
        autonomy: autonomy?,
        conditions: conditions?,
        transport: transport?,
        watchdog: draft.watchdog.as_ref().is_some_and(|at| at.value),
        restart: restart? && kind == KernelKind::Linux,
        grants,
        devices,
        limits: limits?,
        kernel: kernel?,
        mandate: mandate?,
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
    let max = draft
        .memory
        .as_ref()
        .and_then(|memory| span(&memory.value.max));
    let keys: [Key; 15] = [
        ("memory.max", max, &[Linux]),
        ("transport", span(&draft.transport), &[Linux]),
        ("watchdog", span(&draft.watchdog), &[Linux]),
        ("on_reboot", span(&draft.on_reboot), &[Linux]),
        ("autonomy", span(&draft.autonomy), &[Native, Linux]),
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

//! The rules of what runs: commands, environments, sources and mounts.

use super::Sink;
use crate::diagnostic::Code;
use crate::draft::{At, MountDraft, PartitionDraft};
use crate::guest_path::GuestPath;
use crate::source::Source;
use crate::system::{Mount, Program};
use std::ops::Range;
use std::path::Path;

/// Most bytes of arguments and environment together: half of the `BootInfo` blob.
const MAX_STRINGS: usize = bulkhead_abi::boot::MAX_SIZE as usize / 2;
/// Directories that the guest's own file systems cover.
const RESERVED_TARGETS: [&str; 4] = ["/bulkhead", "/dev", "/proc", "/sys"];

/// The partition being checked.
pub(super) struct Context<'c, 's> {
    pub(super) draft: &'c PartitionDraft,
    pub(super) base: &'c Path,
    /// The partition as a whole.
    pub(super) span: Option<Range<usize>>,
    pub(super) refuse: &'c mut Sink<'s>,
}

impl Context<'_, '_> {
    pub(super) fn refuse(
        &mut self,
        code: Code,
        span: Option<Range<usize>>,
        message: String,
        help: String,
    ) {
        (self.refuse)(code, span, message, help);
    }

    fn missing(&mut self, span: Option<Range<usize>>, what: &str, key: &str, example: &str) {
        let message = format!("{what} has no `{key}`");
        self.refuse(
            Code::MissingKey,
            span,
            message,
            format!("add one: {key} = {example}"),
        );
    }

    pub(super) fn source(&mut self, key: &str, text: &At<String>) -> Option<Source> {
        match Source::new(&text.value, self.base) {
            Ok(source) => Some(source),
            Err(why) => {
                let message = format!("`{key}` is no path: {why}");
                let help = "write a path of the host, or @name for a file of Bulkhead's".to_owned();
                self.refuse(Code::Path, text.span.clone(), message, help);
                None
            }
        }
    }

    pub(super) fn required_source(
        &mut self,
        key: &str,
        text: Option<&At<String>>,
    ) -> Option<Source> {
        let Some(text) = text else {
            self.missing(self.span.clone(), "the partition", key, "\"path/to/file\"");
            return None;
        };
        self.source(key, text)
    }

    /// Passes `strings` on when they fit, with the environment, into what the kernel is handed.
    pub(super) fn strings_fit(
        &mut self,
        span: Option<Range<usize>>,
        strings: Vec<String>,
        env: &Option<Vec<String>>,
    ) -> Option<Vec<String>> {
        let all = || strings.iter().chain(env.iter().flatten());
        let bytes: usize = all().map(|string| string.len() + 1).sum();
        let (message, help) = if all().any(|string| string.contains('\0')) {
            (
                "an argument contains a NUL byte".to_owned(),
                "remove it".to_owned(),
            )
        } else if bytes > MAX_STRINGS {
            (
                format!("arguments and environment take {bytes} bytes"),
                format!("a partition takes at most {MAX_STRINGS}: hand over a file instead"),
            )
        } else {
            return Some(strings);
        };
        self.refuse(Code::Command, span, message, help);
        None
    }
}

/// The environment as `NAME=value`, sorted by name.
pub(super) fn environment(context: &mut Context<'_, '_>) -> Option<Vec<String>> {
    let Some(env) = &context.draft.env else {
        return Some(Vec::new());
    };
    let bad = env
        .value
        .keys()
        .find(|name| name.is_empty() || name.contains(['=', '\0']));
    if let Some(name) = bad {
        context.refuse(
            Code::Command,
            env.span.clone(),
            format!(
                "`{}` is no name of an environment variable",
                name.escape_debug()
            ),
            "a name is not empty and has no `=`".to_owned(),
        );
        return None;
    }
    Some(
        env.value
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
    )
}

/// The command of a Linux or Linux-ABI partition and its files.
pub(super) fn check(context: &mut Context<'_, '_>) -> Option<Program> {
    let env = environment(context);
    let command = match &context.draft.command {
        None => {
            context.missing(
                context.span.clone(),
                "the partition",
                "command",
                "[\"/bin/hello\", \"world\"]",
            );
            None
        }
        Some(command) if command.value.first().is_none_or(String::is_empty) => {
            context.refuse(
                Code::Command,
                command.span.clone(),
                "`command` is empty".to_owned(),
                "its first element is the program to run".to_owned(),
            );
            None
        }
        Some(command) => context.strings_fit(command.span.clone(), command.value.clone(), &env),
    };
    let root = match &context.draft.root {
        Some(root) => Some(context.source("root", root)?),
        None => None,
    };
    let mounts = check_mounts(context);
    Some(Program {
        command: command?,
        env: env?,
        root,
        mounts: mounts?,
    })
}

fn check_mounts(context: &mut Context<'_, '_>) -> Option<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut complete = true;
    for draft in &context.draft.mounts {
        let Some(mount) = check_mount(context, draft) else {
            complete = false;
            continue;
        };
        let overlap = mounts.iter().find(|other| {
            mount.target.is_within(&other.target) || other.target.is_within(&mount.target)
        });
        if let Some(other) = overlap {
            let message = if other.target == mount.target {
                format!("two mounts share the target `{}`", mount.target)
            } else {
                format!("mounts `{}` and `{}` overlap", other.target, mount.target)
            };
            let span = draft
                .value
                .target
                .as_ref()
                .and_then(|target| target.span.clone());
            let help = "mount them side by side, or lay the files out in one directory".to_owned();
            context.refuse(Code::OverlappingMount, span, message, help);
            complete = false;
        }
        mounts.push(mount);
    }
    complete.then_some(mounts)
}

fn check_mount(context: &mut Context<'_, '_>, draft: &At<MountDraft>) -> Option<Mount> {
    let span = draft.span.clone();
    let source = match &draft.value.source {
        Some(source) => context.source("source", source),
        None => {
            context.missing(span.clone(), "a mount", "source", "\"path/of/the/host\"");
            None
        }
    };
    let Some(target) = &draft.value.target else {
        context.missing(span, "a mount", "target", "\"/path/in/the/guest\"");
        return None;
    };
    let text = target.value.escape_debug();
    let reserved = |path: &GuestPath| {
        RESERVED_TARGETS
            .into_iter()
            .any(|name| Path::new(path.as_str()).starts_with(name))
    };
    let (message, help) = match GuestPath::new(&target.value) {
        Ok(path) if path.as_str() == "/" => (
            "a mount cannot be the guest's `/`".to_owned(),
            "name the directory as `root` of the partition".to_owned(),
        ),
        Ok(path) if reserved(&path) => (
            format!("mount target `{text}` belongs to the guest's own file systems"),
            format!("choose one outside {}", RESERVED_TARGETS.join(", ")),
        ),
        Ok(path) => {
            return Some(Mount {
                source: source?,
                target: path,
            });
        }
        Err(why) => (
            format!("`{text}` is no target of a mount: {why}"),
            "write a plain absolute path such as /srv/data".to_owned(),
        ),
    };
    context.refuse(Code::MountTarget, target.span.clone(), message, help);
    None
}

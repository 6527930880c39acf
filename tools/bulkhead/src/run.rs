//! `bulkhead run`: one command in a partition of its own, on our own streams.

use crate::cli::{KernelChoice, RunArgs};
use crate::command;
use crate::failure::{Failure, STATUS_CANNOT_RUN, STATUS_FAILED, STATUS_NOT_FOUND};
use crate::signals;
use crate::terminal::{self, RawMode};
use bulkhead_manifest::{At, MountDraft, PartitionDraft, SystemDraft, validate};
use bulkhead_supervisor::{
    Cause, Consoles, Error, Library, Options, Outcome, ProgramProblem, StateRoot, Supervisor,
};
use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::Path;

/// What `run` grants beside disks: what a docker user takes for granted.
const DEFAULT_GRANTS: [&str; 3] = ["console", "entropy", "time"];
/// Name of the one partition.
const PARTITION: &str = "main";
/// Exit status after SIGPIPE.
const STATUS_BROKEN_PIPE: u8 = 141;
/// Exit status after SIGINT.
const STATUS_INTERRUPTED: u8 = 130;

/// Runs the command; its exit status.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    // Everything behind the first word is the command's, so a misspelt option ends up here.
    if let Some(option) = args.command.first().filter(|word| word.starts_with('-')) {
        let message = format!("unknown option `{option}`");
        return Err(Failure::new("usage", message).help("see bulkhead run --help"));
    }
    let jail = args.jail.into();
    let raw = args.tty;
    let tty = terminal::is_attached();
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("run-{}", std::process::id()));
    let partition = draft(args, tty)?;
    let system = SystemDraft {
        name: Some(At::from(name)),
        partitions: vec![At::from(partition)],
    };
    let system = validate(&system, Path::new(""))?;

    let library = Library::find()?;
    let root = StateRoot::locate()?;
    let signals = signals::catch()?;
    let options = Options {
        consoles: Consoles::Attached { tty, raw },
        jail,
        keep_logs: false,
    };
    let raw_mode = raw.then(RawMode::enter).transpose()?;
    let supervisor = Supervisor::start(&system, &root, &library, options).map_err(cannot_start)?;
    let outcome = supervisor.wait(signals, || {});
    drop(raw_mode);
    conclude(&outcome?)
}

/// As docker has it: a command that is not there is 127; one that is whole, and that a partition cannot run, is 126. A damaged
/// one is bad input like any other.
fn cannot_start(error: Error) -> Failure {
    use ProgramProblem::{Dynamic, NotElf, NotExecutable, WrongArchitecture};
    let status = match &error {
        Error::Program {
            problem: NotElf | WrongArchitecture | NotExecutable | Dynamic { .. },
            ..
        } => STATUS_CANNOT_RUN,
        Error::Open {
            what: "program",
            source,
            ..
        } if source.kind() == io::ErrorKind::NotFound => STATUS_NOT_FOUND,
        _ => STATUS_FAILED,
    };
    Failure::from(error).status(status)
}

/// The exit status that the outcome means, or the failure that it was.
fn conclude(outcome: &Outcome) -> Result<u8, Failure> {
    match outcome.cause {
        Some(Cause::Signal(number)) => return Ok(128 + number),
        Some(Cause::Escape) => return Ok(STATUS_INTERRUPTED),
        Some(Cause::BrokenPipe) => return Ok(STATUS_BROKEN_PIPE),
        Some(Cause::OutputFailed { errno }) => return Err(Failure::output(errno)),
        Some(Cause::Request | Cause::Incomplete) | None => {}
    }
    let Some((name, end)) = outcome.ends.first() else {
        return Err(Failure::new("vmm-died", "the partition is gone"));
    };
    match end.complaint(name) {
        Some((code, message, help)) => {
            Err(Failure::complain(code, message, help).status(end.status()))
        }
        None => Ok(end.status()),
    }
}

/// The partition that the options describe, still unchecked.
fn draft(args: RunArgs, tty: bool) -> Result<PartitionDraft, Failure> {
    let mut draft = PartitionDraft {
        name: Some(At::from(PARTITION.to_owned())),
        memory: args.memory.map(At::from),
        vcpus: args.vcpus.map(At::from),
        grants: grants(&args.disk, &args.grant, args.no_default_grants),
        root: args.root.map(At::from),
        image: args.image.map(At::from),
        initrd: args.initrd.map(At::from),
        cmdline: args.cmdline.map(At::from),
        trace_syscalls: args.trace_syscalls.then(|| At::from(true)),
        ..PartitionDraft::default()
    };
    for mount in &args.mount {
        let Some((source, target)) = mount.rsplit_once(':') else {
            return Err(Failure::new("mount", format!("`{mount}` is no mount"))
                .help("write HOST:GUEST, such as ./data:/data"));
        };
        draft.mounts.push(new_mount(source, target));
    }
    let environment = environment(&args.env, tty);
    if !environment.is_empty() {
        draft.env = Some(At::from(environment));
    }
    let kernel = match args.kernel {
        KernelChoice::Native => "native",
        KernelChoice::LinuxAbi => "linux-abi",
        KernelChoice::Linux => "linux",
    };
    draft.kernel = Some(At::from(kernel.to_owned()));
    set_command(&mut draft, args.kernel, args.command)?;
    Ok(draft)
}

fn set_command(
    draft: &mut PartitionDraft,
    kernel: KernelChoice,
    mut command: Vec<String>,
) -> Result<(), Failure> {
    let Some(name) = command.first().cloned() else {
        // A Linux kernel may be all there is to run; the others say what is missing.
        if kernel != KernelChoice::Linux || (draft.initrd.is_none() && draft.cmdline.is_none()) {
            return Err(Failure::new("no-command", "there is nothing to run")
                .help("bulkhead run [OPTIONS] -- CMD [ARGS]"));
        }
        return Ok(());
    };
    if kernel == KernelChoice::Native {
        draft.program = Some(At::from(command::find(&name)?.source));
        draft.args = Some(At::from(command.split_off(1)));
        return Ok(());
    }
    let targets = draft
        .mounts
        .iter()
        .filter_map(|mount| mount.value.target.as_ref());
    let provided = draft.root.is_some()
        || targets
            .into_iter()
            .any(|target| command::is_provided(&name, &target.value));
    if !provided {
        let found = command::find(&name)?;
        draft.mounts.push(new_mount(&found.source, &found.target));
        if name.starts_with('@')
            && let Some(first) = command.first_mut()
        {
            *first = found.target;
        }
    }
    draft.command = Some(At::from(command));
    Ok(())
}

fn new_mount(source: &str, target: &str) -> At<MountDraft> {
    At::from(MountDraft {
        source: Some(At::from(source.to_owned())),
        target: Some(At::from(target.to_owned())),
    })
}

/// Every grant as name and path, the defaults first.
fn grants(
    disks: &[String],
    others: &[String],
    no_defaults: bool,
) -> Vec<At<(String, Option<String>)>> {
    let defaults = DEFAULT_GRANTS.into_iter().filter(|_| !no_defaults);
    let defaults = defaults.map(|name| (name.to_owned(), None));
    let disks = disks.iter().map(|disk| match disk.strip_suffix(":ro") {
        Some(path) => ("block.read".to_owned(), Some(path.to_owned())),
        None => ("block.write".to_owned(), Some(disk.clone())),
    });
    let others = others.iter().map(|grant| match grant.split_once(':') {
        Some((name, path)) => (name.to_owned(), Some(path.to_owned())),
        None => (grant.clone(), None),
    });
    defaults.chain(disks).chain(others).map(At::from).collect()
}

/// The environment; a name alone takes this process's value, if it has one.
fn environment(options: &[String], tty: bool) -> BTreeMap<String, String> {
    let own = |name: &str| env::var(name).ok().map(|value| (name.to_owned(), value));
    let given = options
        .iter()
        .filter_map(|option| match option.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => own(option),
        });
    let terminal = tty.then(|| own("TERM")).flatten();
    terminal.into_iter().chain(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_the_defaults_and_what_was_asked_for() {
        let list = |disks: &[&str], others: &[&str], none| -> Vec<String> {
            let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let grants = grants(&owned(disks), &owned(others), none);
            let text = |(name, path): (String, Option<String>)| match path {
                Some(path) => format!("{name}:{path}"),
                None => name,
            };
            grants.into_iter().map(|grant| text(grant.value)).collect()
        };
        assert_eq!(list(&[], &[], false), ["console", "entropy", "time"]);
        assert!(list(&[], &[], true).is_empty());
        assert_eq!(
            list(&["a:ro", "b", "c:rox"], &["time", "block.read:x:y"], true),
            [
                "block.read:a",
                "block.write:b",
                "block.write:c:rox",
                "time",
                "block.read:x:y"
            ]
        );
    }

    #[test]
    fn the_environment_is_what_was_asked_for() {
        let path = env::var("PATH").unwrap();
        let options = ["A=b=c", "PATH", "UNSET_VARIABLE_OF_NOBODY", "E="].map(str::to_owned);
        let environment = environment(&options, false);
        let pairs: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, [("A", "b=c"), ("E", ""), ("PATH", path.as_str())]);
    }
}

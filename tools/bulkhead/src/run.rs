//! `bulkhead run`: one command in a partition of its own, on our own streams.

use crate::act::{disk_grant, share_grant};
use crate::cli::{KernelChoice, RunArgs};
use crate::command;
use crate::failure::{Failure, STATUS_CANNOT_RUN, STATUS_FAILED, STATUS_NOT_FOUND};
use crate::gdb;
use crate::inheritance;
use crate::policy;
use crate::recorder;
use crate::secret;
use crate::signals;
use crate::terminal::{self, RawMode};
use bulkhead_manifest::{
    At, GrantDraft, MemoryDraft, MountDraft, PartitionDraft, SystemDraft, validate,
};
use bulkhead_places::Place;
use bulkhead_supervisor::{
    Admissions, Cause, Consoles, Error, Library, Options, Outcome, ProgramProblem, StateRoot,
    Supervisor,
};
use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

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
    let gdb = args.gdb.as_deref().map(gdb::listen).transpose()?;
    let tty = terminal::is_attached();
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("run-{}", std::process::id()));
    let mut conditions = None;
    let mut judge = None;
    let partition = match &args.manifest {
        Some(manifest) => {
            conditions = policy::beside(manifest)?;
            let judge = judge.insert(admissions()?);
            judge.admit(manifest, args.unsigned)?.into_draft()
        }
        None => draft(args, tty)?,
    };
    let system = SystemDraft {
        name: Some(At::from(name)),
        partitions: vec![At::from(partition)],
    };
    let system = validate(&system, Path::new(""))?;
    let none = BTreeMap::new();
    let conditions = inheritance::held(&system, conditions.as_ref(), &none, judge.as_ref())?;

    let library = Library::find()?;
    let root = StateRoot::locate()?;
    let signals = signals::catch()?;
    let options = Options {
        consoles: Consoles::Attached { tty, raw },
        jail,
        keep_logs: false,
        gdb: gdb.as_ref().map(|gdb| gdb.socket.clone()),
        secrets: secret::of(&system)?,
        conditions,
    };
    if let Some(gdb) = &gdb {
        // Without anybody to read it, they know already.
        let line = format!(
            "bulkhead: waiting for gdb -ex 'target remote {}'\n",
            gdb.target
        );
        let _ = io::stderr().write_all(line.as_bytes());
    }
    let raw_mode = raw.then(RawMode::enter).transpose()?;
    inheritance::warn(&options.conditions);
    let supervisor = Supervisor::start(&system, &root, &library, options).map_err(cannot_start)?;
    let outcome = supervisor.wait(signals, || {});
    drop(raw_mode);
    conclude(&outcome?)
}

/// What judges manifests here.
pub(crate) fn admissions() -> Result<Admissions, Failure> {
    let config = Place::config()?;
    let own = [&Place::data()?, &Place::checkpoints()?];
    let root = StateRoot::locate()?;
    let recorder = Arc::new(recorder::open()?);
    Ok(Admissions::new(&config, &own, &root, recorder)?)
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
        memory: memory(&args).map(At::from),
        vcpus: args.vcpus.map(At::from),
        transport: args.transport.clone().map(At::from),
        grants: grants(&args)?,
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

/// Every grant, the defaults first.
fn grants(args: &RunArgs) -> Result<Vec<At<GrantDraft>>, Failure> {
    let defaults = DEFAULT_GRANTS
        .into_iter()
        .filter(|_| !args.no_default_grants);
    let mut grants: Vec<GrantDraft> = defaults.map(|name| name.to_owned().into()).collect();
    grants.extend(args.disk.iter().map(|disk| disk_grant(disk).into()));
    for share in &args.share {
        let (grant, tag) = share_grant(share)?;
        grants.push(GrantDraft {
            tag: Some(At::from(tag)),
            ..GrantDraft::from(grant)
        });
    }
    let rules = args.net.iter().map(|rule| format!("net.connect:{rule}"));
    let listens = args
        .publish
        .iter()
        .map(|listen| format!("net.listen:{listen}"));
    let vsock = args.vsock.then(|| "vsock".to_owned());
    let others = rules
        .chain(listens)
        .chain(vsock)
        .chain(args.grant.iter().cloned());
    grants.extend(others.map(GrantDraft::from));
    Ok(grants.into_iter().map(At::from).collect())
}

/// Memory, if something was said about it.
fn memory(args: &RunArgs) -> Option<MemoryDraft> {
    let said = args.memory.is_some() || args.max_memory.is_some();
    said.then(|| MemoryDraft {
        size: args.memory.clone().map(At::from),
        max: args.max_memory.clone().map(At::from),
        ..MemoryDraft::default()
    })
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
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn grants_are_the_defaults_and_what_was_asked_for() {
        let list = |line: &str| -> Vec<String> {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Run(args) = cli.command else {
                panic!("run")
            };
            let text = |grant: At<GrantDraft>| match grant.value.tag {
                Some(tag) => format!("{} {}", grant.value.capability, tag.value),
                None => grant.value.capability,
            };
            grants(&args).unwrap().into_iter().map(text).collect()
        };
        assert_eq!(list("bulkhead run x"), ["console", "entropy", "time"]);
        assert!(list("bulkhead run --no-default-grants x").is_empty());
        let line = "bulkhead run --no-default-grants --disk a:ro --disk b --share d:t:ro --vsock \
                    --net a.org:80 -p 8080=80 --grant time --grant block.read:x:y x";
        assert_eq!(
            list(&line.split_whitespace().collect::<Vec<_>>().join(" ")),
            [
                "block.read:a",
                "block.write:b",
                "fs.read:d t",
                "net.connect:a.org:80",
                "net.listen:8080=80",
                "vsock",
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

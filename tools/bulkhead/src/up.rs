//! `bulkhead up`: the partitions of a system together, in the foreground or left behind.

use crate::cli::UpArgs;
use crate::failure::Failure;
use crate::inheritance::{self, Held};
use crate::policy;
use crate::{input, run, secret, signals};
use bulkhead_manifest::{MAX_BYTES, System, Validated, parse_with};
use bulkhead_supervisor::{
    Cause, Consoles, Library, Options, Outcome, StateRoot, Supervisor, reason,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the supervisor in the background says, before the system's name, when every partition runs.
const READY: &str = "ready ";
/// Exit status after SIGPIPE.
const STATUS_BROKEN_PIPE: u8 = 141;

/// Starts the system; its exit status: 0, or that of the first partition that has another.
pub(crate) fn run(args: &UpArgs) -> Result<u8, Failure> {
    if args.detach && !args.in_background {
        return start_in_background();
    }
    let (system, mut conditions) = read(&args.manifest)?;
    let system = system.only(&args.only)?;
    conditions.retain(|name, _| system.partitions.iter().any(|one| one.name == *name));
    let library = Library::find()?;
    let root = StateRoot::locate()?;
    // Before we leave the terminal, on which somebody may have to be asked.
    let secrets = secret::of(&system)?;
    let signals = signals::catch()?;
    let consoles = if args.in_background {
        // The session of whoever typed the command is not ours to be in.
        let _ = setsid();
        Consoles::Logged
    } else {
        Consoles::Prefixed {
            terminal: io::stdout().is_terminal(),
        }
    };
    let options = Options {
        consoles,
        jail: args.jail.into(),
        keep_logs: args.in_background,
        gdb: None,
        secrets,
        conditions,
    };
    raise_open_files();
    inheritance::warn(&options.conditions);
    let supervisor = Supervisor::start(&system, &root, &library, options)?;
    let in_background = args.in_background;
    let outcome = supervisor.wait(signals, || {
        if in_background {
            leave(&system.name);
        }
    })?;
    conclude(&outcome)
}

/// Lets this process open as many files as it may: a partition takes about ten, and the usual soft
/// limit of 1024, there for the sake of `select`, ends at a hundred partitions.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Without it a large system is refused, and told why.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Reads and checks the manifest, and the conditions beside it and beside those that it names.
fn read(path: &Path) -> Result<(Validated<System>, Held), Failure> {
    let bytes = input::read(path, MAX_BYTES, "manifest", "manifest-unreadable")
        .map_err(|failure| failure.help("name a file: bulkhead up path/to/system.toml"))?;
    let of_system = policy::beside(path)?;
    let mut of_partitions = BTreeMap::new();
    let mut judge = None;
    let checked = parse_with(&bytes, path, |manifest, unsigned| {
        // One file beside both manifests is read once, and holds for the whole system.
        let is_of_system = (of_system.as_ref()).is_some_and(|system| system.is_beside(manifest));
        let conditions = match is_of_system {
            true => None,
            false => policy::beside(manifest)?,
        };
        let judge = match &mut judge {
            Some(judge) => judge,
            // Only a system that names manifests has them judged.
            none => none.insert(run::admissions()?),
        };
        let admitted = judge.admit(manifest, unsigned)?;
        if let Some(conditions) = conditions {
            of_partitions.insert(admitted.name().to_owned(), conditions);
        }
        Ok::<_, Failure>(Some(admitted))
    })?;
    let system = checked?;
    let held = inheritance::held(&system, of_system.as_ref(), &of_partitions, judge.as_ref())?;
    Ok((system, held))
}

fn conclude(outcome: &Outcome) -> Result<u8, Failure> {
    if let Some(Cause::OutputFailed { errno }) = outcome.cause {
        return Err(Failure::output(errno));
    }
    let complaints: Vec<Failure> = (outcome.ends.iter())
        .filter_map(|(name, end)| {
            let (code, message, help) = end.complaint(name)?;
            Some(Failure::complain(code, message, help).status(end.status()))
        })
        .collect();
    for complaint in &complaints {
        complaint.print();
    }
    Ok(match outcome.cause {
        Some(Cause::Signal(number)) => 128 + number,
        Some(Cause::BrokenPipe) => STATUS_BROKEN_PIPE,
        _ => {
            // A failure of Bulkhead's own weighs more than what a guest said.
            let failed = complaints.first().map(|complaint| complaint.status);
            let mut statuses = outcome.ends.iter().map(|(_, end)| end.status());
            failed
                .or_else(|| statuses.find(|status| *status != 0))
                .unwrap_or(0)
        }
    })
}

/// Starts this program again as the supervisor, and waits until it says that the system runs. It alone
/// reads the manifests: what is judged once is on record once.
fn start_in_background() -> Result<u8, Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            "background",
            format!(
                "cannot start a supervisor in the background: {}",
                reason(&error)
            ),
        )
    };
    let program = env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(env::args_os().skip(1))
        .arg("--in-background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut said)
            .map_err(failed)?;
    }
    if let Some(system) = said.strip_prefix(READY) {
        crate::print(system.as_bytes())?;
        return Ok(0);
    }
    // It has told people why already, on the standard error that it shares with us.
    let status = child.wait().map_err(failed)?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(crate::STATUS_FAILED))
}

/// Tells whoever started us that all is well, and lets go of their streams.
fn leave(system: &str) {
    // Whoever started us may have been killed; the system runs all the same.
    let _ = io::stdout()
        .write_all(format!("{READY}{system}\n").as_bytes())
        .and_then(|()| io::stdout().flush());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_what_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(256),
            ..before
        };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_open_files();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, before.maximum);
        assert_eq!(after.maximum, before.maximum);
    }
}

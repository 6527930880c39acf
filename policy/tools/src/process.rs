//! The process `bulkhead-tools`: reads its description, locks itself in, and serves the guest's
//! connections until the supervisor ends it. Called by `main` alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_conditions::Asker;
use bulkhead_inherited::Inherited;
use bulkhead_record::{Client, Entry, RecordError, Recorder};
use bulkhead_toolbox::{Fd, MAX_DESCRIPTION_BYTES, ToolsDescription, VERSION};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::backups::Backups;
use crate::descriptors::named;
use crate::directories::{Directories, Root};
use crate::error::Error;
use crate::families::git;
use crate::gate::Gate;
use crate::host::Host;
use crate::jobs::Jobs;
use crate::limiter::{Clock, HostClock, Limiter};
use crate::permits::Permits;
use crate::person::Person;
use crate::pipeline::{Approver, Nobody, Parts, Pipeline};
use crate::registry::Registry;
use crate::{jail, mcp};

/// Exit status when the process gave up.
pub const FAILED: u8 = 125;

/// Serves the tools whose description is on this descriptor until the process is ended.
pub fn run(description: Fd) -> ExitCode {
    // The supervisor's death is the end; refused nowhere.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    match read(description).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic where standard error cannot be written to.
            let _ = writeln!(io::stderr(), "bulkhead-tools: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn read(description: Fd) -> Result<ToolsDescription, Error> {
    let mut json = Vec::new();
    let file = Inherited::only(description).take("the description", description)?;
    File::from(file)
        .take(MAX_DESCRIPTION_BYTES + 1)
        .read_to_end(&mut json)
        .map_err(Error::Read)?;
    if json.len() as u64 > MAX_DESCRIPTION_BYTES {
        return Err(Error::TooLong);
    }
    let description: ToolsDescription =
        serde_json::from_slice(&json).map_err(|error| Error::Description(error.to_string()))?;
    match description.version {
        VERSION => Ok(description),
        other => Err(Error::Description(format!(
            "version {other} is not {VERSION}"
        ))),
    }
}

fn serve(description: ToolsDescription) -> Result<(), Error> {
    let mut own =
        Inherited::named(named(&description)).map_err(Error::host("close descriptors"))?;
    let listener = UnixListener::from(own.take("the listener", description.listener)?);
    let backups = own.take("the back-ups", description.backups)?;
    let mut counters = |fd: Option<Fd>| {
        let taken = fd.map(|fd| own.take("the counters", fd)).transpose();
        taken.map(|taken| taken.map(File::from))
    };
    let shared = counters(description.counters)?;
    let lasting = counters(description.own_counters)?;
    let recorder: Arc<dyn Recorder> = match description.ledger {
        Some(fd) => Arc::new(Client::new(own.take("the ledger", fd)?)),
        None => Arc::new(NoLedger),
    };
    let approver: Arc<dyn Approver> = match description.approvals {
        Some(fd) => Arc::new(Person::new(own.take("the way to a person", fd)?)),
        None => Arc::new(Nobody),
    };
    let gate = description.gateway;
    let gate = gate.map(|fd| own.take("the way to the gateway", fd));
    let gate = gate.transpose()?.map(Gate::new);
    let conditions = match description.conditions {
        Some(fd) => Some(Asker::new(own.take("the way to the conditions", fd)?)),
        None => None,
    };
    let conditions = conditions.transpose().map_err(Error::host("ask"))?;
    let mut roots = Vec::new();
    for directory in &description.directories {
        roots.push(Root {
            path: directory.path.clone(),
            file: own.take("a directory", directory.file)?,
            write: directory.write,
        });
    }
    drop(own);
    // Each file is made with exactly the bits that its tool asks for.
    rustix::process::umask(rustix::fs::Mode::empty());
    let started = Duration::from_secs(description.started);
    let permits = Permits::new(description.grants.clone(), started);
    let is_usable = |place: &&str| {
        let place = Path::new(place);
        permits.program(place, HostClock.date()) && place.is_file()
    };
    let git = git::PLACES.into_iter().find(is_usable);
    let programs = permits.runs_programs().then(|| permits.programs());
    let kept = jail::Kept {
        roots: &mut roots,
        backups: &backups,
        programs: programs.as_deref(),
    };
    let (launcher, gaps) = jail::enter(description.jail, kept)?;
    for gap in gaps {
        let _ = writeln!(io::stderr(), "the host lacks a layer of the jail: {gap}");
    }
    let backups = Backups::open(backups).map_err(Error::host("read the back-ups"))?;
    let pipeline = Pipeline::new(Parts {
        actor: description.actor,
        registry: Registry::new()?,
        permits,
        host: Host {
            grants: description.grants,
            directories: Directories::new(roots),
            backups,
            launcher,
            git,
            gate,
            jobs: Jobs::default(),
        },
        limiter: Limiter::new(
            description.limits,
            description.budget,
            shared,
            lasting,
            Box::new(HostClock),
        ),
        autonomy: description.autonomy,
        conditions,
        approver,
        recorder,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(mcp::MAX_UNDER_WAY)
        .build()
        .map_err(Error::host("start"))?;
    runtime
        .block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            mcp::serve(listener, Arc::new(pipeline)).await
        })
        .map_err(Error::host("serve"))
}

/// Without a ledger nothing is recorded, and so nothing is done.
struct NoLedger;

impl Recorder for NoLedger {
    fn record(&self, _: &Entry) -> Result<u64, RecordError> {
        Err(RecordError::WriterGone)
    }
}

//! The process `bulkhead-ledger`: reads its description, opens the ledger, locks itself in, and records
//! what its clients ask for until the supervisor is gone. Called by `main` alone.

mod clients;
pub mod jail;
pub mod requests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use bulkhead_inherited::{Inherited, NotOpen};
use bulkhead_machine::Fd;
use bulkhead_record::description::{
    Event, LedgerDescription, MAX_DESCRIPTION_BYTES, MAX_MESSAGE_BYTES, VERSION,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendFlags, send};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::error::LogError;
use crate::key;
use crate::log::Log;
use clients::{Clients, Control};
use jail::JailError;

/// Exit status when the writer gave up.
pub const FAILED: u8 = 125;

/// Why the process gives up.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// A descriptor was not open.
    #[error(transparent)]
    Descriptor(#[from] NotOpen),
    /// The description cannot be used.
    #[error("cannot read the ledger's description: {0}")]
    Description(String),
    /// The host does not give the process what it needs.
    #[error("cannot {doing}: {source}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The ledger cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
}

impl WriterError {
    fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            doing,
            source: source.into(),
        }
    }

    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Descriptor(_) => NotOpen::CODE,
            Self::Description(_) => "ledger-description",
            Self::Host { .. } => "ledger-setup",
            Self::Log(error) => error.code(),
            Self::Jail(error) => error.code(),
        }
    }
}

/// Writes the ledger whose description is on this descriptor until it ends.
pub fn run(description: Fd) -> ExitCode {
    // The supervisor's death is the end; refused nowhere.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    match read(description).and_then(|description| write_ledger(&description)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

/// Tells people. `eprintln!` would panic where standard error cannot be written to.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "bulkhead-ledger: {text}");
}

fn read(fd: Fd) -> Result<LedgerDescription, WriterError> {
    let file = File::from(Inherited::only(fd).take("the ledger's description", fd)?);
    let mut json = Vec::new();
    (file.take(MAX_DESCRIPTION_BYTES + 1))
        .read_to_end(&mut json)
        .map_err(WriterError::host("read the ledger's description"))?;
    if json.len() as u64 > MAX_DESCRIPTION_BYTES {
        return Err(WriterError::Description("it is too long".to_owned()));
    }
    let description: LedgerDescription = serde_json::from_slice(&json)
        .map_err(|error| WriterError::Description(error.to_string()))?;
    match description.version {
        VERSION => Ok(description),
        other => Err(WriterError::Description(format!(
            "version {other} is not {VERSION}"
        ))),
    }
}

fn write_ledger(description: &LedgerDescription) -> Result<(), WriterError> {
    let named = [
        description.directory,
        description.second,
        description.keys,
        description.control,
    ];
    let mut own = Inherited::named(named).map_err(WriterError::host("close descriptors"))?;
    let control = own.take("the control socket", description.control)?;
    let opened = open(description, &mut own);
    let (log, jail_gaps) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let message = error
                .to_string()
                .chars()
                .take(MAX_MESSAGE_BYTES / 8)
                .collect();
            let code = error.code().to_owned();
            tell(&control, &Event::Failed { code, message });
            return Err(error);
        }
    };
    tell(&control, &Event::Running { jail_gaps });
    serve(log, Control::new(control))
}

fn open(
    description: &LedgerDescription,
    own: &mut Inherited,
) -> Result<(Log, Vec<String>), WriterError> {
    let directory = own.take("the ledger's directory", description.directory)?;
    let second = own.take("the second place", description.second)?;
    let keys = own.take("the directory of keys", description.keys)?;
    let signer = key::signer(&keys)?;
    drop(keys);
    let allowed = directory.try_clone();
    let allowed: OwnedFd = allowed.map_err(WriterError::host("duplicate a descriptor"))?;
    let log = Log::open(directory, &second, signer)?;
    let gaps = jail::enter(description.jail, &allowed)?;
    Ok((log, gaps))
}

/// Tells the supervisor; one that is gone or does not read is not waited for.
fn tell(control: impl AsFd, event: &Event) {
    // Events are plain data: they always serialise.
    if let Ok(message) = serde_json::to_vec(event) {
        let _ = send(control, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Records what comes until the supervisor closes the control socket: everything that is there at once
/// is one commit, and what comes meanwhile is the next.
fn serve(mut log: Log, control: Control) -> Result<(), WriterError> {
    let mut clients = Clients::default();
    let mut failed = false;
    loop {
        let (control_ready, ready) = wait(&control, &clients)?;
        if control_ready && !control.obey(&mut clients) {
            return Ok(());
        }
        let requests = clients.requests(&ready, log.size());
        if requests.is_empty() {
            continue;
        }
        let (senders, entries) = requests.into_iter().unzip();
        let outcome = log.append(entries).map_err(|error| error.to_string());
        if let (Err(why), false) = (&outcome, failed) {
            failed = true;
            say(&format!("nothing is recorded any more: {why}"));
        }
        clients.answer(senders, &outcome);
    }
}

/// Waits until somebody has something to say: the supervisor, or these clients.
fn wait(control: &Control, clients: &Clients) -> Result<(bool, Vec<usize>), WriterError> {
    let sources = [control.as_fd()].into_iter().chain(clients.sockets());
    let mut watched: Vec<PollFd<'_>> = sources
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    match poll(&mut watched, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok((false, Vec::new())),
        Err(errno) => return Err(WriterError::host("wait for requests")(errno)),
    }
    let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
    let control = ready.next().unwrap_or(false);
    let clients = ready.enumerate().filter(|(_, ready)| *ready);
    Ok((control, clients.map(|(at, _)| at).collect()))
}

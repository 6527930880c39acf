//! The process `bulkhead-gateway`: reads its description, locks itself in, and moves frames until
//! the VMM or the supervisor is gone. Called by `main` alone.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_inherited::Inherited;
use bulkhead_network::control::{Command, Event};
use bulkhead_network::{Fd, MAX_DESCRIPTION_BYTES, MAX_FRAME_BYTES, NetworkDescription};
use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal,
};

use bulkhead_conditions::Asker;
use bulkhead_proxy::quota::Quotas;
use bulkhead_proxy::records::Outside;
use bulkhead_proxy::{Consent, Records};
use bulkhead_record::{Client, Recorder};
use rustix::event::{EventfdFlags, eventfd};

use crate::chatter::Chatter;
use crate::consent::Consents;
use crate::control::{self, Request};
use crate::descriptors::named;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::jail;
use crate::journal::Journal;
use crate::models;
use crate::sockets::Sockets;
use crate::table::Kind;
use crate::web;

/// Exit status when the gateway gave up.
pub const FAILED: u8 = 125;
/// Most frames of the guest before others have a turn.
const FRAMES: usize = 64;

/// Serves the network whose description is on this descriptor until it ends.
pub fn run(description: Fd) -> ExitCode {
    hide();
    // The supervisor's death is the end; refused nowhere.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    match read(description).and_then(|description| serve(&description)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic where standard error cannot be written to.
            let _ = writeln!(io::stderr(), "bulkhead-gateway: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Makes the certificate authority of a partition: its certificate and private key go to standard
/// output.
///
/// # Errors
/// The host gives no randomness, or nobody takes it.
pub fn create_authority(partition: &str) -> io::Result<()> {
    hide();
    let created = bulkhead_proxy::authority::create(partition).map_err(io::Error::other)?;
    let mut output = io::stdout().lock();
    output.write_all(created.certificate.as_bytes())?;
    output.write_all(created.key.as_bytes())?;
    output.flush()
}

/// Nobody of the same user reads this process's memory, which holds a private key at least.
fn hide() {
    // Refused nowhere; the jail does it again, and notes if it is.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn read(description: Fd) -> Result<NetworkDescription, Error> {
    let mut json = Vec::new();
    let file = Inherited::only(description).take("the network description", description)?;
    File::from(file)
        .take(MAX_DESCRIPTION_BYTES + 1)
        .read_to_end(&mut json)
        .map_err(Error::Read)?;
    match json.len() as u64 > MAX_DESCRIPTION_BYTES {
        true => Err(Error::TooLong),
        false => Ok(serde_json::from_slice(&json)?),
    }
}

fn serve(description: &NetworkDescription) -> Result<(), Error> {
    let mut own = Inherited::named(named(description)).map_err(Error::Setup)?;
    let control = match description.control {
        Some(fd) => Some(own.take("the control socket", fd)?),
        None => None,
    };
    let report = control.as_ref().map(|control| control.try_clone());
    let report = report.transpose().map_err(Error::Setup)?;
    let served = set_up(description, &mut own, control).and_then(|(mut gateway, jail_gaps)| {
        if let Some(control) = gateway.host().control() {
            control::tell(control, &Event::Running { jail_gaps });
        }
        let served = serve_link(&mut gateway);
        gateway.end();
        served
    });
    if let (Err(error), Some(report)) = (&served, report) {
        let failed = Event::Failed {
            code: error.code().to_owned(),
            message: control::shortened(&error.to_string()),
        };
        control::tell(report, &failed);
    }
    served
}

fn set_up(
    description: &NetworkDescription,
    own: &mut Inherited,
    control: Option<std::os::fd::OwnedFd>,
) -> Result<(Gateway<Sockets>, Vec<String>), Error> {
    let link = own.take("the link", description.link)?;
    let listeners = description
        .forwards
        .iter()
        .map(|forward| own.take("a forward", forward.listener))
        .collect::<Result<_, _>>()?;
    let used = match description.used {
        Some(fd) => Some(File::from(own.take("what was used", fd)?)),
        None => None,
    };
    let quotas = Quotas::kept_in(&description.quotas, used);
    let chatter = || Chatter::new(&description.name);
    let web = web::prepare(description, own, &quotas)?;
    let models = models::prepare(description, own)?;
    let recorder = match description.ledger {
        Some(fd) => Some(Client::new(own.take("the socket of the ledger", fd)?)),
        None => None,
    };
    let recorder = recorder.map(|client| Arc::new(client) as Arc<dyn Recorder>);
    let conditions = match description.conditions {
        Some(fd) => Some(Asker::new(own.take("the socket of the conditions", fd)?)),
        None => None,
    };
    let outside = Outside {
        recorder: recorder.clone(),
        conditions: conditions.transpose().map_err(Error::Setup)?.map(Arc::new),
    };
    let approvals = match description.approvals {
        Some(fd) => Some(own.take("the socket of approvals", fd)?),
        None => None,
    };
    let mut sockets = Sockets::new(link, control, listeners).map_err(Error::Setup)?;
    if let Some(fd) = description.tools {
        let tools = own.take("the socket of the tools", fd)?;
        sockets.set_tools(tools).map_err(Error::Setup)?;
    }
    let mut gateway = Gateway::new(description, quotas, sockets, chatter())?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let wake = wake.map_err(|errno| Error::Setup(errno.into()))?;
    let entered = jail::enter(description)?;
    // Threads come to be inside the jail, and before the layer that lets nobody make any.
    let actor = description.actor.as_ref().unwrap_or(&description.name);
    let records = Records::start(&outside, actor).map_err(Error::Setup)?;
    gateway.host().hear_records(&wake).map_err(Error::Setup)?;
    let consent = approvals.map(Consent::start).transpose();
    let consent = consent.map_err(Error::Setup)?;
    if let Some(consent) = &consent {
        let wake = wake.try_clone().map_err(Error::Setup)?;
        gateway.set_consents(Consents::new(consent.clone(), wake));
    }
    let consent = consent.unwrap_or_default();
    if records.are_kept() {
        gateway.set_journal(Journal::new(records.clone(), wake));
    }
    if let Some(web) = web {
        let web = web.start(records, consent.clone(), chatter())?;
        gateway.host().set_web(web);
    }
    if let (Some(models), Some(recorder)) = (models, recorder) {
        let models = models.start(recorder, outside.conditions.clone(), consent, chatter())?;
        gateway.host().set_models(models);
    }
    let gaps = jail::seal(entered)?;
    Ok((gateway, gaps))
}

/// Moves frames until the link or the control socket is closed.
fn serve_link(gateway: &mut Gateway<Sockets>) -> Result<(), Error> {
    let start = Instant::now();
    let mut buffer = vec![0; MAX_FRAME_BYTES + 1];
    let mut events = Vec::new();
    let mut link_readable = true;
    let mut link_ended = false;
    loop {
        gateway.set_time(passed(start));
        if link_readable {
            link_readable = match take_frames(gateway, &mut buffer) {
                Taken::All => false,
                Taken::Some => true,
                Taken::Empty if !link_ended => true,
                Taken::Empty | Taken::Broken => return Ok(()),
            };
        }
        gateway.turn();
        let timeout = match link_readable {
            true => Some(Duration::ZERO),
            false => gateway.next_turn().map(|at| until(at, passed(start))),
        };
        gateway
            .host()
            .wait(timeout, &mut events)
            .map_err(Error::Wait)?;
        gateway.set_time(passed(start));
        for event in events.drain(..) {
            match event.token.kind {
                Kind::Link => {
                    link_readable |= event.ready.readable;
                    link_ended |= event.ended;
                    if event.ready.writable {
                        gateway.link_writable();
                    }
                }
                Kind::Control if event.ready.readable => {
                    if !obey(gateway) {
                        return Ok(());
                    }
                }
                _ => gateway.event(event.token, event.ready),
            }
        }
    }
}

/// What was found in the link.
enum Taken {
    /// There is no more at the moment.
    All,
    /// There may be more.
    Some,
    /// An empty frame, or the end.
    Empty,
    /// The link does not work any more.
    Broken,
}

/// Takes some frames.
fn take_frames(gateway: &mut Gateway<Sockets>, buffer: &mut [u8]) -> Taken {
    for _ in 0..FRAMES {
        match gateway.host().receive_frame(buffer) {
            Ok(0) => return Taken::Empty,
            Ok(len) => gateway.frame(buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Taken::All,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Taken::Broken,
        }
    }
    Taken::Some
}

/// Does what the supervisor wants; false when that is to end.
fn obey(gateway: &mut Gateway<Sockets>) -> bool {
    loop {
        let stats = gateway.stats();
        let Some(control) = gateway.host().control() else {
            return true;
        };
        let answer = match control::receive(control) {
            Request::Do(Command::Stats) => Event::Stats(stats),
            Request::Do(Command::Stop) | Request::Gone => return false,
            Request::Unknown(message) => Event::Refused {
                message: control::shortened(&message),
            },
            Request::None => return true,
        };
        control::tell(control.as_fd(), &answer);
    }
}

/// The gateway's time.
pub(crate) fn passed(start: Instant) -> smoltcp::time::Instant {
    let micros = i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX);
    smoltcp::time::Instant::from_micros(micros)
}

fn until(at: smoltcp::time::Instant, now: smoltcp::time::Instant) -> Duration {
    let left = at.total_micros().saturating_sub(now.total_micros());
    Duration::from_micros(u64::try_from(left).unwrap_or(0))
}

//! What other processes ask of a running partition: passed on to its VMM under a number, and
//! answered when the VMM has, or when its time is over.

use super::launch::{Launcher, has_gateway};
use super::member::Member;
use crate::admit::AdmissionError;
use crate::backend::{Backend, Kind};
use crate::compile::{Descriptors, device};
use crate::control::{Act, Answer, NewDevice, reply};
use crate::error::Error;
use crate::lifecycle::State;
use crate::open::Opened;
use bulkhead_machine::Fd;
use bulkhead_machine::control::{
    Command, DeviceStats, DumpedRegion, Registers, Reply, Resize, Stats,
};
use bulkhead_manifest::{At, GrantDraft, validate_devices};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A request that the VMM has not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    id: u64,
    deadline: Instant,
    /// Who waits; nobody for what the supervisor asks by itself.
    client: Option<UnixStream>,
    after: After,
    /// The record that it is about to be done, and what.
    intent: Option<Intent>,
}

/// An act that is on record.
#[derive(Debug)]
struct Intent {
    index: u64,
    action: &'static str,
}

/// What an answer changes.
#[derive(Debug)]
pub(super) enum After {
    Nothing,
    /// The partition is in this state.
    State(State),
    /// It is halted, whatever the answer is.
    Halt,
    /// It has a device more, and these processes behind it.
    Attach(String, Vec<Backend>),
    /// It has a device less.
    Detach(String),
    /// What was written becomes a core file; it goes when it could not be.
    Dump(PathBuf, File),
    /// Counters of the VMM, which those of gateways are added to.
    Stats(Option<Stats>),
}

/// Why something was not done, before anybody was asked to do it.
pub(super) struct Refusal {
    code: String,
    pub(super) message: String,
    help: Option<String>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            code: error.code().to_owned(),
            message: error.to_string(),
            help: error.help(),
        }
    }
}

impl From<AdmissionError> for Refusal {
    fn from(error: AdmissionError) -> Self {
        let message = match &error {
            // The manifest of something that runs has no text to point into.
            AdmissionError::Rule(rejection) => rejection.message.clone(),
            error => error.to_string(),
        };
        Self {
            code: error.code().to_owned(),
            message,
            help: error.help(),
        }
    }
}

/// What somebody wants to attach, as a manifest would have it.
fn drafts(new: &NewDevice) -> Vec<GrantDraft> {
    let at = |text: &Option<String>| text.clone().map(At::from);
    let draft = |grant: &String| GrantDraft {
        name: at(&new.name),
        tag: at(&new.tag),
        format: at(&new.format),
        ..GrantDraft::from(grant.clone())
    };
    new.grants.iter().map(draft).collect()
}

impl Refusal {
    pub(super) fn new(code: &str, message: String, help: &str) -> Self {
        Self {
            code: code.to_owned(),
            message,
            help: Some(help.to_owned()),
        }
    }

    pub(super) fn answer(self) -> Answer {
        Answer::Refused {
            code: self.code,
            message: self.message,
            help: self.help,
        }
    }
}

impl Member {
    /// Does what `client` asks, or tells it why not. Most answers come later.
    pub(super) fn act(&mut self, act: Act, client: UnixStream, launcher: &Launcher) {
        let deadline = Instant::now() + act.patience();
        if let Err(refusal) = self.runs() {
            return reply(&client, &refusal.answer());
        }
        let intent = match self.intend(&act) {
            Ok(intent) => intent,
            Err(error) => return reply(&client, &Refusal::from(error).answer()),
        };
        match self.ask(act, launcher) {
            Ok((id, after)) => self.pending.push(Pending {
                id,
                deadline,
                client: Some(client),
                after,
                intent,
            }),
            Err(refusal) => {
                self.conclude(intent, Err(&refusal.message));
                reply(&client, &refusal.answer());
            }
        }
    }

    /// Refuses what is asked of a partition that does not run.
    pub(super) fn runs(&self) -> Result<(), Refusal> {
        if matches!(self.state(), State::Running | State::Suspended) {
            return Ok(());
        }
        let message = format!("partition `{}` is {}", self.name(), self.state());
        let help = "wait until it runs: bulkhead ps";
        Err(Refusal::new("not-running", message, help))
    }

    /// Has it recorded that `act` is about to be done, unless it changes nothing.
    fn intend(&self, act: &Act) -> Result<Option<Intent>, Error> {
        let mib = |mib: &u64| format!("{mib} MiB");
        let (action, object) = match act {
            Act::Stats => return Ok(None),
            Act::Pause => ("partition.pause", String::new()),
            Act::Resume => ("partition.resume", String::new()),
            Act::Attach(new) => ("device.attach", new.grants.join(" ")),
            Act::Detach { device } => ("device.detach", device.clone()),
            Act::ResizeMemory { mib: size } => ("partition.resize-memory", mib(size)),
            Act::ResizeBalloon { mib: size } => ("partition.resize-balloon", mib(size)),
            Act::ResizeDisk { device } => ("device.resize", device.clone()),
            Act::Dump { file } => ("partition.dump", file.display().to_string()),
        };
        let index = self.life.intend(action, &object, [])?;
        Ok(Some(Intent { index, action }))
    }

    /// Has it recorded how it went.
    fn conclude(&self, intent: Option<Intent>, outcome: Result<(), &str>) {
        if let Some(Intent { index, action }) = intent {
            self.life.conclude(index, action, outcome, []);
        }
    }

    fn ask(&mut self, act: Act, launcher: &Launcher) -> Result<(u64, After), Refusal> {
        let mut descriptors = Vec::new();
        let (command, after) = match act {
            Act::Pause => (Command::Pause, After::State(State::Suspended)),
            Act::Resume => (Command::Resume, After::State(State::Running)),
            Act::Attach(new) => {
                let (command, opened, after) = self.attach(new, launcher)?;
                descriptors = opened;
                (command, after)
            }
            Act::Detach { device } => {
                let name = device.clone();
                (Command::Detach { name: device }, After::Detach(name))
            }
            Act::ResizeMemory { mib } => {
                let pluggable_mib = self.pluggable(mib)?;
                let resize = Resize::Memory { pluggable_mib };
                (Command::Resize(resize), After::Nothing)
            }
            Act::ResizeBalloon { mib: target_mib } => {
                let resize = Resize::Balloon { target_mib };
                (Command::Resize(resize), After::Nothing)
            }
            Act::ResizeDisk { device: name } => {
                (Command::Resize(Resize::Block { name }), After::Nothing)
            }
            Act::Stats => {
                for backend in &mut self.backends {
                    backend.ask_for_stats();
                }
                (Command::Stats, After::Stats(None))
            }
            Act::Dump { file } => {
                let new = new_file(&file)?;
                let ours = new.try_clone().map_err(Error::system("keep a file"))?;
                descriptors.push(new.into());
                (Command::Dump { file: Fd(0) }, After::Dump(file, ours))
            }
        };
        Ok((self.vmm.ask(command, &descriptors)?, after))
    }

    /// What `mib` in all is beyond the memory from the start.
    fn pluggable(&self, mib: u64) -> Result<u64, Refusal> {
        let memory = &self.partition.memory;
        let most = memory.mib + memory.pluggable_mib;
        if (memory.mib..=most).contains(&mib) {
            return Ok(mib - memory.mib);
        }
        let message = format!(
            "partition `{}` cannot have {mib} MiB of memory",
            self.name()
        );
        let help = format!(
            "choose {} to {most} MiB: memory.max of the manifest",
            memory.mib
        );
        Err(Refusal::new("memory-out-of-bounds", message, &help))
    }

    /// Checks, opens and describes a new device, and starts what stands behind it.
    fn attach(
        &mut self,
        new: NewDevice,
        launcher: &Launcher,
    ) -> Result<(Command, Vec<OwnedFd>, After), Refusal> {
        let drafts = drafts(&new);
        let granted = self.check(&drafts, &new.base)?;
        if let Some(mandate) = &self.partition.mandate {
            let admissions = launcher.admissions()?;
            admissions.admit_grants(self.name(), &mandate.document, &drafts, &new.base)?;
        }
        let jail = launcher.options.jail;
        let mut opened = Opened::for_packet(&launcher.library, &launcher.directory, jail);
        if has_gateway(&granted) {
            let budget = self.partition.mandate.as_ref().map(|m| m.budget.bytes);
            if budget.flatten().is_some() {
                // Each gateway counts for itself.
                let what = "budget.bytes of a second network".to_owned();
                return Err(Error::NotEnforced(what).into());
            }
            let answerer = launcher.answerer(&self.partition.name, &self.backends);
            let records = launcher.records(&self.partition.name)?;
            opened.let_gateway(records, answerer.client()?);
        }
        let described = device(&granted, &mut |want| opened.open(&self.partition, want))?;
        let descriptors = opened.take_descriptors();
        let group = self.group.as_ref();
        let start = |ready: crate::backend::Ready| ready.start(&launcher.library, group);
        let backends = opened.backends.into_iter().map(start);
        let backends = backends.collect::<Result<Vec<Backend>, Error>>()?;
        let after = After::Attach(granted.name, backends);
        Ok((Command::Attach { device: described }, descriptors, after))
    }

    fn check(
        &self,
        drafts: &[GrantDraft],
        base: &Path,
    ) -> Result<bulkhead_manifest::Device, Refusal> {
        let partition = &self.partition;
        let whose = (self.system.as_str(), partition.name.as_str());
        let machine = (partition.kernel.kind(), partition.vcpus);
        let devices = validate_devices(drafts, whose, machine, &self.devices, base);
        let mut devices = devices.map_err(|rejected| {
            let first = rejected.diagnostics.into_iter().next();
            let (code, message, help) = first.map_or_else(Default::default, |first| {
                (first.code.to_string(), first.message, Some(first.help))
            });
            Refusal {
                code,
                message,
                help,
            }
        })?;
        let pluggable = |device: &bulkhead_manifest::Device| {
            !matches!(device.kind, bulkhead_manifest::DeviceKind::Vsock { .. })
        };
        match (devices.pop(), devices.pop()) {
            (Some(device), None) if pluggable(&device) => Ok(device),
            _ => Err(Refusal::new(
                "not-pluggable",
                "this is no device that can be plugged in".to_owned(),
                "attach one disk, one shared directory or one network",
            )),
        }
    }

    /// Asks the VMM for something by ourselves; whether it could be asked.
    pub(super) fn ask_ourselves(&mut self, command: Command, after: After) -> bool {
        let Ok(id) = self.vmm.ask(command, &[]) else {
            return false;
        };
        self.pending.push(Pending {
            id,
            deadline: Instant::now() + Act::Stats.patience(),
            client: None,
            after,
            intent: None,
        });
        true
    }

    /// Every process behind its devices, also of those that are being plugged in.
    pub(super) fn all_backends(&self) -> impl Iterator<Item = &Backend> {
        let new = self
            .pending
            .iter()
            .filter_map(|pending| match &pending.after {
                After::Attach(_, backends) => Some(backends),
                _ => None,
            });
        self.backends.iter().chain(new.flatten())
    }

    /// Tells the guest how large the terminal is.
    pub(super) fn resize_console(&mut self, columns: u16, rows: u16) {
        let command = Command::Resize(Resize::Console { columns, rows });
        // A guest without a virtio console does without.
        let _ = self.ask_ourselves(command, After::Nothing);
    }

    /// The VMM has answered.
    pub(super) fn answered(&mut self, id: u64, outcome: Reply) {
        let Some(at) = self.pending.iter().position(|pending| pending.id == id) else {
            return;
        };
        if let (Reply::Stats(stats), Some(pending)) = (&outcome, self.pending.get_mut(at))
            && let After::Stats(vmm) = &mut pending.after
        {
            *vmm = Some(stats.clone());
            return self.answer_stats();
        }
        let pending = self.pending.swap_remove(at);
        let answer = match outcome {
            _ if matches!(pending.after, After::Halt) => {
                return self.freeze(outcome == Reply::Done);
            }
            Reply::Done => Answer::Done {
                device: self.done(pending.after),
            },
            Reply::Stats(stats) => Answer::Stats(stats),
            Reply::Dumped { regions, vcpus } => match finish_dump(&pending.after, &regions, &vcpus)
            {
                Ok(()) => Answer::Done { device: None },
                Err(refusal) => {
                    undone(pending.after);
                    refusal.answer()
                }
            },
            Reply::Refused { code, message } => {
                undone(pending.after);
                Answer::Refused {
                    code: code.escape_debug().to_string(),
                    message: message.escape_debug().to_string(),
                    help: None,
                }
            }
        };
        let outcome = match &answer {
            Answer::Refused { message, .. } => Err(message.as_str()),
            _ => Ok(()),
        };
        self.conclude(pending.intent, outcome);
        if let Some(client) = &pending.client {
            reply(client, &answer);
        }
    }

    /// Takes note of what was done; the name of a device that is new.
    fn done(&mut self, after: After) -> Option<String> {
        match after {
            After::State(state) => {
                // Asked for what is so already, it stays.
                let _ = self.step(state);
                None
            }
            After::Attach(name, backends) => {
                self.devices.push(name.clone());
                self.backends.extend(backends);
                Some(name)
            }
            After::Detach(name) => {
                self.devices.retain(|device| *device != name);
                self.backends.retain(|backend| backend.device != name);
                None
            }
            After::Nothing | After::Halt | After::Dump(..) | After::Stats(_) => None,
        }
    }

    /// Answers requests for counters that have come in whole: the VMM's, and every gateway's.
    pub(super) fn answer_stats(&mut self) {
        let waiting = |backend: &Backend| {
            let asked = backend.kind == Kind::Gateway && backend.control.is_some();
            asked && backend.stats.is_none()
        };
        if !self.backends.iter().any(waiting) {
            self.finish_stats(|_| true);
        }
    }

    fn finish_stats(&mut self, wanted: impl Fn(&Pending) -> bool) {
        let gateways: Vec<DeviceStats> = self.backends.iter().filter_map(counters).collect();
        self.pending.retain(|pending| {
            let (After::Stats(Some(stats)), true) = (&pending.after, wanted(pending)) else {
                return true;
            };
            let mut stats = stats.clone();
            stats.devices.extend(gateways.iter().cloned());
            if let Some(client) = &pending.client {
                reply(client, &Answer::Stats(stats));
            }
            false
        });
    }

    /// When the next request's time is over.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let pending = self.pending.iter().map(|pending| pending.deadline);
        let others = self.halt_deadline().into_iter();
        pending.chain(others).chain(self.reload_deadline()).min()
    }

    /// Gives up requests whose time is over.
    pub(super) fn time_out(&mut self, now: Instant) {
        if self.halt_deadline().is_some_and(|deadline| deadline <= now) {
            self.freeze(false);
        }
        self.time_out_reload(now);
        // The VMM's counters are worth having without a gateway's.
        self.finish_stats(|pending| pending.deadline <= now);
        let message = format!(
            "the VMM of partition `{}` did not answer in time",
            self.name()
        );
        self.give_up(|pending| pending.deadline <= now, "vmm-silent", &message);
    }

    /// Gives up all requests: the VMM has ended.
    pub(super) fn abandon(&mut self) {
        let message = format!("partition `{}` has ended", self.name());
        self.give_up(|_| true, "not-running", &message);
    }

    fn give_up(&mut self, unwanted: impl Fn(&Pending) -> bool, code: &str, message: &str) {
        let (over, kept): (Vec<_>, Vec<_>) = self.pending.drain(..).partition(|p| unwanted(p));
        self.pending = kept;
        for pending in over {
            undone(pending.after);
            self.conclude(pending.intent, Err(message));
            if let Some(client) = &pending.client {
                let answer = Answer::Refused {
                    code: code.to_owned(),
                    message: message.to_owned(),
                    help: None,
                };
                reply(client, &answer);
            }
        }
    }
}

/// Leaves nothing of what was not done.
fn undone(after: After) {
    if let After::Dump(path, _) = after {
        let _ = fs::remove_file(path);
    }
}

/// Makes a core file of what a VMM has written.
fn finish_dump(
    after: &After,
    regions: &[DumpedRegion],
    vcpus: &[Registers],
) -> Result<(), Refusal> {
    let finished = match after {
        After::Dump(_, file) => bulkhead_dump::finish(file, regions, vcpus),
        _ => Err(std::io::Error::other("nobody asked for one")),
    };
    finished.map_err(|error| {
        let message = format!("the dump cannot be written: {error}");
        Refusal::new(
            "dump-failed",
            message,
            "choose another file, with room for the memory",
        )
    })
}

/// A gateway's counters, under the name of its device.
fn counters(backend: &Backend) -> Option<DeviceStats> {
    let stats = serde_json::to_value(backend.stats?).ok()?;
    let counters = stats
        .as_object()?
        .iter()
        .filter_map(|(name, value)| Some((name.replace('_', "-"), value.as_u64()?)));
    Some(DeviceStats {
        name: format!("{}-gateway", backend.device),
        counters: counters.collect(),
    })
}

/// A file that did not exist, for the user alone.
fn new_file(path: &Path) -> Result<File, Refusal> {
    let mut options = File::options();
    options.read(true).write(true);
    let file = options.create_new(true).mode(0o600).open(path);
    let failed = |source| Error::Open {
        what: "dump",
        path: path.to_owned(),
        source,
    };
    Ok(file.map_err(failed)?)
}

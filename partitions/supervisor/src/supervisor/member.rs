//! One partition of a running system.

use super::acts::Pending;
use super::halt::Halt;
use super::launch::{Launcher, Started};
use super::outputs::Messages;
use super::reload::Reload;
use crate::admit::remove_document;
use crate::backend::{Backend, Kind};
use crate::cgroup::Group;
use crate::conditions::PartitionConditions;
use crate::console::Streams;
use crate::end::End;
use crate::error::Error;
use crate::ledger::Life;
use crate::lifecycle::State;
use crate::record::PartitionRecord;
use crate::vmm::{Heard, Vmm};
use crate::vsock::Vsock;
use bulkhead_machine::control::{Ended, Event};
use bulkhead_manifest::{Lifetime, Partition};
use std::io::PipeReader;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a VMM may take to end after it was asked, or after it said that it ends.
const GRACE: Duration = Duration::from_millis(500);
/// Most messages taken in at once.
const MAX_MESSAGES: usize = 16;
/// How long output may take to drain once its VMM was ended from outside.
const DRAIN: Duration = Duration::from_millis(200);
/// A guest that resets itself sooner than this after its start is not booting.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// Most short lives in a row.
const MAX_SHORT_LIVES: u32 = 5;

#[derive(Debug)]
pub(super) struct Member {
    /// Name of the system.
    pub(super) system: String,
    pub(super) partition: Partition,
    jail_gaps: Vec<String>,
    pub(super) life: Life,
    pub(super) vmm: Vmm,
    /// What stands behind its devices.
    pub(super) backends: Vec<Backend>,
    pub(super) vsock: Option<Vsock>,
    /// Names of its devices.
    pub(super) devices: Vec<String>,
    /// The VMM's ends of the console, for a VMM after this one.
    spare: Option<Streams>,
    /// What the VMM was asked and has not answered.
    pub(super) pending: Vec<Pending>,
    /// The conditions that hold, if there are any.
    pub(super) conditions: Option<Arc<PartitionConditions>>,
    /// Others that are about to.
    pub(super) reload: Option<Reload>,
    pub(super) messages: Messages,
    /// The control socket may have more to say.
    pub(super) talking: bool,
    /// The process has been seen to end.
    pub(super) exited: bool,
    /// The pumps' end; taken away when they are done or no longer waited for.
    pub(super) finished: Option<PipeReader>,
    /// What the VMM said about its end.
    said: Option<End>,
    pub(super) end: Option<End>,
    asked_to_stop: bool,
    /// When the process will be killed, or its output given up.
    pub(super) deadline: Option<Instant>,
    /// When its lifetime is over, if it is not over yet.
    pub(super) expires: Option<Instant>,
    born: Instant,
    short_lives: u32,
    /// How far it has come in standing still.
    pub(super) halt: Option<Halt>,
    /// Last, so that it goes after the processes in it.
    pub(super) group: Option<Group>,
}

/// What a member is made of beside its processes.
pub(super) struct Parts {
    pub(super) system: String,
    pub(super) spare: Option<Streams>,
    pub(super) messages: Messages,
    pub(super) finished: PipeReader,
    pub(super) life: Life,
    pub(super) group: Option<Group>,
    pub(super) conditions: Option<Arc<PartitionConditions>>,
}

/// When the lifetime of a partition that starts now is over.
fn lifetime(partition: &Partition) -> Option<Instant> {
    match partition.mandate.as_ref()?.lifetime {
        Lifetime::Seconds(seconds) => Instant::now().checked_add(Duration::from_secs(seconds)),
        Lifetime::Unlimited => None,
    }
}

impl Member {
    pub(super) fn new(partition: &Partition, started: Started, parts: Parts) -> Self {
        let granted = partition.devices.iter().map(|device| device.name.clone());
        let Started {
            vmm,
            backends,
            vsock,
        } = started;
        Self {
            system: parts.system,
            jail_gaps: Vec::new(),
            life: parts.life,
            vmm,
            backends,
            vsock,
            devices: granted.collect(),
            spare: parts.spare,
            pending: Vec::new(),
            conditions: parts.conditions,
            reload: None,
            messages: parts.messages,
            talking: true,
            exited: false,
            finished: Some(parts.finished),
            said: None,
            end: None,
            asked_to_stop: false,
            deadline: None,
            expires: lifetime(partition),
            born: Instant::now(),
            short_lives: 0,
            halt: None,
            group: parts.group,
            partition: partition.clone(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.partition.name
    }

    pub(super) fn record(&self) -> PartitionRecord {
        PartitionRecord {
            name: self.partition.name.clone(),
            kernel: self.partition.kernel.kind().to_string(),
            state: self.life.state(),
            vmm: self.vmm.process.pid(),
            memory_mib: self.partition.memory.mib,
            vcpus: self.partition.vcpus,
            jail_gaps: self.all_jail_gaps(),
            conditions: self.conditions.as_ref().map(|held| held.adherence),
            status: self.end.as_ref().map(End::status),
        }
    }

    /// The VMM's, and those of what stands behind its devices.
    fn all_jail_gaps(&self) -> Vec<String> {
        let mut gaps = self.jail_gaps.clone();
        for backend in &self.backends {
            let who = backend.kind.as_str();
            gaps.extend(backend.jail_gaps.iter().map(|gap| format!("{who}: {gap}")));
        }
        gaps
    }

    pub(super) fn state(&self) -> State {
        self.life.state()
    }

    pub(super) fn step(&mut self, state: State) -> bool {
        self.life.step(state)
    }

    /// True when the process has ended and every byte of output was passed on.
    pub(super) fn is_over(&self) -> bool {
        self.exited && self.finished.is_none()
    }

    /// Takes in what the VMM has said, but not so much at once that nobody else is heard: a VMM
    /// may have been taken over by its guest. Whether it has just said that it runs.
    pub(super) fn hear(&mut self) -> bool {
        let mut began = false;
        for _ in 0..MAX_MESSAGES {
            if !self.talking {
                break;
            }
            match self.vmm.hear() {
                Heard::Nothing => break,
                Heard::Closed => self.talking = false,
                Heard::Event(Event::Running { jail_gaps }) => {
                    // Said twice or too late it changes nothing.
                    if self.life.step(State::Running) {
                        self.jail_gaps = jail_gaps;
                    }
                    began = true;
                }
                Heard::Event(Event::Reply { id, outcome }) => self.answered(id, outcome),
                Heard::Event(Event::GuestPanicked) => {
                    self.messages
                        .say("guest", b"its kernel says that it panicked");
                }
                Heard::Event(Event::WatchdogExpired) => {
                    self.messages.say("guest", b"it did not feed its watchdog");
                }
                Heard::Event(Event::Ended { how }) => self.say(End::Ended(how)),
                Heard::Event(Event::Failed { code, message }) => {
                    let line = message.lines().next().unwrap_or_default();
                    let message = line.escape_debug().to_string();
                    self.say(End::Failed {
                        code: code.escape_debug().to_string(),
                        message,
                    });
                }
            }
        }
        began
    }

    /// The first word about the end counts, and the process has to follow it.
    fn say(&mut self, end: End) {
        if self.said.is_none() {
            self.said = Some(end);
            self.deadline.get_or_insert(Instant::now() + GRACE);
        }
    }

    /// Reads what is there of the VMM's standard error.
    pub(super) fn listen(&mut self) {
        if self.vmm.process.listen().is_none() {
            self.vmm.process.stderr = None;
        }
    }

    /// Passes on what is there of a back end's standard error.
    pub(super) fn listen_to_backend(&mut self, at: usize) {
        let Some(backend) = self.backends.get_mut(at) else {
            return;
        };
        match backend.process.listen() {
            Some(text) => self.messages.say(backend.kind.as_str(), &text),
            None => backend.process.stderr = None,
        }
    }

    /// Takes in what a back end says on its control socket.
    pub(super) fn hear_backend(&mut self, at: usize) {
        let Some(backend) = self.backends.get_mut(at) else {
            return;
        };
        if let Some((id, outcome)) = backend.hear() {
            self.reloaded(id, outcome);
        }
        self.answer_stats();
    }

    /// Takes note of back ends that have ended: the partition runs on without what they served.
    pub(super) fn reap_backends(&mut self, ended: &[usize]) {
        for at in ended.iter().rev() {
            if *at >= self.backends.len() {
                continue;
            }
            let mut backend = self.backends.remove(*at);
            let how = backend.process.reap();
            if backend.kind == Kind::Decision {
                self.give_up_reload("what answers for them is gone, and nothing is permitted");
            }
            // In order it ends when its VMM lets go of it.
            let lost = !backend.process.succeeded;
            if lost && !self.exited && !self.asked_to_stop && self.said.is_none() {
                let lost = match backend.kind {
                    Kind::Gateway => "the network is down",
                    Kind::Share => "the shared directory is gone",
                    Kind::Tools => "the tools are gone",
                    Kind::Decision => "the conditions permit nothing any more",
                };
                let text = format!("{lost} ({}): its process {how}", backend.device);
                self.messages.say(backend.kind.as_str(), text.as_bytes());
            }
        }
        self.answer_stats();
    }

    /// Asks for the end; a second time, or when the time is over, it is not asked but killed.
    pub(super) fn stop(&mut self, at_once: bool) {
        // What is frozen cannot be asked.
        if at_once || self.halt.is_some() {
            self.vmm.process.kill();
        } else if !self.exited && !self.asked_to_stop {
            self.vmm.ask_to_stop();
            self.deadline = Some(Instant::now() + GRACE);
        } else if self.exited && self.finished.is_some() {
            self.deadline = Some(Instant::now() + DRAIN);
        }
        self.asked_to_stop = true;
    }

    /// The process has ended: starts another one if the guest rebooted.
    pub(super) fn exit(&mut self, launcher: &Launcher) {
        self.hear();
        self.exited = true;
        self.talking = false;
        let how = self.vmm.process.reap();
        self.abandon();
        // What stands still ends no sooner than it is killed.
        if self.halt.is_none() {
            let deadline = Instant::now() + GRACE;
            self.backends.iter().for_each(|b| b.take_leave(deadline));
        }
        // What answers for the conditions is the partition's, whether or not its guest starts again.
        let stays = |backend: &Backend| backend.kind == Kind::Decision;
        self.backends.retain(stays);
        launcher.options.secrets.end(&self.system, self.name());
        self.vsock = None;
        let unsaid = if self.asked_to_stop {
            End::Ended(Ended::Stopped)
        } else {
            End::Vanished(how)
        };
        let mut end = self.said.take().unwrap_or(unsaid);
        // Where everything is halted nothing starts, and so not this.
        let halted = self.halt.take().is_some();
        let again = self.partition.restart && !self.asked_to_stop && !halted;
        if end == End::Ended(Ended::Reset) && again {
            match self.reboot(launcher) {
                Ok(()) => return,
                Err(failed) => end = failed,
            }
        }
        self.backends.clear();
        self.give_up_reload("the partition has ended");
        self.spare = None;
        remove_document(&launcher.directory, &self.partition.name);
        let why = end.complaint(self.name()).map(|(_, sentence, _)| sentence);
        self.life.end(end.status(), &why.unwrap_or_default());
        self.end = Some(end);
        // Output that was asked for is waited for; of a partition that was stopped, not for long.
        self.deadline = self.asked_to_stop.then(|| Instant::now() + DRAIN);
    }

    /// Starts the partition again, as it was described; devices that were attached are gone.
    fn reboot(&mut self, launcher: &Launcher) -> Result<(), End> {
        self.short_lives = match self.born.elapsed() < SHORT_LIFE {
            true => self.short_lives + 1,
            false => 0,
        };
        if self.short_lives >= MAX_SHORT_LIVES {
            return Err(End::Failed {
                code: "reboot-loop".to_owned(),
                message: format!(
                    "it reset itself {MAX_SHORT_LIVES} times, each within {} seconds of its start",
                    SHORT_LIFE.as_secs()
                ),
            });
        }
        let failed = |error: Error| End::Failed {
            code: error.code().to_owned(),
            message: format!("it cannot be started again: {error}"),
        };
        let streams = self.spare.as_ref().map(Streams::duplicate).transpose();
        let streams = streams.map_err(failed)?.unwrap_or_default();
        let before = Some(self.backends.as_slice());
        let prepared = launcher.prepare(&self.partition, streams, before);
        let prepared = prepared.map_err(failed)?;
        let started = launcher
            .start(prepared, self.group.as_ref())
            .map_err(failed)?;
        self.vmm = started.vmm;
        self.backends.extend(started.backends);
        self.vsock = started.vsock;
        self.devices = (self.partition.devices.iter())
            .map(|device| device.name.clone())
            .collect();
        self.talking = true;
        self.exited = false;
        self.deadline = None;
        self.born = Instant::now();
        Ok(())
    }

    /// Its lifetime is over.
    pub(super) fn outlive(&mut self) {
        self.expires = None;
        if !self.exited {
            let text = b"its lifetime is over, as its manifest says";
            self.messages.say("lifetime", text);
            self.stop(false);
        }
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self) {
        self.deadline = None;
        if self.exited {
            self.finished = None;
        } else {
            self.vmm.process.kill();
        }
    }

    /// The VMM failed before its guest ran.
    pub(super) fn was_rejected(&self) -> bool {
        self.state() == State::Rejected && !self.asked_to_stop
    }
}

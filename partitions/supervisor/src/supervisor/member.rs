//! One partition of a running system.

use crate::end::End;
use crate::lifecycle::{Lifecycle, State};
use crate::record::PartitionRecord;
use crate::vmm::{Heard, Vmm};
use bulkhead_machine::control::{Ended, Event};
use bulkhead_manifest::{KernelKind, Partition};
use std::io::PipeReader;
use std::time::{Duration, Instant};

/// How long a VMM may take to end after it was asked, or after it said that it ends.
const GRACE: Duration = Duration::from_millis(500);
/// Most messages taken in at once; a VMM has two to say.
const MAX_MESSAGES: usize = 16;
/// How long output may take to drain once its VMM was ended from outside.
const DRAIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    kernel: KernelKind,
    memory_mib: u64,
    vcpus: u32,
    jail_gaps: Vec<String>,
    lifecycle: Lifecycle,
    pub(super) vmm: Vmm,
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
}

impl Member {
    pub(super) fn new(
        partition: &Partition,
        vmm: Vmm,
        finished: PipeReader,
        lifecycle: Lifecycle,
    ) -> Self {
        Self {
            name: partition.name.clone(),
            kernel: partition.kernel.kind(),
            memory_mib: partition.memory_mib,
            vcpus: partition.vcpus,
            jail_gaps: Vec::new(),
            lifecycle,
            vmm,
            talking: true,
            exited: false,
            finished: Some(finished),
            said: None,
            end: None,
            asked_to_stop: false,
            deadline: None,
        }
    }

    pub(super) fn record(&self) -> PartitionRecord {
        PartitionRecord {
            name: self.name.clone(),
            kernel: self.kernel.to_string(),
            state: self.lifecycle.state(),
            vmm: self.vmm.pid(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            jail_gaps: self.jail_gaps.clone(),
            status: self.end.as_ref().map(End::status),
        }
    }

    pub(super) fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// True when the process has ended and every byte of output was passed on.
    pub(super) fn is_over(&self) -> bool {
        self.exited && self.finished.is_none()
    }

    /// Takes in what the VMM has said, but not so much at once that nobody else is heard: a VMM
    /// may have been taken over by its guest.
    pub(super) fn hear(&mut self) {
        for _ in 0..MAX_MESSAGES {
            if !self.talking {
                return;
            }
            match self.vmm.hear() {
                Heard::Nothing => return,
                Heard::Closed => self.talking = false,
                Heard::Event(Event::Running { jail_gaps }) => {
                    // Said twice or too late it changes nothing.
                    if self.lifecycle.step(State::Running) {
                        self.jail_gaps = jail_gaps;
                    }
                }
                Heard::Event(
                    Event::Reply { .. } | Event::GuestPanicked | Event::WatchdogExpired,
                ) => {}
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
    }

    /// The first word about the end counts, and the process has to follow it.
    fn say(&mut self, end: End) {
        if self.said.is_none() {
            self.said = Some(end);
            self.deadline.get_or_insert(Instant::now() + GRACE);
        }
    }

    /// Asks for the end; a second time, or when the time is over, it is not asked but killed.
    pub(super) fn stop(&mut self, at_once: bool) {
        if at_once {
            self.vmm.kill();
        } else if !self.exited && !self.asked_to_stop {
            self.vmm.ask_to_stop();
            self.deadline = Some(Instant::now() + GRACE);
        } else if self.exited && self.finished.is_some() {
            self.deadline = Some(Instant::now() + DRAIN);
        }
        self.asked_to_stop = true;
    }

    /// The process has ended.
    pub(super) fn exit(&mut self) {
        self.hear();
        self.exited = true;
        self.talking = false;
        let how = self.vmm.reap();
        let unsaid = if self.asked_to_stop {
            End::Ended(Ended::Stopped)
        } else {
            End::Vanished(how)
        };
        self.end = Some(self.said.take().unwrap_or(unsaid));
        self.lifecycle.end();
        // Output that was asked for is waited for; of a partition that was stopped, not for long.
        self.deadline = self.asked_to_stop.then(|| Instant::now() + DRAIN);
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self) {
        self.deadline = None;
        if self.exited {
            self.finished = None;
        } else {
            self.vmm.kill();
        }
    }

    /// The VMM failed before its guest ran.
    pub(super) fn was_rejected(&self) -> bool {
        self.state() == State::Rejected && !self.asked_to_stop
    }
}

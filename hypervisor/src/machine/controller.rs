//! What the supervisor's commands do. Runs on the event loop's thread, between two of its turns.
//!
//! Replies come in the order of the requests, but for that of a dump, which comes when it is written:
//! meanwhile the partition is paused, and the supervisor is served. A command that cannot be carried out is refused and
//! has changed nothing; a message that is no command, and has no number to answer to, ends the
//! partition.

use std::cell::Cell;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use bulkhead_machine::control::{Command, DeviceStats, Ended, Reply, Request, Resize, Stats};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::Task;
use super::dump::Dump;
use super::ending::Ending;
use super::memory::GuestMemory;
use super::plug::Plug;
use super::run_control::{Busy, Holder, RunControl};
use crate::control::{Channel, Received, refused};
use crate::descriptors::Descriptors;
use crate::devices::virtio::DeviceType;
use crate::devices::virtio::transport::Transport;
use crate::error::Error;

/// See the module.
pub struct Controller {
    channel: Channel,
    vcpus: Arc<RunControl>,
    plug: Plug,
    ending: Ending,
    memory: GuestMemory,
    /// The supervisor has paused the partition.
    paused: bool,
    /// The dump that is being written, and the request it answers.
    dump: Option<(u64, Dump)>,
    /// The socket may have a request, or room for an answer.
    ready: Rc<Cell<bool>>,
}

impl Controller {
    /// Serves `channel`.
    pub fn new(
        channel: Channel,
        vcpus: Arc<RunControl>,
        plug: Plug,
        memory: GuestMemory,
        ending: Ending,
    ) -> Self {
        Self {
            channel,
            vcpus,
            plug,
            ending,
            memory,
            paused: false,
            dump: None,
            ready: Rc::default(),
        }
    }

    /// A watch over the socket, for an event loop.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn watch(&self) -> Result<Box<dyn MutEventSubscriber>, Error> {
        let socket = self.channel.socket().try_clone();
        Ok(Box::new(Watch {
            socket: socket.map_err(Error::io("cannot share the control socket"))?,
            ready: self.ready.clone(),
            ending: self.ending.clone(),
        }))
    }

    /// The devices.
    pub(super) fn plug(&self) -> &Plug {
        &self.plug
    }

    /// Brings the tasks of `event_loop` in line with the devices there are, and answers requests
    /// that waited for a device to leave.
    pub(super) fn settle(&mut self, event_loop: &mut EventManager<Task>) {
        for request in self.plug.settle(event_loop) {
            self.channel.reply(request, Reply::Done);
        }
    }

    /// Devices are to rest.
    pub fn is_paused(&self) -> bool {
        self.paused || self.is_at_work()
    }

    /// [`Self::serve`] is to be called again though nothing happens.
    pub fn is_at_work(&self) -> bool {
        self.dump.is_some()
    }

    /// The socket may have something: what [`Self::watch`] notices.
    pub fn note_ready(&self) {
        self.ready.set(true);
    }

    /// Carries out what the supervisor has asked for.
    pub fn serve(&mut self) {
        self.go_on_with_dump();
        if !self.ready.take() {
            return;
        }
        self.channel.flush();
        while !self.channel.is_clogged() && !self.ending.is_over() {
            match self.channel.receive() {
                Received::Nothing => return,
                Received::Gone => self.ending.end(Ended::Stopped),
                Received::Garbage(text) => self.ending.fail(Error::Control(text)),
                Received::Invalid(id, reply) => self.channel.reply(id, reply),
                Received::Request(Request { id, command }, descriptors) => {
                    if let Some(reply) = self.carry_out(id, command, descriptors) {
                        self.channel.reply(id, reply);
                    }
                }
            }
        }
    }

    /// Does what `command` says; nothing, where the reply is not known yet.
    fn carry_out(
        &mut self,
        id: u64,
        command: Command,
        mut descriptors: Descriptors,
    ) -> Option<Reply> {
        match command {
            Command::Stop => {
                self.ending.end(Ended::Stopped);
                None
            }
            Command::Pause => Some(self.pause()),
            Command::Resume => {
                self.paused = false;
                self.vcpus.release(Holder::Supervisor);
                Some(Reply::Done)
            }
            Command::Resize(resize) => Some(self.resize(&resize)),
            Command::Stats => Some(Reply::Stats(self.stats())),
            Command::Dump { file } => {
                let file = descriptors.take("the dump", file);
                file.map_err(|e| refused(e.code(), &e.to_string()))
                    .and_then(|file| self.begin_dump(id, file))
                    .err()
            }
            Command::Attach { device } => Some(match self.plug.attach(&device, &mut descriptors) {
                Ok(()) => Reply::Done,
                Err(error) => refused(error.code(), &error.to_string()),
            }),
            Command::Detach { name } => match self.plug.detach(&name, id) {
                Ok(()) => None,
                Err(error) => Some(refused(error.code(), &error.to_string())),
            },
        }
    }

    fn pause(&mut self) -> Reply {
        match self.hold(Holder::Supervisor) {
            Ok(()) => {
                self.paused = true;
                Reply::Done
            }
            Err(refusal) => refusal,
        }
    }

    /// Brings everything to a stop.
    fn hold(&self, holder: Holder) -> Result<(), Reply> {
        if self.vcpus.hold(holder).is_err() {
            return Err(refused("vcpu-busy", &Busy.to_string()));
        }
        if !self.is_paused() {
            for (_, device) in self.plug.devices() {
                device.quiesce();
            }
        }
        Ok(())
    }

    /// The partition pauses until the dump is written.
    fn begin_dump(&mut self, id: u64, file: File) -> Result<(), Reply> {
        if self.dump.is_some() {
            let sentence = "a dump is being written; wait for its reply";
            return Err(refused("dump-running", sentence));
        }
        self.hold(Holder::Dump)?;
        let dump = Dump::begin(file, &self.memory, self.vcpus.cpus()).map_err(|e| {
            self.vcpus.release(Holder::Dump);
            dump_failed(&e)
        })?;
        self.dump = Some((id, dump));
        Ok(())
    }

    /// Writes a part of the dump, if there is one.
    fn go_on_with_dump(&mut self) {
        let Some((id, mut dump)) = self.dump.take() else {
            return;
        };
        let reply = match dump.step() {
            Ok(false) => {
                self.dump = Some((id, dump));
                return;
            }
            Ok(true) => dump.into_reply(),
            Err(e) => dump_failed(&e),
        };
        self.channel.reply(id, reply);
        self.vcpus.release(Holder::Dump);
    }

    fn resize(&self, resize: &Resize) -> Reply {
        let mut devices = self.plug.devices();
        let of_type = |wanted| move |device: &Transport| device.device_type() == wanted;
        let found = match resize {
            Resize::Memory { .. } => find(&mut devices, of_type(DeviceType::Mem)),
            Resize::Balloon { .. } => find(&mut devices, of_type(DeviceType::Balloon)),
            Resize::Console { .. } => find(&mut devices, of_type(DeviceType::Console)),
            Resize::Block { name } => devices.find(|(own, _)| *own == name).map(|(_, d)| d),
        };
        let Some(device) = found else {
            return unknown();
        };
        match device.resize(resize) {
            Ok(()) => Reply::Done,
            Err(error) => refused(error.code(), &error.to_string()),
        }
    }

    fn stats(&self) -> Stats {
        let stats = |(name, device): (&str, &Arc<Transport>)| DeviceStats {
            name: name.to_owned(),
            counters: device
                .counters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        };
        Stats {
            paused: self.paused,
            vcpu_exits: self.vcpus.exits(),
            devices: self.plug.devices().map(stats).collect(),
        }
    }
}

fn find<'a>(
    devices: &mut impl Iterator<Item = (&'a str, &'a Arc<Transport>)>,
    wanted: impl Fn(&Transport) -> bool,
) -> Option<&'a Arc<Transport>> {
    devices
        .map(|(_, device)| device)
        .find(|device| wanted(device))
}

fn dump_failed(error: &std::io::Error) -> Reply {
    let sentence = format!("the dump cannot be written: {error}; what is in its file is no dump");
    refused("dump-failed", &sentence)
}

fn unknown() -> Reply {
    refused("device-unknown", "the partition has no such device")
}

/// Notices that the socket is ready. Edge-triggered: [`Controller::serve`] reads until there is
/// nothing, and what it could not send waits for the next edge.
struct Watch {
    socket: File,
    ready: Rc<Cell<bool>>,
    ending: Ending,
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let events = Events::new(&self.socket, events | EventSet::EDGE_TRIGGERED);
        if let Err(e) = ops.add(events) {
            self.ending
                .fail(Error::Control(format!("it cannot be waited for: {e}")));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.ready.set(true);
    }
}

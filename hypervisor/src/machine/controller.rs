//! What the supervisor's commands do. Runs on the event loop's thread, between two of its turns.
//!
//! Replies come in the order of the requests. A command that cannot be carried out is refused and
//! has changed nothing; a message that is no command, and has no number to answer to, ends the
//! partition.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bulkhead_machine::control::{Command, DeviceStats, Ended, Reply, Request, Resize, Stats};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::ending::Ending;
use super::run_control::{Holder, RunControl};
use crate::control::{Channel, Received, refused};
use crate::descriptors::Descriptors;
use crate::devices::virtio::DeviceType;
use crate::devices::virtio::transport::Transport;
use crate::error::Error;

/// The partition's virtio devices by name.
pub type Devices = Vec<(String, Arc<Transport>)>;

/// See the module.
pub struct Controller {
    channel: Channel,
    vcpus: Arc<RunControl>,
    devices: Devices,
    ending: Ending,
    /// The supervisor has paused the partition.
    paused: bool,
    /// The socket may have a request, or room for an answer.
    ready: Rc<Cell<bool>>,
}

impl Controller {
    /// Serves `channel`.
    pub fn new(channel: Channel, vcpus: Arc<RunControl>, devices: Devices, ending: Ending) -> Self {
        Self {
            channel,
            vcpus,
            devices,
            ending,
            paused: false,
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

    /// Devices are to rest.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Carries out what the supervisor has asked for.
    pub fn serve(&mut self) {
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
                    if let Some(reply) = self.carry_out(command, descriptors) {
                        self.channel.reply(id, reply);
                    }
                }
            }
        }
    }

    /// Does what `command` says; nothing, where the reply is not known yet.
    fn carry_out(&mut self, command: Command, _descriptors: Descriptors) -> Option<Reply> {
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
            Command::Attach { .. } | Command::Detach { .. } | Command::Dump { .. } => {
                Some(refused(
                    "command-unsupported",
                    "this partition does not take that command",
                ))
            }
        }
    }

    fn pause(&mut self) -> Reply {
        if !self.paused {
            if let Err(busy) = self.vcpus.hold(Holder::Supervisor) {
                return refused("vcpu-busy", &busy.to_string());
            }
            for (_, device) in &self.devices {
                device.quiesce();
            }
            self.paused = true;
        }
        Reply::Done
    }

    fn resize(&self, resize: &Resize) -> Reply {
        let mut devices = self.devices.iter();
        let of_type = |wanted| move |device: &Transport| device.device_type() == wanted;
        let found = match resize {
            Resize::Memory { .. } => find(&mut devices, of_type(DeviceType::Mem)),
            Resize::Balloon { .. } => find(&mut devices, of_type(DeviceType::Balloon)),
            Resize::Console { .. } => find(&mut devices, of_type(DeviceType::Console)),
            Resize::Block { name } => devices.find(|(own, _)| own == name).map(|(_, d)| d),
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
        let stats = |(name, device): &(String, Arc<Transport>)| DeviceStats {
            name: name.clone(),
            counters: device
                .counters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        };
        Stats {
            paused: self.paused,
            vcpu_exits: self.vcpus.exits(),
            devices: self.devices.iter().map(stats).collect(),
        }
    }
}

fn find<'a>(
    devices: &mut std::slice::Iter<'a, (String, Arc<Transport>)>,
    wanted: impl Fn(&Transport) -> bool,
) -> Option<&'a Arc<Transport>> {
    devices
        .map(|(_, device)| device)
        .find(|device| wanted(device))
}

fn unknown() -> Reply {
    refused("device-unknown", "the partition has no such device")
}

/// Notices that the socket is ready. Edge-triggered: [`Controller::serve`] reads until there is
/// nothing, and what it could not send waits for the next edge.
struct Watch {
    socket: std::fs::File,
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

//! A function and a platform that do nothing but remember, for tests.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::config::{BarKind, ConfigSpace, Identity};
use super::msix::Message;
use super::{BarState, PciFunction, Platform};

/// BAR, where from, where to.
pub(crate) type Move = (u8, Option<u64>, Option<u64>);

/// See the module. Its BARs read as their number.
pub(crate) struct Function {
    space: Mutex<ConfigSpace>,
    pub(crate) moves: Mutex<Vec<Move>>,
}

impl Function {
    /// Number, size and width of each BAR.
    pub(crate) fn new(bars: &[(u8, u64, bool)]) -> Arc<Self> {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 0,
            class: 0xff_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        for (bar, size, wide) in bars {
            let kind = match wide {
                false => BarKind::Memory32,
                true => BarKind::Memory64 {
                    prefetchable: false,
                },
            };
            space.add_bar(*bar, *size, kind).unwrap();
        }
        Arc::new(Self {
            space: Mutex::new(space),
            moves: Mutex::default(),
        })
    }
}

impl PciFunction for Function {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.space.lock().unwrap().read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        self.space.lock().unwrap().write(register, data);
    }

    fn bars(&self) -> Vec<BarState> {
        self.space.lock().unwrap().bars()
    }

    fn read_bar(&self, bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(bar);
    }

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn bar_moved(&self, bar: u8, from: Option<u64>, to: Option<u64>) {
        self.moves.lock().unwrap().push((bar, from, to));
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recorder {
    messages: Mutex<Vec<Message>>,
    /// Address and descriptor of each doorbell.
    doorbells: Mutex<Vec<(u64, i32)>>,
}

impl Recorder {
    /// The messages since the last call.
    pub(crate) fn messages(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    /// Addresses of the doorbells.
    pub(crate) fn doorbells(&self) -> Vec<u64> {
        let doorbells = self.doorbells.lock().unwrap();
        doorbells.iter().map(|(address, _)| *address).collect()
    }
}

impl Platform for Recorder {
    fn send(&self, message: Message) {
        self.messages.lock().unwrap().push(message);
    }

    fn bind_doorbell(&self, event: &EventFd, address: u64) -> io::Result<()> {
        let entry = (address, event.as_raw_fd());
        self.doorbells.lock().unwrap().push(entry);
        Ok(())
    }

    fn unbind_doorbell(&self, event: &EventFd, address: u64) {
        let entry = (address, event.as_raw_fd());
        self.doorbells.lock().unwrap().retain(|old| *old != entry);
    }
}

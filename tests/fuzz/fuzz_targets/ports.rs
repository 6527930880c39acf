//! A guest at its I/O ports: serial line, CMOS clock, keyboard controller, ACPI registers, watchdog,
//! panic and exit ports, hot plug, and the console mailbox of Bulkhead kernels, while the host types,
//! plugs and unplugs. The documented values end the partition, and no others.
#![no_main]

mod script;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bulkhead_abi::machine::{
    CONSOLE_MAX, CONSOLE_PORT, CONSOLE_READ, CONSOLE_REFUSED, CONSOLE_WOULD_BLOCK, ConsoleMailbox,
    EXIT_PORT,
};
use bulkhead_machine::control::Ended;
use bulkhead_machine::pc;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use hypervisor::devices::exit::ExitPort;
use hypervisor::devices::ged::{Ged, GedPorts};
use hypervisor::devices::pci::config::{ConfigSpace, Identity};
use hypervisor::devices::pci::host::{ConfigPorts, PciHost};
use hypervisor::devices::pci::hotplug::{HotPlug, HotPlugPorts};
use hypervisor::devices::pci::{BarState, PciFunction};
use hypervisor::devices::pvpanic::PanicPort;
use hypervisor::devices::reset::{AcpiPorts, KEYBOARD_COMMAND, KeyboardController};
use hypervisor::devices::rtc::{self, Rtc};
use hypervisor::devices::streams::Output;
use hypervisor::devices::{mailbox, serial, watchdog};
use hypervisor::machine::bus::{Bus, PortBus};
use hypervisor::machine::ending::Ending;
use hypervisor::machine::notices::{Notice, Notices};
use hypervisor::trace::Trace;
use libfuzzer_sys::fuzz_target;
use rustix::pipe::{PipeFlags, pipe_with};
use script::Script;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: u64 = 0x8000;
/// The page that the mailbox is in.
const PAGE: u64 = 0x1000;
const MAILBOX: usize = size_of::<ConsoleMailbox>();
/// First port of each device, and how many it has.
const PORTS: [(u16, u16); 11] = [
    (pc::serial::PORTS, pc::serial::PORT_COUNT),
    (rtc::PORTS, rtc::PORT_COUNT),
    (KEYBOARD_COMMAND, 1),
    (pc::reset::ACPI_PORTS, pc::reset::ACPI_PORT_COUNT),
    (pc::watchdog::PORTS, pc::watchdog::PORT_COUNT),
    (pc::pvpanic::PORT, 1),
    (EXIT_PORT, 1),
    (pc::ged::PORTS, pc::ged::PORT_COUNT),
    (pc::pci::HOT_PLUG_PORTS, pc::pci::HOT_PLUG_PORT_COUNT),
    (pc::pci::CONFIG_PORTS, pc::pci::CONFIG_PORT_COUNT),
    (CONSOLE_PORT, 1),
];

struct Machine {
    ports: PortBus,
    memory: GuestMemoryMmap,
    pci: Arc<PciHost>,
    plug: Arc<HotPlug>,
    ending: Ending,
    notices: Notices,
    tasks: EventManager<Box<dyn MutEventSubscriber>>,
    /// Where the host types: the serial line, and the mailbox.
    keyboards: [OwnedFd; 2],
    /// What has to have ended the partition.
    expected: Option<Ended>,
    panicked: bool,
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let mut machine = Machine::new();
    while !script.0.is_empty() {
        machine.step(&mut script);
    }
    assert_eq!(
        machine.notices.take(Notice::GuestPanicked),
        machine.panicked
    );
});

impl Machine {
    fn new() -> Self {
        let (ending, notices) = (
            Ending::new().expect("an end"),
            Notices::new().expect("notices"),
        );
        let null = File::options().write(true).open("/dev/null");
        let output = Output::new(null.expect("/dev/null"), ending.clone(), Trace::default());
        let region = (GuestAddress(0), MEMORY as usize);
        let memory = GuestMemoryMmap::from_ranges(&[region]).expect("memory");
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let (first, second) = (keyboard(), keyboard());
        let (line, pump) =
            serial::build(output.clone(), Some(event()), Some(first.0)).expect("a serial port");
        let input = Some((second.0, Box::new(|| ()) as mailbox::Raise));
        let (mailbox, watch) =
            mailbox::build(memory.clone(), PAGE, output.clone(), output, input).expect("a mailbox");
        let (watchdog, timer) =
            watchdog::build(notices.clone(), ending.clone()).expect("a watchdog");
        let ged = Arc::new(Ged::new(event()));
        let window = 0xc000_0000..0xd000_0000;
        let pci = Arc::new(PciHost::new(Arc::new(Bus::default()), vec![window]));
        let plug = Arc::new(HotPlug::new(pci.clone(), ged.clone(), event()));
        let ports = PortBus::default();
        let bytewise = |at: (u16, u16), device| ports.insert(at.0, at.1, device).expect("free");
        let wide = |at: (u16, u16), device| ports.insert_wide(at.0, at.1, device).expect("free");
        bytewise(PORTS[0], line);
        bytewise(PORTS[1], Arc::new(Mutex::new(Rtc::new(true))));
        bytewise(
            PORTS[2],
            Arc::new(Mutex::new(KeyboardController::new(ending.clone()))),
        );
        bytewise(
            PORTS[3],
            Arc::new(Mutex::new(AcpiPorts::new(ending.clone()))),
        );
        bytewise(PORTS[4], Arc::new(Mutex::new(watchdog)));
        bytewise(
            PORTS[5],
            Arc::new(Mutex::new(PanicPort::new(notices.clone()))),
        );
        bytewise(
            PORTS[6],
            Arc::new(Mutex::new(ExitPort::new(ending.clone()))),
        );
        wide(PORTS[7], Arc::new(Mutex::new(GedPorts(ged))));
        wide(PORTS[8], Arc::new(Mutex::new(HotPlugPorts(plug.clone()))));
        wide(
            PORTS[9],
            Arc::new(Mutex::new(ConfigPorts::new(pci.clone()))),
        );
        bytewise(PORTS[10], Arc::new(Mutex::new(mailbox)));
        let mut tasks = EventManager::<Box<dyn MutEventSubscriber>>::new().expect("an event loop");
        tasks.add_subscriber(Box::new(pump.expect("it has input")));
        tasks.add_subscriber(Box::new(watch.expect("it has input")));
        tasks.add_subscriber(Box::new(timer));
        Self {
            ports,
            memory,
            pci,
            plug,
            ending,
            notices,
            tasks,
            keyboards: [first.1, second.1],
            expected: None,
            panicked: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let op = script.byte();
        match op {
            0..0xa0 => {
                let (first, count) = PORTS[usize::from(op) % PORTS.len()];
                let choice = script.byte();
                let port = first + u16::from(choice & 15) % (count + u16::from(op >= 0x90));
                let len = [1, 2, 4, 4, 8, 3, 1, 64][usize::from(choice >> 5)];
                if choice & 16 == 0 {
                    let mut data = [script.byte(); 64];
                    for byte in &mut data[1..len.min(8)] {
                        *byte = script.byte();
                    }
                    self.write(port, &data[..len]);
                } else {
                    self.ports.read(port, &mut [0; 64][..len]);
                }
            }
            0xa0..0xc0 => self.use_mailbox(script),
            0xc0..0xd0 => {
                let typed = [script.byte(); 200];
                let len = usize::from(script.byte()) % (typed.len() + 1);
                // A pipe that is full takes no more.
                let _ = rustix::io::write(&self.keyboards[usize::from(op & 1)], &typed[..len]);
            }
            0xd0..0xd8 => {
                if let Ok(slot) = self.pci.insert(Arc::new(Function::new())) {
                    self.plug.announce(slot);
                }
            }
            0xd8..0xe0 => self.plug.request_eject(script.byte() % 32),
            0xe0..0xe8 => {
                for slot in self.plug.take_ejected() {
                    assert!((1..32).contains(&slot), "the host bridge stays");
                    let mut vendor = [0; 2];
                    self.pci.read_config(slot, 0, &mut vendor);
                    assert_eq!(vendor, [0xff; 2], "nobody has its slot yet");
                }
            }
            _ => {
                self.tasks.run_with_timeout(0).expect("an event loop");
            }
        }
    }

    /// A write of the guest, and what it has to lead to.
    fn write(&mut self, port: u16, data: &[u8]) {
        self.ports.write(port, data);
        let registers = pc::reset::ACPI_PORTS;
        let (soft_off, reset) = (registers, registers + 2);
        let ends = data.iter().find_map(|byte| match (port, *byte) {
            (EXIT_PORT, status) => Some(Ended::Exit { status }),
            (port, 0x34) if port == soft_off => Some(Ended::PowerOff),
            (port, 1) if port == reset => Some(Ended::Reset),
            (KEYBOARD_COMMAND, 0xfe) => Some(Ended::Reset),
            _ => None,
        });
        self.expected = self.expected.or(ends);
        self.panicked |= port == pc::pvpanic::PORT && data.iter().any(|byte| byte & 1 != 0);
        match self.ending.outcome() {
            // A second of real time may go by, and a watchdog that runs counts it.
            Some(Ok(Ended::Watchdog)) => {}
            Some(outcome) => assert_eq!(outcome.as_ref().ok().copied(), self.expected),
            None => assert_eq!(self.expected, None),
        }
    }

    fn use_mailbox(&mut self, script: &mut Script<'_>) {
        let (op, len) = (script.byte() % 5, script.word());
        let high = script.byte();
        let mailbox = ConsoleMailbox {
            op: op.into(),
            len: if high & 1 == 0 { len & 0xffff } else { len },
            address: u64::from(script.short()) | u64::from(high >> 1) << 57,
            result: 77,
        };
        let request = [mailbox.op.to_le_bytes(), mailbox.len.to_le_bytes()];
        let page = GuestAddress(PAGE);
        let mut bytes = request.as_flattened().to_vec();
        bytes.extend(mailbox.address.to_le_bytes());
        bytes.extend(mailbox.result.to_le_bytes());
        self.memory.write_slice(&bytes, page).expect("in memory");
        self.write(CONSOLE_PORT, &[0]);
        let mut after = [0; MAILBOX];
        self.memory.read_slice(&mut after, page).expect("in memory");
        let end = mailbox.address.saturating_add(mailbox.len.into());
        if op == CONSOLE_READ as u8 && mailbox.address < PAGE + MAILBOX as u64 && end > PAGE {
            // It had its own page overwritten.
            return;
        }
        let (kept, result) = after.split_at(MAILBOX - 8);
        assert_eq!(kept, &bytes[..MAILBOX - 8], "the request stays as it was");
        let result = i64::from_le_bytes(result.try_into().expect("eight bytes"));
        let moved = 0..=i64::from(mailbox.len.min(CONSOLE_MAX));
        let refused = [CONSOLE_REFUSED, CONSOLE_WOULD_BLOCK].contains(&result);
        assert!(refused || moved.contains(&result), "{result}");
        assert!(result <= 0 || end <= MEMORY, "bytes that are not in memory");
    }
}

/// The device's end of a pipe, and the typist's.
fn keyboard() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
    (reader.into(), writer)
}

/// A function without BARs.
struct Function(Mutex<ConfigSpace>);

impl Function {
    fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 1,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 1,
            subsystem: 2,
        })))
    }
}

impl PciFunction for Function {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.0.lock().expect("one thread").read(register, data);
    }
    fn write_config(&self, register: u16, data: &[u8]) {
        self.0.lock().expect("one thread").write(register, data);
    }
    fn bars(&self) -> Vec<BarState> {
        Vec::new()
    }
    fn read_bar(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}
    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn bar_moved(&self, _bar: u8, _from: Option<u64>, _to: Option<u64>) {}
}

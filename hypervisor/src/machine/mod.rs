//! The machine: builds one partition from its description and runs it to its end.
//!
//! Called once, by [`crate::run`]. The order of KVM calls is the order of this file: memory slots
//! come before interrupt controllers, controllers before vCPUs. After [`Machine::run`] starts, the
//! main thread is the event loop and each vCPU has a thread; they share [`vcpu::Shared`] and nothing
//! else.

mod bulkhead;
pub mod bus;
pub mod controller;
pub mod cpuid;
mod dump;
pub mod ending;
pub mod gdb;
pub mod interrupts;
pub mod memory;
pub mod notices;
mod pc;
mod pci;
pub mod plug;
pub mod pmem;
pub mod registers;
pub mod run_control;
pub mod vcpu;
mod virtio;

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::{Arc, Barrier, Mutex};

use bulkhead_machine::control::{Ended, Event};
use bulkhead_machine::cpu::Leaf;
use bulkhead_machine::{
    Boot, Fd, Jail, MAX_VCPUS, MIN_MEMORY_MIB, MachineDescription, Transport, VERSION,
    trace as phase,
};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;

use self::bus::{Bus, BusDevice, PortBus};
use self::controller::Controller;
use self::ending::Ending;
use self::gdb::Stops;
use self::memory::GuestMemory;
use self::notices::Notices;
use self::plug::Plug;
use self::run_control::{Holder, RunControl};
use self::vcpu::Shared;
use crate::control::{Channel, tell};
use crate::descriptors::Descriptors;
use crate::devices::virtio::blk::workers::Workers;
use crate::devices::virtio::console;
use crate::error::Error;
use crate::jail::{self, confine, filters};
use crate::trace::Trace;

/// The API version every KVM since Linux 2.6.22 speaks.
const KVM_API_VERSION: i32 = 12;

/// A task of the event loop.
type Task = Box<dyn MutEventSubscriber>;

/// What all kinds of machines are built from and into.
struct Parts<'a> {
    description: &'a MachineDescription,
    descriptors: &'a mut Descriptors,
    trace: &'a Trace,
    vm: Arc<VmFd>,
    /// What the guest has from the start.
    ram: GuestMemory,
    /// Where memory can be plugged in, and how much.
    pluggable: Option<(GuestAddress, u64)>,
    /// Files that are memory of the guest.
    pmem: Vec<pmem::Mapping>,
    /// What devices reach: RAM and the pluggable region.
    memory: GuestMemory,
    ports: PortBus,
    mmio: Arc<Bus>,
    ending: Ending,
    notices: Notices,
    tasks: Vec<Task>,
    /// Descriptors that it will open, or be sent, when it is locked in.
    room: usize,
    workers: Workers,
    plug: Plug,
}

/// A machine whose guest is loaded and whose vCPUs have their registers.
pub struct Machine {
    shared: Arc<Shared>,
    notices: Notices,
    tasks: Vec<Task>,
    /// Where debuggers come in.
    debugger: Option<File>,
    room: usize,
    workers: Workers,
    plug: Plug,
    jail: Jail,
    /// For the jail to enter.
    network_namespace: Option<File>,
    /// Open as long as the machine: closing it would take nothing away, but says when it ends.
    _vm: Arc<VmFd>,
}

impl Machine {
    /// Builds the machine that `description` describes.
    ///
    /// # Errors
    /// The description, a file it names, or the host does not allow it.
    pub fn build(
        description: &MachineDescription,
        descriptors: &mut Descriptors,
        ending: &Ending,
        trace: &Trace,
    ) -> Result<Self, Error> {
        check(description)?;
        let kvm = open_kvm(description.kvm, descriptors)?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        drop(kvm);
        trace.mark(phase::VM);
        let mapped = memory::map(&description.memory)?;
        memory::register(&vm, &mapped.all)?;
        let pmem = pmem::map(&vm, &mapped.all, &description.devices, descriptors)?;
        let pmem_end = pmem.last().map_or(0, |last| last.start.0 + last.len);
        check_addresses(&description.cpuid, pmem_end.max(mapped.all.last_addr().0))?;
        trace.mark(phase::MEMORY);
        let workers = Workers::default();
        let mut parts = Parts {
            description,
            descriptors,
            trace,
            vm: Arc::new(vm),
            ram: mapped.ram,
            plug: Plug::new(mapped.all.clone(), workers.clone()),
            pluggable: mapped.pluggable,
            pmem,
            memory: mapped.all,
            ports: PortBus::default(),
            mmio: Arc::default(),
            ending: ending.clone(),
            notices: Notices::new()?,
            tasks: Vec::new(),
            // A dump's file, and that of a second, to be told that it comes too early.
            room: 2,
            workers,
        };
        if description.transport == Transport::Pci {
            // A disk attached later needs one, and no thread can be started then.
            parts.workers.need(1);
        }
        let vcpus = match &description.boot {
            Boot::Bulkhead {
                kernel,
                modules,
                args,
                env,
                trace_syscalls,
            } => bulkhead::build(
                &mut parts,
                &bulkhead::Files {
                    kernel: *kernel,
                    modules,
                    args,
                    env,
                    trace_syscalls: *trace_syscalls,
                },
            )?,
            Boot::Linux {
                kernel,
                initrd,
                cmdline,
                acpi,
            } => {
                let guest = pc::Guest(*kernel, *initrd, cmdline);
                pc::build(&mut parts, &guest, *acpi)?
            }
            Boot::Pvh {
                kernel,
                initrd,
                cmdline,
            } => {
                let guest = pc::Guest(*kernel, *initrd, cmdline);
                pc::build_bare(&mut parts, &guest)?
            }
        };
        let network_namespace = (description.network_namespace)
            .map(|fd| parts.descriptors.take("the network namespace", fd))
            .transpose()?;
        let (debugger, stops) = match description.gdb {
            Some(fd) => {
                let listener = parts.descriptors.take("the debugger's socket", fd)?;
                // One debugger's connection.
                parts.room += 1;
                (Some(listener), Some(Arc::new(Stops::new()?)))
            }
            None => (None, None),
        };
        let holders: &[_] = match debugger {
            Some(_) => &[Holder::Debugger],
            None => &[],
        };
        let control = RunControl::new(vcpus, holders, ending.clone());
        Ok(Self {
            shared: Arc::new(Shared {
                ports: parts.ports,
                mmio: parts.mmio,
                ending: parts.ending,
                memory: parts.memory,
                pmem: parts.pmem,
                control: Arc::new(control),
                stops,
            }),
            debugger,
            room: parts.room,
            notices: parts.notices,
            tasks: parts.tasks,
            plug: parts.plug,
            workers: parts.workers,
            jail: description.jail,
            network_namespace,
            _vm: parts.vm,
        })
    }

    /// Runs the guest until the partition is over; the outcome is then in its [`Ending`].
    ///
    /// # Errors
    /// The host does not let it start, or the event loop fails.
    pub fn run(self, control: &File, trace: &Trace) -> Result<(), Error> {
        let (ending, vcpus) = (&self.shared.ending, &self.shared.control);
        let socket = control
            .try_clone()
            .map_err(Error::io("cannot share the control socket"))?;
        let (channel, vcpus) = (Channel::new(socket), vcpus.clone());
        let memory = self.shared.memory.clone();
        let mut controller = Controller::new(channel, vcpus, self.plug, memory, ending.clone());
        let mut event_loop = new_loop(&controller, ending)?;
        // Devices rest while the partition is paused.
        let mut pause_loop = new_loop(&controller, ending)?;
        event_loop.add_subscriber(Box::new(self.notices.clone()));
        for task in self.tasks.into_iter().chain(controller.plug().watch()) {
            event_loop.add_subscriber(task);
        }
        controller.settle(&mut event_loop);
        vcpu::prepare_stop_signal()?;
        // Everything is open by now, and this is still the only thread.
        let level = self.jail;
        let jail_gaps = jail::enter(level, self.room, self.network_namespace)?;
        let vcpus = &self.shared.control;
        let helpers = usize::from(self.debugger.is_some());
        let start = Arc::new(Barrier::new(vcpus.cpus().len() + helpers + 1));
        let mut threads = Vec::with_capacity(vcpus.cpus().len());
        for id in 0..vcpus.cpus().len() {
            let shared = self.shared.clone();
            let lock_in = move || Ok(confine(level, filters::VCPU)?);
            threads.push(vcpu::spawn(id, shared, start.clone(), lock_in)?);
        }
        vcpus.set_threads(threads);
        let debugger = match (self.debugger, &self.shared.stops) {
            (Some(listener), Some(stops)) => {
                let (shared, stops) = (self.shared.clone(), stops.clone());
                let start = start.clone();
                let body = move || {
                    if let Err(error) = confine(level, filters::DEBUGGER) {
                        shared.ending.fail(error.into());
                    }
                    start.wait();
                    start.wait();
                    gdb::serve(&listener, &shared, &stops);
                };
                let builder = std::thread::Builder::new().name("debugger".into());
                let thread = builder.spawn(body);
                Some(thread.map_err(Error::io("cannot start the debugger's thread"))?)
            }
            _ => None,
        };
        let on_failure = ending.clone();
        let lock_in = move || {
            if let Err(error) = confine(level, filters::WORKER) {
                on_failure.fail(error.into());
            }
        };
        self.workers
            .start(lock_in)
            .map_err(Error::io("cannot start a disk's worker thread"))?;
        confine(level, filters::EVENT_LOOP)?;
        start.wait();
        trace.mark(phase::JAIL);
        if !ending.is_over() {
            tell(control, &Event::Running { jail_gaps });
        }
        trace.mark(phase::RUN);
        start.wait();
        let mut result = Ok(());
        while result.is_ok() && !ending.is_over() {
            let turn = if controller.is_at_work() {
                pause_loop.run_with_timeout(0)
            } else if controller.is_paused() {
                pause_loop.run()
            } else {
                event_loop.run()
            };
            result = turn.map(drop).map_err(event_loop_failed);
            // Between two turns of the loop, so that a pause holds for every device.
            controller.serve();
            controller.settle(&mut event_loop);
            for event in self.notices.events() {
                tell(control, &event);
            }
        }
        trace.mark(phase::END);
        // Whatever ended the loop ends the vCPUs.
        ending.end(Ended::Stopped);
        vcpus.end(debugger.as_ref());
        result
    }
}

/// An event loop that hears the supervisor, and of the end.
fn new_loop(controller: &Controller, ending: &Ending) -> Result<EventManager<Task>, Error> {
    let mut event_loop = EventManager::<Task>::new().map_err(event_loop_failed)?;
    event_loop.add_subscriber(Box::new(EndWatch(ending.clone())));
    event_loop.add_subscriber(controller.watch()?);
    Ok(event_loop)
}

/// Wakes the event loop when the end has come.
struct EndWatch(Ending);

impl MutEventSubscriber for EndWatch {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.0.event(), EventSet::IN)) {
            self.0.fail(event_loop_failed(e));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

fn event_loop_failed(e: event_manager::Error) -> Error {
    Error::Io {
        what: "the event loop failed",
        source: std::io::Error::other(e.to_string()),
    }
}

/// The rules of a description that its types do not hold.
fn check(description: &MachineDescription) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::Description(text));
    if description.version != VERSION {
        return invalid(format!(
            "version {} is not {VERSION}: supervisor and VMM are of different releases",
            description.version
        ));
    }
    if description.vcpus == 0 || description.vcpus > MAX_VCPUS {
        return invalid(format!(
            "{} vcpus are not 1 to {MAX_VCPUS}",
            description.vcpus
        ));
    }
    let is_pc = matches!(description.boot, Boot::Linux { .. });
    if description.watchdog && !is_pc {
        return invalid("only a PC has a watchdog".into());
    }
    if description.transport == Transport::Pci && !is_pc {
        return invalid("only a PC has a PCI bus".into());
    }
    cpuid::check(&description.cpuid)?;
    check_ports(description)?;
    check_memory(description)
}

fn check_ports(description: &MachineDescription) -> Result<(), Error> {
    let ports = description
        .console
        .iter()
        .flat_map(|console| &console.ports);
    let mut names: Vec<&str> = ports.map(|port| port.name.as_str()).collect();
    if names.len() > console::MAX_PORTS {
        return Err(Error::TooMany {
            what: "console ports",
            count: names.len(),
            max: console::MAX_PORTS,
        });
    }
    let invalid = |text: &str| Err(Error::Description(text.into()));
    if !names.is_empty() && !matches!(description.boot, Boot::Linux { .. }) {
        return invalid("only a PC's console has further ports");
    }
    names.sort_unstable();
    if names.iter().any(|name| !(1..=32).contains(&name.len())) {
        return invalid("names of console ports have 1 to 32 bytes");
    }
    if names.windows(2).any(|pair| pair.first() == pair.last()) {
        return invalid("two console ports have one name");
    }
    Ok(())
}

fn check_memory(description: &MachineDescription) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::Description(text));
    let memory = &description.memory;
    if memory.mib < MIN_MEMORY_MIB {
        return invalid(format!(
            "{} MiB of memory are fewer than {MIN_MEMORY_MIB}",
            memory.mib
        ));
    }
    if memory.hugepages && !memory.mib.is_multiple_of(2) {
        return invalid(format!("{} MiB are not whole pages of 2 MiB", memory.mib));
    }
    if !memory.pluggable_mib.is_multiple_of(128) {
        return invalid(format!(
            "{} MiB of pluggable memory are not a multiple of 128",
            memory.pluggable_mib
        ));
    }
    if memory.pluggable_mib > 0 && !matches!(description.boot, Boot::Linux { .. }) {
        return invalid("only a PC has pluggable memory".into());
    }
    Ok(())
}

/// A CPU may name fewer addresses than the largest machine has.
fn check_addresses(cpuid: &[Leaf], last: u64) -> Result<(), Error> {
    let bits = cpuid::address_bits(cpuid);
    if 1_u64.checked_shl(bits).is_some_and(|end| last > end) {
        return Err(Error::Description(format!(
            "the memory reaches beyond the {bits} bits of an address that the guest's cpu has"
        )));
    }
    Ok(())
}

fn open_kvm(fd: Fd, descriptors: &mut Descriptors) -> Result<Kvm, Error> {
    let file = descriptors.take("kvm", fd)?;
    // SAFETY: the number is that of an open descriptor this process owns, and ownership moves.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        -1 => Err(Error::Description(format!(
            "descriptor {} is not /dev/kvm",
            fd.0
        ))),
        other => Err(Error::KvmVersion(other)),
    }
}

impl Parts<'_> {
    /// Puts `device`, whose registers are bytes, at `count` ports from `first`.
    fn add_ports(
        &self,
        first: u16,
        count: u16,
        device: impl BusDevice + 'static,
    ) -> Result<(), Error> {
        let device = Arc::new(Mutex::new(device));
        Ok(self.ports.insert(first, count, device)?)
    }

    /// Creates all vCPUs and gives them their CPUID; interrupt controllers exist by now.
    fn create_vcpus(&self, apic: bool) -> Result<(Vec<VcpuFd>, cpuid::Features), Error> {
        let shape = cpuid::Shape {
            vcpus: self.description.vcpus,
            apic,
            time: self.description.time,
        };
        let mut vcpus = Vec::with_capacity(shape.vcpus as usize);
        for id in 0..shape.vcpus {
            let vcpu = self
                .vm
                .create_vcpu(id.into())
                .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
            let cpuid = cpuid::for_vcpu(&self.description.cpuid, id, shape)?;
            vcpu.set_cpuid2(&cpuid)
                .map_err(Error::kvm("KVM_SET_CPUID2"))?;
            vcpus.push(vcpu);
        }
        Ok((vcpus, cpuid::Features::of(&self.description.cpuid)))
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_machine::{Console, ConsolePort};

    use super::*;

    fn description() -> MachineDescription {
        let boot = Boot::Pvh {
            kernel: Fd(-1),
            initrd: None,
            cmdline: String::new(),
        };
        let leaf = |function| Leaf {
            function,
            index: None,
            registers: [0; 4],
        };
        let cpuid = vec![leaf(0), leaf(1)];
        MachineDescription::new("test", Fd(-1), Fd(-1), cpuid, MIN_MEMORY_MIB, boot)
    }

    #[test]
    fn memory_ends_where_addresses_do() {
        let cpuid = [Leaf {
            function: 0x8000_0008,
            index: None,
            registers: [39, 0, 0, 0],
        }];
        assert!(check_addresses(&cpuid, 1 << 39).is_ok());
        let error = check_addresses(&cpuid, (1 << 39) + 1).unwrap_err();
        assert_eq!(error.code(), "description-invalid");
    }

    fn pluggable(description: &mut MachineDescription, mib: u64) {
        description.memory.pluggable_mib = mib;
        description.boot = Boot::Linux {
            kernel: Fd(-1),
            initrd: None,
            cmdline: String::new(),
            acpi: Fd(-1),
        };
    }

    #[test]
    fn rules_of_the_description() {
        type Change = fn(&mut MachineDescription);
        let cases: [(Change, bool); 14] = [
            (|_| {}, true),
            (|d| d.cpuid.reverse(), false),
            (|d| d.version = VERSION + 1, false),
            (|d| d.vcpus = 0, false),
            (|d| d.vcpus = MAX_VCPUS, true),
            (|d| d.vcpus = MAX_VCPUS + 1, false),
            (|d| d.memory.mib = MIN_MEMORY_MIB - 1, false),
            (|d| d.memory.mib = u64::MAX, true),
            (|d| d.watchdog = true, false),
            (|d| d.memory.hugepages = true, true),
            (
                |d| {
                    d.memory.hugepages = true;
                    d.memory.mib = 3;
                },
                false,
            ),
            (|d| d.memory.pluggable_mib = 128, false),
            (|d| pluggable(d, 128), true),
            (|d| pluggable(d, 64), false),
        ];
        for (index, (change, want)) in cases.into_iter().enumerate() {
            let mut description = description();
            change(&mut description);
            assert_eq!(check(&description).is_ok(), want, "case {index}");
        }
    }

    #[test]
    fn rules_of_console_ports() {
        for (names, linux, want) in [
            (&["a", "b"][..], true, None),
            (&["a"], false, Some("description-invalid")),
            (&["a", "b", "a"], true, Some("description-invalid")),
            (&[""], true, Some("description-invalid")),
            (&[&"n".repeat(33)], true, Some("description-invalid")),
            (&["a"; console::MAX_PORTS + 1], true, Some("too-many")),
        ] {
            let mut description = description();
            if linux {
                description.boot = Boot::Linux {
                    kernel: Fd(-1),
                    initrd: None,
                    cmdline: String::new(),
                    acpi: Fd(-1),
                };
            }
            let port = |name: &&str| ConsolePort {
                name: (*name).to_owned(),
                input: None,
                output: Fd(-1),
            };
            description.console = Some(Console {
                input: None,
                output: Fd(-1),
                error: None,
                tty: false,
                ports: names.iter().map(port).collect(),
            });
            let got = check(&description).err().map(|error| error.code());
            assert_eq!(got, want, "{names:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_not_kvm_is_named() {
        let file = File::open("/dev/null").unwrap();
        let fd = Fd(file.into_raw_fd());
        let error = open_kvm(fd, &mut Descriptors::among(&[fd.0])).unwrap_err();
        assert_eq!(error.code(), "description-invalid");
        let error = open_kvm(Fd(-1), &mut Descriptors::among(&[])).unwrap_err();
        assert_eq!(error.code(), "descriptor-closed");
    }
}

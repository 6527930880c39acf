//! vCPU threads: enter the guest, serve its exits, stand where [`RunControl`] wants it, leave when
//! the partition is over.
//!
//! A signal makes `KVM_RUN`, and any write the thread waits in, return with EINTR; the thread then
//! looks whether it is held, and at the [`Ending`].

use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use bulkhead_machine::control::Ended;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::bus::{Bus, PortBus};
use super::ending::Ending;
use super::gdb::Stops;
use super::memory::GuestMemory;
use super::pmem::Mapping;
use super::run_control::{Cpu, Holder, RunControl};
use crate::error::Error;

/// What all vCPUs of a machine share. Holding it keeps guest memory mapped.
pub struct Shared {
    /// I/O ports.
    pub ports: PortBus,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
    /// The end of the partition.
    pub ending: Ending,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Files that are memory of the guest.
    pub pmem: Vec<Mapping>,
    /// The vCPUs.
    pub control: Arc<RunControl>,
    /// With a debugger: what it has to hear of.
    pub stops: Option<Arc<Stops>>,
}

/// Most entries that bring a vCPU to the end of its instruction. KVM leaves at once when no part of
/// the instruction waits for this process; a repeated `ins` would be carried out to its end, which a
/// guest can put off as long as it likes, and stops between two of its elements instead.
const FINISHING_ENTRIES: usize = 64;

extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler of the stop signal, which does nothing but interrupt; once, before any vCPU
/// runs.
///
/// # Errors
/// The host refuses.
pub fn prepare_stop_signal() -> Result<(), Error> {
    register_signal_handler(SIGRTMIN(), interrupt)
        .map_err(Error::io("cannot install the stop signal"))
}

/// Starts the thread of vCPU `id`. It calls `lock_in`, then meets all others and the main thread at
/// `start` twice: when everybody is locked in, and when the guest may run.
///
/// # Errors
/// The host gives no thread.
pub fn spawn(
    id: usize,
    shared: Arc<Shared>,
    start: Arc<Barrier>,
    lock_in: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let body = move || {
        if let Err(error) = lock_in() {
            shared.ending.fail(error);
        }
        start.wait();
        start.wait();
        if let Some(cpu) = shared.control.cpus().get(id) {
            run(id, cpu, &shared);
        }
    };
    let builder = std::thread::Builder::new().name(format!("vcpu{id}"));
    builder
        .spawn(body)
        .map_err(Error::io("cannot start a vcpu thread"))
}

/// Runs the guest until the partition is over.
fn run(id: usize, cpu: &Cpu, shared: &Shared) {
    let mut halted = false;
    loop {
        {
            let mut vcpu = cpu.lock();
            while !halted && !cpu.is_held() && !shared.ending.is_over() {
                halted = enter(id, &mut vcpu, cpu, shared) == After::Halted;
            }
            if cpu.is_held() {
                finish_instruction(id, &mut vcpu, cpu, shared);
            }
        }
        while halted && !cpu.is_held() && !shared.ending.is_over() {
            std::thread::park();
        }
        if shared.ending.is_over() {
            return;
        }
        shared.control.stand(id);
        // Tells a Linux guest that it was away, so that its watchdogs forgive the gap. A guest
        // without kvmclock does not hear of it: EINVAL.
        let _ = cpu.lock().kvmclock_ctrl();
    }
}

/// What an entry into the guest came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// An exit that has been served.
    Exit,
    /// A signal, or nothing.
    Interrupted,
    /// The CPU has halted for good.
    Halted,
}

/// After a port or register access KVM completes the instruction at the next entry only, so that
/// registers are those of a boundary only after an entry that runs nothing.
fn finish_instruction(id: usize, vcpu: &mut VcpuFd, cpu: &Cpu, shared: &Shared) {
    vcpu.set_kvm_immediate_exit(1);
    for _ in 0..FINISHING_ENTRIES {
        if enter(id, vcpu, cpu, shared) != After::Exit || shared.ending.is_over() {
            break;
        }
    }
    vcpu.set_kvm_immediate_exit(0);
}

/// Enters the guest once, and serves what it left for.
fn enter(id: usize, vcpu: &mut VcpuFd, cpu: &Cpu, shared: &Shared) -> After {
    let ending = &shared.ending;
    let exit = vcpu.run();
    if exit.is_ok() {
        cpu.count_exit();
    }
    match exit {
        Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port, data),
        Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
        // Only a machine without interrupt controllers exits here, and nothing wakes its CPU.
        Ok(VcpuExit::Hlt) => return After::Halted,
        Ok(VcpuExit::Debug(_)) => {
            if let Some(stops) = &shared.stops {
                shared.control.ask_to_hold(Holder::Debugger);
                stops.tell(id);
            }
        }
        Ok(VcpuExit::Shutdown) => ending.end(Ended::TripleFault),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => ending.end(Ended::PowerOff),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => ending.end(Ended::Reset),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {
            return After::Interrupted;
        }
        // What is left are instructions KVM cannot carry out, entries the hardware refuses, and
        // exits of features this machine does not turn on: the guest's doing in every case.
        Ok(_) => ending.end(cannot_run(vcpu)),
        Err(e) => match e.errno() {
            libc::EINTR | libc::EAGAIN => return After::Interrupted,
            // The guest touched memory the host could not provide, or ran code where none is.
            libc::EFAULT => ending.end(cannot_run(vcpu)),
            _ => ending.fail(Error::kvm("KVM_RUN")(e)),
        },
    }
    After::Exit
}

fn cannot_run(vcpu: &VcpuFd) -> Ended {
    Ended::CannotRun {
        rip: vcpu.get_regs().map_or(0, |regs| regs.rip),
    }
}

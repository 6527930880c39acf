//! vCPU threads: enter the guest, serve its exits, leave when the partition is over.
//!
//! A thread owns its vCPU. It is stopped from outside by [`VcpuThread::stop`]: a signal makes
//! `KVM_RUN`, and any write the thread waits in, return with EINTR, and the thread then looks at the
//! [`Ending`].

use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead_machine::control::Ended;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::{Bus, PortBus};
use super::ending::Ending;
use super::memory::GuestMemory;
use crate::error::Error;

/// What all vCPUs of a machine share. Holding it keeps guest memory mapped.
pub struct Shared {
    /// I/O ports.
    pub ports: PortBus,
    /// Memory-mapped registers.
    pub mmio: Bus,
    /// The end of the partition.
    pub ending: Ending,
    /// Guest memory.
    pub memory: GuestMemory,
}

/// A vCPU's thread, seen from the main thread.
pub struct VcpuThread {
    thread: JoinHandle<()>,
}

/// How long stopped threads may take before the process exits without them.
const STOP_PATIENCE: Duration = Duration::from_millis(200);
/// How often the signal is repeated: one may arrive just before the thread enters the guest.
const STOP_REPEAT: Duration = Duration::from_micros(200);

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

impl VcpuThread {
    /// Starts the thread of `vcpu`, number `id`. It calls `lock_in`, then meets all others and the
    /// main thread at `start` twice: when everybody is locked in, and when the guest may run.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn spawn(
        id: u32,
        vcpu: VcpuFd,
        shared: Arc<Shared>,
        start: Arc<Barrier>,
        lock_in: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let body = move || {
            if let Err(error) = lock_in() {
                shared.ending.fail(error);
            }
            start.wait();
            start.wait();
            run(vcpu, &shared);
        };
        let builder = std::thread::Builder::new().name(format!("vcpu{id}"));
        let thread = builder
            .spawn(body)
            .map_err(Error::io("cannot start a vcpu thread"))?;
        Ok(Self { thread })
    }

    /// Stops all threads; the [`Ending`] must have come. A thread that does not return in
    /// 200 ms is left to the end of the process.
    pub fn stop(threads: Vec<Self>) {
        let deadline = Instant::now() + STOP_PATIENCE;
        for VcpuThread { thread } in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                // A thread that is gone by now needs no signal.
                let _ = thread.kill(SIGRTMIN());
                thread.thread().unpark();
                std::thread::sleep(STOP_REPEAT);
            }
            if thread.is_finished() {
                // Its panic, were there one, has been printed.
                let _ = thread.join();
            }
        }
    }
}

/// Runs the guest until the partition is over.
fn run(mut vcpu: VcpuFd, shared: &Shared) {
    let ending = &shared.ending;
    while !ending.is_over() {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port, data),
            Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
            // Only a machine without interrupt controllers exits here, and nothing wakes its CPU.
            Ok(VcpuExit::Hlt) => {
                while !ending.is_over() {
                    std::thread::park();
                }
            }
            Ok(VcpuExit::Shutdown) => ending.end(Ended::TripleFault),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => ending.end(Ended::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => ending.end(Ended::Reset),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {}
            // What is left are instructions KVM cannot carry out, entries the hardware refuses, and
            // exits of features this machine does not turn on: the guest's doing in every case.
            Ok(_) => ending.end(cannot_run(&vcpu)),
            Err(e) => match e.errno() {
                libc::EINTR | libc::EAGAIN => {}
                // The guest touched memory the host could not provide, or ran code where none is.
                libc::EFAULT => ending.end(cannot_run(&vcpu)),
                _ => ending.fail(Error::kvm("KVM_RUN")(e)),
            },
        }
    }
}

fn cannot_run(vcpu: &VcpuFd) -> Ended {
    Ended::CannotRun {
        rip: vcpu.get_regs().map_or(0, |regs| regs.rip),
    }
}

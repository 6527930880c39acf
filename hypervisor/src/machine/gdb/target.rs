//! What a debugger can do to the guest: registers, memory by the guest's own page tables, steps and
//! breakpoints. All of it through KVM, on vCPUs that stand.
//!
//! Breakpoints of both kinds are debug registers, four at most: guest memory is not written, they
//! work before the guest has page tables, and on hosts that interpret guest kernel mode, where `int3`
//! is no instruction.

use std::num::NonZeroUsize;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{Stops, refused};
use crate::error::Error;
use crate::machine::run_control::{Cpu, Holder};
use crate::machine::vcpu::Shared;

/// Debug registers that hold breakpoints.
const SLOTS: usize = 4;
const PAGE: u64 = 4096;

/// What a vCPU is to do when the debugger lets it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Continue,
    Step,
}

/// The guest as a debugger sees it.
pub(super) struct Debuggee {
    shared: Arc<Shared>,
    stops: Arc<Stops>,
    /// Addresses of breakpoints.
    slots: [Option<u64>; SLOTS],
    /// For each vCPU, what was asked for it.
    actions: Vec<Option<Action>>,
    /// vCPUs for which nothing was asked stand.
    locked: bool,
}

/// The number by which debuggers know vCPU `id`.
pub(super) fn tid(id: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(id)
}

impl Debuggee {
    /// No breakpoints.
    pub(super) fn new(shared: Arc<Shared>, stops: Arc<Stops>) -> Self {
        let vcpus = shared.control.cpus().len();
        Self {
            shared,
            stops,
            slots: [None; SLOTS],
            actions: vec![None; vcpus],
            locked: false,
        }
    }

    /// Stops that the debugger has to hear of.
    pub(super) fn stops(&self) -> &Arc<Stops> {
        &self.stops
    }

    /// Stops all vCPUs; false where one does not.
    pub(super) fn interrupt(&self) -> bool {
        self.shared.control.hold(Holder::Debugger).is_ok()
    }

    /// Takes everything back that debugging has changed, but the guest's own state.
    pub(super) fn forget(&mut self) {
        for cpu in self.shared.control.cpus() {
            // A vCPU that KVM does not let go is one that the partition's end stops as well.
            let _ = cpu.lock().set_guest_debug(&kvm_guest_debug::default());
        }
        self.shared.control.choose(Box::default());
    }

    fn cpu(&self, tid: Tid) -> TargetResult<&Cpu, Self> {
        let cpus = self.shared.control.cpus();
        cpus.get(tid.get() - 1).ok_or(TargetError::NonFatal)
    }

    fn set_action(&mut self, tid: Tid, action: Action) {
        if let Some(slot) = self.actions.get_mut(tid.get() - 1) {
            *slot = Some(action);
        }
    }

    /// Puts breakpoints and a step into force.
    fn arm(&self, vcpu: &VcpuFd, step: bool) -> Result<(), Error> {
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE,
            ..kvm_guest_debug::default()
        };
        if self.slots.iter().any(Option::is_some) {
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
        }
        let [dr0, dr1, dr2, dr3, .., dr7] = &mut debug.arch.debugreg;
        for (index, (register, slot)) in
            [dr0, dr1, dr2, dr3].into_iter().zip(self.slots).enumerate()
        {
            if let Some(address) = slot {
                *register = address;
                // Global enable of this slot; type and length 0: execution (Intel SDM volume 3,
                // section 18.2.4).
                *dr7 |= 2 << (2 * index);
            }
        }
        let refused = Error::kvm("KVM_SET_GUEST_DEBUG");
        if step {
            // A step is one of the code in view, not the first of an interrupt handler.
            debug.control |= KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
            if vcpu.set_guest_debug(&debug).is_ok() {
                return Ok(());
            }
            // Linux before 5.15.
            debug.control &= !KVM_GUESTDBG_BLOCKIRQ;
        }
        vcpu.set_guest_debug(&debug).map_err(refused)
    }

    /// Calls `access` for each part of `len` bytes at the guest's address `start` that lies in one
    /// page, with its physical address and its place; how many bytes were accessible.
    fn pages(
        &self,
        start: u64,
        len: usize,
        tid: Tid,
        mut access: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> TargetResult<usize, Self> {
        let vcpu = self.cpu(tid)?.lock();
        let mut done = 0;
        while done < len {
            let address = start.wrapping_add(done as u64);
            let end = len.min(done + (PAGE - address % PAGE) as usize);
            let Ok(translation) = vcpu.translate_gva(address) else {
                break;
            };
            let physical = GuestAddress(translation.physical_address);
            if translation.valid == 0 || !access(physical, done..end) {
                break;
            }
            done = end;
        }
        Ok(done)
    }

    fn add(&mut self, address: u64) -> bool {
        if self.slots.contains(&Some(address)) {
            return true;
        }
        let free = self.slots.iter_mut().find(|slot| slot.is_none());
        free.map(|slot| *slot = Some(address)).is_some()
    }

    fn remove(&mut self, address: u64) -> bool {
        let found = self.slots.iter_mut().find(|slot| **slot == Some(address));
        found.map(|slot| *slot = None).is_some()
    }
}

impl Target for Debuggee {
    type Arch = X86_64_SSE;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debuggee {
    fn read_registers(&mut self, to: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.cpu(tid)?.lock();
        let regs = vcpu.get_regs().map_err(refused)?;
        let sregs = vcpu.get_sregs().map_err(refused)?;
        let fpu = vcpu.get_fpu().map_err(refused)?;
        to.regs = [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        to.rip = regs.rip;
        to.eflags = regs.rflags as u32;
        to.segments.cs = sregs.cs.selector.into();
        to.segments.ss = sregs.ss.selector.into();
        to.segments.ds = sregs.ds.selector.into();
        to.segments.es = sregs.es.selector.into();
        to.segments.fs = sregs.fs.selector.into();
        to.segments.gs = sregs.gs.selector.into();
        for (to, from) in to.st.iter_mut().zip(fpu.fpr) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from;
            }
        }
        to.fpu.fctrl = fpu.fcw.into();
        to.fpu.fstat = fpu.fsw.into();
        to.fpu.ftag = fpu.ftwx.into();
        to.fpu.fop = fpu.last_opcode.into();
        for (to, from) in to.xmm.iter_mut().zip(fpu.xmm) {
            *to = u128::from_le_bytes(from);
        }
        to.mxcsr = fpu.mxcsr;
        Ok(())
    }

    /// General registers, `rip`, the flags and `xmm`. Segments and the x87 unit stay as they are.
    fn write_registers(&mut self, from: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.cpu(tid)?.lock();
        let mut regs = vcpu.get_regs().map_err(refused)?;
        let mut fpu = vcpu.get_fpu().map_err(refused)?;
        [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ] = from.regs;
        regs.rip = from.rip;
        regs.rflags = from.eflags.into();
        for (to, from) in fpu.xmm.iter_mut().zip(from.xmm) {
            *to = from.to_le_bytes();
        }
        vcpu.set_fpu(&fpu).map_err(refused)?;
        vcpu.set_regs(&regs).map_err(refused)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let memory = &self.shared.memory;
        self.pages(start, data.len(), tid, |address, part| {
            let part = data.get_mut(part).unwrap_or_default();
            memory.read_slice(part, address).is_ok()
        })
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let memory = &self.shared.memory;
        let done = self.pages(start, data.len(), tid, |address, part| {
            let part = data.get(part).unwrap_or_default();
            memory.write_slice(part, address).is_ok()
        })?;
        (done == data.len())
            .then_some(())
            .ok_or(TargetError::NonFatal)
    }

    fn list_active_threads(&mut self, report: &mut dyn FnMut(Tid)) -> Result<(), Error> {
        (0..self.actions.len()).map(tid).for_each(report);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Debuggee {
    fn resume(&mut self) -> Result<(), Error> {
        let control = &self.shared.control;
        for (cpu, action) in control.cpus().iter().zip(&self.actions) {
            self.arm(&cpu.lock(), *action == Some(Action::Step))?;
        }
        control.choose(if self.locked {
            self.actions.iter().map(Option::is_some).collect()
        } else {
            Box::default()
        });
        control.release(Holder::Debugger);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Error> {
        self.actions.fill(None);
        self.locked = false;
        Ok(())
    }

    /// There are no signals to pass on.
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.set_action(tid, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debuggee {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.set_action(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debuggee {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Error> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Debuggee {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debuggee {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

impl HwBreakpoint for Debuggee {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

impl MonitorCmd for Debuggee {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Error> {
        if command != b"registers" {
            outputln!(
                out,
                "registers: control registers and segment bases of every vcpu"
            );
            return Ok(());
        }
        for (id, cpu) in self.shared.control.cpus().iter().enumerate() {
            let sregs = cpu
                .lock()
                .get_sregs()
                .map_err(Error::kvm("KVM_GET_SREGS"))?;
            outputln!(
                out,
                "vcpu{id}: cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} fs={:#x} gs={:#x} \
                 gdt={:#x} idt={:#x}",
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.efer,
                sregs.fs.base,
                sregs.gs.base,
                sregs.gdt.base,
                sregs.idt.base
            );
        }
        Ok(())
    }
}

//! The machine of native and Linux-ABI partitions: LAPICs, the paravirtual ports, granted devices.
//!
//! Interrupts are messages. GSI n is that of device n; the console's is raised without a route.

use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_abi::boot as abi;
use bulkhead_abi::machine::{
    CONSOLE_PORT, CONSOLE_VECTOR, DEVICE_VECTOR_BASE, EXIT_PORT, MAX_DEVICES,
};
use bulkhead_machine::{Fd, Module, trace as phase};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{Parts, interrupts, registers, virtio};
use crate::boot::bulkhead::{Facts, MAILBOX, load};
use crate::devices::exit::ExitPort;
use crate::devices::mailbox;
use crate::devices::streams::Output;
use crate::error::Error;
use crate::random::fill_random;

/// The time stamp counter as an MSR (Intel SDM volume 4).
const MSR_TSC: u32 = 0x10;

/// The part of the description that is about this boot protocol.
pub(super) struct Files<'a> {
    pub(super) kernel: Fd,
    pub(super) modules: &'a [Module],
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) trace_syscalls: bool,
}

/// Builds everything but the buses' owner; the boot CPU is ready to run.
pub(super) fn build(parts: &mut Parts<'_>, files: &Files<'_>) -> Result<Vec<VcpuFd>, Error> {
    for text in files.args.iter().chain(files.env) {
        if text.contains('\0') {
            return Err(Error::Description("an argument holds a NUL byte".into()));
        }
    }
    interrupts::create_lapics(&parts.vm)?;
    let (vcpus, features) = parts.create_vcpus(true)?;
    let boot_cpu = vcpus.first().ok_or(Error::NoVcpu)?;
    parts.trace.mark(phase::VCPU);

    let kernel = parts.descriptors.take("the kernel", files.kernel)?;
    let mut modules = Vec::with_capacity(files.modules.len());
    for module in files.modules {
        modules.push((
            module.kind,
            parts.descriptors.take("a module", module.file)?,
        ));
    }
    let image = parts.description.image.as_ref();
    let image = image.ok_or_else(|| Error::Description("it has no kernel image".into()))?;
    let loaded = load(&parts.memory, &kernel, image, &modules)?;
    parts.trace.mark(phase::LOAD);

    add_console(parts)?;
    let gsis: Vec<u32> = (0..).take(MAX_DEVICES).collect();
    let devices = virtio::add(parts, false, &gsis)?;
    if !devices.is_empty() {
        let vectors: Vec<u8> = (DEVICE_VECTOR_BASE..).take(devices.len()).collect();
        interrupts::route_messages(&parts.vm, &vectors)?;
    }
    parts.add_ports(EXIT_PORT, 1, ExitPort::new(parts.ending.clone()))?;
    parts.trace.mark(phase::DEVICES);

    let facts = Facts {
        devices: &devices,
        ..facts(parts, files, boot_cpu)?
    };
    let entry = loaded.describe(&parts.memory, &facts)?;
    registers::set(boot_cpu, registers::Entry::Bulkhead(entry), features)?;
    Ok(vcpus)
}

fn add_console(parts: &mut Parts<'_>) -> Result<(), Error> {
    let Some(console) = &parts.description.console else {
        return Ok(());
    };
    let output = parts.descriptors.take("console output", console.output)?;
    let output = Output::new(output, parts.ending.clone(), parts.trace.clone());
    let error = match console.error {
        Some(fd) => output.beside(parts.descriptors.take("console errors", fd)?),
        None => output.clone(),
    };
    let input = match console.input {
        Some(fd) => {
            let file = parts.descriptors.take("console input", fd)?;
            let vm = parts.vm.clone();
            let raise: mailbox::Raise = Box::new(move || {
                // A console that stays silent is all the harm a refusal can do.
                let _ = interrupts::raise_message(&vm, CONSOLE_VECTOR);
            });
            Some((file, raise))
        }
        None => None,
    };
    let (port, watch) = mailbox::build(parts.memory.clone(), MAILBOX, output, error, input)?;
    if let Some(watch) = watch {
        parts.tasks.push(Box::new(watch));
    }
    parts.add_ports(CONSOLE_PORT, 1, port)
}

fn facts<'a>(parts: &Parts<'_>, files: &Files<'a>, boot_cpu: &VcpuFd) -> Result<Facts<'a>, Error> {
    let description = parts.description;
    let tsc_khz = boot_cpu
        .get_tsc_khz()
        .map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
    let mut facts = Facts {
        tsc_khz: u64::from(tsc_khz.max(1)),
        vcpus: u64::from(description.vcpus),
        args: files.args,
        env: files.env,
        ..Facts::default()
    };
    if let Some(console) = &description.console {
        facts.flags |= abi::FLAG_CONSOLE;
        if console.tty {
            facts.flags |= abi::FLAG_CONSOLE_TTY;
        }
    }
    if files.trace_syscalls {
        facts.flags |= abi::FLAG_TRACE_SYSCALLS;
    }
    if description.time {
        facts.flags |= abi::FLAG_TIME;
        facts.wall_clock = (wall_clock_ns(), guest_tsc(boot_cpu)?);
    }
    if description.entropy {
        facts.flags |= abi::FLAG_ENTROPY;
        fill_random(&mut facts.entropy_seed)?;
    }
    Ok(facts)
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A host clock before 1970 is told as 1970.
    since.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

/// The guest's time stamp counter: KVM starts it at zero for each VM.
fn guest_tsc(vcpu: &VcpuFd) -> Result<u64, Error> {
    let entry = kvm_msr_entry {
        index: MSR_TSC,
        ..kvm_msr_entry::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::TooMany {
        what: "msrs",
        count: 1,
        max: 0,
    })?;
    vcpu.get_msrs(&mut msrs)
        .map_err(Error::kvm("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice().first().map_or(0, |msr| msr.data))
}

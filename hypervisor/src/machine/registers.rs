//! The registers a boot CPU starts with, for each boot protocol.
//!
//! Segments are set in their hidden parts; what a guest finds in its GDT is its own affair unless
//! its boot protocol says otherwise (Intel SDM volume 3, sections 2.5 and 3.4).

use kvm_bindings::{
    KVM_MAX_XCRS, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcr,
    kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::cpuid::Features;
use crate::boot::ram::GDT;
use crate::boot::{bulkhead, linux, pvh};
use crate::error::Error;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
/// RFLAGS with nothing set but the bit that is always set.
const RFLAGS_CLEAR: u64 = 1 << 1;

/// Code: execute, read, accessed.
const TYPE_CODE: u8 = 0xb;
/// Data: read, write, accessed.
const TYPE_DATA: u8 = 0x3;
/// Busy 32-bit or 64-bit TSS.
const TYPE_TSS: u8 = 0xb;

/// How the boot CPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The Bulkhead protocol: 64-bit mode in the kernel's half.
    Bulkhead(bulkhead::Entry),
    /// The Linux protocol: 64-bit mode, memory mapped at its own addresses, a GDT.
    Linux(linux::Entry),
    /// The PVH protocol: 32-bit protected mode without paging.
    Pvh(pvh::Entry),
}

/// Sets the registers of a CPU that has its CPUID.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set(vcpu: &VcpuFd, entry: Entry, features: Features) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    let regs = match entry {
        Entry::Bulkhead(entry) => {
            long_mode(&mut sregs, entry.cr3);
            sregs.cr4 |= CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
            sregs.efer |= EFER_SCE;
            if features.fsgsbase {
                sregs.cr4 |= CR4_FSGSBASE;
            }
            if features.xcr0 != 0 {
                set_xcr0(vcpu, features.xcr0)?;
                sregs.cr4 |= CR4_OSXSAVE;
            }
            kvm_regs {
                rip: entry.rip,
                rsp: entry.rsp,
                rdi: entry.rdi,
                rflags: RFLAGS_CLEAR,
                ..kvm_regs::default()
            }
        }
        Entry::Linux(entry) => {
            long_mode(&mut sregs, entry.cr3);
            sregs.gdt = kvm_dtable {
                base: GDT,
                limit: linux::GDT_LIMIT,
                ..kvm_dtable::default()
            };
            set_memory_types(vcpu)?;
            kvm_regs {
                rip: entry.rip,
                rsi: entry.rsi,
                rflags: RFLAGS_CLEAR,
                ..kvm_regs::default()
            }
        }
        Entry::Pvh(entry) => {
            flat_segments(&mut sregs, false);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs {
                rip: entry.eip.into(),
                rbx: entry.ebx.into(),
                rflags: RFLAGS_CLEAR,
                ..kvm_regs::default()
            }
        }
    };
    vcpu.set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
}

fn set_xcr0(vcpu: &VcpuFd, value: u64) -> Result<(), Error> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        xcrs: [kvm_xcr::default(); KVM_MAX_XCRS as usize],
        ..kvm_xcrs::default()
    };
    // The first register is XCR0: number 0.
    if let Some(xcr0) = xcrs.xcrs.first_mut() {
        xcr0.value = value;
    }
    vcpu.set_xcrs(&xcrs).map_err(Error::kvm("KVM_SET_XCRS"))
}

/// What firmware leaves behind: memory is write-back by default, fast strings are on (Intel SDM
/// volume 4, IA32_MTRR_DEF_TYPE and IA32_MISC_ENABLE).
fn set_memory_types(vcpu: &VcpuFd) -> Result<(), Error> {
    const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
    const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
    for (index, data) in [MTRR_DEF_TYPE, MISC_ENABLE] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::TooMany {
            what: "msrs",
            count: 1,
            max: 0,
        })?;
        vcpu.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
    }
    Ok(())
}

/// 64-bit mode with flat segments, no-execute, and no descriptor tables.
fn long_mode(sregs: &mut kvm_sregs, cr3: u64) {
    flat_segments(sregs, true);
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.cr3 = cr3;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE;
}

/// Code at selector 0x10 and data at 0x18 over all addresses, privilege level 0.
fn flat_segments(sregs: &mut kvm_sregs, long: bool) {
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: TYPE_CODE,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        selector: 0x18,
        type_: TYPE_DATA,
        db: 1,
        l: 0,
        ..code
    };
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: 0,
        type_: TYPE_TSS,
        present: 1,
        ..kvm_segment::default()
    };
}

//! The floors: what the host itself takes, without any VMM.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::child::memfd;
use crate::clock::now_ns;
use crate::error::Error;

/// A static ELF executable of one page whose only instructions are `exit(0)`; it has no name.
pub(super) struct EmptyProcess {
    image: File,
}

impl EmptyProcess {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = || Error::io("making the empty process");
        let mut writer = memfd("empty-process")?;
        writer.write_all(&image()).map_err(failed())?;
        // A file that somebody may write cannot be executed: only the reader stays.
        let image = File::open(path(&writer)).map_err(failed())?;
        Ok(Self { image })
    }

    /// Nanoseconds from before its creation until it was waited for.
    pub(super) fn measure(&self) -> Result<u64, Error> {
        let mut command = Command::new(path(&self.image));
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = now_ns();
        let status = command
            .status()
            .map_err(Error::io("running the empty process"))?;
        let end = now_ns();
        if status.success() {
            Ok(end - start)
        } else {
            Err(Error::Silent("the empty process".into()))
        }
    }
}

/// The name that the process itself, and its child before `exec`, has for `file`.
fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// ELF header, one program header, three instructions (System V ABI, AMD64 supplement).
fn image() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // mov eax, 60 (exit); xor edi, edi; syscall
    let code = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let size = HEADERS + code.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    put(&2_u16.to_le_bytes()); // ET_EXEC
    put(&62_u16.to_le_bytes()); // EM_X86_64
    put(&1_u32.to_le_bytes()); // EV_CURRENT
    put(&(BASE + HEADERS).to_le_bytes()); // entry
    put(&64_u64.to_le_bytes()); // program headers
    put(&0_u64.to_le_bytes()); // no sections
    put(&0_u32.to_le_bytes()); // flags
    for half in [64_u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes()); // sizes and counts
    }
    put(&1_u32.to_le_bytes()); // PT_LOAD
    put(&5_u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        put(&word.to_le_bytes());
    }
    put(&code);
    image
}

/// The least VM that exits once: one page, one vCPU, one `hlt` in real mode.
pub(super) struct EmptyVm {
    memory: GuestMemoryMmap<()>,
}

impl EmptyVm {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |source| Error::Io {
            what: "mapping a page".into(),
            source,
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])
            .map_err(|error| failed(std::io::Error::other(error)))?;
        memory
            .write_obj(0xf4_u8, GuestAddress(0))
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self { memory })
    }

    /// Nanoseconds from before `/dev/kvm` is opened until the VM is gone.
    pub(super) fn measure(&self) -> Result<u64, Error> {
        let start = now_ns();
        self.run_once()?;
        Ok(now_ns() - start)
    }

    fn run_once(&self) -> Result<(), Error> {
        let kvm_error = |call| move |source| Error::Kvm { call, source };
        let kvm = Kvm::new().map_err(kvm_error("open"))?;
        let vm = kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?;
        let host = self
            .memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| Error::io("the mapped page")(std::io::Error::other(error)))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: 0x1000,
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the page belongs to `self.memory`, which outlives the VM of this function, and
        // nobody else uses it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        let mut sregs = vcpu.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
        let mut regs = vcpu.get_regs().map_err(kvm_error("KVM_GET_REGS"))?;
        regs.rip = 0;
        vcpu.set_regs(&regs).map_err(kvm_error("KVM_SET_REGS"))?;
        match vcpu.run().map_err(kvm_error("KVM_RUN"))? {
            VcpuExit::Hlt => Ok(()),
            other => Err(Error::Silent(format!("the empty VM ({other:?})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_process_runs() {
        let process = EmptyProcess::new().unwrap();
        for _ in 0..2 {
            assert!(process.measure().unwrap() > 0);
        }
    }
}

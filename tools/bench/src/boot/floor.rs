//! The floors: what the host itself takes, without any VMM.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::Error;
use crate::clock::now_ns;

/// A static ELF executable of one page whose only instructions are `exit(0)`.
pub(super) struct EmptyProcess {
    path: PathBuf,
}

impl EmptyProcess {
    pub(super) fn new() -> Result<Self, Error> {
        let name = format!("bulkhead-bench-empty-{}", std::process::id());
        let this = Self {
            path: std::env::temp_dir().join(name),
        };
        let failed = || Error::io(format!("writing {}", this.path.display()));
        let mut file = File::create_new(&this.path).map_err(failed())?;
        file.write_all(&image()).map_err(failed())?;
        file.set_permissions(Permissions::from_mode(0o700))
            .map_err(failed())?;
        Ok(this)
    }

    /// Nanoseconds from before its creation until it was waited for.
    pub(super) fn measure(&self) -> Result<u64, Error> {
        let mut command = Command::new(&self.path);
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

impl Drop for EmptyProcess {
    fn drop(&mut self) {
        // Nobody is left to tell; the file is 140 bytes in the temporary directory.
        let _ = std::fs::remove_file(&self.path);
    }
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
    fn the_empty_process_runs_and_leaves_no_file() {
        let process = EmptyProcess::new().unwrap();
        assert!(process.measure().unwrap() > 0);
        let path = process.path.clone();
        drop(process);
        assert!(!path.exists());
    }
}

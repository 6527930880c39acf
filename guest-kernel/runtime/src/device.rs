//! Granted devices: the registers of each as memory, its interrupt as signals.
//!
//! What a driver tells its device to read or write, by guest-physical addresses, no page table
//! checks: a program with a device can change all of its partition's memory, the kernel's too. What
//! is outside the partition neither can reach.

use core::ptr;

use bulkhead_abi::boot::Device;
use bulkhead_abi::object::TYPE_FRAME;
use bulkhead_abi::syscall::{Status, rights, slot};

use crate::environment;
use crate::object::{ADDRESS_SPACE, Frame, IrqHandler, Untyped};

/// A granted device.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// What the `BootInfo` says of it.
    pub described: &'static Device,
    /// Its registers.
    pub registers: Untyped,
    /// Its interrupt.
    pub interrupt: IrqHandler,
}

/// The granted devices, in the order of the `BootInfo`.
pub fn granted() -> impl Iterator<Item = Granted> {
    (0..)
        .zip(environment::devices())
        .map(|(number, described)| Granted {
            described,
            registers: Untyped(slot::DEVICES + number),
            interrupt: IrqHandler(slot::INTERRUPTS + number),
        })
}

/// The granted device of this name in the manifest.
#[must_use]
pub fn named(name: &str) -> Option<Granted> {
    granted().find(|device| {
        let padded = &device.described.name;
        let end = padded.iter().position(|byte| *byte == 0);
        padded.get(..end.unwrap_or(padded.len())) == Some(name.as_bytes())
    })
}

impl Granted {
    /// Maps the first page of its registers at `address`, uncached. Page tables that are missing
    /// are made of `memory`.
    ///
    /// # Errors
    /// See [`Untyped::make`] and [`Frame::map_with_tables`].
    pub fn map(self, memory: Untyped, address: u64) -> Result<Registers, Status> {
        let frame = self.registers.make(TYPE_FRAME, 0).map(Frame)?;
        // SAFETY: it is refused where something is mapped, and nothing refers to an address where
        // nothing is.
        let mapped = unsafe {
            frame.map_with_tables(memory, ADDRESS_SPACE, address, rights::READ | rights::WRITE)
        };
        match mapped {
            Ok(()) => Ok(Registers { address, frame }),
            Err(status) => {
                // Nothing of it is left, whatever the answer.
                let _ = frame.delete();
                Err(status)
            }
        }
    }
}

/// A page of mapped registers of 32 bits, by their offsets. What is beyond the page reads as all
/// ones and swallows writes.
#[derive(Debug)]
pub struct Registers {
    address: u64,
    frame: Frame,
}

impl Registers {
    fn at(&self, offset: u32) -> Option<*mut u32> {
        let within = offset.is_multiple_of(4) && offset < 4096;
        within
            .then(|| ptr::with_exposed_provenance_mut((self.address + u64::from(offset)) as usize))
    }

    /// Reads a register.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        // SAFETY: aligned, and in the page that is mapped as long as this value lives.
        self.at(offset)
            .map_or(u32::MAX, |at| unsafe { at.read_volatile() })
    }

    /// Writes a register.
    ///
    /// # Safety
    /// What the device does then, with memory too, keeps Rust's rules.
    pub unsafe fn write(&self, offset: u32, value: u32) {
        if let Some(at) = self.at(offset) {
            // SAFETY: as above, and the caller's promise.
            unsafe { at.write_volatile(value) };
        }
    }

    /// Unmaps them; the device is as it is.
    ///
    /// # Errors
    /// See [`bulkhead_abi::syscall::DELETE`].
    pub fn unmap(self) -> Result<(), Status> {
        self.frame.delete()
    }
}

//! Pointers a program hands over. A [`UserPtr`] is an allegation: nothing is read or written
//! through it but by way of [`Memory`], which asks the VMA table first. `EFAULT` is the worst that
//! a hostile pointer can cause.

use alloc::vec::Vec;
use core::marker::PhantomData;

use bulkhead_abi::layout::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{AddressSpace, Protection};
use crate::errno::Errno;
use crate::platform::Platform;

/// An address at which a program says there is a `T`.
#[derive(Debug)]
pub struct UserPtr<T> {
    address: u64,
    what: PhantomData<T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UserPtr<T> {}

impl<T> UserPtr<T> {
    /// From an argument of a system call.
    pub const fn new(address: u64) -> Self {
        Self {
            address,
            what: PhantomData,
        }
    }

    /// The address itself.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// True for the null pointer, which many calls take for "none".
    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// Element `index` of an array that starts here.
    pub const fn at(self, index: u64) -> Self {
        // A wrapped address is as wrong as any other: the check of the access finds it.
        Self::new(
            self.address
                .wrapping_add(index.wrapping_mul(size_of::<T>() as u64)),
        )
    }
}

/// Program memory, for the time of one access.
pub struct Memory<'m> {
    /// The books.
    pub space: &'m mut AddressSpace,
    /// The machine.
    pub platform: &'m mut dyn Platform,
}

impl Memory<'_> {
    /// Copies a value out of the program.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read<T: FromBytes + IntoBytes>(&mut self, from: UserPtr<T>) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(from.address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a value into the program.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write<T: IntoBytes + Immutable>(
        &mut self,
        to: UserPtr<T>,
        value: &T,
    ) -> Result<(), Errno> {
        self.write_bytes(to.address, value.as_bytes())
    }

    /// Copies bytes out of the program.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read_bytes(&mut self, from: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.space
            .touch(self.platform, from, into.len() as u64, Protection::READ)?;
        self.platform.read_memory(from, into);
        Ok(())
    }

    /// Copies bytes into the program.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write_bytes(&mut self, to: u64, from: &[u8]) -> Result<(), Errno> {
        self.space
            .touch(self.platform, to, from.len() as u64, Protection::WRITE)?;
        self.platform.write_memory(to, from);
        Ok(())
    }

    /// Zeroes program memory.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<(), Errno> {
        self.space
            .touch(self.platform, at, len, Protection::WRITE)?;
        if len > 0 {
            self.platform.zero_memory(at..at + len);
        }
        Ok(())
    }

    /// Copies a NUL-terminated string of at most `max` bytes, without its NUL.
    ///
    /// # Errors
    /// `EFAULT`; `too_long` when there is no NUL in time.
    pub fn read_string(
        &mut self,
        from: u64,
        max: usize,
        too_long: Errno,
    ) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut at = from;
        let mut buffer = [0; 256];
        while string.len() < max {
            // Never across a page border: the string may end before it, and the next page be missing.
            let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let len = in_page.min(buffer.len()).min(max - string.len());
            let Some(piece) = buffer.get_mut(..len) else {
                return Err(Errno::EFAULT);
            };
            self.read_bytes(at, piece)?;
            if let Some(end) = piece.iter().position(|b| *b == 0) {
                string.extend_from_slice(piece.get(..end).unwrap_or_default());
                return Ok(string);
            }
            string.extend_from_slice(piece);
            at = at.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        }
        Err(too_long)
    }
}

//! Memory for the tests: a vector of words at a guest-physical address, and interrupts that come
//! when a test says so.

extern crate std;
use std::vec;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::memory::{Memory, Ref, Stored};

/// Where the arena's memory begins.
pub(crate) const BASE: u64 = 0x10_0000;

#[derive(Clone, Debug)]
pub(crate) struct Arena {
    /// Aligned as the objects in it need it.
    words: Vec<[u128; 4]>,
    /// After so many more questions the answer is once that an interrupt waits.
    pub(crate) interrupt_in: Option<u32>,
    /// Bytes that were zeroed.
    pub(crate) zeroed: u64,
}

impl Arena {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            words: vec![[0; 4]; usize::try_from(bytes / 64).unwrap()],
            interrupt_in: None,
            zeroed: 0,
        }
    }

    pub(crate) fn bytes(&self, address: u64, len: u64) -> &[u8] {
        let start = usize::try_from(address - BASE).unwrap();
        &self.words.as_bytes()[start..][..usize::try_from(len).unwrap()]
    }

    pub(crate) fn bytes_mut(&mut self, address: u64, len: u64) -> &mut [u8] {
        let start = usize::try_from(address - BASE).unwrap();
        &mut self.words.as_mut_bytes()[start..][..usize::try_from(len).unwrap()]
    }
}

impl Memory for Arena {
    fn get<T: Stored>(&self, at: Ref<T>) -> &T {
        T::ref_from_bytes(self.bytes(at.address(), size_of::<T>() as u64)).unwrap()
    }

    fn get_mut<T: Stored>(&mut self, at: Ref<T>) -> &mut T {
        T::mut_from_bytes(self.bytes_mut(at.address(), size_of::<T>() as u64)).unwrap()
    }

    fn load(&self, address: u64) -> u64 {
        u64::read_from_bytes(self.bytes(address, 8)).unwrap()
    }

    fn store(&mut self, address: u64, word: u64) {
        self.bytes_mut(address, 8).copy_from_slice(word.as_bytes());
    }

    fn zero(&mut self, address: u64, bytes: u64) {
        self.zeroed += bytes;
        self.bytes_mut(address, bytes).fill(0);
    }

    fn preemption_pending(&mut self) -> bool {
        match self.interrupt_in {
            Some(0) => {
                self.interrupt_in = None;
                true
            }
            Some(left) => {
                self.interrupt_in = Some(left - 1);
                false
            }
            None => false,
        }
    }
}

//! Memory for the tests: pages from a guest-physical address on, and interrupts that come when a
//! test says so.

extern crate std;
use std::boxed::Box;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::UNIT;
use super::memory::{Memory, Ref, Stored};

/// Where the arena's memory begins.
pub(crate) const BASE: u64 = 0x10_0000;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// A page, aligned as the objects in it need it.
type Page = [u128; PAGE as usize / 16];

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arena {
    /// A box each, since Miri looks at all of what a reference is taken into. Objects lie on
    /// multiples of their size, so none reaches into a second page.
    pages: Vec<Box<Page>>,
    /// After so many more questions the answer is once that an interrupt waits.
    pub(crate) interrupt_in: Option<u32>,
    /// Bytes that were zeroed.
    pub(crate) zeroed: u64,
    /// Translations that were forgotten: root and address, 0 for all, all ones for a root that goes.
    pub(crate) forgotten: Vec<(u64, u64)>,
    /// The time stamp counter.
    pub(crate) now: u64,
    /// CPUs that were called into the kernel, and those whose programs were stopped.
    pub(crate) called: Vec<usize>,
    pub(crate) stopped: Vec<usize>,
}

/// What FS and GS base of a CPU are said to be.
pub(crate) const fn bases_of(cpu: usize) -> [u64; 2] {
    [cpu as u64 * 2 + 1, cpu as u64 * 2 + 2]
}

impl Arena {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            pages: (0..bytes / PAGE)
                .map(|_| Box::new([0; PAGE as usize / 16]))
                .collect(),
            interrupt_in: None,
            zeroed: 0,
            forgotten: Vec::new(),
            now: 0,
            called: Vec::new(),
            stopped: Vec::new(),
        }
    }

    pub(crate) fn bytes(&self, address: u64, len: u64) -> &[u8] {
        let (page, start, end) = place(address, len);
        &self.pages[page].as_bytes()[start..end]
    }

    pub(crate) fn bytes_mut(&mut self, address: u64, len: u64) -> &mut [u8] {
        let (page, start, end) = place(address, len);
        &mut self.pages[page].as_mut_bytes()[start..end]
    }
}

/// The page, and the bytes in it.
fn place(address: u64, len: u64) -> (usize, usize, usize) {
    let offset = address - BASE;
    let start = (offset % PAGE) as usize;
    ((offset / PAGE) as usize, start, start + len as usize)
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

    fn entries(&mut self, address: u64, count: u64) -> &mut [u64] {
        <[u64]>::mut_from_bytes(self.bytes_mut(address, count * 8)).unwrap()
    }

    fn zero(&mut self, address: u64, bytes: u64) {
        self.zeroed += bytes;
        for unit in (address..address + bytes).step_by(UNIT as usize) {
            self.bytes_mut(unit, UNIT).fill(0);
        }
    }

    fn forget(&mut self, root: u64, address: u64) {
        self.forgotten.push((root, address));
    }

    fn forget_all(&mut self, root: u64) {
        self.forgotten.push((root, 0));
    }

    fn leave(&mut self, root: u64) {
        self.forgotten.push((root, u64::MAX));
    }

    fn now(&mut self) -> u64 {
        self.now
    }

    fn call_cpu(&mut self, cpu: usize) {
        self.called.push(cpu);
    }

    fn stop_cpu(&mut self, cpu: usize) -> [u64; 2] {
        self.stopped.push(cpu);
        bases_of(cpu)
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

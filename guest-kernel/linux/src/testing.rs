//! A machine for host tests: an address space of pages, a console of byte vectors, a clock. It is
//! strict: memory that is not mapped with suitable rights, or kernel calls that break the contract
//! of [`Platform`], fail the test at once.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ops::Range;

use bulkhead_abi::layout::{PAGE_SIZE, RESTRICTED_END};
use bulkhead_abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_abi::syscall::rights;

use crate::platform::{Platform, PlatformError, Stream};

/// What the fake program does next.
pub(crate) enum Step {
    /// A system call: number and arguments.
    Call(u64, [u64; 6]),
    /// An exception: vector, error code, CR2.
    Exception(u64, u64, u64),
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) pages: BTreeMap<u64, (u64, Box<[u8; PAGE_SIZE as usize]>)>,
    pub(crate) page_limit: usize,
    pub(crate) output: Vec<u8>,
    pub(crate) error: Vec<u8>,
    pub(crate) input: VecDeque<u8>,
    pub(crate) script: VecDeque<Step>,
    pub(crate) results: Vec<u64>,
    pub(crate) slept_ns: u64,
    /// Calls of `sleep`.
    pub(crate) sleeps: usize,
    pub(crate) map_calls: usize,
    /// Calls of `map`, `protect` and `unmap`.
    pub(crate) kernel_calls: usize,
    /// A `protect` that begins there fails, as for want of memory.
    pub(crate) refuses_protect: Option<u64>,
    /// Calls of `reset_fpu`.
    pub(crate) fpu_resets: usize,
    bases: [u64; 2],
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            pages: BTreeMap::new(),
            page_limit: 4096,
            output: Vec::new(),
            error: Vec::new(),
            input: VecDeque::new(),
            script: VecDeque::new(),
            results: Vec::new(),
            slept_ns: 0,
            sleeps: 0,
            map_calls: 0,
            kernel_calls: 0,
            refuses_protect: None,
            fpu_resets: 0,
            bases: [0; 2],
        }
    }

    fn pages_of(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
        assert!(
            range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE),
            "{range:x?}"
        );
        assert!(
            range.start < range.end && range.end <= RESTRICTED_END,
            "{range:x?}"
        );
        range.clone().step_by(PAGE_SIZE as usize)
    }

    fn byte(&self, address: u64, right: u64) -> u8 {
        let (rights, page) = &self.pages[&(address & !(PAGE_SIZE - 1))];
        assert!(rights & right != 0, "{address:x}");
        page[(address % PAGE_SIZE) as usize]
    }

    fn set_byte(&mut self, address: u64, value: u8) {
        let page = self.pages.get_mut(&(address & !(PAGE_SIZE - 1)));
        let (rights, page) = page.unwrap_or_else(|| panic!("{address:x} is not mapped"));
        assert!(*rights & rights::WRITE != 0, "{address:x}");
        page[(address % PAGE_SIZE) as usize] = value;
    }
}

impl Platform for Machine {
    fn enter(&mut self, state: &mut RestrictedState) -> Result<(), PlatformError> {
        self.results.push(state.rax);
        match self.script.pop_front() {
            Some(Step::Call(number, arguments)) => {
                state.reason = REASON_SYSCALL;
                state.rax = number;
                [
                    state.rdi, state.rsi, state.rdx, state.r10, state.r8, state.r9,
                ] = arguments;
            }
            Some(Step::Exception(vector, error_code, address)) => {
                state.reason = REASON_EXCEPTION;
                (state.vector, state.error_code, state.fault_address) =
                    (vector, error_code, address);
            }
            None => return Err(PlatformError::Refused),
        }
        Ok(())
    }

    fn console_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, PlatformError> {
        assert!((1..=65536).contains(&bytes.len()));
        // In part, as a console may.
        let bytes = &bytes[..bytes.len().min(1000)];
        match stream {
            Stream::Output => self.output.extend(bytes),
            Stream::Error => self.error.extend(bytes),
        }
        Ok(bytes.len())
    }

    fn console_read(&mut self, into: &mut [u8]) -> Result<usize, PlatformError> {
        let count = into.len().min(self.input.len());
        for (to, from) in into.iter_mut().zip(self.input.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn map(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError> {
        self.map_calls += 1;
        self.kernel_calls += 1;
        assert!(rights & !7 == 0 && rights & 1 != 0);
        let count = ((range.end - range.start) / PAGE_SIZE) as usize;
        if self.pages.len() + count > self.page_limit {
            return Err(PlatformError::OutOfMemory);
        }
        for page in Self::pages_of(&range) {
            let old = self
                .pages
                .insert(page, (rights, Box::new([0; PAGE_SIZE as usize])));
            assert!(old.is_none(), "{page:x} was mapped already");
        }
        Ok(())
    }

    fn protect(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError> {
        self.kernel_calls += 1;
        if self.refuses_protect == Some(range.start) {
            return Err(PlatformError::OutOfMemory);
        }
        for page in Self::pages_of(&range) {
            self.pages.get_mut(&page).unwrap().0 = rights;
        }
        Ok(())
    }

    fn unmap(&mut self, range: Range<u64>) -> Result<(), PlatformError> {
        self.kernel_calls += 1;
        for page in Self::pages_of(&range) {
            self.pages.remove(&page).unwrap();
        }
        Ok(())
    }

    fn read_memory(&self, address: u64, into: &mut [u8]) {
        for (at, byte) in (address..).zip(into) {
            *byte = self.byte(at, rights::READ);
        }
    }

    fn write_memory(&mut self, address: u64, from: &[u8]) {
        for (at, byte) in (address..).zip(from) {
            self.set_byte(at, *byte);
        }
    }

    fn zero_memory(&mut self, range: Range<u64>) {
        range.for_each(|at| self.set_byte(at, 0));
    }

    fn fs_base(&self) -> u64 {
        self.bases[0]
    }
    fn set_fs_base(&mut self, base: u64) {
        assert!(base < RESTRICTED_END);
        self.bases[0] = base;
    }
    fn gs_base(&self) -> u64 {
        self.bases[1]
    }
    fn set_gs_base(&mut self, base: u64) {
        assert!(base < RESTRICTED_END);
        self.bases[1] = base;
    }
    fn reset_fpu(&mut self) {
        self.fpu_resets += 1;
    }
    fn monotonic_ns(&self) -> u64 {
        5_000_000_000
    }
    fn sleep(&mut self, ns: u64) {
        self.sleeps += 1;
        self.slept_ns = self.slept_ns.saturating_add(ns);
    }
    fn hardware_random(&mut self) -> Option<u64> {
        Some(4)
    }
    fn cpu_features(&self) -> u32 {
        0x178b_fbff
    }
}

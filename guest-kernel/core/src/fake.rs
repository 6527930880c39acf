//! A machine for the tests: memory page by page as it is touched, a clock that stands still, a
//! console that records. And a partition on it: [`Partition`].
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::must_use_candidate,
    reason = "for tests: what goes wrong here fails one"
)]

extern crate std;
use std::boxed::Box;
use std::collections::{HashMap, VecDeque};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use bulkhead_abi::machine::{CONSOLE_READ, CONSOLE_WOULD_BLOCK};
#[cfg(test)]
use bulkhead_abi::restricted::RestrictedState;

use bulkhead_abi::boot::{
    BootInfo, BootInfoView, Device, FLAG_CONSOLE, MAGIC, MODULE_PROGRAM, MemoryRegion, Module,
    PhysRange, REGION_UNTYPED, Table, VERSION,
};
use bulkhead_abi::layout::PROGRAM_BASE;
use bulkhead_abi::syscall::Status;

use zerocopy::{FromBytes, IntoBytes};

use crate::boot::{StartError, program};
use crate::elf::{EM_X86_64, ET_EXEC, PHDR_LEN};
use crate::frame::Frame;
use crate::hardware::{Hardware, TABLE_ENTRIES};
use crate::kernel::{Kernel, Next, Trap};
use crate::objects::UNIT;
use crate::objects::fastpath::{Fast, Switch};
use crate::objects::memory::{Memory, Ref, Stored};
use crate::objects::thread::Thread;

/// A page, aligned as the objects in it need it.
type Page = [u128; 256];
/// What lies where nothing was written yet.
static EMPTY: Page = [0; 256];

/// See the module.
pub struct Fake {
    pages: HashMap<u64, Box<Page>>,
    /// The time stamp counter.
    pub now: u64,
    /// Console operations as they came: operation, guest-physical address, length.
    pub console: Vec<(u32, u64, u32)>,
    /// What the next console reads return; without an entry a read would block.
    pub reads: VecDeque<i64>,
    /// How many more times long work is not interrupted; `None`: it never is.
    pub patience: Option<u32>,
    /// Lines on the console's error stream.
    pub reports: Vec<String>,
}

impl Fake {
    /// A machine of zeros.
    pub fn new() -> Self {
        Self {
            pages: HashMap::new(),
            now: 1_000,
            console: Vec::new(),
            reads: VecDeque::new(),
            patience: None,
            reports: Vec::new(),
        }
    }
}

impl Fake {
    /// A page table as the processor reads it.
    pub fn table(&self, address: u64) -> [u64; TABLE_ENTRIES] {
        FromBytes::read_from_bytes(self.bytes(address & !0xfff, 4096)).unwrap()
    }

    /// The restricted state at the start of a frame.
    #[cfg(test)]
    pub(crate) fn restricted_state(&mut self, address: u64) -> &mut RestrictedState {
        let bytes = self.bytes_mut(address, size_of::<RestrictedState>());
        RestrictedState::mut_from_bytes(bytes).unwrap()
    }

    /// The page of an address, and the bytes in it.
    fn place(address: u64, len: usize) -> (u64, core::ops::Range<usize>) {
        let start = (address % 4096) as usize;
        (address & !0xfff, start..start + len)
    }

    fn bytes_mut(&mut self, address: u64, len: usize) -> &mut [u8] {
        let (page, range) = Self::place(address, len);
        assert_ne!(page, 0, "page 0 is nobody's");
        let page = self.pages.entry(page).or_insert_with(|| Box::new(EMPTY));
        &mut page.as_mut_bytes()[range]
    }

    fn bytes(&self, address: u64, len: usize) -> &[u8] {
        let (page, range) = Self::place(address, len);
        let page = self.pages.get(&page).map_or(&EMPTY, |page| page);
        &page.as_bytes()[range]
    }
}

impl Memory for Fake {
    fn get<T: Stored>(&self, at: Ref<T>) -> &T {
        T::ref_from_bytes(self.bytes(at.address(), size_of::<T>())).unwrap()
    }
    fn get_mut<T: Stored>(&mut self, at: Ref<T>) -> &mut T {
        T::mut_from_bytes(self.bytes_mut(at.address(), size_of::<T>())).unwrap()
    }
    fn load(&self, address: u64) -> u64 {
        u64::read_from_bytes(self.bytes(address, 8)).unwrap()
    }
    fn store(&mut self, address: u64, word: u64) {
        self.bytes_mut(address, 8).copy_from_slice(word.as_bytes());
    }
    fn entries(&mut self, address: u64, count: u64) -> &mut [u64] {
        <[u64]>::mut_from_bytes(self.bytes_mut(address, count as usize * 8)).unwrap()
    }
    fn zero(&mut self, address: u64, bytes: u64) {
        for unit in (address..address + bytes).step_by(UNIT as usize) {
            self.bytes_mut(unit, UNIT as usize).fill(0);
        }
    }
    fn forget(&mut self, _: u64, _: u64) {}
    fn forget_all(&mut self, _: u64) {}
    fn leave(&mut self, _: u64) {}
    fn now(&mut self) -> u64 {
        self.now
    }
    fn call_cpu(&mut self, _: usize) {}
    fn stop_cpu(&mut self, _: usize) -> [u64; 2] {
        [0; 2]
    }
    fn preemption_pending(&mut self) -> bool {
        match &mut self.patience {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}

impl Hardware for Fake {
    fn console(&mut self, op: u32, address: u64, len: u32) -> i64 {
        self.console.push((op, address, len));
        if op == CONSOLE_READ {
            return self.reads.pop_front().unwrap_or(CONSOLE_WOULD_BLOCK);
        }
        i64::from(len)
    }
    fn report(&mut self, line: core::fmt::Arguments<'_>) {
        self.reports.push(line.to_string());
    }
}

const MIB: u64 = 1 << 20;
/// Where the initial program's module lies.
pub const MODULE: u64 = 4 * MIB;
const MEMORY: u64 = 16 * MIB;
/// Where the fake program can run and write.
pub const PROGRAM: u64 = PROGRAM_BASE;

/// An image with the given program headers: type, flags, offset, address, file and memory length.
pub(crate) fn image(entry: u64, len: usize, headers: &[[u64; 6]]) -> Vec<u8> {
    let mut file = vec![0; len];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    file[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
    file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    for (n, [kind, flags, offset, address, in_file, in_memory]) in headers.iter().enumerate() {
        let at = 64 + n * PHDR_LEN;
        file[at..at + 4].copy_from_slice(&(*kind as u32).to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&(*flags as u32).to_le_bytes());
        for (field, value) in [(8, offset), (16, address), (32, in_file), (40, in_memory)] {
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    file
}

/// A `BootInfo` for the tests to spoil.
#[derive(Clone)]
pub struct Info {
    /// `FLAG_*` of the ABI.
    pub flags: u64,
    /// First address, length and kind of each region.
    pub regions: Vec<(u64, u64, u32)>,
    /// As the ABI has them.
    pub modules: Vec<Module>,
    /// As the ABI has them.
    pub devices: Vec<Device>,
    /// The initial program's file.
    pub program: Vec<u8>,
}

impl Info {
    /// 16 MiB of free memory, and a program of four pages.
    pub fn usual() -> Self {
        // Two pages of text, one of data, one zeroed.
        let headers = [
            [1, 5, 0x1000, PROGRAM, 0x2000, 0x2000],
            [1, 6, 0x3000, PROGRAM + 0x2000, 0x1000, 0x2000],
        ];
        let program = image(PROGRAM + 0x40, 0x4000, &headers);
        let range = PhysRange {
            start: MODULE,
            len: program.len() as u64,
        };
        Self {
            flags: FLAG_CONSOLE,
            regions: [(MEMORY, 16 * MIB, REGION_UNTYPED)].to_vec(),
            modules: [Module {
                range,
                kind: MODULE_PROGRAM,
                reserved: 0,
            }]
            .to_vec(),
            devices: Vec::new(),
            program,
        }
    }

    /// The blob as the VMM would write it, on 8 bytes.
    fn blob(&self) -> Vec<u64> {
        let head_words = size_of::<BootInfo>() / 8;
        let mut tail: Vec<u64> = Vec::new();
        let mut table = |words: Vec<u64>, count: usize| {
            let offset = (head_words + tail.len()) * 8;
            tail.extend(words);
            Table {
                offset: offset as u32,
                count: count as u32,
            }
        };
        let regions = self
            .regions
            .iter()
            .flat_map(|(at, len, kind)| [*at, *len, u64::from(*kind)]);
        let regions = table(regions.collect(), self.regions.len());
        let modules = self
            .modules
            .iter()
            .flat_map(|m| [m.range.start, m.range.len, u64::from(m.kind)]);
        let modules = table(modules.collect(), self.modules.len());
        assert_eq!(size_of::<MemoryRegion>(), 24);
        assert_eq!(size_of::<Module>(), 24);
        let devices = self.devices.iter().flat_map(|device| {
            let words = device.as_bytes().chunks_exact(8);
            words.map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        });
        let devices = table(devices.collect(), self.devices.len());
        let none = Table {
            offset: 0,
            count: 0,
        };
        let page = PhysRange {
            start: 0x2000,
            len: 0x1000,
        };
        let head = BootInfo {
            magic: MAGIC,
            version: VERSION,
            size: ((head_words + tail.len()) * 8) as u32,
            flags: self.flags,
            tsc_khz: 1_000_000,
            wall_clock_ns: 0,
            wall_clock_tsc: 0,
            entropy_seed: [0; 32],
            boot_info: page,
            kernel: page,
            page_tables: page,
            boot_stack: page,
            console_mailbox: 0x1000,
            regions,
            modules,
            devices,
            args: none,
            env: none,
            vcpus: 1,
        };
        let bytes = zerocopy::IntoBytes::as_bytes(&head);
        let words = bytes
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
        words.chain(tail).collect()
    }
}

/// A kernel with its initial program, ready to run.
pub struct Partition {
    /// The kernel under test.
    pub kernel: Kernel<Fake>,
    first: Ref<Thread>,
}

impl Partition {
    /// A partition as `info` describes it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(info: &Info) -> Result<Self, StartError> {
        let mut kernel = Kernel::new(Fake::new());
        let blob = info.blob();
        let view = BootInfoView::parse(zerocopy::IntoBytes::as_bytes(blob.as_slice())).unwrap();
        let module = program(&view)?;
        kernel.start(&view, module, &info.program, 0x3000)?;
        let first = kernel.objects.current().unwrap();
        Ok(Self { kernel, first })
    }

    /// One of [`Info::usual`].
    pub fn usual() -> Self {
        Self::start(&Info::usual()).unwrap()
    }

    /// The kernel is entered, as the architecture enters it.
    pub fn trap(&mut self, trap: Trap) -> Next {
        if trap == Trap::Syscall
            && let Some(thread) = self.kernel.objects.current()
            && !self.kernel.is_restricted(thread)
        {
            let switched = match Fast::of(self.frame().rax) {
                Some(Fast::Call) => self.kernel.objects.fast_call(thread),
                Some(Fast::ReplyReceive) => self.kernel.objects.fast_reply_receive(thread),
                None => None,
            };
            if let Some(switch) = switched {
                let Switch {
                    from, to, words, ..
                } = switch;
                self.kernel.objects.copy_registers(from, to, words);
                return Next::Run;
            }
        }
        self.kernel.trap(trap)
    }

    /// The machine.
    pub fn hardware(&mut self) -> &mut Fake {
        &mut self.kernel.objects.memory
    }

    /// The registers of the running thread, or of the first one while none runs.
    pub fn frame(&mut self) -> &mut Frame {
        let thread = self.kernel.objects.current().unwrap_or(self.first);
        self.kernel.objects.memory.get_mut(thread).active_frame()
    }

    /// The running thread executes `syscall`.
    pub fn enter(&mut self, number: u64, arguments: [u64; 4]) -> Next {
        let frame = self.frame();
        [frame.rdi, frame.rsi, frame.rdx, frame.r10] = arguments;
        frame.rax = number;
        self.trap(Trap::Syscall)
    }

    /// An operation on a capability: its answer, and what is in the registers of its results.
    pub fn invoke(
        &mut self,
        number: u64,
        handle: u64,
        arguments: &[u64],
    ) -> Result<[u64; 2], Status> {
        let frame = self.frame();
        (frame.rax, frame.rdi) = (number, handle);
        let mut words = [0; 10];
        words[..arguments.len()].copy_from_slice(arguments);
        frame.set_message(arguments.len() as u64, &words);
        assert_eq!(self.trap(Trap::Syscall), Next::Run);
        let frame = self.frame();
        match Status::from_raw(frame.rax) {
            Some(Status::Ok) => Ok([frame.rdx, frame.r8]),
            Some(status) => Err(status),
            None => panic!("{} is no status", frame.rax),
        }
    }

    /// A system call that comes back at once: its answer.
    pub fn call(&mut self, number: u64, arguments: [u64; 4]) -> Result<u64, Status> {
        assert_eq!(self.enter(number, arguments), Next::Run);
        let frame = self.frame();
        match Status::from_raw(frame.rax) {
            Some(Status::Ok) => Ok(frame.rdx),
            Some(status) => Err(status),
            None => panic!("{} is no status", frame.rax),
        }
    }
}

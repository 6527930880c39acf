//! A machine for the tests: memory page by page as it is touched, a clock that stands still, a
//! console that records. And a partition on it: [`Partition`].

extern crate std;
use std::boxed::Box;
use std::collections::{HashMap, VecDeque};
use std::string::{String, ToString};
use std::vec::Vec;

use bulkhead_abi::machine::{CONSOLE_READ, CONSOLE_WOULD_BLOCK};
use bulkhead_abi::restricted::RestrictedState;

use bulkhead_abi::boot::{
    BootInfo, BootInfoView, FLAG_CONSOLE, MAGIC, MODULE_PROGRAM, MemoryRegion, Module, PhysRange,
    REGION_UNTYPED, Table, VERSION,
};
use bulkhead_abi::layout::PROGRAM_BASE;
use bulkhead_abi::syscall::Status;

use crate::boot::{StartError, program};
use crate::elf::tests::image;
use crate::hardware::{Hardware, PhysPage, TABLE_ENTRIES};
use crate::kernel::{Kernel, Next, Trap};

pub(crate) struct Fake {
    pages: HashMap<PhysPage, Box<[u64; TABLE_ENTRIES]>>,
    states: HashMap<PhysPage, RestrictedState>,
    pub(crate) now: u64,
    /// Console operations as they came: operation, guest-physical address, length.
    pub(crate) console: Vec<(u32, u64, u32)>,
    /// What the next console reads return; without an entry a read would block.
    pub(crate) reads: VecDeque<i64>,
    pub(crate) reports: Vec<String>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            pages: HashMap::new(),
            states: HashMap::new(),
            now: 1_000,
            console: Vec::new(),
            reads: VecDeque::new(),
            reports: Vec::new(),
        }
    }
}

impl Hardware for Fake {
    fn words(&mut self, page: PhysPage) -> &mut [u64; TABLE_ENTRIES] {
        assert_ne!(page.address(), 0, "page 0 is nobody's");
        self.pages
            .entry(page)
            .or_insert_with(|| Box::new([0; TABLE_ENTRIES]))
    }
    fn restricted_state(&mut self, page: PhysPage) -> &mut RestrictedState {
        self.states.entry(page).or_default()
    }
    fn invalidate(&mut self, _: u64) {}
    fn invalidate_all(&mut self) {}
    fn now(&mut self) -> u64 {
        self.now
    }
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
pub(crate) const MODULE: u64 = 4 * MIB;
const MEMORY: u64 = 16 * MIB;
/// Where the fake program can run and write.
pub(crate) const PROGRAM: u64 = PROGRAM_BASE;

/// A `BootInfo` for the tests to spoil.
#[derive(Clone)]
pub(crate) struct Info {
    pub(crate) flags: u64,
    pub(crate) regions: Vec<(u64, u64, u32)>,
    pub(crate) modules: Vec<Module>,
    pub(crate) program: Vec<u8>,
}

impl Info {
    pub(crate) fn usual() -> Self {
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
            devices: none,
            args: none,
            env: none,
        };
        let bytes = zerocopy::IntoBytes::as_bytes(&head);
        let words = bytes
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
        words.chain(tail).collect()
    }
}

/// A kernel with its initial program, ready to run.
pub(crate) struct Partition {
    pub(crate) kernel: Kernel,
    pub(crate) hardware: Fake,
}

impl Partition {
    pub(crate) fn start(info: &Info) -> Result<Self, StartError> {
        let (mut kernel, mut hardware) = (Kernel::new(), Fake::new());
        let blob = info.blob();
        let view = BootInfoView::parse(zerocopy::IntoBytes::as_bytes(blob.as_slice())).unwrap();
        let module = program(&view)?;
        kernel.start(&mut hardware, &view, module, &info.program, 0x3000)?;
        Ok(Self { kernel, hardware })
    }

    pub(crate) fn usual() -> Self {
        Self::start(&Info::usual()).unwrap()
    }

    pub(crate) fn trap(&mut self, trap: Trap) -> Next {
        self.kernel.trap(&mut self.hardware, trap)
    }

    /// The running thread executes `syscall`.
    pub(crate) fn enter(&mut self, number: u64, arguments: [u64; 4]) -> Next {
        let frame = self.kernel.threads.current_thread().frame();
        [frame.rdi, frame.rsi, frame.rdx, frame.r10] = arguments;
        frame.rax = number;
        self.trap(Trap::Syscall)
    }

    /// A system call that comes back at once: its answer.
    pub(crate) fn call(&mut self, number: u64, arguments: [u64; 4]) -> Result<u64, Status> {
        assert_eq!(self.enter(number, arguments), Next::Run);
        let frame = self.kernel.threads.current_thread().frame();
        match Status::from_raw(frame.rax) {
            Some(Status::Ok) => Ok(frame.rdx),
            Some(status) => Err(status),
            None => panic!("{} is no status", frame.rax),
        }
    }
}

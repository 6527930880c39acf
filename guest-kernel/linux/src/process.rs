//! The one process of a Linux-ABI partition: its state, and the loop that serves it.

use alloc::borrow::Cow;
use alloc::format;
use alloc::vec::Vec;

use bulkhead_abi::restricted::{REASON_SYSCALL, RestrictedState};
use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use linux_raw_sys::general as raw;

use crate::calls::{self, Args};
use crate::cpio::CpioError;
use crate::errno::Errno;
use crate::fs::node::{Device, Kind, Node, NodeId, ROOT};
use crate::fs::{FileTable, Tree};
use crate::memory::{AddressSpace, Fault, Memory};
use crate::platform::{Platform, Settings, Stream};
use crate::program::{self, Invocation};
use crate::signal::{self, Signals};
use crate::trace;
use crate::uapi::Termios;

/// Status of a partition whose personality could not start or go on.
pub const FAILURE_STATUS: u8 = 125;
/// What one console operation moves at most.
pub(crate) const CONSOLE_BYTES: usize = bulkhead_abi::machine::CONSOLE_MAX as usize;

/// A place for bytes on their way between program memory and elsewhere. It grows to what is asked
/// for, since memory that was never touched is the dear kind.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    /// `len` bytes of whatever was there before; at most [`CONSOLE_BYTES`].
    pub(crate) fn get(&mut self, len: usize) -> Result<&mut [u8], Errno> {
        if len > CONSOLE_BYTES {
            return Err(Errno::EIO);
        }
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self.0.get_mut(..len).ok_or(Errno::EIO)
    }
}

/// The process.
pub struct Process<'a> {
    pub(crate) platform: &'a mut dyn Platform,
    pub(crate) settings: Settings,
    pub(crate) registers: RestrictedState,
    pub(crate) space: AddressSpace,
    pub(crate) tree: Tree<'a>,
    pub(crate) files: FileTable,
    pub(crate) signals: Signals,
    /// Current directory.
    pub(crate) directory: NodeId,
    pub(crate) umask: u32,
    /// `PR_SET_NAME`.
    pub(crate) name: [u8; 16],
    pub(crate) terminal: Termios,
    pub(crate) random: Option<ChaCha20Rng>,
    /// Set once the program has ended.
    pub(crate) ended: Option<u8>,
    /// False while there is nothing to return to.
    pub(crate) has_program: bool,
    pub(crate) scratch: Scratch,
}

impl<'a> Process<'a> {
    /// A process without a program yet, on the file system of `archive`.
    ///
    /// # Errors
    /// The archive is damaged.
    pub fn new(
        platform: &'a mut dyn Platform,
        settings: Settings,
        archive: Option<&'a [u8]>,
    ) -> Result<Self, CpioError> {
        let mut tree = Tree::new(archive, &settings)?;
        let mut files = FileTable::new();
        open_standard_files(&mut tree, &mut files, &settings);
        Ok(Self {
            platform,
            registers: RestrictedState::default(),
            space: AddressSpace::new(),
            tree,
            files,
            signals: Signals::default(),
            directory: ROOT,
            umask: 0o022,
            name: [0; 16],
            terminal: calls::terminal::initial(),
            random: settings.entropy_seed.map(ChaCha20Rng::from_seed),
            settings,
            ended: None,
            has_program: false,
            scratch: Scratch::default(),
        })
    }

    /// Starts a program and serves it to its end; its exit status.
    pub fn run(&mut self, arguments: Vec<Vec<u8>>, environment: Vec<Vec<u8>>) -> u8 {
        let Some(name) = arguments.first().filter(|name| !name.is_empty()).cloned() else {
            self.report("no program given: name one after `--`");
            return FAILURE_STATUS;
        };
        let path = program::search(self, &name, &environment);
        let invocation = Invocation {
            path,
            arguments,
            environment,
        };
        if let Err(error) = program::start(self, invocation) {
            self.report(&format!("{}: {error}", name.escape_ascii()));
            return error.status();
        }
        loop {
            if let Some(status) = self.ended {
                return status;
            }
            if self.platform.enter(&mut self.registers).is_err() {
                self.report("this kernel offers no restricted mode");
                return FAILURE_STATUS;
            }
            if self.registers.reason == REASON_SYSCALL {
                self.serve();
            } else {
                self.exception();
            }
        }
    }

    /// Serves the system call in the registers.
    pub(crate) fn serve(&mut self) {
        let number = self.registers.rax;
        let r = &self.registers;
        let arguments = Args::new([r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]);
        let entry = calls::find(number);
        let result = match entry {
            Some(entry) => (entry.handler)(self, arguments),
            None => Err(Errno::ENOSYS),
        };
        if self.settings.trace {
            let line = match entry {
                Some(entry) => trace::call(entry, &arguments, result, self.ended),
                None => trace::unknown(number),
            };
            self.say(&line);
        }
        // After a successful execve the registers are the new program's.
        if entry.is_none_or(|entry| entry.number != u64::from(raw::__NR_execve)) || result.is_err()
        {
            self.registers.rax = match result {
                Ok(value) => value,
                Err(errno) => errno.to_return(),
            };
        }
    }

    /// Serves the exception in the registers.
    fn exception(&mut self) {
        let RestrictedState {
            vector,
            error_code,
            fault_address,
            ..
        } = self.registers;
        if vector == signal::PAGE_FAULT {
            let need = signal::access(error_code);
            match self.space.fault(self.platform, fault_address, need) {
                Fault::Resolved => return,
                Fault::Violation => {}
                Fault::OutOfMemory => {
                    self.report(
                        "killed: the partition's memory is used up: raise its memory limit",
                    );
                    self.ended = Some(signal::status(raw::SIGKILL));
                    return;
                }
            }
        }
        let line = signal::describe(&self.registers);
        self.report(&line);
        self.ended = Some(signal::status(signal::of_exception(vector)));
    }

    /// Ends the process by a signal's default action.
    pub(crate) fn kill(&mut self, signal: u32) {
        let note = if self.signals.is_handled(signal) {
            " (it has a handler, but handlers are not run yet)"
        } else {
            ""
        };
        self.report(&format!("ended by signal {signal}{note}"));
        self.ended = Some(signal::status(signal));
    }

    /// Says one line about the program on the console's error stream.
    pub(crate) fn report(&mut self, message: &str) {
        self.say(&format!("bulkhead: {message}\n"));
    }

    /// Writes text to the error stream, if there is one.
    pub(crate) fn say(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some(piece) = rest
            .get(..rest.len().min(CONSOLE_BYTES))
            .filter(|p| !p.is_empty())
        {
            match self.platform.console_write(Stream::Error, piece) {
                Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
                _ => return,
            }
        }
    }

    /// Program memory.
    pub(crate) fn memory(&mut self) -> Memory<'_> {
        Memory {
            space: &mut self.space,
            platform: self.platform,
        }
    }

    /// The parts of program memory.
    pub(crate) fn space_and_platform(&mut self) -> (&mut AddressSpace, &mut dyn Platform) {
        (&mut self.space, self.platform)
    }

    /// A program took over.
    pub(crate) fn set_program(&mut self, path: &[u8]) {
        let base = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        self.set_name(base);
        let mut absolute = Vec::new();
        if path.first() != Some(&b'/') {
            absolute = self.tree.path_of(self.directory);
            if absolute.last() != Some(&b'/') {
                absolute.push(b'/');
            }
        }
        absolute.extend_from_slice(path.strip_prefix(b"./").unwrap_or(path));
        self.tree.set_program(&absolute);
        self.has_program = true;
    }

    /// Sets the thread's name: at most 15 bytes of it.
    pub(crate) fn set_name(&mut self, name: &[u8]) {
        self.name = [0; 16];
        for (to, from) in self.name.iter_mut().take(15).zip(name) {
            *to = *from;
        }
    }

    /// Random bytes for a new program: from the granted seed, else from the CPU, else (no grant, no
    /// `rdrand`) only unlike those of other starts.
    pub(crate) fn start_random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        if let Some(random) = &mut self.random {
            random.fill_bytes(&mut bytes);
            return bytes;
        }
        for half in bytes.chunks_exact_mut(8) {
            let number = self.platform.hardware_random();
            let number = number.unwrap_or_else(|| self.platform.monotonic_ns());
            half.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Wall-clock time in nanoseconds since 1970, with the `time` grant.
    pub(crate) fn wall_clock_ns(&self) -> Option<u64> {
        let base = self.settings.wall_clock_base_ns?;
        Some(base.wrapping_add(self.platform.monotonic_ns()))
    }

    /// A time stamp for files: 0 without the `time` grant.
    pub(crate) fn stamp_ns(&self) -> u64 {
        self.wall_clock_ns().unwrap_or(0)
    }
}

/// Descriptors 0 to 2: the console, or `/dev/null` without the `console` grant.
fn open_standard_files(tree: &mut Tree<'_>, files: &mut FileTable, settings: &Settings) {
    for stream in [Stream::Output, Stream::Output, Stream::Error] {
        let device = if settings.console {
            Device::Console(stream)
        } else {
            Device::Null
        };
        // Nodes without a name, gone with their last descriptor.
        let name = Cow::Borrowed(&b"\0standard"[..]);
        let node = Node::new(Kind::Device(device), 0o620);
        if let Ok(id) = tree.add(ROOT, name, node)
            && files.open(tree, id, raw::O_RDWR, false).is_ok()
        {
            let _ = tree.unlink(ROOT, b"\0standard");
        }
    }
}

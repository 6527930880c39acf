//! Starting a program: find it, load its segments, build its first stack (System V ABI, AMD64
//! supplement, section 3.4.1).

use alloc::vec::Vec;

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use bulkhead_abi::restricted::RestrictedState;
use linux_raw_sys::auxvec as raw;

use crate::elf::{self, ElfError, Image};
use crate::errno::Errno;
use crate::fs::node::{Kind, NodeId};
use crate::fs::path::find;
use crate::memory::{AddressSpace, IntervalMap, Placement, Protection, STACK_BYTES, STACK_TOP};
use crate::platform::Platform;
use crate::process::Process;

/// Most bytes of arguments and environment, their pointers included (Linux: a quarter of the
/// stack).
pub const MAX_ARGUMENT_BYTES: usize = 2 * 1024 * 1024;
/// Most `#!` lines on the way to a program.
const MAX_INTERPRETERS: usize = 4;
/// Longest `#!` line that is looked at (Linux `BINPRM_BUF_SIZE`).
const MAX_INTERPRETER_LINE: usize = 256;
/// Where position-independent programs go.
const RELOCATABLE_BASE: u64 = 0x10_0000_0000;
/// Initial `rflags`: interrupts on, and the bit that is always set.
const INITIAL_FLAGS: u64 = 0x202;

/// Why a program could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// There is no such file.
    #[error("not found in this partition's file system")]
    NotFound,
    /// It is a directory or a device, or has no execute permission.
    #[error("not an executable file: check its type and its permissions")]
    NotExecutable,
    /// Its contents are no program.
    #[error("{0}")]
    Elf(#[from] ElfError),
    /// `#!` scripts that interpret each other.
    #[error("too many interpreters behind its `#!` line")]
    Interpreters,
    /// Arguments and environment.
    #[error("its arguments and environment are longer than 2 MiB")]
    Arguments,
    /// The partition is too small.
    #[error("the partition's memory is too small for it: raise its memory limit")]
    Memory,
}

impl StartError {
    /// Exit status by the convention of shells and of docker.
    pub fn status(self) -> u8 {
        if self == Self::NotFound { 127 } else { 126 }
    }

    /// What `execve` answers.
    pub fn errno(self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::NotExecutable => Errno::EACCES,
            Self::Elf(_) => Errno::ENOEXEC,
            Self::Interpreters => Errno::ELOOP,
            Self::Arguments => Errno::E2BIG,
            Self::Memory => Errno::ENOMEM,
        }
    }
}

/// What a program is started with.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Path of the program.
    pub path: Vec<u8>,
    /// Its arguments, its name first.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment.
    pub environment: Vec<Vec<u8>>,
}

/// The path at which `name` is found: itself with a slash in it, else by `PATH`.
pub fn search(process: &Process<'_>, name: &[u8], environment: &[Vec<u8>]) -> Vec<u8> {
    if name.contains(&b'/') {
        return name.to_vec();
    }
    let path = environment.iter().find_map(|v| v.strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let candidates = path.split(|b| *b == b':').map(|directory| {
        let mut candidate = directory.to_vec();
        candidate.push(b'/');
        candidate.extend_from_slice(name);
        candidate
    });
    let runnable = |path: &Vec<u8>| executable(process, path).is_ok();
    candidates
        .into_iter()
        .find(runnable)
        .unwrap_or_else(|| name.to_vec())
}

/// The node of an executable file.
fn executable(process: &Process<'_>, path: &[u8]) -> Result<NodeId, StartError> {
    let id = find(&process.tree, process.directory, path, true)
        .and_then(|found| found.existing())
        .map_err(|_| StartError::NotFound)?;
    match process.tree.get(id) {
        Some(node) if matches!(node.kind, Kind::File(_)) && node.permissions & 0o111 != 0 => Ok(id),
        _ => Err(StartError::NotExecutable),
    }
}

/// Replaces the program. Until the new one is known to be good, the old one is untouched; an error
/// after that ([`StartError::Memory`]) leaves no program to return to.
///
/// # Errors
/// Why not.
pub fn start(process: &mut Process<'_>, invocation: Invocation) -> Result<(), StartError> {
    let mut invocation = invocation;
    let mut interpreters = 0;
    let node = loop {
        let node = executable(process, &invocation.path)?;
        let Some(line) = interpreter_line(bytes_of(process, node)) else {
            break node;
        };
        interpreters += 1;
        if interpreters > MAX_INTERPRETERS {
            return Err(StartError::Interpreters);
        }
        let line: Vec<Vec<u8>> = line.into_iter().map(<[u8]>::to_vec).collect();
        let script = core::mem::take(&mut invocation.path);
        let rest = invocation
            .arguments
            .split_off(invocation.arguments.len().min(1));
        invocation.path = line.first().cloned().unwrap_or_default();
        invocation.arguments = line;
        invocation.arguments.push(script);
        invocation.arguments.extend(rest);
    };
    let strings = invocation.arguments.iter().chain(&invocation.environment);
    let bytes: usize = strings.map(|s| s.len() + 1 + size_of::<u64>()).sum();
    if bytes > MAX_ARGUMENT_BYTES {
        return Err(StartError::Arguments);
    }
    let random = process.start_random();
    let bias_random = if process.settings.entropy_seed.is_some() {
        process.start_random()
    } else {
        [0; 16]
    };
    // Split, so that the image can borrow its file from the tree while memory is being filled.
    let Process {
        tree,
        space,
        platform,
        ..
    } = process;
    let file = match tree.get(node).map(|n| &n.kind) {
        Some(Kind::File(contents)) => contents.bytes(),
        _ => return Err(StartError::NotExecutable),
    };
    let image = elf::parse(file)?;
    let bias = if image.relocatable {
        // 2 MiB steps: another place at every start, for the same page tables.
        RELOCATABLE_BASE + u64::from(bias_random[0]) * LARGE_PAGE_SIZE
    } else {
        0
    };
    space.clear(*platform);
    process.has_program = false;
    load(space, *platform, &image, bias)?;
    let facts = Facts {
        entry: bias + image.entry,
        headers: if image.headers == 0 {
            0
        } else {
            bias + image.headers
        },
        header_count: image.header_count,
        end: bias + image.end(),
    };
    process.space.start_heap(facts.end);
    let stack = STACK_TOP - STACK_BYTES;
    let (space, platform) = process.space_and_platform();
    space
        .map(
            platform,
            Placement::Fixed(stack),
            STACK_BYTES,
            Protection::READ_WRITE,
        )
        .map_err(|_| StartError::Memory)?;
    let (contents, pointer) = build_stack(process, &invocation, &facts, &random);
    process
        .memory()
        .write_bytes(pointer, &contents)
        .map_err(|_| StartError::Memory)?;
    process.registers = RestrictedState {
        rip: facts.entry,
        rsp: pointer,
        rflags: INITIAL_FLAGS,
        ..RestrictedState::default()
    };
    process.platform.set_fs_base(0);
    process.platform.set_gs_base(0);
    process.platform.reset_fpu();
    process.set_program(&invocation.path);
    Ok(())
}

fn bytes_of<'p>(process: &'p Process<'_>, node: NodeId) -> &'p [u8] {
    match process.tree.get(node).map(|n| &n.kind) {
        Some(Kind::File(contents)) => contents.bytes(),
        _ => &[],
    }
}

/// Interpreter and its argument from a `#!` line.
fn interpreter_line(file: &[u8]) -> Option<Vec<&[u8]>> {
    let line = file.strip_prefix(b"#!")?;
    let line = line.get(..line.len().min(MAX_INTERPRETER_LINE))?;
    let line = line.split(|b| *b == b'\n').next()?.trim_ascii();
    let end = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(line.len());
    let (interpreter, argument) = line.split_at_checked(end)?;
    let argument = argument.trim_ascii();
    let parts = [interpreter, argument];
    Some(parts.into_iter().filter(|part| !part.is_empty()).collect())
}

/// Addresses of a loaded program.
struct Facts {
    entry: u64,
    headers: u64,
    header_count: u64,
    end: u64,
}

/// Maps and fills the segments: one kernel call for the memory of all, one for each change of rights.
fn load(
    space: &mut AddressSpace,
    platform: &mut dyn Platform,
    image: &Image<'_>,
    bias: u64,
) -> Result<(), StartError> {
    let page = |address: u64| address & !(PAGE_SIZE - 1);
    let mut wanted = IntervalMap::new();
    for segment in &image.segments {
        let start = bias + page(segment.address);
        let end = bias + (segment.address + segment.size).next_multiple_of(PAGE_SIZE);
        // Two segments that share a page both get their rights on it.
        let shared = wanted.get(start).map_or(Protection::NONE, |(_, has)| has);
        wanted.insert(start..start + PAGE_SIZE, segment.protection.union(shared));
        wanted.insert(start + PAGE_SIZE..end, segment.protection);
    }
    let mut writable = IntervalMap::new();
    for (range, _) in wanted.overlapping(0..u64::MAX) {
        writable.insert(range, ());
    }
    let memory = |_| StartError::Memory;
    for (range, ()) in writable.overlapping(0..u64::MAX) {
        let len = range.end - range.start;
        let placement = Placement::Fixed(range.start);
        space
            .map(platform, placement, len, Protection::READ_WRITE)
            .map_err(memory)?;
        space
            .back(platform, range)
            .map_err(|_| StartError::Memory)?;
    }
    for segment in &image.segments {
        platform.write_memory(bias + segment.address, segment.bytes);
    }
    for (range, protection) in wanted.overlapping(0..u64::MAX) {
        let len = range.end - range.start;
        space
            .protect(platform, range.start, len, protection)
            .map_err(memory)?;
    }
    Ok(())
}

/// The bytes at the top of the stack, and the stack pointer that goes with them.
fn build_stack(
    process: &Process<'_>,
    invocation: &Invocation,
    facts: &Facts,
    random: &[u8; 16],
) -> (Vec<u8>, u64) {
    // Strings first, at the very top; then the vectors, whose start is aligned to 16.
    let mut strings = Vec::new();
    let mut push = |string: &[u8]| {
        let offset = strings.len() as u64;
        strings.extend_from_slice(string);
        strings.push(0);
        offset
    };
    let arguments: Vec<u64> = invocation.arguments.iter().map(|s| push(s)).collect();
    let environment: Vec<u64> = invocation.environment.iter().map(|s| push(s)).collect();
    let name = push(&invocation.path);
    let platform_name = push(b"x86_64");
    let random_at = push(random);
    let base = (STACK_TOP - strings.len() as u64) & !15;
    strings.resize((STACK_TOP - base) as usize, 0);

    let auxiliary = [
        (raw::AT_PHDR, facts.headers),
        (raw::AT_PHENT, 56),
        (raw::AT_PHNUM, facts.header_count),
        (raw::AT_PAGESZ, PAGE_SIZE),
        (raw::AT_BASE, 0),
        (raw::AT_FLAGS, 0),
        (raw::AT_ENTRY, facts.entry),
        (raw::AT_UID, 0),
        (raw::AT_EUID, 0),
        (raw::AT_GID, 0),
        (raw::AT_EGID, 0),
        (raw::AT_SECURE, 0),
        (raw::AT_CLKTCK, 100),
        (raw::AT_HWCAP, u64::from(process.platform.cpu_features())),
        // HWCAP2_FSGSBASE: the kernel relies on it for its own work.
        (raw::AT_HWCAP2, 2),
        (raw::AT_PLATFORM, base + platform_name),
        (raw::AT_RANDOM, base + random_at),
        (raw::AT_EXECFN, base + name),
        (raw::AT_NULL, 0),
    ];
    let mut words = Vec::new();
    words.push(arguments.len() as u64);
    words.extend(arguments.iter().map(|offset| base + offset));
    words.push(0);
    words.extend(environment.iter().map(|offset| base + offset));
    words.push(0);
    for (kind, value) in auxiliary {
        words.extend([u64::from(kind), value]);
    }
    if words.len() % 2 != 0 {
        // One more word between the vectors and the strings keeps the pointer on 16.
        words.push(0);
    }
    let pointer = base - 8 * words.len() as u64;
    let mut contents: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    contents.extend_from_slice(&strings);
    (contents, pointer)
}

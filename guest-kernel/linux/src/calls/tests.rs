//! The system calls from outside: what a program sees, what a hostile one cannot do, and that
//! docs/linux-abi.md says what the table says.

use alloc::string::String;
use alloc::vec::Vec;
use std::format;

use bulkhead_abi::restricted::RestrictedState;
use linux_raw_sys::general as raw;
use proptest::prelude::*;

use super::{COVERAGE, TABLE};
use crate::cpio::build::archive;
use crate::errno::Errno;
use crate::memory::{Placement, Protection, STACK_TOP};
use crate::platform::Settings;
use crate::process::Process;
use crate::testing::{Machine, Step};

/// A page pair of scratch memory.
const SCRATCH: u64 = 0x10_0000;
const READ_ONLY: u64 = 0x20_0000;

fn granted() -> Settings {
    Settings {
        console: true,
        tty: true,
        wall_clock_base_ns: Some(1_700_000_000_000_000_000),
        entropy_seed: Some([7; 32]),
        trace: false,
        memory_bytes: 64 << 20,
    }
}

/// Runs `test` in a process with some files and memory.
fn with(settings: Settings, machine: &mut Machine, test: impl FnOnce(&mut Process<'_>)) {
    let bytes = archive(&[
        ("dir/file", 0o100644, b"contents of a file"),
        ("link", 0o120777, b"dir/file"),
        ("run", 0o100755, b"#!/dir/file x\n"),
    ]);
    let mut process = Process::new(machine, settings, Some(&bytes)).unwrap();
    for (at, protection) in [
        (SCRATCH, Protection::READ_WRITE),
        (READ_ONLY, Protection::READ),
    ] {
        let (space, platform) = process.space_and_platform();
        space
            .map(platform, Placement::Fixed(at), 8192, protection)
            .unwrap();
    }
    process.has_program = true;
    test(&mut process);
}

/// A system call by number, as the program makes it: the value of `rax`.
fn raw_call(p: &mut Process<'_>, number: u64, arguments: &[u64]) -> u64 {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    let [rdi, rsi, rdx, r10, r8, r9] = six;
    p.registers = RestrictedState {
        rax: number,
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        ..RestrictedState::default()
    };
    p.serve();
    p.registers.rax
}

/// By name; `Err` holds the error's symbol.
fn call(p: &mut Process<'_>, name: &str, arguments: &[u64]) -> Result<u64, String> {
    let entry = TABLE.iter().find(|entry| entry.name == name).unwrap();
    let rax = raw_call(p, entry.number, arguments);
    if (rax as i64) < 0 && (rax as i64) > -4096 {
        let code = format!("{rax:x}");
        let known = [
            Errno::EFAULT,
            Errno::EBADF,
            Errno::ENOENT,
            Errno::EINVAL,
            Errno::ENOSYS,
            Errno::EPERM,
            Errno::ENOTTY,
            Errno::ENOMEM,
            Errno::EEXIST,
            Errno::EISDIR,
            Errno::ENOTDIR,
            Errno::ESRCH,
            Errno::ENOSPC,
            Errno::EAGAIN,
            Errno::EACCES,
            Errno::ENODEV,
            Errno::ENOTEMPTY,
            Errno::ERANGE,
            Errno::ESPIPE,
            Errno::ETIMEDOUT,
            Errno::ENOEXEC,
            Errno::ELOOP,
            Errno::EMFILE,
        ];
        let name = known.iter().find(|errno| errno.to_return() == rax);
        return Err(name.map_or(code, |errno| errno.name().into()));
    }
    Ok(rax)
}

fn put(p: &mut Process<'_>, at: u64, bytes: &[u8]) -> u64 {
    p.memory().write_bytes(at, bytes).unwrap();
    at
}

fn get(p: &mut Process<'_>, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = std::vec![0; len];
    p.memory().read_bytes(at, &mut bytes).unwrap();
    bytes
}

fn failure(errno: Errno) -> Result<u64, String> {
    Err(errno.name().into())
}

#[test]
fn the_table_has_linuxs_names_and_numbers() {
    for pair in TABLE.windows(2) {
        assert!(pair[0].number < pair[1].number, "{}", pair[1].name);
    }
    for entry in TABLE {
        let known = syscalls::Sysno::new(entry.number as usize).unwrap();
        assert_eq!(known.name(), entry.name);
        assert!(core::ptr::eq(super::find(entry.number).unwrap(), entry));
    }
    for number in [15, 56, 57, 58, 435, 511, 512, u64::MAX] {
        assert!(super::find(number).is_none(), "{number}");
    }
}

/// Prints the table for docs/linux-abi.md when it differs.
#[test]
fn the_documentation_has_this_table() {
    let mut table =
        String::from("| number | name | honoured | not honoured |\n| --- | --- | --- | --- |\n");
    for (number, name, honoured, limits) in COVERAGE {
        table += &format!("| {number} | `{name}` | {honoured} | {limits} |\n");
    }
    let page = include_str!("../../../../docs/linux-abi.md");
    assert!(
        page.contains(&table),
        "put this table into docs/linux-abi.md:\n{table}"
    );
}

#[test]
fn files_are_read_and_written() {
    with(granted(), &mut Machine::new(), |p| {
        let path = put(p, SCRATCH, b"/link\0");
        let fd = call(p, "open", &[path, 0]).unwrap();
        assert_eq!(fd, 3);
        assert_eq!(call(p, "read", &[fd, SCRATCH + 100, 8]), Ok(8));
        assert_eq!(get(p, SCRATCH + 100, 8), b"contents");
        assert_eq!(call(p, "lseek", &[fd, (-4i64) as u64, 2]), Ok(14));
        assert_eq!(call(p, "read", &[fd, SCRATCH + 100, 80]), Ok(4));
        assert_eq!(call(p, "read", &[fd, SCRATCH + 100, 80]), Ok(0));
        assert_eq!(call(p, "write", &[fd, SCRATCH, 1]), failure(Errno::EBADF));

        let path = put(p, SCRATCH, b"dir/new\0");
        let flags = u64::from(raw::O_CREAT | raw::O_RDWR | raw::O_APPEND);
        let fd = call(p, "openat", &[raw::AT_FDCWD as u64, path, flags, 0o666]).unwrap();
        for _ in 0..3 {
            assert_eq!(call(p, "write", &[fd, SCRATCH, 3]), Ok(3));
        }
        assert_eq!(call(p, "pread64", &[fd, SCRATCH + 100, 9, 3]), Ok(6));
        assert_eq!(get(p, SCRATCH + 100, 6), b"dirdir");
        assert_eq!(call(p, "stat", &[path, SCRATCH + 200]), Ok(0));
        assert_eq!(get(p, SCRATCH + 200 + 24, 4), (0o100644u32).to_le_bytes());
        assert_eq!(call(p, "ftruncate", &[fd, 1]), Ok(0));
        assert_eq!(call(p, "lseek", &[fd, 0, 2]), Ok(1));
        assert_eq!(call(p, "unlink", &[path]), Ok(0));
        assert_eq!(call(p, "open", &[path, 0]), failure(Errno::ENOENT));
        assert_eq!(call(p, "close", &[fd]), Ok(0));
        assert_eq!(call(p, "close", &[fd]), failure(Errno::EBADF));
        let path = put(p, SCRATCH, b"dir\0");
        assert_eq!(call(p, "open", &[path, 1]), failure(Errno::EISDIR));
    });
}

#[test]
fn directories_are_listed_without_loss_while_they_change() {
    with(granted(), &mut Machine::new(), |p| {
        let mut made = Vec::new();
        for n in 0..40 {
            let path = format!("dir/f{n}\0");
            put(p, SCRATCH, path.as_bytes());
            let fd = call(p, "creat", &[SCRATCH, 0o600]).unwrap();
            call(p, "close", &[fd]).unwrap();
            made.push(format!("f{n}"));
        }
        put(p, SCRATCH, b"dir\0");
        let fd = call(p, "open", &[SCRATCH, u64::from(raw::O_DIRECTORY)]).unwrap();
        let mut seen = Vec::new();
        loop {
            let count = call(p, "getdents64", &[fd, SCRATCH, 100]).unwrap() as usize;
            if count == 0 {
                break;
            }
            let bytes = get(p, SCRATCH, count);
            let mut at = 0;
            while at < count {
                let len = usize::from(u16::from_le_bytes([bytes[at + 16], bytes[at + 17]]));
                let name = bytes[at + 19..at + len].split(|b| *b == 0).next().unwrap();
                seen.push(String::from_utf8(name.to_vec()).unwrap());
                at += len;
            }
            if let Some(name) = seen
                .last()
                .filter(|name| name.starts_with('f') && name.as_str() != "file")
            {
                put(p, SCRATCH, format!("dir/{name}\0").as_bytes());
                call(p, "unlink", &[SCRATCH]).unwrap();
            }
        }
        for name in made.iter().map(String::as_str).chain([".", "..", "file"]) {
            assert_eq!(seen.iter().filter(|n| *n == name).count(), 1, "{name}");
        }
        assert_eq!(call(p, "getdents64", &[fd, SCRATCH, 10]), Ok(0));
        call(p, "lseek", &[fd, 0, 0]).unwrap();
        assert_eq!(
            call(p, "getdents64", &[fd, SCRATCH, 10]),
            failure(Errno::EINVAL)
        );
    });
}

#[test]
fn the_console_gets_whole_vectors_and_gives_its_input() {
    let mut machine = Machine::new();
    machine.input.extend(b"typed");
    with(granted(), &mut machine, |p| {
        put(p, SCRATCH, b"hello world\n");
        let mut vector = Vec::new();
        for word in [SCRATCH, 5, 0xdead, 0, SCRATCH + 5, 7] {
            vector.extend(word.to_le_bytes());
        }
        put(p, SCRATCH + 64, &vector);
        assert_eq!(call(p, "writev", &[1, SCRATCH + 64, 3]), Ok(12));
        assert_eq!(call(p, "write", &[2, SCRATCH, 5]), Ok(5));
        // Longer than memory: what is there is written, as on Linux.
        assert_eq!(call(p, "write", &[1, SCRATCH, 8192]), Ok(8192));
        assert_eq!(
            call(p, "write", &[1, SCRATCH + 8190, 8]),
            failure(Errno::EFAULT)
        );
        // A bad buffer does not lose input.
        assert_eq!(call(p, "read", &[0, READ_ONLY, 5]), failure(Errno::EFAULT));
        assert_eq!(call(p, "read", &[0, SCRATCH, 100]), Ok(5));
        assert_eq!(get(p, SCRATCH, 5), b"typed");
        assert_eq!(call(p, "read", &[0, SCRATCH, 100]), Ok(0));
        assert_eq!(call(p, "lseek", &[1, 0, 0]), failure(Errno::ESPIPE));
        assert_eq!(
            call(
                p,
                "ioctl",
                &[1, u64::from(linux_raw_sys::ioctl::TCGETS), SCRATCH]
            ),
            Ok(0)
        );
    });
    assert_eq!(machine.output.len(), 12 + 8192);
    assert!(machine.output.starts_with(b"hello world\nhello world\n"));
    assert_eq!(machine.error, b"hello");
}

#[test]
fn what_is_not_granted_is_not_there() {
    let mut machine = Machine::new();
    machine.input.extend(b"secret");
    with(Settings::default(), &mut machine, |p| {
        assert_eq!(call(p, "write", &[1, SCRATCH, 5]), Ok(5));
        assert_eq!(call(p, "read", &[0, SCRATCH, 5]), Ok(0));
        assert_eq!(
            call(
                p,
                "ioctl",
                &[1, u64::from(linux_raw_sys::ioctl::TCGETS), SCRATCH]
            ),
            failure(Errno::ENOTTY)
        );
        put(p, SCRATCH, &[0xff; 16]);
        assert_eq!(
            call(p, "clock_gettime", &[0, SCRATCH]),
            failure(Errno::EINVAL)
        );
        assert_eq!(get(p, SCRATCH, 16), [0; 16]);
        assert_eq!(
            call(p, "gettimeofday", &[SCRATCH, 0]),
            failure(Errno::EINVAL)
        );
        assert_eq!(call(p, "time", &[0]), failure(Errno::EINVAL));
        assert_eq!(call(p, "clock_gettime", &[1, SCRATCH]), Ok(0));
        assert_eq!(get(p, SCRATCH, 8), 5u64.to_le_bytes());
        assert_eq!(
            call(p, "getrandom", &[SCRATCH, 8, 0]),
            failure(Errno::ENOSYS)
        );
        let path = put(p, SCRATCH, b"/dev/urandom\0");
        assert_eq!(call(p, "open", &[path, 0]), failure(Errno::ENOENT));
    });
    assert!(machine.output.is_empty() && machine.error.is_empty());
    with(granted(), &mut Machine::new(), |p| {
        assert_eq!(call(p, "clock_gettime", &[0, SCRATCH]), Ok(0));
        assert_eq!(get(p, SCRATCH, 8), 1_700_000_005u64.to_le_bytes());
        assert_eq!(call(p, "getrandom", &[SCRATCH, 8, 0]), Ok(8));
        let first = get(p, SCRATCH, 8);
        assert_eq!(call(p, "getrandom", &[SCRATCH, 8, 0]), Ok(8));
        assert_ne!(first, get(p, SCRATCH, 8));
    });
}

#[test]
fn memory_is_mapped_when_touched_and_given_back() {
    let mut machine = Machine::new();
    with(granted(), &mut machine, |p| {
        let anonymous = u64::from(raw::MAP_PRIVATE | raw::MAP_ANONYMOUS);
        let huge = call(p, "mmap", &[0, 1 << 40, 3, anonymous, u64::MAX, 0]).unwrap();
        assert_eq!(huge % (2 << 20), 0);
        put(p, huge + 12345, b"x");
        assert_eq!(get(p, huge, 4), [0; 4]);
        put(p, huge + (8 << 20), b"old");
        assert_eq!(call(p, "madvise", &[huge, 16 << 20, 4]), Ok(0));
        assert_eq!(get(p, huge + (8 << 20), 3), [0; 3]);
        assert_eq!(call(p, "mprotect", &[huge, 4096, 1]), Ok(0));
        assert_eq!(call(p, "read", &[0, huge, 1]), failure(Errno::EFAULT));
        assert_eq!(call(p, "munmap", &[huge, 1 << 40]), Ok(0));
        assert_eq!(
            call(p, "read", &[0, huge + 4096, 1]),
            failure(Errno::EFAULT)
        );
        assert_eq!(
            call(p, "mprotect", &[huge, 4096, 3]),
            failure(Errno::ENOMEM)
        );

        let small = call(p, "mmap", &[0, 100, 3, anonymous, u64::MAX, 0]).unwrap();
        put(p, small, b"moved");
        let blocker = anonymous | u64::from(raw::MAP_FIXED_NOREPLACE);
        assert_eq!(
            call(p, "mmap", &[small, 4096, 3, blocker, 0, 0]),
            failure(Errno::EEXIST)
        );
        let grown = call(p, "mremap", &[small, 4096, 5 << 20, 1, 0]).unwrap();
        assert_eq!(get(p, grown, 5), b"moved");
        put(p, grown + (5 << 20) - 1, b"!");
        assert_eq!(call(p, "mremap", &[grown, 5 << 20, 4096, 0, 0]), Ok(grown));

        put(p, SCRATCH, b"link\0");
        let fd = call(p, "open", &[SCRATCH, 0]).unwrap();
        let private = u64::from(raw::MAP_PRIVATE);
        let file = call(p, "mmap", &[0, 8192, 1, private, fd, 0]).unwrap();
        assert_eq!(get(p, file, 20), b"contents of a file\0\0");
        assert_eq!(p.memory().write_bytes(file, b"x"), Err(Errno::EFAULT));
        assert_eq!(
            call(p, "mmap", &[0, 8192, 3, u64::from(raw::MAP_SHARED), fd, 0]),
            failure(Errno::ENODEV)
        );
        assert_eq!(
            call(p, "mmap", &[0, 8192, 1, private, 1, 0]),
            failure(Errno::ENODEV)
        );
        for (hint, len) in [
            (0x1001, 4096),
            (0, 4096),
            (STACK_TOP, 4096),
            (!4095, 4096),
            (SCRATCH, 0),
            (SCRATCH, u64::MAX),
        ] {
            let fixed = anonymous | u64::from(raw::MAP_FIXED);
            assert!(
                call(p, "mmap", &[hint, len, 3, fixed, 0, 0]).is_err(),
                "{hint:x} {len:x}"
            );
        }
    });
    assert!(machine.pages.len() < 64, "{}", machine.pages.len());
}

#[test]
fn the_heap_grows_shrinks_and_is_zero_again() {
    let mut machine = Machine::new();
    with(granted(), &mut machine, |p| {
        p.space.start_heap(0x40_1234);
        let start = call(p, "brk", &[0]).unwrap();
        assert_eq!(start, 0x5f_f000);
        assert_eq!(call(p, "brk", &[start + 5000]), Ok(start + 5000));
        put(p, start + 4999, b"z");
        assert_eq!(
            p.memory().write_bytes(start + 8192, b"z"),
            Err(Errno::EFAULT)
        );
        assert_eq!(call(p, "brk", &[start]), Ok(start));
        assert_eq!(call(p, "brk", &[start + 5000]), Ok(start + 5000));
        assert_eq!(get(p, start + 4999, 1), [0]);
        assert_eq!(
            call(p, "brk", &[start + (16 << 20)]),
            Ok(start + (16 << 20))
        );
        put(p, start + (15 << 20), b"z");
        assert_eq!(call(p, "brk", &[start - 1]), Ok(start + (16 << 20)));
        assert_eq!(call(p, "brk", &[u64::MAX]), Ok(start + (16 << 20)));
    });
    // 2 MiB behind the border, the next 2 MiB, and what was touched far above.
    assert_eq!(machine.map_calls, 3);
}

#[test]
fn memory_that_runs_out_is_an_error_and_no_end() {
    let mut machine = Machine::new();
    machine.page_limit = 100;
    with(granted(), &mut machine, |p| {
        let anonymous = u64::from(raw::MAP_PRIVATE | raw::MAP_ANONYMOUS);
        let big = call(p, "mmap", &[0, 64 << 20, 3, anonymous, 0, 0]).unwrap();
        let mut touched = 0;
        while p.memory().write_bytes(big + touched * 4096, b"x").is_ok() {
            touched += 1;
        }
        assert_eq!(touched, 100);
        assert_eq!(
            call(p, "mmap", &[0, 4096, 3, anonymous, 0, 0]),
            failure(Errno::ENOMEM)
        );
        let end = call(p, "brk", &[0]).unwrap();
        assert_eq!(call(p, "brk", &[end + 4096]), Ok(end));
        assert_eq!(call(p, "munmap", &[big, 64 << 20]), Ok(0));
        assert!(call(p, "mmap", &[0, 4096, 3, anonymous, 0, 0]).is_ok());
    });
}

#[test]
fn unknown_calls_are_named_in_the_trace_and_stop_nothing() {
    let mut machine = Machine::new();
    with(
        Settings {
            trace: true,
            ..granted()
        },
        &mut machine,
        |p| {
            for number in (300..2000).chain([u64::MAX]) {
                if super::find(number).is_none() {
                    assert_eq!(raw_call(p, number, &[]), Errno::ENOSYS.to_return());
                }
            }
            call(p, "getpid", &[]).unwrap();
            assert!(p.ended.is_none());
        },
    );
    let trace = String::from_utf8(machine.error).unwrap();
    assert!(trace.contains("trace: unknown system call 435 (clone3) -> ENOSYS\n"));
    assert!(trace.contains("trace: unknown system call 1999 (no such call on x86-64) -> ENOSYS\n"));
    assert!(trace.ends_with("trace: getpid() = 0x1\n"));
}

#[test]
fn signals_to_itself_end_the_program_unless_ignored() {
    let mut machine = Machine::new();
    with(granted(), &mut machine, |p| {
        assert_eq!(call(p, "kill", &[1, 0]), Ok(0));
        assert_eq!(call(p, "kill", &[2, 9]), failure(Errno::ESRCH));
        assert_eq!(call(p, "tgkill", &[1, 1, u64::from(raw::SIGCHLD)]), Ok(0));
        assert_eq!(call(p, "kill", &[1, 65]), failure(Errno::EINVAL));
        assert!(p.ended.is_none());
        assert_eq!(call(p, "tgkill", &[1, 1, 6]), Ok(0));
        assert_eq!(p.ended, Some(134));
    });
    assert_eq!(machine.error, b"bulkhead: ended by signal 6\n");
}

/// The runtime of every Rust program polls its standard files like this as it starts.
#[test]
fn a_poll_that_is_not_to_wait_does_not_sleep() {
    let mut machine = Machine::new();
    with(granted(), &mut machine, |p| {
        put(p, SCRATCH, &[1, 0, 0, 0, 0, 0, 9, 9]);
        assert_eq!(call(p, "poll", &[SCRATCH, 1, 0]), Ok(0));
        assert_eq!(get(p, SCRATCH + 6, 2), [0, 0], "no event was asked for");
    });
    assert_eq!(machine.sleeps, 0);
}

#[test]
fn a_wait_that_nobody_can_end_is_reported() {
    for (name, arguments) in [
        ("futex", [SCRATCH, 128, 0, 0]),
        ("poll", [0, 0, u64::MAX, 0]),
    ] {
        let mut machine = Machine::new();
        with(granted(), &mut machine, |p| {
            put(p, SCRATCH, &[0; 8]);
            call(p, name, &arguments).unwrap();
            assert_eq!(p.ended, Some(137), "{name}");
        });
        assert!(machine.error.starts_with(b"bulkhead: killed: deadlock"));
    }
    let mut machine = Machine::new();
    with(granted(), &mut machine, |p| {
        assert_eq!(
            call(p, "futex", &[SCRATCH, 0, 1, 0]),
            failure(Errno::EAGAIN)
        );
        put(
            p,
            SCRATCH + 64,
            &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        assert_eq!(
            call(p, "futex", &[SCRATCH, 0, 0, SCRATCH + 64]),
            failure(Errno::ETIMEDOUT)
        );
        assert_eq!(call(p, "poll", &[0, 0, 10]), Ok(0));
    });
    assert_eq!(machine.slept_ns, 3_010_000_000);
}

/// A program of one code page at 4 MiB, with 16 KiB of data behind it.
fn program() -> Vec<u8> {
    crate::elf::build::program(
        2,
        0x40_0200,
        &[
            (1, 5, 0, 0x40_0000, 0x1000, 0x1000),
            (1, 6, 0x1000, 0x40_1000, 0x800, 0x4000),
        ],
    )
}

fn run(files: &[(&str, u32, &[u8])], arguments: &[&str], machine: &mut Machine) -> u8 {
    let bytes = archive(files);
    let mut process = Process::new(machine, granted(), Some(&bytes)).unwrap();
    let strings = |list: &[&str]| list.iter().map(|s| s.as_bytes().to_vec()).collect();
    process.run(strings(arguments), strings(&["HOME=/", "PATH=/none:/bin"]))
}

#[test]
fn a_program_starts_faults_and_ends() {
    let elf = program();
    let files = [("bin/x", 0o100755, &elf[..])];
    let mut machine = Machine::new();
    machine.script.extend([
        Step::Exception(14, 6, STACK_TOP - 0x40_0000),
        Step::Call(1, [1, 0x40_1000, 2, 0, 0, 0]),
        Step::Call(231, [7, 0, 0, 0, 0, 0]),
    ]);
    assert_eq!(run(&files, &["x", "argument"], &mut machine), 7);
    assert_eq!(machine.output, [0x90, 0x90]);
    // Code is not writable, data not executable.
    assert_eq!(
        (machine.pages[&0x40_0000].0, machine.pages[&0x40_4000].0),
        (5, 3)
    );

    for (vector, code, address, status, said) in [
        (
            14,
            4,
            0,
            139,
            "bulkhead: segmentation fault reading 0x0 at instruction 0x400200\n",
        ),
        (
            14,
            6,
            0x40_0000,
            139,
            "bulkhead: segmentation fault writing 0x400000 at instruction 0x400200\n",
        ),
        (
            14,
            21,
            0x40_1000,
            139,
            "bulkhead: segmentation fault executing 0x401000 at instruction 0x400200\n",
        ),
        (
            14,
            4,
            0x7000_0000_0000,
            139,
            "bulkhead: segmentation fault reading 0x700000000000 at instruction 0x400200\n",
        ),
        (
            14,
            4,
            u64::MAX,
            139,
            "bulkhead: segmentation fault reading 0xffffffffffffffff at instruction 0x400200\n",
        ),
        (
            6,
            0,
            0,
            132,
            "bulkhead: illegal instruction at instruction 0x400200 (exception 6, error 0x0)\n",
        ),
        (
            3,
            0,
            0,
            133,
            "bulkhead: trace or breakpoint trap at instruction 0x400200 (exception 3, error 0x0)\n",
        ),
    ] {
        let mut machine = Machine::new();
        machine
            .script
            .push_back(Step::Exception(vector, code, address));
        assert_eq!(run(&files, &["/bin/x"], &mut machine), status);
        assert_eq!(String::from_utf8(machine.error).unwrap(), said);
    }
}

/// Kernel calls are what a start costs where kernel mode is interpreted: one for the segments, one
/// for the rights of each that is not plain data, one for the stack; then one for the heap, and none
/// for the guard page that musl makes of its first page.
#[test]
fn a_start_takes_few_kernel_calls() {
    let elf = program();
    let files = [("bin/x", 0o100755, &elf[..])];
    let mut machine = Machine::new();
    machine.script.push_back(Step::Call(231, [0; 6]));
    assert_eq!(run(&files, &["x"], &mut machine), 0);
    assert_eq!(machine.kernel_calls, 3);

    let mut machine = Machine::new();
    let heap = 0x5f_f000;
    let fixed = u64::from(raw::MAP_PRIVATE | raw::MAP_ANONYMOUS | raw::MAP_FIXED);
    machine.script.extend([
        Step::Call(12, [0; 6]),
        Step::Call(12, [heap + 8192, 0, 0, 0, 0, 0]),
        Step::Call(9, [heap, 4096, 0, fixed, u64::MAX, 0]),
        Step::Call(231, [0; 6]),
    ]);
    assert_eq!(run(&files, &["x"], &mut machine), 0);
    assert_eq!(machine.results[1..], [heap, heap + 8192, heap]);
    assert_eq!(machine.kernel_calls, 4);
}

#[test]
fn the_first_stack_is_as_the_abi_has_it() {
    let elf = program();
    let bytes = archive(&[("bin/x", 0o100755, &elf)]);
    let mut machine = Machine::new();
    let mut process = Process::new(&mut machine, granted(), Some(&bytes)).unwrap();
    let invocation = crate::program::Invocation {
        path: b"/bin/x".to_vec(),
        arguments: std::vec![b"x".to_vec(), b"yz".to_vec()],
        environment: std::vec![b"A=1".to_vec()],
    };
    crate::program::start(&mut process, invocation).unwrap();
    let top = process.registers.rsp;
    assert_eq!(top % 16, 0);
    let word = |p: &mut Process<'_>, index: u64| {
        u64::from_le_bytes(get(p, top + 8 * index, 8).try_into().unwrap())
    };
    assert_eq!(word(&mut process, 0), 2);
    let pointers: Vec<u64> = (1..6).map(|n| word(&mut process, n)).collect();
    assert_eq!((pointers[2], pointers[4]), (0, 0));
    assert_eq!(get(&mut process, pointers[1], 3), b"yz\0");
    assert_eq!(get(&mut process, pointers[3], 4), b"A=1\0");
    let mut auxiliary = Vec::new();
    for index in (6..).step_by(2) {
        let pair = (word(&mut process, index), word(&mut process, index + 1));
        auxiliary.push(pair);
        if pair.0 == 0 {
            break;
        }
    }
    let value = |kind: u32| auxiliary.iter().find(|a| a.0 == u64::from(kind)).unwrap().1;
    use linux_raw_sys::auxvec::{AT_ENTRY, AT_EXECFN, AT_PAGESZ, AT_PHDR, AT_PHNUM, AT_RANDOM};
    assert_eq!(
        [AT_ENTRY, AT_PAGESZ, AT_PHDR, AT_PHNUM].map(value),
        [0x40_0200, 4096, 0x40_0040, 2]
    );
    assert_eq!(get(&mut process, value(AT_EXECFN), 7), b"/bin/x\0");
    assert_ne!(get(&mut process, value(AT_RANDOM), 16), [0; 16]);
    assert_eq!(
        process
            .tree
            .get(process.tree.lookup(0, b"proc").unwrap())
            .unwrap()
            .mode(),
        0o40755
    );
}

#[test]
fn what_cannot_run_says_why() {
    let elf = program();
    let dynamic = crate::elf::build::program(3, 0, &[(3, 4, 0, 0, 8, 8)]);
    let huge = crate::elf::build::program(2, 0x40_0200, &[(1, 5, 0, 0x40_0000, 0x1000, 1 << 32)]);
    let files = [
        ("bin/x", 0o100755, &elf[..]),
        ("bin/plain", 0o100644, &elf[..]),
        ("bin/dynamic", 0o100755, &dynamic[..]),
        ("bin/huge", 0o100755, &huge[..]),
        ("bin/text", 0o100755, b"text"),
        ("bin/empty", 0o100755, b""),
        ("bin/loop", 0o100755, b"#!/bin/loop\n"),
        ("bin/lost", 0o100755, b"#!/bin/nothing\n"),
    ];
    for (arguments, status, said) in [
        (
            &["missing"][..],
            127,
            "bulkhead: missing: not found in this partition's file system\n",
        ),
        (
            &["/bin/plain"],
            126,
            "bulkhead: /bin/plain: not an executable file: check its type and its permissions\n",
        ),
        (
            &["/bin"],
            126,
            "bulkhead: /bin: not an executable file: check its type and its permissions\n",
        ),
        (
            &["/bin/dynamic"],
            126,
            "bulkhead: /bin/dynamic: dynamically linked, not supported yet: link statically\n",
        ),
        (
            &["/bin/huge"],
            126,
            "bulkhead: /bin/huge: the partition's memory is too small for it: raise its memory limit\n",
        ),
        (
            &["/bin/text"],
            126,
            "bulkhead: /bin/text: not an ELF file\n",
        ),
        (
            &["/bin/empty"],
            126,
            "bulkhead: /bin/empty: not an ELF file\n",
        ),
        (
            &["/bin/loop"],
            126,
            "bulkhead: /bin/loop: too many interpreters behind its `#!` line\n",
        ),
        (
            &["/bin/lost"],
            127,
            "bulkhead: /bin/lost: not found in this partition's file system\n",
        ),
        (
            &[],
            125,
            "bulkhead: no program given: name one after `--`\n",
        ),
    ] {
        let mut machine = Machine::new();
        assert_eq!(
            run(&files, arguments, &mut machine),
            status,
            "{arguments:?}"
        );
        assert_eq!(String::from_utf8(machine.error).unwrap(), said);
    }
}

#[test]
fn execve_replaces_the_program_or_leaves_it_alone() {
    let elf = program();
    let files = [
        ("bin/x", 0o100755, &elf[..]),
        ("script", 0o100755, &b"#!/bin/x -a b\n"[..]),
    ];
    let mut machine = Machine::new();
    // The data segment is padding; a path is read from the console to have one in memory.
    machine.input.extend(b"/script\0/none\0");
    machine.script.extend([
        Step::Call(0, [0, 0x40_1000, 14, 0, 0, 0]),
        Step::Call(59, [0x40_1008, 0, 0, 0, 0, 0]),
        Step::Call(59, [0x40_1000, 0, 0, 0, 0, 0]),
        Step::Call(60, [3, 0, 0, 0, 0, 0]),
    ]);
    assert_eq!(run(&files, &["x"], &mut machine), 3);
    assert_eq!(machine.results[2], Errno::ENOENT.to_return());
    assert_eq!(machine.results[3], 0);
    // A new program must not find the exceptions that the old one unmasked.
    assert_eq!(machine.fpu_resets, 2);
}

/// Values that break naive arithmetic and checks, and ordinary ones.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..20u64,
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(u64::from(raw::AT_FDCWD as u32)),
        (0..20_000u64).prop_map(|n| SCRATCH - 4096 + n),
        (0..16_384u64).prop_map(|n| READ_ONLY - 4096 + n),
        (0..8192u64).prop_map(|n| STACK_TOP - 4096 + n),
        (0..8192u64).prop_map(|n| 0x7000_0000_0000 - 4096 + n),
        (0..64u32).prop_map(|shift| 1 << shift),
        (0..52u32).prop_map(|shift| (1u64 << shift) & !4095),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The machine of these tests fails on any access outside of what is mapped.
    #[test]
    fn no_argument_is_fatal(
        calls in prop::collection::vec((0..600u64, prop::array::uniform6(argument())), 1..40),
        contents in prop::collection::vec(argument(), 0..64),
    ) {
        let mut machine = Machine::new();
        with(granted(), &mut machine, |p| {
            for (index, word) in contents.iter().enumerate() {
                p.memory().write_bytes(SCRATCH + 8 * index as u64, &word.to_le_bytes()).unwrap();
            }
            for (number, arguments) in calls {
                raw_call(p, number, &arguments);
                assert!(p.has_program);
            }
        });
    }
}

/// Every call there is, with every argument hostile in turn.
#[test]
fn hostile_pointers_are_efault_at_worst() {
    let hostile = [
        0,
        1,
        READ_ONLY + 8190,
        0x6fff_ffff_fff8,
        0x7000_0000_0000,
        0x7fff_ffff_ffff,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        u64::MAX,
    ];
    with(granted(), &mut Machine::new(), |p| {
        for entry in TABLE {
            for position in 0..6 {
                for bad in hostile {
                    let mut arguments = [SCRATCH; 6];
                    arguments[position] = bad;
                    raw_call(p, entry.number, &arguments);
                }
            }
        }
    });
}

//! A partition under the counter: started by `bulkhead run` with its debug socket, stepped while it
//! is in its kernel, and let go while it is not.
//!
//! Where the kernel is entered the counter writes a jump to itself, and looks now and then whether
//! the vCPU has come there. Debug registers would be quicker, but are not to be had where the CPU is
//! emulated.
//!
//! Time must not change what is counted. The kernel learns from `BootInfo` how fast the time stamp
//! counter runs; before its first instruction the counter tells it a hundred thousand times the truth,
//! so that a time slice outlasts the measurement. If the timer fires within a path all the same, that
//! is an error.

use std::io::{Read, Seek};
use std::mem::offset_of;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_abi::boot::BootInfo;
use bulkhead_paths::{BARS, MARK, MARK_STRETCH};

use super::image::Image;
use super::paths::{Counted, Mark, Steps};
use super::remote::{Registers, Remote, Stop};
use crate::child::{Watched, memfd};
use crate::error::Error;

/// How long the socket may take to be there, and the guest from one entry to the next.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How much faster the kernel believes its clock to run. A slice of 10 ms lasts 1,000 s then. KVM
/// computes with a million times the ticks to a deadline in 64 bits: much more would overflow.
const FASTER: u64 = 100_000;
/// `jmp $`: whoever comes there stays.
const LOOP: [u8; 2] = [0xeb, 0xfe];
/// How long a program runs before somebody looks whether it has come to an entry, at first and at
/// last.
const FIRST_WAIT: Duration = Duration::from_micros(200);
const LAST_WAIT: Duration = Duration::from_millis(20);
/// Where user space ends and the kernel's half begins.
const KERNEL_HALF: u64 = 1 << 63;
/// An entry of more instructions does not end.
const MOST: u64 = 1_000_000;
/// The longest name of a path.
const LONGEST_NAME: u64 = 100;

/// What runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A native program.
    Native,
    /// A Linux program on the personality.
    LinuxAbi,
}

/// An entry into the kernel, at its first instruction.
#[derive(Debug)]
pub(super) struct Entry {
    registers: Registers,
    /// What brought it about.
    pub(super) cause: Cause,
}

/// What brings a program into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A system call that marks a path.
    Mark,
    /// Another system call, or an exception.
    Program,
    /// The timer.
    Timer,
}

/// The partition. It stands in its kernel whenever nobody waits for it.
pub(super) struct Guest<'a> {
    image: &'a Image,
    remote: Remote,
    /// It has ended.
    over: bool,
    /// `bulkhead run`: killed with us, and with it the partition.
    run: Watched,
}

impl<'a> Guest<'a> {
    /// Starts `program`, and stops before the kernel's first instruction.
    pub(super) fn start(
        library: &Path,
        image: &'a Image,
        kind: Kind,
        program: &str,
    ) -> Result<Self, Error> {
        let library = library
            .canonicalize()
            .map_err(Error::io(format!("looking for {}", library.display())))?;
        let bulkhead = library.join("../../bin/bulkhead");
        let socket = Socket::new(program);
        let mut said = memfd("stderr")?;
        let theirs = said.try_clone().map_err(Error::io("sharing a memfd"))?;
        let kind = match kind {
            Kind::Native => "native",
            Kind::LinuxAbi => "linux-abi",
        };
        let child = Command::new(&bulkhead)
            .args(["run", "--kernel", kind])
            .arg(format!("--gdb={}", socket.0.display()))
            .args(["--", program])
            .env("BULKHEAD_LIB", &library)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(theirs)
            .spawn()
            .map_err(Error::io(format!("running {}", bulkhead.display())))?;
        let mut run = Watched(child);
        let Some(stream) = socket.connect(&mut run)? else {
            let mut text = String::new();
            said.rewind()
                .and_then(|()| said.read_to_string(&mut text))
                .map_err(Error::io("reading what bulkhead run said"))?;
            let text = text.trim();
            return Err(Error::Debugger(format!("bulkhead run opened none: {text}")));
        };
        let mut guest = Self {
            image,
            remote: Remote::new(stream)?,
            over: false,
            run,
        };
        guest.hurry_clock()?;
        Ok(guest)
    }

    fn hurry_clock(&mut self) -> Result<(), Error> {
        // By the boot protocol RDI is the address of the BootInfo.
        let Some(registers) = self.remote.registers()? else {
            return Err(Error::Debugger("the guest ended before it began".into()));
        };
        let info = registers.argument();
        let khz = info + offset_of!(BootInfo, tsc_khz) as u64;
        let bytes = self.remote.read(khz, 8)?;
        let (words, _) = bytes.as_chunks::<8>();
        let true_khz = words.first().map_or(0, |word| u64::from_le_bytes(*word));
        let faster = true_khz.saturating_mul(FASTER);
        self.remote.write(khz, &faster.to_le_bytes())
    }

    /// Goes on to the next entry into the kernel; nothing when the program has ended with success.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let places = [self.image.syscall, self.image.page_fault, self.image.timer];
        // Off the place of the last entry, before it is a trap again.
        if !self.over {
            let place = self.remote.registers()?.map(|found| found.rip);
            self.over = match place {
                Some(rip) if places.contains(&rip) => self.remote.step()? == Stop::Over,
                Some(_) => false,
                None => true,
            };
        }
        if self.over {
            return self.end().map(|()| None);
        }
        let mut code = Vec::new();
        for place in places {
            code.push(self.remote.read(place, LOOP.len() as u64)?);
            self.remote.write(place, &LOOP)?;
        }
        let mut wait = FIRST_WAIT;
        let deadline = Instant::now() + PATIENCE;
        let registers = loop {
            let found = match self.remote.run(wait)? {
                Stop::Standing => self.remote.registers()?,
                Stop::Over => None,
            };
            let Some(registers) = found else {
                self.over = true;
                return self.end().map(|()| None);
            };
            if places.contains(&registers.rip) {
                break registers;
            }
            if Instant::now() > deadline {
                let what = format!("the guest does not go on from {:#x}", registers.rip);
                return Err(Error::Debugger(what));
            }
            wait = LAST_WAIT.min(wait * 2);
        };
        for (place, code) in places.into_iter().zip(code) {
            self.remote.write(place, &code)?;
        }
        let cause = if registers.rip == self.image.timer {
            Cause::Timer
        } else if [MARK, MARK_STRETCH].contains(&registers.call().0) {
            Cause::Mark
        } else {
            Cause::Program
        };
        Ok(Some(Entry { registers, cause }))
    }

    /// Waits for `bulkhead run`, which cleans up behind itself, and whose status is the program's.
    fn end(&mut self) -> Result<(), Error> {
        let ended = self.run.0.wait();
        let status = ended.map_err(Error::io("waiting for bulkhead run"))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Debugger(format!("bulkhead run ended: {status}")))
    }

    /// What the mark at `entry` says.
    pub(super) fn mark(&mut self, entry: &Entry) -> Result<Mark, Error> {
        let (number, [name, length, passed_over, entries]) = entry.registers.call();
        let name = self.remote.read_user(name, length.min(LONGEST_NAME))?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let bar = BARS.iter().find(|(path, _)| *path == name);
        Ok(Mark {
            passed_over,
            entries,
            bar: bar.map(|(_, most)| *most),
            counted: if number == MARK {
                Counted::All
            } else {
                Counted::LongestStretch
            },
            name,
        })
    }

    /// Steps from where the guest stands to the instruction by which it leaves the kernel.
    pub(super) fn count(&mut self) -> Result<Steps, Error> {
        let mut steps = Steps::default();
        let Some(Registers { mut rip, .. }) = self.remote.registers()? else {
            self.over = true;
            return Ok(steps);
        };
        steps.add(rip == self.image.preemption);
        // What a step over that instruction does differs: where KVM interprets guest kernel mode, it
        // ends at the next entry.
        while !self.image.is_end(rip) {
            let found = match self.remote.step()? {
                Stop::Standing => self.remote.registers()?,
                Stop::Over => None,
            };
            let Some(Registers { rip: next, .. }) = found else {
                self.over = true;
                break;
            };
            if next < KERNEL_HALF || steps.all > MOST {
                let what = format!("does not leave the kernel as it should, at {rip:#x}");
                return Err(Error::Path(what));
            }
            // A repeated string instruction is one, however many steps it takes.
            if next != rip {
                steps.add(next == self.image.preemption);
            }
            rip = next;
        }
        Ok(steps)
    }
}

/// Where the debugger listens; no name is left when it is dropped.
struct Socket(PathBuf);

impl Socket {
    fn new(program: &str) -> Self {
        let program = program.rsplit('/').next().unwrap_or_default();
        let name = format!("bulkhead-bench-{}-{program}.sock", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Connects as soon as somebody listens; nothing when `run` ends before.
    fn connect(&self, run: &mut Watched) -> Result<Option<UnixStream>, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&self.0) {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) if Instant::now() > deadline => {
                    let what = format!("connecting to {}", self.0.display());
                    return Err(Error::io(what)(error));
                }
                Err(_) => {}
            }
            let ended = run.0.try_wait();
            if ended
                .map_err(Error::io("waiting for bulkhead run"))?
                .is_some()
            {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The listener has removed it where it could.
        let _ = std::fs::remove_file(&self.0);
    }
}

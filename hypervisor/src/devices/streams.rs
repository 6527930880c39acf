//! The host's side of a console for devices that vCPU threads serve: the serial port and the mailbox.
//!
//! A writer that has to wait for a slow reader holds up the vCPU that wrote, as a slow line would;
//! nothing is buffered here, so a flood costs no memory. The wait ends when the partition does.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_machine::trace::FIRST_CONSOLE_BYTE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileMemoryError, VolatileSlice,
    WriteVolatile,
};

use crate::machine::ending::Ending;
use crate::machine::memory::GuestMemory;
use crate::trace::Trace;

/// How long one wait for a reader lasts before the end of the partition is looked at again.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Where output goes; clones share it. Output that nobody can take any more is dropped: a partition
/// runs on when its reader is gone.
#[derive(Clone, Debug)]
pub struct Output {
    file: Arc<File>,
    ending: Ending,
    trace: Trace,
    traced: Arc<AtomicBool>,
}

impl Output {
    /// Output to `file`, until `ending`.
    pub fn new(file: File, ending: Ending, trace: Trace) -> Self {
        Self {
            file: Arc::new(file),
            ending,
            traced: Arc::new(AtomicBool::new(!trace.is_on())),
            trace,
        }
    }

    /// Another stream of the same console: it shares the mark of the first byte.
    #[must_use]
    pub fn beside(&self, file: File) -> Self {
        Self {
            file: Arc::new(file),
            ..self.clone()
        }
    }

    /// Writes `len` bytes of guest memory from `address`; all of them, unless the partition ends.
    ///
    /// # Errors
    /// The range is not in guest memory; some bytes may have been written.
    pub fn write_guest(
        &self,
        memory: &GuestMemory,
        address: GuestAddress,
        len: usize,
    ) -> Result<(), GuestMemoryError> {
        let mut done = 0;
        while done < len {
            let at = memory
                .checked_offset(address, done)
                .ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
            let mut file = Interruptible(&self.file);
            match memory.write_volatile_to(at, &mut file, len - done) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.note_first();
                    done += n;
                }
                Err(GuestMemoryError::IOError(e)) => {
                    if !self.retry(&e) {
                        return Ok(());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn note_first(&self) {
        if !self.traced.load(Ordering::Relaxed) && !self.traced.swap(true, Ordering::Relaxed) {
            self.trace.mark(FIRST_CONSOLE_BYTE);
        }
    }

    /// After a failed write: true when it is worth another try.
    fn retry(&self, error: &io::Error) -> bool {
        if self.ending.is_over() {
            return false;
        }
        match error.kind() {
            io::ErrorKind::Interrupted => true,
            io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(&*self.file, PollFlags::OUT)];
                // Whatever comes of the wait, the next write says.
                let _ = poll(&mut fds, Some(&WAIT));
                true
            }
            _ => false,
        }
    }
}

/// A file whose writes a signal ends: vm-memory would begin an interrupted write again, without a
/// look at the end of the partition.
struct Interruptible<'a>(&'a File);

impl WriteVolatile for Interruptible<'_> {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        from: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.0.write_volatile(from).map_err(|error| match error {
            VolatileMemoryError::IOError(e) if e.kind() == io::ErrorKind::Interrupted => {
                VolatileMemoryError::IOError(io::ErrorKind::WouldBlock.into())
            }
            other => other,
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&*self.file).write(bytes) {
                Ok(n) => {
                    self.note_first();
                    return Ok(n);
                }
                Err(e) if self.retry(&e) => {}
                Err(_) => return Ok(bytes.len()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a read of input brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, not zero.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

/// True when a read of `file` would return at once, also with its end.
pub fn is_readable(file: &File) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

/// Reads at most `len` bytes to `address`, which is in guest memory, without waiting.
///
/// # Errors
/// The range is not in guest memory.
pub fn read_guest(
    file: &File,
    memory: &GuestMemory,
    address: GuestAddress,
    len: usize,
) -> Result<Read, GuestMemoryError> {
    if !is_readable(file) {
        return Ok(Read::Nothing);
    }
    let mut source = file;
    match memory.read_volatile_from(address, &mut source, len) {
        Ok(0) => Ok(Read::End),
        Ok(n) => Ok(Read::Bytes(n)),
        Err(GuestMemoryError::IOError(e)) => {
            Ok(match e.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN | Errno::INTR) => Read::Nothing,
                _ => Read::End,
            })
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use bulkhead_machine::control::Ended;
    use vmm_sys_util::signal::{Killable, SIGRTMIN};

    use super::*;
    use crate::machine::memory;
    use crate::machine::vcpu::prepare_stop_signal;

    #[test]
    fn the_end_and_a_signal_end_a_write_that_nobody_reads() {
        prepare_stop_signal().unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        let ending = Ending::new().unwrap();
        let file = File::from(OwnedFd::from(writer));
        let output = Output::new(file, ending.clone(), Trace::default());
        let memory = memory::create(2).unwrap();
        // More than a pipe holds.
        let writer =
            std::thread::spawn(move || output.write_guest(&memory, GuestAddress(0), 1 << 20));
        ending.end(Ended::Stopped);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !writer.is_finished() {
            assert!(Instant::now() < deadline, "the write goes on");
            writer.kill(SIGRTMIN()).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        writer.join().unwrap().unwrap();
    }
}

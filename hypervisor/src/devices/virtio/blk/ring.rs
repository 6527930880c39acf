//! Disk operations by io_uring. A ring belongs to one disk and can do nothing else: before it is
//! enabled it is restricted (`IORING_REGISTER_RESTRICTIONS`) to reading, writing, syncing and
//! `fallocate`, on the disk's files and no other, so that it opens no way around seccomp.
//!
//! Only the event loop submits; whoever holds the device may reap.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vm_memory::GuestMemoryMmap;

use super::MAX_IN_FLIGHT;
use super::engine::Completion;
use super::file::{MAX_IOVECS, ZEROES, advance};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the kernel is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fill the buffers.
    Read,
    /// Store the buffers.
    Write,
    /// Make writes durable.
    Sync,
    /// Give room back; where the host cannot, that is well too.
    Discard,
    /// Make zeroes by giving room back.
    Punch,
    /// Make zeroes.
    ZeroRange,
    /// Make zeroes by writing them.
    WriteZeroes,
}

/// One action on a range of a file, to its end however many submissions that takes.
pub(super) struct Transfer {
    pub(super) action: Action,
    /// Index of the file among those of [`Ring::new`].
    pub(super) file: u32,
    pub(super) offset: u64,
    /// Bytes that are left to do.
    pub(super) len: u64,
    /// Buffers of a read or a write; `len` bytes.
    pub(super) iovecs: Vec<libc::iovec>,
    /// Keeps the buffers mapped.
    pub(super) _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the iovecs point into guest memory, which is mapped for the whole process as long as
// `_memory` lives, or to `ZEROES`; nobody dereferences them but the kernel.
unsafe impl Send for Transfer {}

impl Transfer {
    fn entry(&self) -> squeue::Entry {
        let file = Fixed(self.file);
        let buffers = self.iovecs.as_ptr();
        let count = self.iovecs.len().min(MAX_IOVECS) as u32;
        let falloc = |mode| {
            let entry = opcode::Fallocate::new(file, self.len);
            entry.offset(self.offset).mode(mode).build()
        };
        match self.action {
            Action::Read => opcode::Readv::new(file, buffers, count)
                .offset(self.offset)
                .build(),
            Action::Write | Action::WriteZeroes => opcode::Writev::new(file, buffers, count)
                .offset(self.offset)
                .build(),
            Action::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            Action::Discard | Action::Punch => falloc(PUNCH),
            Action::ZeroRange => falloc(ZERO_RANGE),
        }
    }

    /// Takes the kernel's answer; None when there is more to submit.
    fn step(&mut self, answer: i32) -> Option<io::Result<()>> {
        match (self.action, answer) {
            (_, answer) if answer == -libc::EINTR => None,
            (Action::Discard, answer) if answer == -libc::EOPNOTSUPP => Some(Ok(())),
            (Action::Punch, answer) if answer == -libc::EOPNOTSUPP => {
                self.action = Action::ZeroRange;
                None
            }
            (Action::ZeroRange, answer) if answer == -libc::EOPNOTSUPP => {
                self.action = Action::WriteZeroes;
                self.zeroes();
                None
            }
            (_, answer) if answer < 0 => Some(Err(io::Error::from_raw_os_error(-answer))),
            (Action::Read | Action::Write | Action::WriteZeroes, 0) => {
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            (Action::Read | Action::Write | Action::WriteZeroes, answer) => {
                let moved = u64::from(answer.unsigned_abs()).min(self.len);
                self.offset += moved;
                self.len -= moved;
                if self.len == 0 {
                    return Some(Ok(()));
                }
                if self.action == Action::WriteZeroes {
                    self.zeroes();
                } else {
                    let mut first = 0;
                    advance(&mut self.iovecs, &mut first, moved as usize);
                    self.iovecs.drain(..first);
                }
                None
            }
            (Action::Sync | Action::Discard | Action::Punch | Action::ZeroRange, _) => Some(Ok(())),
        }
    }

    /// Buffers for the zeroes still to be written, or as many as fit.
    fn zeroes(&mut self) {
        self.iovecs.clear();
        let mut rest = self.len;
        while rest > 0 && self.iovecs.len() < MAX_IOVECS {
            let len = rest.min(ZEROES.0.len() as u64);
            self.iovecs.push(libc::iovec {
                iov_base: ZEROES.0.as_ptr().cast_mut().cast(),
                iov_len: len as usize,
            });
            rest -= len;
        }
    }
}

/// See the module.
pub(super) struct Ring {
    ring: IoUring,
    /// What the kernel works on, by token.
    transfers: Vec<Option<Transfer>>,
}

impl Ring {
    /// A ring for `files`, which signals `event` at each completion.
    ///
    /// # Errors
    /// The host refuses io_uring, or knows no restrictions (before Linux 5.10).
    pub(super) fn new(files: &[RawFd], event: RawFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .dontfork()
            .build(MAX_IN_FLIGHT as u32)?;
        let submitter = ring.submitter();
        submitter.register_files(files)?;
        submitter.register_eventfd(event)?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            transfers: Vec::new(),
        })
    }

    /// Queues `transfer`; [`Self::submit`] gives it to the kernel. The caller has fewer than
    /// [`MAX_IN_FLIGHT`] others under way, each with a token of its own below that.
    pub(super) fn start(&mut self, token: usize, transfer: Transfer) -> io::Result<()> {
        if self.transfers.len() <= token {
            self.transfers.resize_with(token + 1, || None);
        }
        let entry = transfer.entry().user_data(token as u64);
        if let Some(slot) = self.transfers.get_mut(token) {
            *slot = Some(transfer);
        }
        // SAFETY: the entry's iovecs and their buffers are owned or kept mapped by the transfer,
        // which stays in its slot, its iovecs unchanged, until the kernel has answered; a ring
        // that is dropped earlier gives the kernel nothing more. The device waits for all answers
        // before it lets go of the memory (`Engine::abandon`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::ErrorKind::ResourceBusy.into())
    }

    /// Gives everything queued to the kernel.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while self.queued() > 0 {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Transfers that the kernel has not seen yet.
    pub(super) fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Adds what has ended to `completions`; queues what has to go on.
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let answers: Vec<_> = self.ring.completion().collect();
        for answer in answers {
            let token = answer.user_data() as usize;
            let Some(mut transfer) = self.transfers.get_mut(token).and_then(Option::take) else {
                continue;
            };
            match transfer.step(answer.result()) {
                Some(outcome) => completions.push(Completion { token, outcome }),
                None => self.start(token, transfer)?,
            }
        }
        Ok(())
    }

    /// The ring itself, for tests of what it may do.
    #[cfg(test)]
    pub(super) fn into_inner(self) -> IoUring {
        self.ring
    }

    /// Forgets what has ended, and does not go on with it; how many transfers that were.
    pub(super) fn forget(&mut self) -> usize {
        let mut ended = 0;
        for answer in self.ring.completion() {
            ended += 1;
            if let Some(slot) = self.transfers.get_mut(answer.user_data() as usize) {
                *slot = None;
            }
        }
        ended
    }
}

//! The system calls of [`bulkhead_abi::syscall`], one function each. A call checks everything,
//! then acts; an error changes nothing. Numbers and their meaning are documented there.

use bulkhead_abi::layout::USER_END;
use bulkhead_abi::machine::{
    CONSOLE_MAX, CONSOLE_READ, CONSOLE_WOULD_BLOCK, CONSOLE_WRITE, CONSOLE_WRITE_ERROR,
};
use bulkhead_abi::syscall::{self, Status};

use crate::capability::Capability;
use crate::frame::Frame;
use crate::hardware::Hardware;
use crate::kernel::{Kernel, Outcome};
use crate::paging::Rights;
use crate::user::{UserRange, UserSlice};

/// Pages zeroed before a call that needs them restarts: 2.4 ms where kernel mode is interpreted.
const CLEAN_STEP: u64 = 8;

impl Kernel {
    /// The call in the running thread's registers.
    pub(crate) fn call(&mut self, hardware: &mut impl Hardware) -> Result<Outcome, Status> {
        let Frame {
            rax,
            rdi,
            rsi,
            rdx,
            r10,
            ..
        } = *self.threads.current_thread().frame();
        match rax {
            syscall::RESTRICTED_ENTER => self.restricted_enter(hardware),
            syscall::EXIT => exit(rdi),
            syscall::CONSOLE_WRITE => self.console_write(hardware, rdi, rsi, rdx, r10),
            syscall::CONSOLE_READ => self.console_read(hardware, rdi, rsi, rdx),
            syscall::MAP => self.map(hardware, rdi, rsi, rdx, r10),
            syscall::PROTECT => self.protect(hardware, rdi, rsi, rdx, r10),
            syscall::UNMAP => self.unmap(hardware, rdi, rsi, rdx),
            syscall::YIELD => Ok(Outcome::Switch),
            syscall::SLEEP => self.sleep(hardware, rdi),
            syscall::THREAD_SPAWN => self.thread_spawn(hardware, rdi, rsi, rdx),
            syscall::THREAD_EXIT => self.thread_exit(),
            syscall::RESTRICTED_BIND => self.restricted_bind(hardware, rdi),
            _ => Err(Status::UnknownCall),
        }
    }

    fn console_write(
        &mut self,
        hardware: &mut impl Hardware,
        console: u64,
        address: u64,
        len: u64,
        stream: u64,
    ) -> Result<Outcome, Status> {
        self.root.require(console, Capability::Console)?;
        let op = match stream {
            1 => CONSOLE_WRITE,
            2 => CONSOLE_WRITE_ERROR,
            _ => return Err(Status::InvalidArgument),
        };
        let mut rest = UserSlice::new(address, len)?.first(u64::from(CONSOLE_MAX));
        let whole = rest.len();
        while !rest.is_empty() {
            let written = whole - rest.len();
            // A bad page behind good ones ends the write where it begins.
            let Some(moved) = self.console_move(hardware, op, rest, false)? else {
                return if written > 0 {
                    Ok(Outcome::Value(written))
                } else {
                    Err(Status::InvalidAddress)
                };
            };
            let Ok(moved @ 1..) = u64::try_from(moved) else {
                return Ok(Outcome::Value(written));
            };
            rest = rest.skip(moved);
        }
        Ok(Outcome::Value(whole))
    }

    fn console_read(
        &mut self,
        hardware: &mut impl Hardware,
        console: u64,
        address: u64,
        len: u64,
    ) -> Result<Outcome, Status> {
        self.root.require(console, Capability::Console)?;
        let buffer = UserSlice::new(address, len)?;
        if buffer.is_empty() {
            return Ok(Outcome::Value(0));
        }
        let moved = self.console_move(hardware, CONSOLE_READ, buffer, true)?;
        match moved.ok_or(Status::InvalidAddress)? {
            CONSOLE_WOULD_BLOCK => {
                self.threads.wait_for_input_current();
                Ok(Outcome::RestartLater)
            }
            moved => u64::try_from(moved)
                .map(Outcome::Value)
                .map_err(|_| Status::InvalidArgument),
        }
    }

    /// One console operation on as much of `buffer` as is contiguous in physical memory: straight
    /// to or from the user's own frames. `None` when its first byte is not the user's to use so.
    fn console_move(
        &self,
        hardware: &mut impl Hardware,
        op: u32,
        buffer: UserSlice,
        write: bool,
    ) -> Result<Option<i64>, Status> {
        let space = self.space()?;
        let wanted = buffer.len().min(u64::from(CONSOLE_MAX));
        let Some((start, mut found)) = space.translate(hardware, buffer.address(), write) else {
            return Ok(None);
        };
        while found < wanted
            && let Some((next, more)) = space.translate(hardware, buffer.address() + found, write)
            && next == start + found
        {
            found += more;
        }
        Ok(Some(hardware.console(op, start, found.min(wanted) as u32)))
    }

    fn map(
        &mut self,
        hardware: &mut impl Hardware,
        untyped: u64,
        address: u64,
        bytes: u64,
        rights: u64,
    ) -> Result<Outcome, Status> {
        self.root.require(untyped, Capability::Untyped)?;
        let (range, rights) = (
            UserRange::pages(address, bytes)?,
            Rights::from_bits(rights)?,
        );
        let space = self.space()?;
        let mapped = space.map(hardware, &mut self.untyped, range, rights);
        self.or_clean(hardware, range.page_count(), mapped)
    }

    fn protect(
        &mut self,
        hardware: &mut impl Hardware,
        space: u64,
        address: u64,
        bytes: u64,
        rights: u64,
    ) -> Result<Outcome, Status> {
        self.root.require(space, Capability::AddressSpace)?;
        let (range, rights) = (
            UserRange::pages(address, bytes)?,
            Rights::from_bits(rights)?,
        );
        let space = self.space()?;
        let changed = space.protect(hardware, &mut self.untyped, range, rights);
        self.or_clean(hardware, 1, changed)
    }

    fn unmap(
        &mut self,
        hardware: &mut impl Hardware,
        space: u64,
        address: u64,
        bytes: u64,
    ) -> Result<Outcome, Status> {
        self.root.require(space, Capability::AddressSpace)?;
        let range = UserRange::pages(address, bytes)?;
        // The kernel writes to the state page by its physical address: it must stay what it is.
        if self
            .state_page
            .is_some_and(|bound| range.contains(bound.address))
        {
            return Err(Status::InvalidAddress);
        }
        let space = self.space()?;
        let unmapped = space.unmap(hardware, &mut self.untyped, range);
        self.or_clean(hardware, 1, unmapped)
    }

    /// Turns a lack of memory into a restart while given-back pages can still be zeroed for it.
    fn or_clean(
        &mut self,
        hardware: &mut impl Hardware,
        pages: u64,
        result: Result<(), Status>,
    ) -> Result<Outcome, Status> {
        let dirty = self.untyped.dirty_pages();
        match result {
            Ok(()) => Ok(Outcome::Value(0)),
            Err(Status::NotEnoughMemory)
                if dirty > 0 && pages <= self.untyped.ready_pages() + dirty =>
            {
                self.untyped.clean(hardware, CLEAN_STEP);
                Ok(Outcome::Restart)
            }
            Err(status) => Err(status),
        }
    }

    fn sleep(&mut self, hardware: &mut impl Hardware, ns: u64) -> Result<Outcome, Status> {
        let wakes_at = hardware.now().saturating_add(self.ticks(ns));
        self.threads.sleep_current(wakes_at);
        Ok(Outcome::Switch)
    }

    /// Ticks of the time stamp counter in `ns` nanoseconds, saturating.
    fn ticks(&self, ns: u64) -> u64 {
        let (ms, rest) = (ns / 1_000_000, ns % 1_000_000);
        let whole = ms.saturating_mul(self.tsc_khz);
        whole.saturating_add(rest.saturating_mul(self.tsc_khz) / 1_000_000)
    }

    fn thread_spawn(
        &mut self,
        hardware: &mut impl Hardware,
        entry: u64,
        stack: u64,
        argument: u64,
    ) -> Result<Outcome, Status> {
        // `iretq` to an address that is not canonical would fault in the kernel.
        if entry >= USER_END || stack > USER_END {
            return Err(Status::InvalidAddress);
        }
        let now = hardware.now();
        let frame = Frame::start(entry, stack, argument);
        let number = self
            .threads
            .spawn(frame, now)
            .ok_or(Status::NotEnoughMemory)?;
        self.update_deadline();
        Ok(Outcome::Value(number as u64))
    }

    fn thread_exit(&mut self) -> Result<Outcome, Status> {
        let current = self.threads.current();
        if self.state_page.is_some_and(|bound| bound.thread == current) {
            self.state_page = None;
        }
        Ok(if self.threads.end_current() {
            Outcome::End(0)
        } else {
            Outcome::Gone
        })
    }
}

fn exit(status: u64) -> Result<Outcome, Status> {
    u8::try_from(status)
        .map(Outcome::End)
        .map_err(|_| Status::InvalidArgument)
}

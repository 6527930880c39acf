//! The console: bytes go straight from and to the program's own frames.

use bulkhead_abi::machine::{
    CONSOLE_MAX, CONSOLE_READ, CONSOLE_WOULD_BLOCK, CONSOLE_WRITE, CONSOLE_WRITE_ERROR,
};
use bulkhead_abi::syscall::Status;

use super::{Answer, Outcome};
use crate::hardware::Hardware;
use crate::kernel::{Kernel, service};
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;
use crate::user::UserSlice;

impl<H: Hardware> Kernel<H> {
    pub(super) fn console_write(
        &mut self,
        thread: Ref<Thread>,
        console: u64,
        [address, len, stream]: [u64; 3],
    ) -> Answer {
        self.service(thread, console, service::CONSOLE)?;
        let op = match stream {
            1 => CONSOLE_WRITE,
            2 => CONSOLE_WRITE_ERROR,
            _ => return Err(Status::InvalidArgument.into()),
        };
        let mut rest = UserSlice::new(address, len)?.first(u64::from(CONSOLE_MAX));
        let whole = rest.len();
        while !rest.is_empty() {
            let written = whole - rest.len();
            // A bad page behind good ones ends the write where it begins.
            let Some(moved) = self.console_move(thread, op, rest, false)? else {
                return if written > 0 {
                    Ok(Outcome::Value(written))
                } else {
                    Err(Status::InvalidAddress.into())
                };
            };
            let Ok(moved @ 1..) = u64::try_from(moved) else {
                return Ok(Outcome::Value(written));
            };
            rest = rest.skip(moved);
        }
        Ok(Outcome::Value(whole))
    }

    pub(super) fn console_read(
        &mut self,
        thread: Ref<Thread>,
        console: u64,
        [address, len, _]: [u64; 3],
    ) -> Answer {
        self.service(thread, console, service::CONSOLE)?;
        let buffer = UserSlice::new(address, len)?;
        if buffer.is_empty() {
            return Ok(Outcome::Value(0));
        }
        let moved = self.console_move(thread, CONSOLE_READ, buffer, true)?;
        match moved.ok_or(Status::InvalidAddress)? {
            CONSOLE_WOULD_BLOCK => {
                self.count_time();
                self.objects.wait_for_input(thread);
                Ok(Outcome::Restart)
            }
            moved => u64::try_from(moved)
                .map(Outcome::Value)
                .map_err(|_| Status::InvalidArgument.into()),
        }
    }

    /// One console operation on as much of `buffer` as is contiguous in physical memory: straight
    /// to or from the user's own frames. `None` when its first byte is not the user's to use so.
    fn console_move(
        &mut self,
        thread: Ref<Thread>,
        op: u32,
        buffer: UserSlice,
        write: bool,
    ) -> Result<Option<i64>, Status> {
        let space = self.space(thread)?;
        let hardware = &mut self.objects.memory;
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
}

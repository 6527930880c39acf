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

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use bulkhead_abi::layout::PAGE_SIZE;
    use bulkhead_abi::syscall::{rights, slot};
    use proptest::prelude::*;

    use super::*;
    use crate::fake::{Info, MODULE, PROGRAM, Partition};
    use crate::kernel::{Next, Trap};

    const RW: u64 = rights::READ | rights::WRITE;
    const AT: u64 = 0x4000_0000;

    #[test]
    fn console_bytes_go_from_the_users_own_frames() {
        let mut p = Partition::usual();
        let write = |p: &mut Partition, at, len, stream| {
            p.call(syscall::CONSOLE_WRITE, [slot::CONSOLE, at, len, stream])
        };
        assert_eq!(write(&mut p, PROGRAM + 0xff0, 0x20, 1), Ok(0x20));
        assert_eq!(write(&mut p, PROGRAM + 8, 3, 2), Ok(3));
        let text = MODULE + 0x1000;
        let wanted = [
            (CONSOLE_WRITE, text + 0xff0, 0x20),
            (CONSOLE_WRITE_ERROR, text + 8, 3),
        ];
        assert_eq!(
            p.hardware.console, wanted,
            "contiguous pages are one operation"
        );
        assert_eq!(write(&mut p, PROGRAM, 3, 3), Err(Status::InvalidArgument));
        assert_eq!(write(&mut p, AT, 3, 1), Err(Status::InvalidAddress));
        assert_eq!(
            write(&mut p, PROGRAM + 0x3ff0, 0x20, 1),
            Ok(0x10),
            "up to the hole"
        );
        assert_eq!(write(&mut p, PROGRAM, 0, 1), Ok(0));
    }

    #[test]
    fn reading_waits_for_input_and_tries_again() {
        let mut p = Partition::usual();
        let rip = p.kernel.threads.current_thread().frame().rip;
        let buffer = [slot::CONSOLE, PROGRAM + 0x2000, 10, 0];
        assert_eq!(p.enter(syscall::CONSOLE_READ, buffer), Next::Idle);
        let frame = *p.kernel.threads.current_thread().frame();
        assert_eq!(
            (frame.rip, frame.rax),
            (rip - 2, syscall::CONSOLE_READ),
            "the call again"
        );
        assert_eq!(p.kernel.wake(&mut p.hardware, Trap::Stray), Next::Idle);
        assert_eq!(
            p.kernel.wake(&mut p.hardware, Trap::ConsoleInput),
            Next::Run
        );
        p.hardware.reads.extend([4, 0, -2]);
        assert_eq!(p.call(syscall::CONSOLE_READ, buffer), Ok(4));
        assert_eq!(
            p.call(syscall::CONSOLE_READ, buffer),
            Ok(0),
            "the end of input"
        );
        assert_eq!(
            p.call(syscall::CONSOLE_READ, buffer),
            Err(Status::InvalidArgument)
        );
        let read_only = [slot::CONSOLE, PROGRAM, 10, 0];
        assert_eq!(
            p.call(syscall::CONSOLE_READ, read_only),
            Err(Status::InvalidAddress)
        );
    }

    #[test]
    fn without_the_grant_there_is_no_console() {
        let mut p = Partition::start(&Info {
            flags: 0,
            ..Info::usual()
        })
        .unwrap();
        let refused = Err(Status::InvalidCapability);
        assert_eq!(
            p.call(syscall::CONSOLE_WRITE, [slot::CONSOLE, PROGRAM, 1, 1]),
            refused
        );
        assert_eq!(
            p.call(syscall::CONSOLE_READ, [slot::CONSOLE, PROGRAM, 1, 0]),
            refused
        );
        assert!(p.hardware.console.is_empty());
    }

    /// Memory goes round: after everything was used once, mapping restarts while old pages are
    /// zeroed, a few at a time.
    #[test]
    #[cfg_attr(
        miri,
        ignore = "thousands of pages: minutes under Miri, and no unsafe code"
    )]
    fn mapping_reuses_memory_a_few_pages_at_a_time() {
        let mut p = Partition::usual();
        let all = p.kernel.untyped.ready_pages() - 16;
        let space = slot::ADDRESS_SPACE;
        p.call(syscall::MAP, [slot::UNTYPED, AT, all * PAGE_SIZE, RW])
            .unwrap();
        p.call(syscall::UNMAP, [space, AT, all * PAGE_SIZE, 0])
            .unwrap();
        let rip = p.kernel.threads.current_thread().frame().rip;
        let mut restarts = 0;
        let arguments = [slot::UNTYPED, AT, 100 * PAGE_SIZE, RW];
        loop {
            p.kernel.threads.current_thread().frame().rip = rip;
            assert_eq!(p.enter(syscall::MAP, arguments), Next::Run);
            let frame = *p.kernel.threads.current_thread().frame();
            if frame.rip == rip {
                assert_eq!(frame.rax, Status::Ok as u64);
                break;
            }
            assert_eq!((frame.rip, frame.rax), (rip - 2, syscall::MAP));
            restarts += 1;
        }
        assert!(
            (80 / CLEAN_STEP..=110 / CLEAN_STEP).contains(&restarts),
            "{restarts}"
        );
        let more = [slot::UNTYPED, AT << 4, all * PAGE_SIZE, RW];
        assert_eq!(
            p.call(syscall::MAP, more),
            Err(Status::NotEnoughMemory),
            "no endless restart"
        );
    }

    #[test]
    fn sleeping_and_ending() {
        let mut p = Partition::usual();
        // A GHz counter: one tick a nanosecond.
        assert_eq!(p.enter(syscall::SLEEP, [5_000, 0, 0, 0]), Next::Idle);
        assert_eq!(p.kernel.deadline(), Some(6_000));
        p.hardware.now = 5_999;
        assert_eq!(p.kernel.wake(&mut p.hardware, Trap::Timer), Next::Idle);
        p.hardware.now = 6_000;
        assert_eq!(p.kernel.wake(&mut p.hardware, Trap::Timer), Next::Run);
        assert_eq!(p.kernel.deadline(), None);
        assert_eq!(p.enter(syscall::SLEEP, [u64::MAX, 0, 0, 0]), Next::Idle);
        let mut p = Partition::usual();
        assert_eq!(
            p.call(syscall::EXIT, [256, 0, 0, 0]),
            Err(Status::InvalidArgument)
        );
        assert_eq!(p.enter(syscall::EXIT, [255, 0, 0, 0]), Next::End(255));
    }

    #[test]
    fn threads_share_the_cpu_and_the_last_one_ends_the_partition() {
        let mut p = Partition::usual();
        assert_eq!(
            p.call(syscall::THREAD_SPAWN, [PROGRAM, PROGRAM, 9, 0]),
            Ok(1)
        );
        let deadline = p.kernel.deadline().unwrap();
        assert_eq!(p.trap(Trap::Timer), Next::Run);
        assert_eq!(p.kernel.threads.current(), 0, "its time is not up");
        p.hardware.now = deadline;
        assert_eq!(p.trap(Trap::Timer), Next::Run);
        assert_eq!(p.kernel.threads.current(), 1);
        assert_eq!(p.kernel.threads.current_thread().frame().rdi, 9);
        assert_eq!(p.enter(syscall::THREAD_EXIT, [0; 4]), Next::Run);
        assert_eq!(p.kernel.threads.current(), 0);
        assert_eq!(p.enter(syscall::THREAD_EXIT, [0; 4]), Next::End(0));
    }

    #[test]
    fn faults_end_the_partition_with_a_signals_status() {
        for (vector, status) in [
            (0, 136),
            (3, 133),
            (6, 132),
            (13, 139),
            (14, 139),
            (17, 135),
        ] {
            let mut p = Partition::usual();
            p.kernel.threads.current_thread().frame().vector = vector;
            assert_eq!(
                p.trap(Trap::Exception { address: 0x1234 }),
                Next::End(status)
            );
            assert_eq!(p.hardware.reports.len(), 1);
            assert!(
                p.hardware.reports[0].contains("0x1234"),
                "{:?}",
                p.hardware.reports
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Any calls with any arguments: the kernel does not panic, answers with a known status,
        /// and never maps anything above user space or changes the kernel's half.
        #[test]
        fn any_calls_leave_the_kernel_sound(
            calls in proptest::collection::vec(
                (0..14_u64, proptest::array::uniform4(argument())), 1..40),
        ) {
            let mut p = Partition::usual();
            let root = p.kernel.space.unwrap().root();
            let kernel_half: Vec<u64> = p.hardware.words(root)[256..].to_vec();
            for (number, arguments) in calls {
                match p.enter(number, arguments) {
                    Next::End(_) => break,
                    Next::Idle => {
                        p.hardware.now += 1 << 40;
                        p.hardware.reads.push_back(1);
                        p.kernel.wake(&mut p.hardware, Trap::ConsoleInput);
                    }
                    Next::Run => {
                        let thread = p.kernel.threads.current_thread();
                        let frame = thread.frame();
                        prop_assert!(frame.rip < USER_END, "rip {:#x}", frame.rip);
                        prop_assert_eq!(frame.cs, crate::frame::USER_CODE);
                        p.trap(Trap::Timer);
                    }
                }
            }
            prop_assert_eq!(&p.hardware.words(root)[256..], kernel_half.as_slice());
        }
    }

    /// Arguments that come near what matters.
    fn argument() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..40_u64,
            any::<u64>(),
            (0..0x40_u64).prop_map(|page| AT + page * PAGE_SIZE),
            (0..0x40_u64).prop_map(|page| page * PAGE_SIZE),
            (0..5_u64).prop_map(|page| PROGRAM + page * PAGE_SIZE),
            (0..8_u64).prop_map(|n| n << 21),
            Just(USER_END),
            Just(u64::MAX),
        ]
    }
}

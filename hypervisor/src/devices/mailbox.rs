//! The console mailbox of Bulkhead kernels: one exit moves up to 64 KiB.
//!
//! A vCPU's write to the console port serves the operation in the mailbox page. A read that finds
//! nothing arms the event loop's [`InputWatch`], which raises one interrupt when there is input.
//! Layout and rules: [`bulkhead_abi::machine`].

use std::fs::File;
use std::sync::Arc;

use bulkhead_abi::machine::{
    CONSOLE_MAX, CONSOLE_READ, CONSOLE_REFUSED, CONSOLE_WOULD_BLOCK, CONSOLE_WRITE,
    CONSOLE_WRITE_ERROR, ConsoleMailbox,
};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromZeros, IntoBytes};

use super::streams::{Output, Read, read_guest};
use crate::error::Error;
use crate::machine::bus::BusDevice;
use crate::machine::memory::GuestMemory;

/// Input, and the doorbell that asks for an interrupt when some comes.
#[derive(Debug)]
struct Input {
    file: File,
    arm: EventFd,
}

/// The port behind which the mailbox is served.
pub struct MailboxPort {
    memory: GuestMemory,
    page: GuestAddress,
    output: Output,
    error: Output,
    input: Option<Arc<Input>>,
}

/// The event loop's part: waits for input when it is asked to.
pub struct InputWatch {
    input: Arc<Input>,
    interrupt: Raise,
    watching: bool,
}

/// Raises the console's interrupt in the guest.
pub type Raise = Box<dyn Fn() + Send>;

/// Builds the port over the mailbox at `page`; with input, also the watch that raises `interrupt`.
///
/// # Errors
/// The host gives no eventfd.
pub fn build(
    memory: GuestMemory,
    page: u64,
    output: Output,
    error: Output,
    input: Option<(File, Raise)>,
) -> Result<(MailboxPort, Option<InputWatch>), Error> {
    let mut port = MailboxPort {
        memory,
        page: GuestAddress(page),
        output,
        error,
        input: None,
    };
    let Some((file, interrupt)) = input else {
        return Ok((port, None));
    };
    let arm = EventFd::new(EFD_NONBLOCK).map_err(Error::io("cannot make an eventfd"))?;
    let input = Arc::new(Input { file, arm });
    port.input = Some(input.clone());
    let watch = InputWatch {
        input,
        interrupt,
        watching: false,
    };
    Ok((port, Some(watch)))
}

impl MailboxPort {
    fn serve(&self, request: &ConsoleMailbox) -> i64 {
        let len = request.len.min(CONSOLE_MAX) as usize;
        let address = GuestAddress(request.address);
        if !self.memory.check_range(address, request.len as usize) {
            return CONSOLE_REFUSED;
        }
        let written = |stream: &Output| match stream.write_guest(&self.memory, address, len) {
            Ok(()) => len as i64,
            Err(_) => CONSOLE_REFUSED,
        };
        match request.op {
            CONSOLE_WRITE => written(&self.output),
            CONSOLE_WRITE_ERROR => written(&self.error),
            CONSOLE_READ => self.read(address, len),
            _ => CONSOLE_REFUSED,
        }
    }

    fn read(&self, address: GuestAddress, len: usize) -> i64 {
        let Some(input) = &self.input else {
            return 0;
        };
        if len == 0 {
            return 0;
        }
        match read_guest(&input.file, &self.memory, address, len) {
            Ok(Read::Bytes(n)) => n as i64,
            Ok(Read::End) => 0,
            Ok(Read::Nothing) => {
                // Full only after 2^64 - 2 unserved requests.
                let _ = input.arm.write(1);
                CONSOLE_WOULD_BLOCK
            }
            Err(_) => CONSOLE_REFUSED,
        }
    }
}

impl BusDevice for MailboxPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        let mut mailbox = ConsoleMailbox::new_zeroed();
        // The page is in guest memory by construction: the loader put it there.
        if self
            .memory
            .read_slice(mailbox.as_mut_bytes(), self.page)
            .is_err()
        {
            return;
        }
        mailbox.result = self.serve(&mailbox);
        let _ = self.memory.write_slice(mailbox.as_bytes(), self.page);
    }
}

impl InputWatch {
    fn input_events(&self) -> Events {
        Events::new(&self.input.file, EventSet::IN | EventSet::ONE_SHOT)
    }
}

impl MutEventSubscriber for InputWatch {
    fn init(&mut self, ops: &mut EventOps) {
        // Without this wait the guest hears of input only when it asks again.
        let _ = ops.add(Events::new(&self.input.arm, EventSet::IN));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        use std::os::fd::AsRawFd;
        if events.fd() != self.input.arm.as_raw_fd() {
            (self.interrupt)();
            return;
        }
        let _ = self.input.arm.read();
        let armed = if self.watching {
            ops.modify(self.input_events())
        } else {
            ops.add(self.input_events())
        };
        self.watching |= armed.is_ok();
        if armed.is_err() {
            // What cannot be waited for is always readable.
            (self.interrupt)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ending::Ending;
    use crate::trace::Trace;
    use std::io::{Read as _, Write as _};

    const PAGE: u64 = 0x1000;

    struct Rig {
        memory: GuestMemory,
        port: MailboxPort,
        output: std::io::PipeReader,
        input: Option<std::io::PipeWriter>,
        watch: Option<InputWatch>,
        interrupt: EventFd,
    }

    fn file(fd: impl Into<std::os::fd::OwnedFd>) -> File {
        File::from(fd.into())
    }

    fn rig(with_input: bool) -> Rig {
        let memory = crate::machine::memory::create(2).unwrap();
        let (output, theirs) = std::io::pipe().unwrap();
        let output_stream = Output::new(file(theirs), Ending::new().unwrap(), Trace::default());
        let (input_theirs, input) = std::io::pipe().unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let raised = interrupt.try_clone().unwrap();
        let raise: Raise = Box::new(move || raised.write(1).unwrap());
        let input_pair = with_input.then(|| (file(input_theirs), raise));
        let (port, watch) = build(
            memory.clone(),
            PAGE,
            output_stream.clone(),
            output_stream,
            input_pair,
        )
        .unwrap();
        Rig {
            memory,
            port,
            output,
            input: with_input.then_some(input),
            watch,
            interrupt,
        }
    }

    impl Rig {
        fn call(&mut self, op: u32, address: u64, len: u32) -> i64 {
            let mailbox = ConsoleMailbox {
                op,
                len,
                address,
                result: 77,
            };
            let page = GuestAddress(PAGE);
            self.memory.write_slice(mailbox.as_bytes(), page).unwrap();
            self.port.write(0, &[0]);
            let mut after = ConsoleMailbox::default();
            self.memory.read_slice(after.as_mut_bytes(), page).unwrap();
            assert_eq!((after.op, after.len, after.address), (op, len, address));
            after.result
        }
    }

    #[test]
    fn writes_reach_the_stream() {
        let mut rig = rig(false);
        rig.memory
            .write_slice(b"hello", GuestAddress(0x2000))
            .unwrap();
        assert_eq!(rig.call(CONSOLE_WRITE, 0x2000, 5), 5);
        assert_eq!(rig.call(CONSOLE_WRITE_ERROR, 0x2001, 2), 2);
        assert_eq!(rig.call(CONSOLE_WRITE, 0x2000, 0), 0);
        let mut got = [0; 7];
        rig.output.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"helloel");
    }

    #[test]
    fn ranges_outside_memory_and_unknown_operations_are_refused() {
        let mut rig = rig(true);
        for (op, address, len) in [
            (0, 0x2000, 1),
            (4, 0x2000, 1),
            (u32::MAX, 0x2000, 1),
            (CONSOLE_WRITE, 0x1f_ffff, 2),
            (CONSOLE_WRITE, u64::MAX, 1),
            (CONSOLE_WRITE, u64::MAX, u32::MAX),
            (CONSOLE_READ, 0x20_0000, 1),
            (CONSOLE_WRITE_ERROR, 0, u32::MAX),
        ] {
            assert_eq!(
                rig.call(op, address, len),
                CONSOLE_REFUSED,
                "{op} {address:#x} {len}"
            );
        }
    }

    #[test]
    fn reads_bring_bytes_then_would_block_then_the_end() {
        let mut rig = rig(true);
        rig.input.as_mut().unwrap().write_all(b"abc").unwrap();
        assert_eq!(rig.call(CONSOLE_READ, 0x3000, 2), 2);
        assert_eq!(rig.call(CONSOLE_READ, 0x3002, 100), 1);
        assert_eq!(rig.call(CONSOLE_READ, 0x3000, 100), CONSOLE_WOULD_BLOCK);
        assert_eq!(rig.watch.as_ref().unwrap().input.arm.read().unwrap(), 1);
        drop(rig.input.take());
        assert_eq!(rig.call(CONSOLE_READ, 0x3000, 100), 0);
        let mut got = [0; 3];
        rig.memory
            .read_slice(&mut got, GuestAddress(0x3000))
            .unwrap();
        assert_eq!(&got, b"abc");
    }

    #[test]
    fn without_input_a_read_finds_the_end() {
        assert_eq!(rig(false).call(CONSOLE_READ, 0x3000, 1), 0);
    }

    #[test]
    fn long_writes_are_served_in_part() {
        let mut rig = rig(false);
        let reader = rig.output.try_clone().unwrap();
        let drain = std::thread::spawn(move || {
            let mut all = vec![0; CONSOLE_MAX as usize];
            let mut reader = reader;
            reader.read_exact(&mut all).unwrap();
        });
        assert_eq!(
            rig.call(CONSOLE_WRITE, 0, CONSOLE_MAX + 1),
            i64::from(CONSOLE_MAX)
        );
        drain.join().unwrap();
    }

    #[test]
    fn input_raises_one_interrupt_for_each_time_it_is_asked_for() {
        use event_manager::{EventManager, SubscriberOps};
        let mut rig = rig(true);
        let watch = rig.watch.take().unwrap();
        let interrupt = rig.interrupt.try_clone().unwrap();
        let mut manager = EventManager::<InputWatch>::new().unwrap();
        manager.add_subscriber(watch);
        for round in 0..3 {
            assert_eq!(rig.call(CONSOLE_READ, 0x3000, 10), CONSOLE_WOULD_BLOCK);
            manager.run_with_timeout(0).unwrap();
            assert!(interrupt.read().is_err(), "round {round}: no input yet");
            rig.input.as_mut().unwrap().write_all(b"x").unwrap();
            manager.run_with_timeout(1000).unwrap();
            assert_eq!(interrupt.read().unwrap(), 1, "round {round}");
            manager.run_with_timeout(0).unwrap();
            assert!(interrupt.read().is_err(), "round {round}: only once");
            assert_eq!(rig.call(CONSOLE_READ, 0x3000, 10), 1);
        }
    }
}

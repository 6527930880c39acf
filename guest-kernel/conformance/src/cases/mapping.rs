//! Frames and page tables in address spaces, message buffers, and messages between address spaces.

use alloc::string::String;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, PROGRAM_BASE, USER_END};
use bulkhead_runtime::abi::object::ThreadRegisters;
use bulkhead_runtime::abi::object::{
    BUFFER_RECEIVE_AT, BUFFER_SENT, FAULT_MEMORY, MAX_WORDS, RIGHTS_ALL, TYPE_ADDRESS_SPACE,
    TYPE_FRAME, TYPE_PAGE_TABLE,
};
use bulkhead_runtime::abi::syscall::{Status, rights};
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{
    ADDRESS_SPACE, AddressSpace, Configuration, EMPTY_REGISTERS, Endpoint, FIRST_THREAD, Frame,
    PageTable, Place, Thread,
};
use bulkhead_runtime::thread;

use super::bench::{Bench, OWN, is_occupied, shared, stop, until};
use super::{READ_WRITE, check, check_eq, named, read, readable, write};

/// Where the cases map: nothing else lies below the same root entry.
const AT: u64 = 0x7d80_0000_0000;

impl Bench {
    pub(super) fn frame(&self) -> Result<Frame, String> {
        self.make(TYPE_FRAME, 0).map(Frame)
    }

    fn space(&self) -> Result<AddressSpace, String> {
        self.make(TYPE_ADDRESS_SPACE, 0).map(AddressSpace)
    }

    /// Page tables for a page at `at`.
    pub(super) fn tables(&self, space: AddressSpace, at: u64) -> Result<(), String> {
        loop {
            let table = PageTable(self.make(TYPE_PAGE_TABLE, 0)?);
            match table.map(space, at) {
                Ok(()) => {}
                Err(Status::DeleteFirst) => return Place::own(table.0).delete().map_err(named),
                Err(status) => return Err(named(status)),
            }
        }
    }
}

fn map(frame: Frame, at: u64, rights: u64) -> Result<(), Status> {
    // SAFETY: the cases use what they map by volatile accesses alone.
    unsafe { frame.map(ADDRESS_SPACE, at, rights) }
}

fn unmap(frame: Frame) -> Result<(), Status> {
    // SAFETY: as above.
    unsafe { frame.unmap() }
}

pub(super) fn frames() -> Result<(), String> {
    let bench = Bench::new()?;
    let (one, other) = (bench.frame()?, bench.frame()?);
    check_eq!(map(one, AT, READ_WRITE), Err(Status::NotMapped), "no table");
    bench.tables(ADDRESS_SPACE, AT)?;
    for (at, rights, status) in [
        (AT + 8, READ_WRITE, Status::InvalidArgument),
        (AT, 8, Status::InvalidArgument),
        (0, READ_WRITE, Status::InvalidAddress),
        (USER_END, READ_WRITE, Status::InvalidAddress),
        (u64::MAX << 12, READ_WRITE, Status::InvalidAddress),
        (AT + LARGE_PAGE_SIZE, READ_WRITE, Status::NotMapped),
        (PROGRAM_BASE, READ_WRITE, Status::DeleteFirst),
    ] {
        check_eq!(map(one, at, rights), Err(status), alloc::format!("{at:#x}"));
    }
    check_eq!(map(one, AT, READ_WRITE), Ok(()), "map");
    check_eq!(read(AT), 0, "fresh memory");
    write(AT, 7);
    check_eq!(
        map(other, AT, READ_WRITE),
        Err(Status::DeleteFirst),
        "something is there"
    );
    check_eq!(
        map(one, AT + PAGE_SIZE, rights::READ),
        Err(Status::DeleteFirst),
        "mapped already"
    );
    check_eq!(map(one, AT, rights::READ), Ok(()), "fewer rights");
    check_eq!(read(AT), 7, "contents");
    // A copy is mapped nowhere, and has rights of its own.
    let weak = Frame(bench.minted(one.0, 1, 0)?);
    let next = AT + PAGE_SIZE;
    check_eq!(
        map(weak, next, READ_WRITE),
        Err(Status::IllegalOperation),
        "rights"
    );
    check_eq!(map(weak, next, rights::READ), Ok(()), "a second mapping");
    check_eq!(read(next), 7, "the same memory");
    check_eq!(map(one, AT, READ_WRITE), Ok(()), "more rights again");
    write(AT, 8);
    check_eq!(read(next), 8, "the same memory still");
    check_eq!(unmap(one), Ok(()), "unmap");
    check!(!readable(AT) && readable(next), "only its own mapping goes");
    check_eq!(unmap(one), Ok(()), "unmap again");
    bench.finish()
}

/// Deleting a capability unmaps what it mapped; an access faults there.
pub(super) fn deleted() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    bench.tables(ADDRESS_SPACE, AT)?;
    let frame = bench.frame()?;
    let copy = Frame(bench.minted(frame.0, RIGHTS_ALL, 0)?);
    map(frame, AT, READ_WRITE).map_err(named)?;
    map(copy, AT + PAGE_SIZE, READ_WRITE).map_err(named)?;
    write(AT, 5);
    check_eq!(read(AT + PAGE_SIZE), 5, "R5: mapped");
    check_eq!(Place::own(copy.0).delete(), Ok(()), "R5");
    check!(!readable(AT + PAGE_SIZE) && readable(AT), "R5: unmapped");
    extern "C" fn touch(own: u64, at: u64, _: u64, _: u64) -> ! {
        shared(0).store(read(at), Ordering::Relaxed);
        stop(own)
    }
    let assistant = bench.assistant(OWN)?;
    let configuration = Configuration {
        fault_handler: endpoint.0,
        ..Configuration::OWN
    };
    assistant.thread.configure(configuration).map_err(named)?;
    assistant.begin(touch, [AT + PAGE_SIZE, 0, 0])?;
    let fault = endpoint.receive(Some(reply)).map_err(named)?;
    check_eq!(u64::from(fault.label), FAULT_MEMORY, "R5: a fault");
    check_eq!(fault.words().get(3), Some(&(AT + PAGE_SIZE)), "R5: there");
    // Mapped again, the access is repeated and finds what the frame holds.
    let again = Frame(bench.minted(frame.0, RIGHTS_ALL, 0)?);
    map(again, AT + PAGE_SIZE, rights::READ).map_err(named)?;
    reply.answer(&Message::new(0)).map_err(named)?;
    check!(
        until(|| shared(0).load(Ordering::Relaxed) == 5),
        "R5: it does not go on"
    );
    Place::own(frame.0).revoke().map_err(named)?;
    check!(readable(AT) && !readable(AT + PAGE_SIZE), "R5: revoked");
    bench.finish()
}

/// A page table that goes takes what is mapped below it along.
pub(super) fn tables() -> Result<(), String> {
    let bench = Bench::new()?;
    let tables = [
        PageTable(bench.make(TYPE_PAGE_TABLE, 0)?),
        PageTable(bench.make(TYPE_PAGE_TABLE, 0)?),
        PageTable(bench.make(TYPE_PAGE_TABLE, 0)?),
    ];
    for table in tables {
        check_eq!(
            table.map(ADDRESS_SPACE, AT),
            Ok(()),
            "the first that is missing"
        );
    }
    check_eq!(
        tables[0].map(ADDRESS_SPACE, 0x1000),
        Err(Status::DeleteFirst),
        "mapped already"
    );
    let one_more = PageTable(bench.make(TYPE_PAGE_TABLE, 0)?);
    check_eq!(
        one_more.map(ADDRESS_SPACE, AT),
        Err(Status::DeleteFirst),
        "none is missing"
    );
    check_eq!(
        one_more.map(ADDRESS_SPACE, USER_END),
        Err(Status::InvalidAddress),
        "address"
    );
    let copy = bench.slot()?;
    let copied = Place::own(copy).copy(Place::own(tables[2].0), RIGHTS_ALL);
    check_eq!(
        copied,
        Err(Status::IllegalOperation),
        "one capability answers for a table"
    );
    let frame = bench.frame()?;
    map(frame, AT, READ_WRITE).map_err(named)?;
    write(AT, 3);
    check_eq!(Place::own(tables[1].0).delete(), Ok(()), "the middle one");
    check!(!readable(AT), "what is below it is unmapped");
    check_eq!(
        map(frame, AT, READ_WRITE),
        Err(Status::NotMapped),
        "it is missing"
    );
    check_eq!(
        one_more.map(ADDRESS_SPACE, AT),
        Ok(()),
        "another in its place"
    );
    // The frame's mapping was below the old one: its end does not touch what is there now.
    let other = bench.frame()?;
    bench.tables(ADDRESS_SPACE, AT)?;
    map(other, AT, READ_WRITE).map_err(named)?;
    check_eq!(unmap(frame), Ok(()), "the old mapping");
    check!(readable(AT), "the new mapping stays");
    Place::own(tables[2].0).delete().map_err(named)?;
    check!(readable(AT), "and stays without the old table");
    bench.finish()
}

/// What the assistants of another address space run: position-independent, and nothing else.
#[unsafe(naked)]
extern "C" fn foreign_call() -> ! {
    // Calls by the handle in r15 with words that grow, for ever; stops when it is refused.
    core::arch::naked_asm!(
        "2:",
        "mov rax, {call}",
        "mov rdi, r15",
        "inc rdx",
        "syscall",
        "test rax, rax",
        "jz 2b",
        "3:",
        "mov rax, [0]",
        "jmp 3b",
        call = const bulkhead_runtime::abi::syscall::CALL | 1 << 8,
    )
}

/// A thread in an address space of its own, where its code alone is mapped, calls the case.
pub(super) fn other_space() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply, faults) = (bench.endpoint()?, bench.reply()?, bench.endpoint()?);
    let space = bench.space()?;
    let code = bench.frame()?;
    bench.tables(ADDRESS_SPACE, AT)?;
    bench.tables(space, 0x40_0000)?;
    map(code, AT, READ_WRITE).map_err(named)?;
    // SAFETY: the function is shorter than the page, which was just mapped.
    unsafe { core::ptr::copy_nonoverlapping(foreign_call as *const u8, AT as *mut u8, 128) };
    let theirs = Frame(bench.minted(code.0, RIGHTS_ALL, 0)?);
    // SAFETY: in an address space where nothing of Rust's lies.
    unsafe { theirs.map(space, 0x40_0000, rights::READ | rights::EXECUTE) }.map_err(named)?;
    let assistant = bench.assistant(OWN)?;
    let configuration = Configuration {
        address_space: space.0,
        fault_handler: faults.0,
        ..Configuration::OWN
    };
    assistant.thread.configure(configuration).map_err(named)?;
    let registers = ThreadRegisters {
        rip: 0x40_0000,
        r15: endpoint.0,
        ..EMPTY_REGISTERS
    };
    // SAFETY: its code is the function above, which touches no memory.
    unsafe { assistant.thread.set_registers(&registers, true) }.map_err(named)?;
    for round in 1..=50 {
        let received = endpoint.receive(Some(reply)).map_err(named)?;
        check_eq!(
            received.words(),
            &[round][..],
            "a call from another address space"
        );
        reply.answer(&Message::new(0).word(round)).map_err(named)?;
    }
    // The endpoint goes: the call is refused, and the thread faults, in its address space.
    endpoint.place().delete().map_err(named)?;
    let fault = faults.receive(Some(reply)).map_err(named)?;
    let words = fault.words();
    check_eq!(
        u64::from(fault.label),
        FAULT_MEMORY,
        "F1: a fault in another address space"
    );
    check_eq!(words.get(3), Some(&0), "F1: its address");
    check!(
        (0x40_0000..0x40_0080).contains(&words[0]),
        "F1: its instruction"
    );
    // The address space goes under its thread, which has none then and faults at once.
    check_eq!(space.place().revoke(), Ok(()), "without its copies");
    check_eq!(space.place().delete(), Ok(()), "the address space");
    reply.answer(&Message::new(0)).map_err(named)?;
    let fault = faults.receive(Some(reply)).map_err(named)?;
    check_eq!(
        fault.words().get(3),
        fault.words().first(),
        "it cannot fetch"
    );
    bench.finish()
}

/// Where the two message buffers of a case are mapped.
const BUFFERS: [u64; 2] = [AT, AT + PAGE_SIZE];

fn give_buffer(thread: Thread, frame: Frame) -> Result<(), String> {
    let configuration = Configuration {
        message_buffer: frame.0,
        ..Configuration::OWN
    };
    thread.configure(configuration).map_err(named)
}

/// Takes the case's own message buffer away again.
fn without_buffer(done: Result<(), String>) -> Result<(), String> {
    FIRST_THREAD.configure(Configuration::OWN).map_err(named)?;
    done
}

fn word_at(buffer: u64, index: u64) -> u64 {
    read(buffer + index * 8)
}

const fn pattern(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234
}

/// Every length, beyond the registers too.
pub(super) fn long_messages() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    bench.tables(ADDRESS_SPACE, AT)?;
    let frames = [bench.frame()?, bench.frame()?];
    for (frame, at) in frames.into_iter().zip(BUFFERS) {
        map(frame, at, READ_WRITE).map_err(named)?;
    }
    extern "C" fn send(own: u64, to: u64, _: u64, _: u64) -> ! {
        for n in 0..MAX_WORDS {
            write(BUFFERS[1] + n * 8, pattern(n));
        }
        for length in 0..=MAX_WORDS {
            let first = (0..10).fold(Message::new(1), |message, n| message.word(pattern(n)));
            let _ = Endpoint(to).send(&first.length(length as usize));
        }
        stop(own)
    }
    let assistant = bench.assistant(OWN)?;
    give_buffer(assistant.thread, frames[1])?;
    give_buffer(FIRST_THREAD, frames[0])?;
    assistant.begin(send, [endpoint.0, 0, 0])?;
    let receive = || {
        for length in 0..=MAX_WORDS {
            write(BUFFERS[0] + length * 8, 99);
            let received = endpoint.receive(None).map_err(named)?;
            check_eq!(received.length as u64, length, "E1: length");
            let in_registers = (0..).zip(received.words()).all(|(n, w)| *w == pattern(n));
            let behind = (10..length).all(|n| word_at(BUFFERS[0], n) == pattern(n));
            check!(in_registers && behind, "E1: the words of length {length}");
            check!(
                word_at(BUFFERS[0], length) == 99,
                "E1: more than {length} words"
            );
        }
        // Without a buffer the rest is cut off.
        FIRST_THREAD.configure(Configuration::OWN).map_err(named)?;
        assistant.begin(send, [endpoint.0, 0, 0])?;
        for length in 0..=MAX_WORDS {
            let received = endpoint.receive(None).map_err(named)?;
            check_eq!(received.length as u64, length.min(10), "E3: cut off");
        }
        Ok(())
    };
    without_buffer(receive())?;
    bench.finish()
}

/// Capabilities come along with the right to grant, and do not without.
pub(super) fn transfer() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, gift) = (bench.endpoint()?, bench.notification()?);
    bench.tables(ADDRESS_SPACE, AT)?;
    let frames = [bench.frame()?, bench.frame()?];
    for (frame, at) in frames.into_iter().zip(BUFFERS) {
        map(frame, at, READ_WRITE).map_err(named)?;
    }
    extern "C" fn send(own: u64, to: u64, gift: u64, _: u64) -> ! {
        write(BUFFERS[1] + BUFFER_SENT * 8, gift);
        let _ = Endpoint(to).send(&Message::new(1).word(6).capabilities(1));
        stop(own)
    }
    let assistant = bench.assistant(OWN)?;
    give_buffer(assistant.thread, frames[1])?;
    give_buffer(FIRST_THREAD, frames[0])?;
    let receive = || {
        for (given, arrives) in [(RIGHTS_ALL, 1), (RIGHTS_ALL & !4, 0), (2, 0), (6, 1)] {
            let (by, to) = (bench.minted(endpoint.0, given, 0)?, bench.slot()?);
            write(BUFFERS[0] + BUFFER_RECEIVE_AT * 8, to);
            assistant.begin(send, [by, gift.0, 0])?;
            let received = endpoint.receive(None).map_err(named)?;
            check_eq!(received.words(), &[6][..], "E12: words");
            check_eq!(
                received.capabilities,
                arrives,
                alloc::format!("E12: rights {given}")
            );
            check_eq!(is_occupied(Place::own(to)), arrives == 1, "E12: the slot");
            thread::yield_now();
        }
        Ok(())
    };
    without_buffer(receive())?;
    check_eq!(gift.signal(), Ok(()), "E12: the sender keeps its own");
    bench.finish()
}

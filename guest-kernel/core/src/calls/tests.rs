//! The system calls, one by one and at random, on a machine of the tests.

extern crate std;
use core::time::Duration;
use std::vec::Vec;

use bulkhead_abi::boot::{Device, PhysRange};
use bulkhead_abi::layout::{PAGE_SIZE, USER_END};
use bulkhead_abi::machine::{CONSOLE_WRITE, CONSOLE_WRITE_ERROR};
use bulkhead_abi::object::{
    TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION, TYPE_PAGE_TABLE, TYPE_REPLY, TYPE_SCHED_CONTEXT,
    TYPE_THREAD,
};
use bulkhead_abi::syscall::{rights, slot};
use bulkhead_abi::timeout::Timeout;
use proptest::prelude::*;

use super::*;
use crate::fake::{Info, MODULE, PROGRAM, Partition};
use crate::kernel::{Next, Trap};
use crate::objects::memory::Memory;
use crate::objects::thread::State;

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
        p.hardware().console,
        wanted,
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
    let rip = p.frame().rip;
    let buffer = [slot::CONSOLE, PROGRAM + 0x2000, 10, 0];
    assert_eq!(p.enter(syscall::CONSOLE_READ, buffer), Next::Idle);
    let frame = *p.frame();
    assert_eq!(
        (frame.rip, frame.rax),
        (rip - 2, syscall::CONSOLE_READ),
        "the call again"
    );
    assert_eq!(p.kernel.wake(Trap::Stray), Next::Idle);
    assert_eq!(p.kernel.wake(Trap::ConsoleInput), Next::Run);
    p.hardware().reads.extend([4, 0, -2]);
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

/// One interrupt does not wake hundreds of threads: the timer comes at once for the rest.
#[test]
fn input_for_many_readers_wakes_them_by_several_interrupts() {
    let mut p = Partition::usual();
    let first = p.kernel.objects.current().unwrap();
    let threads: Vec<Ref<Thread>> = (0..40)
        .map(|n| {
            let handle = slot::FREE + 2 * n;
            spawn(&mut p, handle);
            let thread = p.kernel.thread(first, handle).unwrap();
            p.kernel.objects.wait_for_input(thread);
            thread
        })
        .collect();
    let waiting = |p: &mut Partition| {
        let objects = &p.kernel.objects;
        let state = |thread: &&Ref<Thread>| objects.memory.get(**thread).state();
        let all = threads.iter();
        all.filter(|thread| state(thread) == State::Reading).count()
    };
    p.trap(Trap::ConsoleInput);
    let left = waiting(&mut p);
    assert!((1..40).contains(&left), "{left} are left");
    while waiting(&mut p) > 0 {
        let now = p.hardware().now;
        assert_eq!(
            p.kernel.objects.deadline(),
            Some(now),
            "the timer comes at once"
        );
        p.trap(Trap::Timer);
    }
    assert_ne!(p.kernel.objects.deadline(), Some(p.hardware().now));
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
    assert!(p.hardware().console.is_empty());
}

/// A page of the program's, at a free address with its tables: the handles are free from `at` on.
pub(crate) fn page(p: &mut Partition, handle: u64, at: u64) {
    for (kind, handle, count) in [(TYPE_FRAME, handle, 1), (TYPE_PAGE_TABLE, handle + 1, 3)] {
        let retype = [kind, 0, slot::CNODE, 0, 0, handle, count];
        p.invoke(syscall::RETYPE, slot::MEMORY, &retype).unwrap();
    }
    let tables = [slot::ADDRESS_SPACE, at, 3];
    let used = p.invoke(syscall::TABLE_MAP, handle + 1, &tables).unwrap();
    assert_eq!(used[0], 3);
    let map = [slot::ADDRESS_SPACE, at, RW];
    p.invoke(syscall::FRAME_MAP, handle, &map).unwrap();
}

#[test]
fn tables_are_put_as_far_as_they_are_missing() {
    let mut p = Partition::usual();
    let handle = slot::FREE;
    page(&mut p, handle, AT);
    // The same directory, another table: one is missing, two are offered.
    let retype = [TYPE_PAGE_TABLE, 0, slot::CNODE, 0, 0, handle + 10, 2];
    p.invoke(syscall::RETYPE, slot::MEMORY, &retype).unwrap();
    let tables = [slot::ADDRESS_SPACE, AT + (2 << 20), 2];
    let used = p.invoke(syscall::TABLE_MAP, handle + 10, &tables);
    assert_eq!(used.map(|[used, _]| used), Ok(1));
    let none = p.invoke(syscall::TABLE_MAP, handle + 11, &tables);
    assert_eq!(none, Err(Status::DeleteFirst), "none is missing");
    // Three are missing, one is there.
    let elsewhere = [slot::ADDRESS_SPACE, AT << 12, 3];
    let used = p.invoke(syscall::TABLE_MAP, handle + 11, &elsewhere);
    assert_eq!(used.map(|[used, _]| used), Ok(1));
    let many = [slot::ADDRESS_SPACE, AT, 4];
    let refused = p.invoke(syscall::TABLE_MAP, handle + 11, &many);
    assert_eq!(refused, Err(Status::OutOfRange));
    assert_eq!((p.frame().rdx, p.frame().r8), (0, 3));
}

#[test]
fn sleeping_and_ending() {
    let mut p = Partition::usual();
    // A GHz counter: one tick a nanosecond.
    assert_eq!(p.enter(syscall::SLEEP, [5_000, 0, 0, 0]), Next::Idle);
    assert_eq!(p.kernel.objects.deadline(), Some(6_000));
    p.hardware().now = 5_999;
    assert_eq!(p.kernel.wake(Trap::Timer), Next::Idle);
    p.hardware().now = 6_000;
    assert_eq!(p.kernel.wake(Trap::Timer), Next::Run);
    assert_eq!(p.kernel.objects.deadline(), None);
    assert_eq!(p.enter(syscall::SLEEP, [u64::MAX, 0, 0, 0]), Next::Idle);
    let mut p = Partition::usual();
    assert_eq!(
        p.call(syscall::EXIT, [slot::PARTITION, 256, 0, 0]),
        Err(Status::InvalidArgument)
    );
    assert_eq!(
        p.enter(syscall::EXIT, [slot::PARTITION, 255, 0, 0]),
        Next::End(255)
    );
}

#[test]
fn a_timeout_stands_beside_the_number_of_what_waits() {
    let mut p = Partition::usual();
    let (endpoint, notification) = (slot::FREE, slot::FREE + 1);
    for (kind, at) in [(TYPE_ENDPOINT, endpoint), (TYPE_NOTIFICATION, notification)] {
        let retype = [kind, 0, slot::CNODE, 0, 0, at, 1];
        p.invoke(syscall::RETYPE, slot::MEMORY, &retype).unwrap();
    }
    let timeout = Timeout::after(Duration::from_millis(3));
    for (number, handle) in [
        (syscall::WAIT, notification),
        (syscall::RECV, endpoint),
        (syscall::SEND, endpoint),
        (syscall::CALL, endpoint),
    ] {
        let start = p.hardware().now;
        let due = start + timeout.microseconds() * 1_000;
        let waits = p.enter(number | timeout.bits(), [handle, 0, 0, 0]);
        assert_eq!(waits, Next::Idle, "{number}");
        assert_eq!(p.kernel.objects.deadline(), Some(due));
        p.hardware().now = due - 1;
        assert_eq!(p.kernel.wake(Trap::Timer), Next::Idle);
        p.hardware().now = due;
        assert_eq!(p.kernel.wake(Trap::Timer), Next::Run);
        assert_eq!(p.frame().rax, Status::TimedOut as u64);
    }
    // What does not wait has no use for one, and nobody is told of it.
    spawn(&mut p, slot::FREE + 2);
    assert_eq!(p.enter(syscall::RECV, [endpoint, 0, 0, 0]), Next::Run);
    let send = 7 << 32 | timeout.bits() | 1 << 8 | syscall::NB_SEND;
    assert_eq!(p.enter(send, [endpoint, 0, 5, 0]), Next::Run);
    assert_eq!(p.frame().rax, Status::Ok as u64);
    assert_eq!(p.enter(syscall::YIELD, [0; 4]), Next::Run);
    assert_eq!((p.frame().rsi, p.frame().rdx), (7 << 32 | 1 << 8, 5));
}

/// Makes a thread that begins at the program's start and has as much time as the first one.
pub(crate) fn spawn(p: &mut Partition, at: u64) {
    let cnode = slot::CNODE;
    for (kind, at) in [(TYPE_THREAD, at), (TYPE_SCHED_CONTEXT, at + 1)] {
        let made = p.invoke(
            syscall::RETYPE,
            slot::MEMORY,
            &[kind, 0, cnode, 0, 0, at, 1],
        );
        assert_eq!(made, Ok([kind, 0]));
    }
    let registers = PROGRAM + 0x2000;
    for (offset, word) in [(5 * 8, 9), (7 * 8, PROGRAM), (16 * 8, PROGRAM)] {
        p.hardware().store(MODULE + 0x3000 + offset, word);
    }
    for (operation, handle, arguments) in [
        (
            syscall::THREAD_CONFIGURE,
            at,
            [cnode, slot::ADDRESS_SPACE, slot::PARTITION, 0],
        ),
        (syscall::THREAD_SET_PRIORITY, at, [slot::THREAD, 128, 0, 0]),
        (
            syscall::SCHED_CONFIGURE,
            slot::SCHED_CONTROL,
            [at + 1, 10_000_000, 10_000_000, 0],
        ),
        (syscall::SCHED_BIND, at + 1, [at, 0, 0, 0]),
        (syscall::THREAD_WRITE_REGISTERS, at, [registers, 1, 0, 0]),
    ] {
        assert!(
            p.invoke(operation, handle, &arguments).is_ok(),
            "{operation}"
        );
    }
}

#[test]
fn threads_of_one_priority_take_turns() {
    let mut p = Partition::usual();
    let first = p.kernel.objects.current();
    assert_eq!(p.kernel.objects.deadline(), None, "alone");
    spawn(&mut p, slot::FREE);
    let deadline = p.kernel.objects.deadline().unwrap();
    assert_eq!(p.trap(Trap::Timer), Next::Run);
    assert_eq!(p.kernel.objects.current(), first, "its time is not up");
    p.hardware().now = deadline;
    assert_eq!(p.trap(Trap::Timer), Next::Run);
    assert_ne!(p.kernel.objects.current(), first);
    assert_eq!((p.frame().rdi, p.frame().rip), (9, PROGRAM));
    let stop = p.enter(syscall::THREAD_SUSPEND, [slot::FREE, 0, 0, 0]);
    assert_eq!(stop, Next::Run);
    assert_eq!(p.kernel.objects.current(), first, "it stopped itself");
    let stop = p.enter(syscall::THREAD_SUSPEND, [slot::THREAD, 0, 0, 0]);
    assert_eq!(stop, Next::Idle);
}

#[test]
fn who_lowers_itself_below_others_lets_them_run_at_once() {
    let mut p = Partition::usual();
    let first = p.kernel.objects.current();
    spawn(&mut p, slot::FREE);
    let lower = |p: &mut Partition, priority| {
        let frame = p.frame();
        (frame.rax, frame.rdi) = (syscall::THREAD_SET_PRIORITY, slot::THREAD);
        (frame.rdx, frame.r8, frame.r9) = (slot::THREAD, priority, 255);
        assert_eq!(p.trap(Trap::Syscall), Next::Run);
    };
    lower(&mut p, 128);
    assert_eq!(p.kernel.objects.current(), first, "an equal waits its turn");
    lower(&mut p, 127);
    assert_ne!(p.kernel.objects.current(), first);
    assert_eq!((p.frame().rdi, p.frame().rip), (9, PROGRAM));
}

#[test]
fn a_refusal_says_what_would_do() {
    let mut p = Partition::usual();
    let retype = [TYPE_ENDPOINT, 0, slot::CNODE, 0, 0, slot::FREE, 0];
    let refused = p.invoke(syscall::RETYPE, slot::MEMORY, &retype);
    assert_eq!(refused, Err(Status::OutOfRange));
    assert_eq!((p.frame().rdx, p.frame().r8), (1, 256));
    let unknown = p.invoke(syscall::COUNT, 0, &[]);
    assert_eq!(unknown, Err(Status::UnknownCall));
}

#[test]
fn unknown_calls_and_faults_are_messages_to_a_handler() {
    let mut p = Partition::usual();
    let (endpoint, handled) = (slot::FREE, slot::FREE + 1);
    let kind = TYPE_ENDPOINT;
    let retype = [kind, 0, slot::CNODE, 0, 0, endpoint, 1];
    p.invoke(syscall::RETYPE, slot::MEMORY, &retype).unwrap();
    spawn(&mut p, handled);
    let configuration = [slot::CNODE, slot::ADDRESS_SPACE, endpoint, 0];
    p.invoke(syscall::THREAD_CONFIGURE, handled, &configuration)
        .unwrap();
    // It waits for the fault, which lets the other thread run.
    assert_eq!(p.enter(syscall::RECV, [endpoint, 0, 0, 0]), Next::Run);
    assert_eq!(p.frame().rdi, 9);
    assert_eq!(p.enter(syscall::COUNT + 3, [0; 4]), Next::Run);
    let frame = *p.frame();
    assert_eq!(frame.rax, Status::Ok as u64);
    assert_eq!(frame.rsi, 5 << 8 | 2 << 32, "five words, label 2");
    assert_eq!((frame.rdx, frame.r10), (PROGRAM, syscall::COUNT + 3));
    assert!(p.hardware().reports.is_empty());
}

/// Whoever faults again and again has no more time than others.
#[test]
fn what_a_thread_used_before_a_fault_counts() {
    const MS: u64 = 1_000_000;
    let mut p = Partition::usual();
    let (endpoint, reply, handled) = (slot::FREE, slot::FREE + 1, slot::FREE + 2);
    for (kind, at) in [(TYPE_ENDPOINT, endpoint), (TYPE_REPLY, reply)] {
        let retype = [kind, 0, slot::CNODE, 0, 0, at, 1];
        p.invoke(syscall::RETYPE, slot::MEMORY, &retype).unwrap();
    }
    spawn(&mut p, handled);
    let configuration = [slot::CNODE, slot::ADDRESS_SPACE, endpoint, 0];
    p.invoke(syscall::THREAD_CONFIGURE, handled, &configuration)
        .unwrap();
    let time = [handled + 1, 5 * MS, 10 * MS];
    p.invoke(syscall::SCHED_CONFIGURE, slot::SCHED_CONTROL, &time)
        .unwrap();
    let mut wait = syscall::RECV;
    for (fault, left) in [
        (Trap::Syscall, 5),
        (Trap::Exception { address: 1 }, 3),
        (Trap::Syscall, 1),
    ] {
        assert_eq!(p.enter(wait, [endpoint, reply, 0, 0]), Next::Run);
        wait = syscall::REPLY_RECV;
        let now = p.hardware().now;
        assert_eq!(
            p.kernel.objects.deadline(),
            Some(now + left * MS),
            "{fault:?}"
        );
        p.hardware().now += 2 * MS;
        p.frame().rax = syscall::COUNT + 3;
        assert_eq!(p.trap(fault), Next::Run);
        assert_eq!(p.frame().rax, Status::Ok as u64, "its handler runs");
    }
}

/// An interrupt that comes meanwhile leaves a thread that configures itself with its handles and
/// its code.
#[test]
fn a_thread_that_configures_itself_is_whole_whatever_comes() {
    let mut p = Partition::usual();
    p.hardware().patience = Some(0);
    let itself = [slot::CNODE, slot::ADDRESS_SPACE, slot::PARTITION, 0];
    let space = p.kernel.page_table_root();
    p.invoke(syscall::THREAD_CONFIGURE, slot::THREAD, &itself)
        .unwrap();
    assert_eq!(p.kernel.page_table_root(), space);
    p.invoke(syscall::THREAD_CONFIGURE, slot::THREAD, &itself)
        .unwrap();
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
        p.frame().vector = vector;
        assert_eq!(
            p.trap(Trap::Exception { address: 0x1234 }),
            Next::End(status)
        );
        assert_eq!(p.hardware().reports.len(), 1);
        assert!(
            p.hardware().reports[0].contains("0x1234"),
            "{:?}",
            p.hardware().reports
        );
    }
}

proptest! {
#![proptest_config(ProptestConfig {
    cases: 256,
    failure_persistence: None,
    ..ProptestConfig::default()
})]

/// Any calls with any arguments: the kernel does not panic, answers with a known status,
/// and never maps anything above user space or changes the kernel's half.
#[test]
#[cfg_attr(miri, ignore = "minutes under Miri, and no unsafe code")]
fn any_calls_leave_the_kernel_sound(
    calls in proptest::collection::vec(
        (number(), proptest::array::uniform4(argument())), 1..40),
) {
    let mut p = Partition::usual();
    let root = p.kernel.page_table_root();
    let kernel_half: Vec<u64> = p.hardware().table(root)[256..].to_vec();
    for (number, arguments) in calls {
        match p.enter(number, arguments) {
            Next::End(_) => break,
            Next::Idle => {
                p.hardware().now += 1 << 40;
                p.hardware().reads.push_back(1);
                if p.kernel.wake(Trap::ConsoleInput) == Next::Idle {
                    break;
                }
            }
            Next::Run => {
                let frame = *p.frame();
                prop_assert!(frame.rip < USER_END, "rip {:#x}", frame.rip);
                prop_assert_eq!(frame.cs, crate::frame::USER_CODE);
                p.trap(Trap::Timer);
            }
        }
    }
    prop_assert_eq!(&p.hardware().table(root)[256..], kernel_half.as_slice());
}
}

/// A partition with one device.
fn with_device() -> Partition {
    let device = Device {
        registers: PhysRange {
            start: 0xd000_0000,
            len: 0x1000,
        },
        ..Device::default()
    };
    let mut info = Info::usual();
    info.devices.push(device);
    Partition::start(&info).unwrap()
}

/// Its registers are a frame, its interrupts signals.
#[test]
fn a_driver_has_registers_and_interrupts() {
    let mut p = with_device();
    let (cnode, notification, frame) = (slot::CNODE, slot::FREE, slot::FREE + 1);
    for (from, kind, at) in [
        (slot::MEMORY, TYPE_NOTIFICATION, notification),
        (slot::DEVICES, TYPE_FRAME, frame),
    ] {
        let retype = [kind, 0, cnode, 0, 0, at, 1];
        p.invoke(syscall::RETYPE, from, &retype).unwrap();
    }
    let lies = p.invoke(syscall::FRAME_ADDRESS, frame, &[]);
    assert_eq!(lies, Ok([0xd000_0000, 0x1000]));
    let refused = p.invoke(syscall::FRAME_ADDRESS, notification, &[]);
    assert_eq!(refused, Err(Status::InvalidCapability));

    let badged = [slot::FREE + 2, 64, cnode, notification, 64, 15, 4];
    p.invoke(syscall::MINT, cnode, &badged).unwrap();
    let handler = slot::INTERRUPTS;
    let bind = p.invoke(syscall::IRQ_BIND, handler, &[slot::FREE + 2]);
    assert!(bind.is_ok());
    assert_eq!(p.enter(syscall::WAIT, [notification, 0, 0, 0]), Next::Idle);
    assert_eq!(p.kernel.wake(Trap::Device(1)), Next::Idle, "another's");
    assert_eq!(p.kernel.wake(Trap::Device(0)), Next::Run);
    assert_eq!((p.frame().rax, p.frame().rdi), (Status::Ok as u64, 4));
    // The next one comes while it runs, and is told when the first is acknowledged.
    assert_eq!(p.trap(Trap::Device(0)), Next::Run);
    let poll = |p: &mut Partition| {
        assert_eq!(p.enter(syscall::POLL, [notification, 0, 0, 0]), Next::Run);
        p.frame().rdi
    };
    assert_eq!(poll(&mut p), 0);
    assert!(p.invoke(syscall::IRQ_ACKNOWLEDGE, handler, &[]).is_ok());
    assert_eq!(poll(&mut p), 4);
    // Without a notification nobody is told.
    assert!(p.invoke(syscall::IRQ_BIND, handler, &[0]).is_ok());
    assert_eq!(p.trap(Trap::Device(0)), Next::Run);
    assert_eq!(poll(&mut p), 0);
}

#[test]
fn interrupts_are_made_by_their_authority() {
    let mut p = with_device();
    let (control, cnode) = (slot::IRQ_CONTROL, slot::CNODE);
    let mut make = |handle, device, at| {
        let arguments = [device, cnode, at, 64];
        p.invoke(syscall::IRQ_MAKE, handle, &arguments).map(|_| ())
    };
    let (own, free) = (slot::INTERRUPTS, slot::FREE);
    assert_eq!(make(control, 0, free), Err(Status::Busy));
    assert_eq!(make(control, 1, free), Err(Status::OutOfRange));
    assert_eq!(make(control, 0, own), Err(Status::DeleteFirst));
    assert_eq!(make(own, 0, free), Err(Status::InvalidCapability));
    p.invoke(syscall::DELETE, cnode, &[own, 64]).unwrap();
    let arguments = [0, cnode, free, 64];
    assert!(p.invoke(syscall::IRQ_MAKE, control, &arguments).is_ok());
    for operation in [syscall::IRQ_BIND, syscall::IRQ_ACKNOWLEDGE] {
        let refused = p.invoke(operation, control, &[0]);
        assert_eq!(refused, Err(Status::InvalidCapability), "{operation}");
    }
}

/// Operations, some of those that wait with a timeout.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..64_u64,
        (20..30_u64, any::<u64>()).prop_map(|(number, rax)| number | Timeout::of(rax).bits()),
    ]
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

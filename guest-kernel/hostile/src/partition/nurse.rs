//! The thread that all faults of hostile threads go to: it has them go on with their next step, unless
//! they do not get there any more.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use bulkhead_runtime::abi::layout::PROGRAM_BASE;
use bulkhead_runtime::abi::object::ThreadRegisters;
use bulkhead_runtime::abi::syscall::{Status, slot};
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{
    Configuration, EMPTY_REGISTERS, Endpoint, FIRST_THREAD, Place, Reply, Untyped,
};

use super::code::ORDINARY_FLAGS;

/// More urgent than the supervisor, who would take a thread that waits for it for one that is stuck.
const PRIORITY: u64 = 210;
const TURN_NS: u64 = 10_000_000;
const STACK_BYTES: usize = 16 * 1024;
/// A thread that faults at its first instruction so often in a row cannot go on by itself.
const HOPELESS: u32 = 8;
/// A label other than 0 leaves a thread stopped.
const STOP: u32 = 1;
/// Threads that have a badge.
const BADGES: usize = 16;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

// SAFETY: only the nurse runs on it.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Faults so far.
pub(super) fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Starts the nurse; where faults are to be sent.
pub(super) fn start() -> Result<Place, Status> {
    let memory = Untyped(slot::MEMORY);
    let (endpoint, reply) = (memory.endpoint()?, memory.reply()?);
    let (thread, context) = (memory.thread()?, memory.sched_context()?);
    thread.configure(Configuration::OWN)?;
    thread.set_priority(FIRST_THREAD, PRIORITY, 0)?;
    context.configure(TURN_NS, TURN_NS)?;
    context.bind(thread)?;
    let registers = ThreadRegisters {
        rip: nurse as *const () as u64,
        // A call would have pushed a return address: the entry function expects 8 off 16.
        rsp: STACK.0.get() as u64 + STACK_BYTES as u64 - 8,
        rdi: endpoint.0,
        rsi: reply.0,
        ..EMPTY_REGISTERS
    };
    // SAFETY: the function never returns, and the stack is the thread's own.
    unsafe { thread.set_registers(&registers, true) }?;
    Ok(endpoint.place())
}

extern "C" fn nurse(endpoint: u64, reply: u64) -> ! {
    let (endpoint, reply) = (Endpoint(endpoint), Reply(reply));
    let mut in_a_row = [0; BADGES];
    let mut received = endpoint.receive(Some(reply));
    loop {
        received = match received {
            Ok(fault) => {
                FAULTS.fetch_add(1, Ordering::Relaxed);
                let at = fault.words().first().copied().unwrap_or_default();
                let mut label = 0;
                if let Some(count) = in_a_row.get_mut(fault.badge as usize) {
                    *count = if at == PROGRAM_BASE { *count + 1 } else { 0 };
                    if *count >= HOPELESS {
                        (*count, label) = (0, STOP);
                    }
                }
                let next = [PROGRAM_BASE, 0, ORDINARY_FLAGS];
                endpoint.reply_receive(reply, &Message::new(label).words(&next))
            }
            // The thread is gone meanwhile.
            Err(_) => endpoint.receive(Some(reply)),
        };
    }
}

//! Threads of the program, preempted by the kernel round robin.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulkhead_abi::layout::PAGE_SIZE;
use bulkhead_abi::syscall::{Status, THREAD_EXIT, THREAD_SPAWN, YIELD, rights};

use crate::capability::{ADDRESS_SPACE, UNTYPED};
use crate::syscall::{call, raw};
use crate::time;

/// Bytes of a thread's stack.
pub const STACK_BYTES: u64 = 64 * 1024;
/// Where stacks are mapped, each below an unmapped page.
const STACKS_START: u64 = 0x7a00_0000_0000;
/// Distance between two stacks.
const STACK_STRIDE: u64 = STACK_BYTES + PAGE_SIZE;
/// How long [`JoinHandle::join`] sleeps between two looks.
const JOIN_POLL_NS: u64 = 200_000;

static NEXT_STACK: AtomicU64 = AtomicU64::new(STACKS_START);

/// What a thread leaves behind.
struct Packet<T> {
    done: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written by the thread before `done`, and read by its joiner after it.
unsafe impl<T: Send> Sync for Packet<T> {}

/// A running thread.
pub struct JoinHandle<T> {
    packet: Arc<Packet<T>>,
}

/// Starts a thread.
///
/// # Errors
/// [`Status::NotEnoughMemory`] when there is no memory for its stack, or no free thread.
pub fn spawn<T, F>(f: F) -> Result<JoinHandle<T>, Status>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // Stacks are not reused: the thread that ends one still stands on it.
    let stack = NEXT_STACK.fetch_add(STACK_STRIDE, Ordering::Relaxed) + PAGE_SIZE;
    UNTYPED.map(stack..stack + STACK_BYTES, rights::READ | rights::WRITE)?;
    let packet = Arc::new(Packet {
        done: AtomicBool::new(false),
        value: UnsafeCell::new(None),
    });
    let theirs = Arc::clone(&packet);
    let body: Box<dyn FnOnce() + Send> = Box::new(move || {
        let value = f();
        // SAFETY: nobody reads the value before `done`.
        unsafe { *theirs.value.get() = Some(value) };
        theirs.done.store(true, Ordering::Release);
    });
    let argument = Box::into_raw(Box::new(body));
    let entry = thread_entry as *const () as u64;
    // A call would have pushed a return address: the entry function expects 8 off 16.
    let stack_top = stack + STACK_BYTES - 8;
    // SAFETY: the entry function takes the box back; the stack is the thread's own.
    let spawned = unsafe { call(THREAD_SPAWN, [entry, stack_top, argument as u64, 0]) };
    if let Err(status) = spawned {
        // SAFETY: no thread took the box.
        drop(unsafe { Box::from_raw(argument) });
        // SAFETY: no thread uses the stack.
        unsafe { ADDRESS_SPACE.unmap(stack..stack + STACK_BYTES) }?;
        return Err(status);
    }
    Ok(JoinHandle { packet })
}

extern "C" fn thread_entry(body: *mut Box<dyn FnOnce() + Send>) -> ! {
    // SAFETY: `spawn` made the box for this thread alone.
    let body = unsafe { Box::from_raw(body) };
    body();
    loop {
        // SAFETY: the thread holds nothing any more.
        unsafe { raw(THREAD_EXIT, [0; 4]) };
    }
}

impl<T> JoinHandle<T> {
    /// True when the thread has returned.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.done.load(Ordering::Acquire)
    }

    /// Waits until the thread has returned; what it returned.
    #[must_use]
    pub fn join(self) -> Option<T> {
        while !self.is_finished() {
            time::sleep_ns(JOIN_POLL_NS);
        }
        // SAFETY: the thread wrote the value before `done` and does not touch it again; `self` is
        // its only reader.
        unsafe { (*self.packet.value.get()).take() }
    }
}

/// Lets other threads run.
pub fn yield_now() {
    // SAFETY: no effect on memory.
    unsafe { raw(YIELD, [0; 4]) };
}

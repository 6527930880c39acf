//! Faults and unknown system calls as messages to a handler.

use alloc::string::String;
use core::arch::asm;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::object::{FAULT_EXCEPTION, FAULT_MEMORY, FAULT_UNKNOWN_CALL};
use bulkhead_runtime::abi::syscall::{COUNT, Status};
use bulkhead_runtime::message::{Message, Received};
use bulkhead_runtime::object::{Configuration, Endpoint, Reply};
use bulkhead_runtime::syscall::{Registers, exchange};
use bulkhead_runtime::thread;

use super::bench::{Assistant, Bench, Body, OWN, shared, stop, until};
use super::{check, check_eq, named};

/// Nothing is ever mapped there.
const NOWHERE: u64 = 0x7b70_0000_0000;

fn word(index: usize) -> u64 {
    shared(index).load(Ordering::Relaxed)
}

extern "C" fn read(own: u64, at: u64, _: u64, _: u64) -> ! {
    // SAFETY: the access faults; the handler skips the instruction, which has three bytes.
    unsafe { asm!("mov rax, [rsi]", in("rsi") at, out("rax") _) };
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

extern "C" fn write(own: u64, at: u64, _: u64, _: u64) -> ! {
    // SAFETY: as in `read`.
    unsafe { asm!("mov [rsi], rax", in("rsi") at) };
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

extern "C" fn execute(own: u64, at: u64, _: u64, _: u64) -> ! {
    // SAFETY: the call faults; the handler returns from it.
    unsafe { asm!("call {}", in(reg) at, clobber_abi("C")) };
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

extern "C" fn undefined(own: u64, _: u64, _: u64, _: u64) -> ! {
    // SAFETY: faults; the handler skips its two bytes.
    unsafe { asm!("ud2") };
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

extern "C" fn divide(own: u64, _: u64, _: u64, _: u64) -> ! {
    // SAFETY: faults; the handler skips its two bytes.
    unsafe { asm!("xor eax, eax", "xor edx, edx", "div eax", out("eax") _, out("edx") _) };
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

extern "C" fn unknown(own: u64, number: u64, _: u64, _: u64) -> ! {
    let mut registers = Registers {
        rax: number,
        ..Registers::default()
    };
    // SAFETY: no such call.
    unsafe { exchange(&mut registers) };
    shared(1).store(registers.rax, Ordering::Relaxed);
    shared(0).fetch_add(1, Ordering::Relaxed);
    stop(own)
}

struct Handled {
    bench: Bench,
    endpoint: Endpoint,
    reply: Reply,
    assistant: Assistant,
}

/// An assistant whose faults come to an endpoint, by a capability with this badge.
fn handled(badge: u64) -> Result<Handled, String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let fault_handler = match badge {
        0 => endpoint.0,
        badge => bench.badged(endpoint.0, badge)?,
    };
    let assistant = bench.assistant(OWN)?;
    let configuration = Configuration {
        fault_handler,
        ..Configuration::OWN
    };
    assistant.thread.configure(configuration).map_err(named)?;
    Ok(Handled {
        bench,
        endpoint,
        reply,
        assistant,
    })
}

impl Handled {
    /// Has the assistant run; its fault.
    fn fault(&self, body: Body, at: u64) -> Result<Received, String> {
        self.assistant.begin(body, [at, 0, 0])?;
        let fault = self.endpoint.receive(Some(self.reply)).map_err(named)?;
        check_eq!(fault.length, 5, "words of a fault");
        Ok(fault)
    }

    /// Lets it go on behind its instruction, of so many bytes.
    fn skip(&self, fault: &Received, bytes: u64) -> Result<(), String> {
        let before = word(0);
        let rip = fault.words().first().copied().unwrap_or(0);
        let answer = Message::new(0).word(rip + bytes);
        self.reply.answer(&answer).map_err(named)?;
        check!(until(|| word(0) == before + 1), "it does not go on");
        Ok(())
    }
}

/// Handlers are told address, instruction and kind of an access, and let the thread go on.
pub(super) fn accesses() -> Result<(), String> {
    for badge in [0, 77] {
        let case = handled(badge)?;
        for (body, kind, bytes) in [(read as Body, 4, 3), (write, 6, 3)] {
            let fault = case.fault(body, NOWHERE)?;
            check_eq!(
                (fault.badge, u64::from(fault.label)),
                (badge, FAULT_MEMORY),
                "F1"
            );
            let [rip, rsp, _, address, code] = fault.words() else {
                return Err(String::from("F1: words"));
            };
            check_eq!((*address, *code), (NOWHERE, kind), "F1: address and kind");
            let code = body as *const () as u64;
            check!(
                (code..code + 64).contains(rip),
                "F1: instruction at {rip:#x}"
            );
            check!(*rsp != 0, "F1: stack pointer");
            case.skip(&fault, bytes)?;
        }
        let fault = case.fault(execute, NOWHERE)?;
        let [rip, rsp, flags, address, code] = *fault.words() else {
            return Err(String::from("F1: words"));
        };
        check_eq!(
            (rip, address, code & 0x16),
            (NOWHERE, NOWHERE, 0x14),
            "F1: execute"
        );
        // SAFETY: the assistant's stack, on which the call left its return address.
        let back = unsafe { (rsp as *const u64).read_volatile() };
        let before = word(0);
        let answer = Message::new(0).words(&[back, rsp + 8, flags]);
        case.reply.answer(&answer).map_err(named)?;
        check!(until(|| word(0) == before + 1), "F1: it returns");
        case.bench.finish()?;
    }
    Ok(())
}

/// Another answer leaves the thread stopped; setting registers and resuming restarts it.
pub(super) fn restart() -> Result<(), String> {
    let case = handled(0)?;
    let fault = case.fault(read, NOWHERE)?;
    let thread = case.assistant.thread;
    let mut registers = thread.registers().map_err(named)?;
    check_eq!(Some(&registers.rip), fault.words().first(), "F1: registers");
    registers.rip += 3;
    // SAFETY: it goes on behind the access.
    unsafe { thread.set_registers(&registers, true) }.map_err(named)?;
    check!(until(|| word(0) == 1), "F1: it does not go on");
    let late = case.reply.answer(&Message::new(0));
    check_eq!(late, Err(Status::NoCaller), "F1: the fault is over");
    case.fault(read, NOWHERE)?;
    case.reply.answer(&Message::new(1)).map_err(named)?;
    for _ in 0..20 {
        thread::yield_now();
    }
    check_eq!(word(0), 1, "F1: another answer leaves it stopped");
    check_eq!(thread.resume(), Ok(()), "F1: resumed as it was");
    let again = case.endpoint.receive(Some(case.reply)).map_err(named)?;
    check_eq!(u64::from(again.label), FAULT_MEMORY, "F1: it faults again");
    case.bench.finish()
}

pub(super) fn exceptions() -> Result<(), String> {
    let case = handled(5)?;
    for (body, vector) in [(undefined as Body, 6), (divide, 0)] {
        let fault = case.fault(body, 0)?;
        check_eq!(
            (fault.badge, u64::from(fault.label)),
            (5, FAULT_EXCEPTION),
            "F2"
        );
        check_eq!(fault.words().get(3), Some(&vector), "F2: vector");
        case.skip(&fault, 2)?;
    }
    for number in [COUNT, 0xff, 1 << 32, u64::MAX] {
        let fault = case.fault(unknown, number)?;
        check_eq!(
            u64::from(fault.label),
            FAULT_UNKNOWN_CALL,
            "F2: unknown call"
        );
        check_eq!(fault.words().get(3), Some(&number), "F2: number");
        case.skip(&fault, 0)?;
        check_eq!(word(1), number, "F2: the registers are as they were");
    }
    case.bench.finish()
}

/// A thread without a handler stops, and nobody else is disturbed.
pub(super) fn unhandled() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let assistant = bench.assistant(OWN)?;
    let configuration = Configuration {
        fault_handler: 0,
        ..Configuration::OWN
    };
    assistant.thread.configure(configuration).map_err(named)?;
    for body in [read as Body, undefined, divide] {
        assistant.begin(body, [NOWHERE, 0, 0])?;
        for _ in 0..20 {
            thread::yield_now();
        }
        check_eq!(word(0), 0, "F3: it goes on");
    }
    bench.finish()
}

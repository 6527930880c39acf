//! Every operation answers only what the description of the ABI lists for it, whatever it is asked.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_runtime::abi::decode::{Answer, Call, Kind, OPERATIONS, Operation, Register};
use bulkhead_runtime::abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, USER_END};
use bulkhead_runtime::abi::object::TYPE_UNTYPED;
use bulkhead_runtime::abi::syscall::{self, Status, rights, slot};
use bulkhead_runtime::abi::timeout::Timeout;
use bulkhead_runtime::memory;
use bulkhead_runtime::object::Untyped;
use bulkhead_runtime::syscall::{Registers, exchange};

use super::{check, check_eq, map, named};

/// A page that is mapped, and behind it one that is not and has its tables.
const SCRATCH: u64 = super::SCRATCH + (1 << 38);
/// Operations with more combinations than that are called with so many of them.
const MOST: u64 = 150;

/// Calls every operation with combinations of arguments that are near what matters.
pub(super) fn answers() -> Result<(), String> {
    map(SCRATCH, PAGE_SIZE).map_err(named)?;
    let objects = Objects::make().map_err(named)?;
    let mut refusals = 0;
    let mut random = 1_u64;
    for operation in &OPERATIONS {
        let values: Vec<Vec<u64>> = (operation.arguments.iter())
            .map(|value| objects.values(value.kind))
            .collect();
        let all = (values.iter()).fold(1_u64, |all, v| all.saturating_mul(v.len() as u64));
        for turn in 0..all.min(MOST) {
            let mut choice = turn;
            if all > MOST {
                // Knuth's linear congruential generator: its upper half is random enough.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                choice = random >> 16;
            }
            let mut chosen = Vec::new();
            for values in &values {
                let count = values.len() as u64;
                chosen.push(values[(choice % count) as usize]);
                choice = choice / count + if all > MOST { random >> 40 } else { 0 };
            }
            if objects.may_be_tried(operation, &chosen)? {
                refusals += u32::from(try_one(operation, &chosen)?);
            }
        }
    }
    check!(refusals > 1000, "only {refusals} calls were refused");
    objects.untyped.place().revoke().map_err(named)?;
    objects.untyped.delete().map_err(named)
}

/// Objects that the calls may spoil, all of one untyped.
struct Objects {
    untyped: Untyped,
    endpoint: u64,
    notification: u64,
    reply: u64,
    thread: u64,
    context: u64,
    cnode: u64,
    small: u64,
    frame: u64,
    table: u64,
}

impl Objects {
    fn make() -> Result<Self, Status> {
        let untyped = Untyped(memory::object(TYPE_UNTYPED, 15, 15)?);
        let notification = untyped.notification()?.0;
        Ok(Self {
            untyped,
            endpoint: untyped.endpoint()?.0,
            notification,
            reply: untyped.reply()?.0,
            thread: untyped.thread()?.0,
            context: untyped.sched_context()?.0,
            cnode: untyped.cnode(3)?.0,
            small: untyped.make(TYPE_UNTYPED, 12)?,
            frame: untyped.frame(1)?.0,
            table: untyped.page_table()?.0,
        })
    }

    /// Values that an argument of this kind takes in turn.
    fn values(&self, kind: Kind) -> Vec<u64> {
        let values: &[u64] = match kind {
            Kind::Handle => &[
                0,
                slot::CONSOLE,
                slot::ADDRESS_SPACE,
                self.endpoint,
                self.notification,
                self.reply,
                self.thread,
                self.context,
                self.cnode,
                self.small,
                self.frame,
                self.table,
                u64::MAX,
            ],
            Kind::Address | Kind::Source | Kind::Destination => &[
                0,
                1,
                SCRATCH,
                SCRATCH + PAGE_SIZE,
                USER_END - PAGE_SIZE,
                USER_END,
                u64::MAX << 12,
            ],
            Kind::Bytes => &[
                0,
                1,
                PAGE_SIZE,
                LARGE_PAGE_SIZE,
                1 << 63,
                u64::MAX << 12,
                u64::MAX,
            ],
            Kind::Rights => &[
                0,
                rights::READ,
                rights::READ | rights::WRITE,
                rights::EXECUTE,
                8,
                u64::MAX,
            ],
            Kind::Number => &[0, 1, 3, 64, 256, u64::MAX],
        };
        Vec::from(values)
    }

    /// False for calls that would succeed and end, hang or change the partition.
    fn may_be_tried(&self, operation: &Operation, chosen: &[u64]) -> Result<bool, String> {
        let argument = |index: usize| chosen.get(index).copied().unwrap_or(0);
        let [a, b, c, d] = [0, 1, 2, 3].map(argument);
        // The addresses that are mapped, or may be.
        let mapped = |address| (SCRATCH..SCRATCH + LARGE_PAGE_SIZE).contains(&address);
        Ok(match operation.number {
            syscall::EXIT
            | syscall::YIELD
            | syscall::COPY
            | syscall::MINT
            | syscall::MOVE
            | syscall::MUTATE
            | syscall::ROTATE
            | syscall::DELETE
            | syscall::REVOKE
            | syscall::CANCEL_BADGED_SENDS
            | syscall::RETYPE
            | syscall::INSPECT
            | syscall::SIGNAL
            | syscall::POLL
            | syscall::NB_SEND
            | syscall::NB_RECV
            | syscall::REPLY
            | syscall::THREAD_CONFIGURE
            | syscall::THREAD_SET_PRIORITY
            | syscall::THREAD_READ_REGISTERS
            | syscall::THREAD_WRITE_REGISTERS
            | syscall::THREAD_SUSPEND
            | syscall::THREAD_RESUME
            | syscall::THREAD_BIND
            | syscall::SCHED_CONFIGURE
            | syscall::SCHED_BIND
            | syscall::FRAME_MAP
            | syscall::FRAME_UNMAP
            | syscall::FRAME_ADDRESS
            | syscall::IRQ_MAKE
            | syscall::IRQ_BIND
            | syscall::IRQ_ACKNOWLEDGE
            | syscall::TABLE_MAP
            // It is the spoilt thread that gets a state.
            | syscall::RESTRICTED_BIND => true,
            syscall::CONSOLE_WRITE => {
                a != slot::CONSOLE || !mapped(b) || c == 0 || !(1..3).contains(&d)
            }
            syscall::CONSOLE_READ => a != slot::CONSOLE || !mapped(b) || c == 0,
            syscall::SLEEP => a < 256,
            syscall::WAIT => a != self.notification || is_short(operation, chosen),
            syscall::SEND | syscall::RECV | syscall::CALL | syscall::REPLY_RECV => {
                a != self.endpoint || is_short(operation, chosen)
            }
            // Nothing is bound before the cases of restricted mode have run.
            syscall::RESTRICTED_ENTER => true,
            _ => return Err(format!("{} has no rule here", operation.name)),
        })
    }
}

/// Whether a wait with these arguments ends soon.
fn is_short(operation: &Operation, chosen: &[u64]) -> bool {
    let rax = (operation.arguments.iter().zip(chosen))
        .filter(|(value, _)| value.place.register == Register::Rax)
        .fold(0, |rax, (value, chosen)| {
            let mask = u64::MAX >> (64 - value.place.bits);
            rax | (chosen & mask) << value.place.shift
        });
    (1..1000).contains(&Timeout::of(rax).microseconds())
}

/// The register of a place.
fn register(registers: &mut Registers, register: Register) -> Option<&mut u64> {
    Some(match register {
        Register::Rax => &mut registers.rax,
        Register::Rbx => &mut registers.rbx,
        Register::Rdx => &mut registers.rdx,
        Register::Rsi => &mut registers.rsi,
        Register::Rdi => &mut registers.rdi,
        Register::Rbp => &mut registers.rbp,
        Register::R8 => &mut registers.r8,
        Register::R9 => &mut registers.r9,
        Register::R10 => &mut registers.r10,
        Register::R12 => &mut registers.r12,
        Register::R13 => &mut registers.r13,
        Register::R14 => &mut registers.r14,
        Register::R15 => &mut registers.r15,
        Register::Rcx | Register::R11 => return None,
    })
}

/// One call; true when it was refused.
fn try_one(operation: &'static Operation, chosen: &[u64]) -> Result<bool, String> {
    let mut registers = Registers::default();
    let number = (operation.number_place, operation.number);
    let arguments = operation.arguments.iter().map(|value| value.place);
    for (place, value) in core::iter::once(number).chain(arguments.zip(chosen.iter().copied())) {
        let mask = u64::MAX >> (64 - place.bits);
        let into = register(&mut registers, place.register).ok_or("a register that is lost")?;
        *into |= (value & mask) << place.shift;
    }
    let get = |registers: Registers| {
        move |wanted| register(&mut { registers }, wanted).map_or(0, |value| *value)
    };
    let asked = get(registers);
    check_eq!(Operation::find(asked), Some(operation), "decoded");
    // SAFETY: what succeeds touches the scratch addresses alone, to which there are no references.
    unsafe { exchange(&mut registers) };
    let answered = get(registers);
    let listed = match Status::from_raw(registers.rax) {
        Some(Status::Ok) => return Ok(false),
        Some(status) => operation.errors.contains(&status),
        None => false,
    };
    let (call, answer) = (Call(asked), Answer(operation, answered));
    check!(listed, "{call}: {answer} is not listed");
    let status = Status::from_raw(registers.rax).unwrap_or(Status::Ok);
    let kept = match status {
        Status::OutOfRange | Status::NotEnoughMemory => registers.rdx,
        // Who has waited has its registers as they were.
        Status::TimedOut => asked(Register::Rdx),
        _ => 0,
    };
    check!(
        registers.rdx == kept,
        "{call}: {answer} came with the value {:#x}",
        registers.rdx
    );
    Ok(true)
}

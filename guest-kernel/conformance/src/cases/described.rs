//! Every operation answers only what the description of the ABI lists for it, whatever it is asked.

use alloc::format;
use alloc::string::String;

use bulkhead_runtime::abi::decode::{Answer, Call, Kind, OPERATIONS, Operation, Register};
use bulkhead_runtime::abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, USER_END};
use bulkhead_runtime::abi::syscall::{self, Status, rights, slot};
use bulkhead_runtime::syscall::raw;

use super::{SCRATCH, check, check_eq, unmap};

/// The calls are spread over so much, from [`SCRATCH`].
const SCRATCH_BYTES: u64 = 2 * LARGE_PAGE_SIZE;

/// Calls every operation with all combinations of arguments that are near what matters.
pub(super) fn answers() -> Result<(), String> {
    let mut refusals = 0;
    for operation in &OPERATIONS {
        let mut wheel = [0; 4];
        loop {
            let arguments = core::array::from_fn(|index| {
                let kind = operation.arguments.get(index).map(|value| value.kind);
                let values = kind.map_or(&[][..], values);
                values.get(wheel[index]).copied().unwrap_or(0)
            });
            if may_be_tried(operation, arguments)? {
                refusals += u32::from(try_one(operation, arguments)?);
            }
            let Some(turned) = turn(operation, wheel) else {
                break;
            };
            wheel = turned;
        }
    }
    check!(refusals > 1000, "only {refusals} calls were refused");
    check_eq!(unmap(SCRATCH, SCRATCH_BYTES), Ok(0), "clean up");
    Ok(())
}

/// Values that an argument of this kind takes in turn.
fn values(kind: Kind) -> &'static [u64] {
    match kind {
        Kind::Handle => &[
            0,
            slot::CONSOLE,
            slot::UNTYPED,
            slot::ADDRESS_SPACE,
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
        Kind::Number => &[0, 1, 3, 256, u64::MAX],
    }
}

/// The next combination, or `None` after the last.
fn turn(operation: &Operation, mut wheel: [usize; 4]) -> Option<[usize; 4]> {
    for (position, value) in wheel.iter_mut().zip(operation.arguments) {
        *position += 1;
        if *position < values(value.kind).len() {
            return Some(wheel);
        }
        *position = 0;
    }
    None
}

/// False for calls that would succeed and end, hang or change the partition.
fn may_be_tried(operation: &Operation, [a, b, c, d]: [u64; 4]) -> Result<bool, String> {
    // The only mapped address of the values.
    let mapped = |address| (SCRATCH..SCRATCH + SCRATCH_BYTES).contains(&address);
    Ok(match operation.number {
        syscall::EXIT => a > 255,
        syscall::CONSOLE_WRITE => {
            a != slot::CONSOLE || !mapped(b) || c == 0 || !(1..3).contains(&d)
        }
        syscall::CONSOLE_READ => a != slot::CONSOLE || !mapped(b) || c == 0,
        syscall::MAP | syscall::PROTECT | syscall::UNMAP | syscall::YIELD => true,
        syscall::SLEEP => a < 256,
        syscall::THREAD_SPAWN => a >= USER_END || b > USER_END,
        syscall::THREAD_EXIT => false,
        syscall::RESTRICTED_BIND => !mapped(a) || a % PAGE_SIZE != 0,
        // No page is bound before the cases of restricted mode have run.
        syscall::RESTRICTED_ENTER => true,
        _ => return Err(format!("{} has no rule here", operation.name)),
    })
}

/// One call; true when it was refused.
fn try_one(operation: &'static Operation, arguments: [u64; 4]) -> Result<bool, String> {
    let [a, b, c, d] = arguments;
    let asked = |register| match register {
        Register::Rax => operation.number,
        Register::Rdi => a,
        Register::Rsi => b,
        Register::Rdx => c,
        Register::R10 => d,
        _ => 0,
    };
    check_eq!(Operation::find(asked), Some(operation), "decoded");
    // SAFETY: what succeeds touches the scratch addresses alone, to which there are no references.
    let (status, value) = unsafe { raw(operation.number, arguments) };
    let answered = |register| match register {
        Register::Rax => status,
        Register::Rdx => value,
        _ => 0,
    };
    let listed = match Status::from_raw(status) {
        Some(Status::Ok) => return Ok(false),
        Some(status) => operation.errors.contains(&status),
        None => false,
    };
    let (call, answer) = (Call(asked), Answer(operation, answered));
    check!(listed, "{call}: {answer} is not listed");
    check!(
        value == 0,
        "{call}: {answer} came with the value {value:#x}"
    );
    Ok(true)
}

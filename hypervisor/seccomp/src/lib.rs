//! The seccomp filters: for each kind of thread of the VMM an allow-list of system calls; anything
//! else kills the process (the supervisor sees `SIGSYS`). The lists, with the reason of every entry,
//! are in [`rules`].
//!
//! The VMM's build script calls [`source`], and the VMM has nothing but the filters. `bulkhead-fs`
//! makes its own with [`allow`].
#![forbid(unsafe_code)]

pub mod rules;

use seccompiler::{BpfProgram, sock_filter};

use rules::{Argument, RULES, Rule};

/// Kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The main thread: devices' backends, the control socket.
    EventLoop,
    /// A vCPU: `KVM_RUN` and what its exits need.
    Vcpu,
    /// The debugger's, where there is one.
    Debugger,
    /// A worker of the disks: what io_uring does not do for them.
    Worker,
}

/// The filter of a kind of thread, for [`seccompiler::apply_filter`]. Once applied it holds for the
/// calling thread and those it starts later.
///
/// # Errors
/// [`rules::RULES`] is too long; tests keep that from happening.
pub fn compile(thread: Thread) -> Result<BpfProgram, TooLong> {
    allow(RULES.iter().filter(|rule| rule.threads.contains(&thread)))
}

/// The filters as constants of a Rust module.
///
/// # Errors
/// As [`compile`].
pub fn source() -> Result<String, TooLong> {
    let mut source = String::new();
    for thread in rules::ALL {
        let (name, instructions) = (constant(*thread), compile(*thread)?);
        source += &format!("pub const {name}: &[sock_filter] = &[\n");
        for sock_filter { code, jt, jf, k } in instructions {
            source += &format!("sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},\n");
        }
        source += "];\n";
    }
    Ok(source)
}

fn constant(thread: Thread) -> &'static str {
    match thread {
        Thread::EventLoop => "EVENT_LOOP",
        Thread::Vcpu => "VCPU",
        Thread::Debugger => "DEBUGGER",
        Thread::Worker => "WORKER",
    }
}

/// The rules are more than the jumps of a filter reach over, or have larger numbers than it compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules are too many, or their numbers too large, for a seccomp filter")]
pub struct TooLong;

/// A filter that allows `rules` and nothing else.
///
/// Each instruction costs the start of a partition half a microsecond, in which the kernel checks it,
/// tries it for every system call there is and compiles it. So one is all that a call without a
/// condition takes: all jump to one `allow` at the end.
///
/// # Errors
/// There are more rules than jumps can reach over.
pub fn allow<'a>(rules: impl Iterator<Item = &'a Rule>) -> Result<BpfProgram, TooLong> {
    let mut rules: Vec<&Rule> = rules.collect();
    // Rules of one call stand together: what one does not allow, the next may.
    rules.sort_by_key(|rule| rule.number);
    let mut program = Program::begin();
    for rules in rules.chunk_by(|a, b| a.number == b.number) {
        program.allow(rules)?;
    }
    program.finish()
}

/// `struct seccomp_data` (linux/seccomp.h): where the call's number, the ABI and the arguments are.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT`: from here on, numbers are those of another ABI.
const X32: u32 = 0x4000_0000;

// Instructions of classic BPF (linux/filter.h, linux/bpf_common.h).
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A filter in the making.
struct Program {
    code: BpfProgram,
    /// Which of them go to the end where their comparison holds.
    allow: Vec<usize>,
}

impl Program {
    /// Kills whatever is no call of 64-bit x86; then holds the number.
    fn begin() -> Self {
        let mut program = Self {
            code: Vec::with_capacity(256),
            allow: Vec::with_capacity(256),
        };
        program.push(LOAD, ARCHITECTURE, 0, 0);
        program.push(IF_EQUAL, X86_64, 1, 0);
        program.kill();
        program.push(LOAD, NUMBER, 0, 0);
        program.push(IF_AT_LEAST, X32, 0, 1);
        program.kill();
        program
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.code.push(sock_filter { code, jt, jf, k });
    }

    fn kill(&mut self) {
        self.push(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0);
    }

    /// Allows where what is held equals `value`.
    fn allow_equal(&mut self, value: u32) {
        self.allow.push(self.code.len());
        self.push(IF_EQUAL, value, 0, 0);
    }

    /// Allows one call by any of its rules.
    fn allow(&mut self, rules: &[&Rule]) -> Result<(), TooLong> {
        let number = rules.first().map_or(0, |rule| rule.number);
        let number = u32::try_from(number).map_err(|_| TooLong)?;
        if rules
            .iter()
            .any(|rule| matches!(rule.argument, Argument::Any))
        {
            self.allow_equal(number);
            return Ok(());
        }
        let skip = self.code.len();
        self.push(IF_EQUAL, number, 0, 0);
        for rule in rules {
            match rule.argument {
                Argument::Any => {}
                Argument::OneOf { index, values } => {
                    self.load(index);
                    for (_, value) in values {
                        self.allow_equal(low(*value)?);
                    }
                }
                Argument::Without { index, mask, .. } => {
                    self.load(index);
                    self.push(AND, low(mask)?, 0, 0);
                    self.allow_equal(0);
                }
            }
        }
        self.kill();
        let past = self.code.len() - skip - 1;
        let to = u8::try_from(past).map_err(|_| TooLong)?;
        if let Some(jump) = self.code.get_mut(skip) {
            jump.jf = to;
        }
        Ok(())
    }

    /// Holds the lower half of an argument.
    fn load(&mut self, index: u8) {
        self.push(LOAD, ARGUMENTS + 8 * u32::from(index), 0, 0);
    }

    /// Kills what nothing has allowed.
    fn finish(mut self) -> Result<BpfProgram, TooLong> {
        self.kill();
        let end = self.code.len();
        self.push(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
        for at in self.allow {
            let to = u8::try_from(end - at - 1).map_err(|_| TooLong)?;
            if let Some(jump) = self.code.get_mut(at) {
                jump.jt = to;
            }
        }
        Ok(self.code)
    }
}

/// Conditions are on 32 bits.
fn low(value: u64) -> Result<u32, TooLong> {
    u32::try_from(value).map_err(|_| TooLong)
}

#[cfg(test)]
mod tests;

//! The seccomp filters: for each kind of thread of the VMM an allow-list of system calls; anything
//! else kills the process (the supervisor sees `SIGSYS`). The lists, with the reason of every entry,
//! are in [`rules`].
//!
//! The VMM's build script calls [`source`], and the VMM has nothing but the filters. `bulkhead-fs`
//! makes its own with [`allow`].
#![forbid(unsafe_code)]

pub mod rules;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

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
/// [`rules::RULES`] contradicts itself; tests keep that from happening.
pub fn compile(thread: Thread) -> Result<BpfProgram, BackendError> {
    allow(RULES.iter().filter(|rule| rule.threads.contains(&thread)))
}

/// The filters as constants of a Rust module.
///
/// # Errors
/// As [`compile`].
pub fn source() -> Result<String, BackendError> {
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

/// A filter that allows `rules` and nothing else.
///
/// # Errors
/// The rules contradict each other.
pub fn allow<'a>(rules: impl Iterator<Item = &'a Rule>) -> Result<BpfProgram, BackendError> {
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules {
        let conditions = conditions(rule)?;
        let entry = allowed.entry(rule.number).or_default();
        for condition in conditions {
            entry.push(SeccompRule::new(vec![condition])?);
        }
    }
    let filter = SeccompFilter::new(
        allowed,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    BpfProgram::try_from(filter)
}

/// Alternatives, one of which must hold; none of them means no condition.
fn conditions(rule: &Rule) -> Result<Vec<SeccompCondition>, BackendError> {
    let condition = |index, operator, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
    };
    match rule.argument {
        Argument::Any => Ok(Vec::new()),
        Argument::OneOf { index, values } => values
            .iter()
            .map(|(_, value)| condition(index, SeccompCmpOp::Eq, *value))
            .collect(),
        Argument::Without { index, mask, .. } => {
            Ok(vec![condition(index, SeccompCmpOp::MaskedEq(mask), 0)?])
        }
    }
}

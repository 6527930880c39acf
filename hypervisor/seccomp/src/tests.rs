//! The filters, run as the kernel would, beside the rules that they are made of.

use super::*;
use proptest::prelude::*;

const THREADS: [Thread; 4] = [
    Thread::EventLoop,
    Thread::Vcpu,
    Thread::Debugger,
    Thread::Worker,
];

/// What `program` answers to a call, by the rules of classic BPF (Documentation/networking/filter.rst).
fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut held) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |taken| usize::from(if taken { jt } else { jf });
        match code {
            LOAD => {
                let word = data[k as usize..][..4].try_into().unwrap();
                held = u32::from_le_bytes(word);
            }
            AND => held &= k,
            IF_EQUAL => at += jump(held == k),
            IF_AT_LEAST => at += jump(held >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// What the rules say.
fn is_allowed(rules: &[&Rule], number: u32, arguments: [u64; 6]) -> bool {
    rules.iter().any(|rule| {
        let low = |index: u8| arguments[usize::from(index)] & u64::from(u32::MAX);
        rule.number == i64::from(number)
            && match rule.argument {
                Argument::Any => true,
                Argument::OneOf { index, values } => {
                    values.iter().any(|(_, value)| *value == low(index))
                }
                Argument::Without { index, mask, .. } => low(index) & mask == 0,
            }
    })
}

fn agree(rules: &[&Rule], program: &[sock_filter], number: u32, arguments: [u64; 6]) {
    let want = if is_allowed(rules, number, arguments) {
        libc::SECCOMP_RET_ALLOW
    } else {
        libc::SECCOMP_RET_KILL_PROCESS
    };
    let got = run(program, X86_64, number, arguments);
    assert_eq!(got, want, "call {number} with {arguments:x?}");
}

fn rules_of(thread: Thread) -> Vec<&'static Rule> {
    let of_thread = |rule: &&Rule| rule.threads.contains(&thread);
    RULES.iter().filter(of_thread).collect()
}

#[test]
fn every_call_with_every_value_of_a_rule_is_decided_as_the_rules_say() {
    let mut values: Vec<u64> = vec![0, 1, u64::MAX];
    for rule in RULES {
        match rule.argument {
            Argument::Any => {}
            Argument::OneOf { values: own, .. } => values.extend(own.iter().map(|(_, v)| *v)),
            Argument::Without { mask, .. } => values.extend([mask, !mask]),
        }
    }
    for thread in THREADS {
        let (rules, program) = (rules_of(thread), compile(thread).unwrap());
        for number in (0..600).chain([X32 - 1, u32::MAX]) {
            for value in &values {
                agree(&rules, &program, number, [*value; 6]);
                agree(&rules, &program, number, [*value | 1 << 32; 6]);
            }
        }
    }
}

#[test]
fn other_abis_are_allowed_nothing() {
    for thread in THREADS {
        let program = compile(thread).unwrap();
        for number in 0..600 {
            let other = run(&program, 0x4000_0003, number, [0; 6]);
            let x32 = run(&program, X86_64, X32 | number, [0; 6]);
            assert_eq!(
                [other, x32],
                [libc::SECCOMP_RET_KILL_PROCESS; 2],
                "{number}"
            );
        }
    }
}

#[test]
fn what_jumps_cannot_reach_over_is_an_error() {
    let rule = |number| Rule {
        constant: "SYS_x",
        number,
        threads: &[],
        argument: Argument::Any,
        reason: "",
    };
    let many: Vec<Rule> = (0..256).map(rule).collect();
    assert!(allow(many.iter().take(255)).is_ok());
    assert!(allow(many.iter()).is_err());
    assert!(allow([rule(-1)].iter()).is_err());
}

proptest! {
    #[test]
    fn any_call_is_decided_as_the_rules_say(number in 0_u32..600, arguments: [u64; 6]) {
        for thread in THREADS {
            agree(&rules_of(thread), &compile(thread).unwrap(), number, arguments);
        }
    }
}

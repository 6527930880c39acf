//! Which cases run, and what is said about them.

use alloc::string::String;
use core::str;

use bulkhead_runtime::{environment, eprintln, println, program_main};

use crate::cases::{CASES, CASES_OF_CPUS, DEMONSTRATIONS};

/// A case: passes, or says why not.
pub(crate) type Case = fn() -> Result<(), String>;

/// A demonstration: the partition's status, if it gets that far.
pub(crate) type Demonstration = fn() -> u8;

/// Status for a name that is no case.
const STATUS_USAGE: u8 = 2;

program_main!(main);

fn main() -> u8 {
    // The first is the name of the program itself.
    let mut named = environment::args().skip(1).peekable();
    if named.peek().is_none() {
        return run_all();
    }
    let mut status = 0;
    for argument in named {
        let Ok(name) = str::from_utf8(argument) else {
            return STATUS_USAGE;
        };
        if name == "list" {
            list();
        } else if let Some(case) = all().find(|(case, _)| *case == name) {
            status |= run(core::iter::once(case));
        } else if let Some((_, demonstrate)) = DEMONSTRATIONS
            .iter()
            .find(|(demonstration, _)| *demonstration == name)
        {
            status = demonstrate();
        } else {
            eprintln!("conformance: no case is called {name}; `list` names them all");
            return STATUS_USAGE;
        }
    }
    status
}

fn all() -> impl Iterator<Item = (&'static str, Case)> {
    CASES.iter().chain(CASES_OF_CPUS).copied()
}

fn run_all() -> u8 {
    if environment::cpus() > 1 {
        return run(all());
    }
    for (name, _) in CASES_OF_CPUS {
        println!("test {name} ... skipped: the partition has one CPU");
    }
    run(CASES.iter().copied())
}

fn list() {
    for (name, _) in all() {
        println!("{name}");
    }
    for (name, _) in DEMONSTRATIONS {
        println!("{name} (demonstration)");
    }
}

fn run(cases: impl Iterator<Item = (&'static str, Case)>) -> u8 {
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases {
        match case() {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                failed += 1;
                println!("test {name} ... FAILED: {why}");
            }
        }
    }
    println!("result: {passed} passed, {failed} failed");
    u8::from(failed > 0)
}

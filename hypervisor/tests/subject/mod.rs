//! A program that runs itself again as its own subject, in a jail: for tests without the standard
//! harness, because a user namespace can only be entered by a process with a single thread.
#![allow(dead_code, unreachable_pub, reason = "each test uses what it needs")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use libtest_mimic::Failed;
use rustix::process::Signal;

/// First argument of the program when it runs as its own subject.
pub const INSIDE: &str = "--inside";
/// `SIGSYS`, by which seccomp kills.
pub const SIGSYS: i32 = 31;

/// What the program is to do as its own subject, if it is one.
pub fn case() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == INSIDE).then(|| arguments.next())?
}

/// Tells the examiner something.
pub fn say(fact: &str, value: impl std::fmt::Display) {
    println!("{fact}={value}");
}

pub fn check(holds: bool, what: impl std::fmt::Display) -> Result<(), Failed> {
    if holds {
        Ok(())
    } else {
        Err(what.to_string().into())
    }
}

/// A subject, and what it said.
pub struct Subject {
    pub child: Child,
    pub facts: BTreeMap<String, String>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Subject {
    pub fn start(case: &str, user: Option<u32>) -> Self {
        // Not by its path: another user may not be able to walk to where the test was built.
        let mut command = Command::new("/proc/self/exe");
        command.args([INSIDE, case]);
        // A backtrace opens files, of which the process would die before it could abort.
        command.env_remove("RUST_BACKTRACE");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(id) = user {
            command.uid(id).gid(id);
        }
        // SAFETY: the closure makes one system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::KILL,
                ))?)
            });
        }
        let mut child = command.spawn().unwrap();
        let mut facts = BTreeMap::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some((fact, value)) = line.unwrap().split_once('=') {
                facts.insert(fact.to_owned(), value.to_owned());
                if fact == "end" {
                    break;
                }
            }
        }
        Self { child, facts }
    }

    pub fn expect(&self, expected: &[(&str, &str)]) -> Result<(), Failed> {
        for (fact, value) in expected {
            let found = self.facts.get(*fact).map(String::as_str);
            check(
                found == Some(value),
                format!("{fact} is not {value}: {:?}", self.facts),
            )?;
        }
        Ok(())
    }

    pub fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }

    /// A field of /proc/PID/status.
    pub fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    pub fn end(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

/// Demands that seccomp ends a subject before it has survived what it does.
pub fn dies(case: &str) -> Result<(), Failed> {
    let subject = Subject::start(case, None);
    check(!subject.facts.contains_key("survived"), "it lived on")?;
    let status = subject.end();
    check(
        status.signal() == Some(SIGSYS),
        format!("it ended with {status}"),
    )
}

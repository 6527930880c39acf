//! The one command, and everybody it leaves behind.

use bulkhead_guest_agent::Spec;
use rustix::process::{Pid, WaitOptions, wait};
use std::io;
use std::process::Command;

/// The shell's and docker's statuses for a command that cannot be run, and one that is not there.
const STATUS_CANNOT_RUN: u8 = 126;
const STATUS_NOT_FOUND: u8 = 127;
/// A program that was given no environment gets this much.
const DEFAULTS: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/"),
];

/// Runs the command to its end, reaping orphans all the while.
pub(crate) fn run(spec: &Spec) -> Result<u8, String> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err("there is no command".to_owned());
    };
    let own = spec
        .env
        .iter()
        .filter_map(|variable| variable.split_once('='));
    let env: Vec<(&str, &str)> = DEFAULTS.into_iter().chain(own).collect();
    // The program is looked up in the path that it will see itself.
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(env);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("bulkhead: error[command]: cannot run `{program}`: {error}");
            return Ok(match error.kind() {
                io::ErrorKind::NotFound => STATUS_NOT_FOUND,
                _ => STATUS_CANNOT_RUN,
            });
        }
    };
    let pid = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, how))) if ended == pid => {
                let signal = how.terminating_signal().map(|signal| signal + 128);
                let status = how.exit_status().or(signal).unwrap_or(i32::from(u8::MAX));
                return Ok(u8::try_from(status).unwrap_or(u8::MAX));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(format!("cannot wait for the command: {errno}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(command: &[&str], env: &[&str]) -> u8 {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let spec = Spec {
            command: owned(command),
            env: owned(env),
            modules: vec![],
            tty: false,
            announce: false,
        };
        run(&spec).unwrap()
    }

    /// One test, because each command is waited for among all children of this process.
    #[test]
    fn statuses_are_those_of_a_shell() {
        for (command, expected) in [
            (&["/bin/sh", "-c", "exit 7"][..], 7),
            (&["sh", "-c", "exit 255"], 255),
            (&["sh", "-c", "kill -9 $$"], 137),
            // An orphan that ends first is not mistaken for the command.
            (&["sh", "-c", "(exit 3) & sleep 0.1; exit 4"], 4),
            (&["sh", "-c", "test -n \"$PATH\" && test \"$HOME\" = /"], 0),
            (&["/nonexistent"], STATUS_NOT_FOUND),
            (&["/etc/passwd"], STATUS_CANNOT_RUN),
            (&["/etc"], STATUS_CANNOT_RUN),
        ] {
            assert_eq!(status(command, &[]), expected, "{command:?}");
        }
        let own = ["A=b=c", "HOME=/srv"];
        assert_eq!(status(&["sh", "-c", "test \"$A$HOME\" = b=c/srv"], &own), 0);
        assert_eq!(
            status(&["sh", "-c", "exit 9"], &["PATH=/nonexistent"]),
            STATUS_NOT_FOUND
        );
    }
}

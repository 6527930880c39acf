//! Runs a step's command: its output goes to ours as it comes, a reader sees each line of its
//! stdout, and it ends in time together with everything that it started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, Result};
use crate::process::shown;

/// Runs `command`; `None` where the time was up.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", shown(command))))?;
    let (lines, queue) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while let Ok(1..) = stdout.read_until(b'\n', &mut bytes) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                bytes.clear();
                if lines.send(text).is_err() {
                    return;
                }
            }
        });
    } else {
        drop(lines);
    }
    loop {
        match queue.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                // A reader that went away must not end the tests.
                let _ = std::io::stdout().write_all(text.as_bytes());
                line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                end_tree(&mut child);
                return Ok(None);
            }
        }
    }
    wait(&mut child, end, command)
}

/// Its stdout is closed; the process may still take a moment.
fn wait(child: &mut Child, end: Instant, command: &Command) -> Result<Option<ExitStatus>> {
    loop {
        let status = child
            .try_wait()
            .map_err(|error| Failure::new(format!("cannot await {}: {error}", shown(command))))?;
        if status.is_some() {
            return Ok(status);
        }
        if Instant::now() >= end {
            end_tree(child);
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills the child and its descendants: a killed cargo leaves its test binaries behind.
fn end_tree(child: &mut Child) {
    let mut doomed = vec![child.id()];
    let parents = parents();
    let mut next = 0;
    while let Some(parent) = doomed.get(next).copied() {
        doomed.extend(
            parents
                .iter()
                .filter(|(_, p)| **p == parent)
                .map(|(c, _)| *c),
        );
        next += 1;
    }
    for id in doomed {
        if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = child.wait();
}

/// Every process and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((id, parent_of(&stat)?))
        })
        .collect()
}

/// Field 4 of proc(5)'s `stat`; the name before it is in parentheses and may hold anything.
fn parent_of(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_status_arrive() {
        let mut lines = Vec::new();
        let status = run(
            Command::new("sh").args(["-c", "echo a; echo b; exit 3"]),
            Duration::from_secs(60),
            |line| lines.push(line.to_owned()),
        );
        assert_eq!(status.unwrap().unwrap().code(), Some(3));
        assert_eq!(lines, ["a\n", "b\n"]);
    }

    #[test]
    fn the_time_ends_grandchildren_too() {
        let mark = format!("{}.25", 40_000 + std::process::id() % 10_000);
        let script = format!("sleep {mark} & sleep {mark}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let status = run(&mut command, Duration::from_secs(1), |_| ());
        assert!(status.unwrap().is_none());
        let alive = || {
            let entries = fs::read_dir("/proc").unwrap().filter(|entry| {
                let path = entry.as_ref().unwrap().path().join("cmdline");
                let line = fs::read_to_string(path).unwrap_or_default();
                line.starts_with(&format!("sleep\0{mark}"))
            });
            entries.count()
        };
        // A killed process takes a moment to go.
        let end = Instant::now() + Duration::from_secs(30);
        while alive() > 0 {
            assert!(Instant::now() < end, "they live on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn names_cannot_confuse_the_parent() {
        assert_eq!(parent_of("7 (a) b) S 42 7 7"), Some(42));
        assert_eq!(parent_of("7"), None);
    }
}

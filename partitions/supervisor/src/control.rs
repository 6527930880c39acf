//! What another process can ask a supervisor: a request and an answer, each one line of JSON on
//! the Unix socket in the system's directory.

use crate::error::Error;
use crate::record::SystemRecord;
use crate::state_dir::{Found, Standing, StateRoot, is_held};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// Longest line either way, in bytes.
const MAX_LINE: u64 = 1024 * 1024;
/// How long either side waits for the other's line.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a supervisor may take to end its system before it is killed.
const GRACE: Duration = Duration::from_millis(700);
/// When `down` gives up.
const LIMIT: Duration = Duration::from_secs(1);

/// From another process to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// How does it stand?
    Status,
    /// End every partition.
    Down,
}

/// The supervisor's side: reads a request, and answers it with the record.
pub(crate) fn serve(client: &UnixStream, record: &SystemRecord) -> Option<Request> {
    client.set_read_timeout(Some(PATIENCE)).ok()?;
    client.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut line = String::new();
    BufReader::new(client.take(MAX_LINE))
        .read_line(&mut line)
        .ok()?;
    let request = serde_json::from_str(&line).ok()?;
    let mut answer = serde_json::to_vec(record).ok()?;
    answer.push(b'\n');
    // A client that does not wait for the answer has made its request all the same.
    let _ = (&mut &*client).write_all(&answer);
    Some(request)
}

fn ask(found: &Found, request: Request) -> Option<SystemRecord> {
    let mut stream = UnixStream::connect(found.socket()).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut line = serde_json::to_vec(&request).ok()?;
    line.push(b'\n');
    stream.write_all(&line).ok()?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE))
        .read_line(&mut answer)
        .ok()?;
    serde_json::from_str(&answer).ok()
}

/// How a system stands now: its supervisor's answer, or its last written record when it gives none.
pub fn status(found: &Found) -> SystemRecord {
    match found.standing {
        Standing::Live => ask(found, Request::Status).unwrap_or_else(|| found.record.clone()),
        Standing::Finished => found.record.clone(),
    }
}

/// Ends a system and removes what it left, within one second: its supervisor is asked, and killed
/// when it does not answer; its VMMs die with it.
///
/// # Errors
/// It is still there after a second.
pub fn down(root: &StateRoot, found: &Found) -> Result<(), Error> {
    if found.standing == Standing::Live {
        end_live(found)?;
    }
    root.remove_finished(found)
}

fn end_live(found: &Found) -> Result<(), Error> {
    let begun = Instant::now();
    // While the lock is held the supervisor lives, so these numbers are its own and its VMMs'.
    let supervisor = process(found.record.supervisor);
    let vmms: Vec<OwnedFd> = found
        .record
        .partitions
        .iter()
        .filter_map(|partition| process(partition.vmm))
        .collect();
    let asked = ask(found, Request::Down).is_some();
    let grace = if asked { GRACE } else { PATIENCE };
    while is_held(&found.path) && begun.elapsed() < grace {
        thread::sleep(Duration::from_millis(2));
    }
    if is_held(&found.path)
        && let Some(supervisor) = &supervisor
    {
        let _ = pidfd_send_signal(supervisor, Signal::KILL);
    }
    while is_held(&found.path) {
        if begun.elapsed() > LIMIT {
            return Err(Error::StillThere(found.name.clone()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    // The VMMs of a killed supervisor get the news from the kernel; wait until each has died of it.
    for vmm in vmms {
        let left = LIMIT.saturating_sub(begun.elapsed());
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [PollFd::new(&vmm, PollFlags::IN)];
        if poll(&mut watched, Some(&wait)) == Ok(0) {
            return Err(Error::StillThere(found.name.clone()));
        }
    }
    Ok(())
}

fn process(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

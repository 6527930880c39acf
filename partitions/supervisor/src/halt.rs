//! The emergency stop, from another process: every system of this user within a second, and nothing
//! new until somebody lets it go on.

use crate::control::{PATIENCE, Request, ask, ask_on};
use crate::down::process;
use crate::error::Error;
use crate::record::SystemRecord;
use crate::state_dir::{Found, Standing, StateRoot, is_held};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// How long a supervisor may take to halt its system before it is killed with it.
const GRACE: Duration = Duration::from_millis(650);
/// How long a killed supervisor may take to be gone.
const LIMIT: Duration = Duration::from_secs(1);

/// What became of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaltEnd {
    /// It stands still, and can go on.
    Halted,
    /// Its supervisor did not answer in time, and was killed with all of it.
    Killed,
    /// It ended meanwhile, or was about to start and does not.
    Gone,
}

impl HaltEnd {
    /// For a table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Killed => "killed",
            Self::Gone => "gone",
        }
    }
}

/// A system, and what became of it; or that it is still there.
#[derive(Debug)]
pub struct Halted {
    /// Its name.
    pub system: String,
    /// What became of it.
    pub end: Result<HaltEnd, Error>,
}

/// Halts every system. From the first moment on nothing starts any more.
///
/// # Errors
/// The state directory cannot be used; nothing is halted then.
pub fn halt_all(root: &StateRoot) -> Result<Vec<Halted>, Error> {
    root.halt()?;
    let systems = live(root)?;
    // Side by side: the slowest must not make the others wait.
    Ok(thread::scope(|scope| {
        let halt = |found| (found, scope.spawn(move || halt(found)));
        let halting: Vec<_> = systems.iter().map(halt).collect();
        let ended = halting.into_iter().map(|(found, thread)| {
            let lost = |_| Err(Error::StillThere(found.name.clone()));
            Halted {
                system: found.name.clone(),
                end: thread.join().unwrap_or_else(lost),
            }
        });
        ended.collect()
    }))
}

/// Lets every system go on that was halted, and others start; gives back those that do not answer.
///
/// # Errors
/// The state directory cannot be used.
pub fn go_on_all(root: &StateRoot) -> Result<Vec<Error>, Error> {
    let go_on = |found: Found| {
        let answer = ask::<SystemRecord>(&found, &Request::GoOn, PATIENCE);
        let silent = answer.is_none() && is_held(&found.path);
        silent.then_some(Error::NoAnswer(found.name))
    };
    let silent = live(root)?.into_iter().filter_map(go_on).collect();
    root.go_on()?;
    Ok(silent)
}

fn live(root: &StateRoot) -> Result<Vec<Found>, Error> {
    let live = |found: &Found| found.standing == Standing::Live;
    Ok(root.list()?.into_iter().filter(live).collect())
}

fn halt(found: &Found) -> Result<HaltEnd, Error> {
    let begun = Instant::now();
    let stream = UnixStream::connect(found.socket()).ok();
    // While the lock is held the supervisor lives, so the number is its own. One that has not
    // written its record yet is known by its socket.
    let peer = stream.as_ref().and_then(|stream| {
        let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    });
    let supervisor = process(peer.unwrap_or(found.record.supervisor));
    let answer = stream.and_then(|stream| ask_on::<SystemRecord>(stream, &Request::Halt, GRACE));
    if answer.is_some() {
        return Ok(HaltEnd::Halted);
    }
    let Some(supervisor) = supervisor else {
        // It has no socket yet. When it makes one it sees that everything is halted, and goes.
        return wait(found, begun).map(|()| HaltEnd::Gone);
    };
    let there = is_held(&found.path);
    let _ = pidfd_send_signal(&supervisor, Signal::KILL);
    wait(found, begun)?;
    Ok(if there {
        HaltEnd::Killed
    } else {
        HaltEnd::Gone
    })
}

/// Waits until its supervisor is gone; its VMMs are killed with it.
fn wait(found: &Found, begun: Instant) -> Result<(), Error> {
    while is_held(&found.path) {
        if begun.elapsed() > LIMIT {
            return Err(Error::StillThere(found.name.clone()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

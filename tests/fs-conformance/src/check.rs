//! What a case is, and how it says what went wrong.

use std::fmt::Debug;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Argument with which a copy of this program says that it runs.
pub(crate) const HERE_I_AM: &str = "--here-i-am";

/// Why a case failed.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl From<io::Error> for Failure {
    #[track_caller]
    fn from(error: io::Error) -> Self {
        Self(format!("{error}, line {}", line()))
    }
}

impl From<Errno> for Failure {
    #[track_caller]
    fn from(errno: Errno) -> Self {
        Self(format!("{errno}, line {}", line()))
    }
}

#[track_caller]
fn line() -> String {
    let place = std::panic::Location::caller();
    format!("{}:{}", place.file(), place.line())
}

/// How a case ended.
pub(crate) type Outcome = Result<(), Failure>;

/// What has to be so for a case to mean something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// Several users: root, and owners that are kept.
    Users,
    /// One owner for everything.
    Exporter,
}

/// One promise, tried in an empty directory.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Path) -> Outcome,
}

/// Demands that `got` is `wanted`.
#[track_caller]
pub(crate) fn same<T: PartialEq + Debug>(got: T, wanted: T) -> Outcome {
    if got == wanted {
        return Ok(());
    }
    let (got, wanted) = (short(&got), short(&wanted));
    Err(Failure(format!("{got} instead of {wanted}, {}", line())))
}

fn short(value: &impl Debug) -> String {
    format!("{value:?}").chars().take(100).collect()
}

/// Demands that `got` is so.
#[track_caller]
pub(crate) fn that(got: bool) -> Outcome {
    same(got, true)
}

/// Demands that `got` failed with `errno`.
#[track_caller]
pub(crate) fn fails<T, E: Into<io::Error>>(got: Result<T, E>, errno: Errno) -> Outcome {
    match got.map_err(Into::into) {
        Ok(_) => Err(Failure(format!("success instead of {errno}, {}", line()))),
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => Ok(()),
        Err(error) => Err(Failure(format!("{error} instead of {errno}, {}", line()))),
    }
}

/// Runs `act` as a user with these groups, on a thread of its own.
pub(crate) fn as_user(
    uid: u32,
    gid: u32,
    groups: &[u32],
    act: impl FnOnce() -> Outcome + Send,
) -> Outcome {
    let thread = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
                set_thread_groups(&groups)?;
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                set_thread_res_gid(gid, gid, gid)?;
                set_thread_res_uid(uid, uid, uid)?;
                act()
            })
            .join()
    });
    thread.unwrap_or_else(|_| Err(Failure("the thread ended".into())))
}

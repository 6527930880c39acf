//! Other conditions for a partition that runs: all of the new ones hold in the place of the old from one
//! answer to the next, or none of them. Called by the loop of the process alone.

use std::io;
use std::os::fd::OwnedFd;

use bulkhead_conditions::MAX_TEXT_BYTES;
use bulkhead_conditions::control::Reloaded;
use rustix::io::{Errno, pread};

use super::{Judge, sentence};
use crate::conditions::{Conditions, ConditionsError};
use crate::narrower::{Widening, widenings};
use crate::world::World;

/// Most reasons that are told.
const MAX_REASONS: usize = 8;

/// Why the conditions that held still hold.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// The file cannot be read.
    #[error("cannot read the new conditions: {0}")]
    Read(#[from] io::Error),
    /// They are refused.
    #[error(transparent)]
    Conditions(#[from] ConditionsError),
    /// They are those of somebody who is no ancestor.
    #[error("the partition is not held to the conditions of `{0}`")]
    NoAncestor(String),
    /// They would permit what the old do not.
    #[error("the new conditions may permit more: {0}")]
    Wider(String),
}

impl ReloadError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "decision-setup",
            Self::Conditions(_) => "conditions",
            Self::NoAncestor(_) => "no-conditions",
            Self::Wider(_) => "conditions-wider",
        }
    }
}

impl Judge {
    /// Puts the conditions in `file` into the place of those that hold, the partition's own or those of an
    /// ancestor. They may permit more only where `widen` says so.
    pub(super) fn reload(&mut self, file: OwnedFd, widen: bool, of: Option<&str>) -> Reloaded {
        match self.try_reload(&file, widen, of) {
            Ok(widened) => Reloaded::Done { widened },
            Err(error) => Reloaded::Refused {
                code: error.code().to_owned(),
                message: sentence(&error),
            },
        }
    }

    /// Why they permit more, if they do.
    fn try_reload(
        &mut self,
        file: &OwnedFd,
        widen: bool,
        of: Option<&str>,
    ) -> Result<Option<String>, ReloadError> {
        let nobody = || ReloadError::NoAncestor(of.unwrap_or_default().to_owned());
        let text = read(file)?;
        let new = match of {
            None => Conditions::parse_to_hold(&text, &World::of(&self.world))?,
            Some(of) => {
                let world = self.worlds.get(of).ok_or_else(nobody)?;
                Conditions::parse_inherited(&text, &World::of(world), &self.held())?
            }
        };
        let kin = self.family.of(of).ok_or_else(nobody)?;
        match told(&widenings(&kin.conditions, &new)?) {
            Some(why) if !widen => Err(ReloadError::Wider(why)),
            widened => {
                kin.conditions = new;
                Ok(widened)
            }
        }
    }
}

fn told(widenings: &[Widening]) -> Option<String> {
    let mut reasons: Vec<String> = widenings.iter().map(Widening::to_string).collect();
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    (!reasons.is_empty()).then(|| sentence(&reasons.join(", ")))
}

/// The text in `file`, from its beginning. A length that no conditions have is read no further.
fn read(file: &OwnedFd) -> Result<String, ReloadError> {
    let mut text = vec![0; MAX_TEXT_BYTES + 1];
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match pread(file, rest, length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ReloadError::Read(errno.into())),
        }
    }
    text.truncate(length);
    let text = String::from_utf8(text);
    text.map_err(|_| ConditionsError::Syntax("it is not UTF-8".to_owned()).into())
}

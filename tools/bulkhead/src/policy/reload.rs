//! `bulkhead policy reload`: other conditions for a partition that runs, and for those that descend from it.

use super::{refused, text};
use crate::act;
use crate::cli::PolicyReloadArgs;
use crate::failure::Failure;
use bulkhead_decision::{ConditionsError, MAX_TEXT_BYTES};
use bulkhead_supervisor::{
    Answer, Found, NewConditions, Standing, StateRoot, conditions, descendants, lock_lineage,
    reload,
};
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How long one may take until it can be told.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn run(args: &PolicyReloadArgs) -> Result<(), Failure> {
    let (found, partition) = act::find(&args.partition)?;
    let text = text(&args.file)?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(refused(&args.file, &ConditionsError::TooLong(text.len())));
    }
    // Two who replace conditions of one partition at once would leave its children with either. Who has no
    // manifest has no children.
    let locked = lock_lineage(&found, &partition)?;
    let new = NewConditions {
        file: args.file.display().to_string(),
        text,
        widen: args.widen,
        of: None,
    };
    let (digest, widened) = replace(&found, &partition, new.clone())?;
    if let Some(why) = widened {
        // Without anybody to read it, it is on record.
        let line = format!("bulkhead: they may permit more than those before: {why}\n");
        let _ = io::stderr().write_all(line.as_bytes());
    }
    if locked.is_some() {
        pass_on(&partition, &new)?;
    }
    drop(locked);
    crate::print(format!("{digest}\n").as_bytes())
}

/// Has other conditions hold for a partition: their digest, and why they permit more, if they do.
fn replace(
    found: &Found,
    partition: &str,
    new: NewConditions,
) -> Result<(String, Option<String>), Failure> {
    match reload(found, partition, new)? {
        Answer::Refused {
            code,
            message,
            help,
        } => Err(Failure::complain(code, message, help)),
        Answer::Reloaded {
            conditions,
            widened,
        } => Ok((conditions, widened)),
        _ => Err(Failure::new(
            "system",
            "the supervisor answers something else",
        )),
    }
}

/// Has all who descend from `ancestor` held to its new conditions too. They hold for itself already, so
/// that a child which starts now inherits them.
fn pass_on(ancestor: &str, new: &NewConditions) -> Result<(), Failure> {
    let untold = format!("they hold for `{ancestor}`, and not for all who descend from it");
    let descendants = StateRoot::locate().and_then(|root| descendants(&root, ancestor));
    let descendants = descendants.map_err(|error| Failure::from(error).behind(&untold))?;
    let mut failures = Vec::new();
    for (found, name) in descendants {
        if let Err(failure) = pass_on_to(&found, &name, ancestor, new) {
            let untold = format!(
                "they hold for `{ancestor}`, and not for `{}/{name}`, which descends from it",
                found.name
            );
            failures.push(failure.behind(&untold));
        }
    }
    match failures.into_iter().reduce(Failure::and) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Waits for one that cannot be told, which may be told something else, or be about to start, to reboot, or
/// to end.
fn pass_on_to(
    found: &Found,
    name: &str,
    ancestor: &str,
    new: &NewConditions,
) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let failure = match conditions(found, name) {
            Ok(held) => {
                let inherited = held.iter().flat_map(|held| &held.conditions.inherited);
                let mut own = inherited.filter(|inherited| inherited.ancestor == ancestor);
                if own.all(|inherited| inherited.text == new.text) {
                    return Ok(());
                }
                match held.is_some_and(|held| held.answered) {
                    true => {
                        let of = Some(ancestor.to_owned());
                        let new = NewConditions { of, ..new.clone() };
                        match replace(found, name, new) {
                            // Somebody replaces its own, or those of another ancestor.
                            Err(failure) if failure.is("conditions-busy") => failure,
                            done => return done.map(|_| ()),
                        }
                    }
                    false => Failure::new("conditions-gone", "nothing answers for its conditions"),
                }
            }
            Err(error) => error.into(),
        };
        let systems = StateRoot::locate()?.list()?;
        let lives = |system: &Found| system.path == found.path && system.standing == Standing::Live;
        if !systems.iter().any(lives) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(failure);
        }
        thread::sleep(INTERVAL);
    }
}

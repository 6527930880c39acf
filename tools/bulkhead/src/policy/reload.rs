//! `bulkhead policy reload`: other conditions for a partition that runs, and for those that descend from it.

use super::{refused, text};
use crate::act;
use crate::cli::PolicyReloadArgs;
use crate::failure::Failure;
use bulkhead_decision::{ConditionsError, MAX_TEXT_BYTES};
use bulkhead_supervisor::{
    Answer, Found, HeldConditions, NewConditions, Standing, StateRoot, children, conditions,
    manifest_of, reload,
};
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How long a child may take until it can be told, which may be starting.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn run(args: &PolicyReloadArgs) -> Result<(), Failure> {
    let (found, partition) = act::find(&args.partition)?;
    let text = text(&args.file)?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(refused(&args.file, &ConditionsError::TooLong(text.len())));
    }
    // Who has no manifest has no children.
    let is_somebody = manifest_of(&found, &partition)?.is_some();
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
    if is_somebody {
        pass_on(&partition, &new)?;
    }
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
    let mut failures = Vec::new();
    for (found, child) in children(&StateRoot::locate()?)? {
        let name = format!("{}/{child}", found.name);
        if let Err(failure) = pass_on_to(&found, &child, ancestor, new) {
            let sentence = format!("they hold for `{ancestor}`, and not for its child `{name}`");
            let help = "do the same again, or end the child";
            failures.push(failure.behind(&sentence).help(help));
        }
    }
    match failures.into_iter().reduce(Failure::and) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn pass_on_to(
    found: &Found,
    child: &str,
    ancestor: &str,
    new: &NewConditions,
) -> Result<(), Failure> {
    let Some(held) = held(found, child)? else {
        return Ok(());
    };
    let mut inherited = held.conditions.inherited.iter();
    match inherited.find(|inherited| inherited.ancestor == ancestor) {
        Some(inherited) if inherited.text != new.text => {
            let of = Some(ancestor.to_owned());
            let new = NewConditions { of, ..new.clone() };
            replace(found, child, new).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// What a child is held to, if it is to anything: when somebody answers for that, since it may be about to
/// start, to reboot, or to end.
fn held(found: &Found, child: &str) -> Result<Option<HeldConditions>, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let error: Failure = match conditions(found, child) {
            Ok(None) => return Ok(None),
            Ok(Some(held)) if held.answered => return Ok(Some(held)),
            Ok(Some(_)) => Failure::new("conditions-gone", "nothing answers for its conditions"),
            Err(error) => error.into(),
        };
        let systems = StateRoot::locate()?.list()?;
        let lives = |system: &Found| system.path == found.path && system.standing == Standing::Live;
        if !systems.iter().any(lives) {
            return Ok(None);
        }
        if Instant::now() > end {
            return Err(error);
        }
        thread::sleep(INTERVAL);
    }
}

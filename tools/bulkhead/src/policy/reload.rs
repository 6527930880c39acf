//! `bulkhead policy reload`: other conditions for a partition that runs.

use super::{refused, text};
use crate::act;
use crate::cli::PolicyReloadArgs;
use crate::failure::Failure;
use bulkhead_decision::{ConditionsError, MAX_TEXT_BYTES};
use bulkhead_supervisor::{Answer, NewConditions, reload};
use std::io::{self, Write};

pub(super) fn run(args: &PolicyReloadArgs) -> Result<(), Failure> {
    let (found, partition) = act::find(&args.partition)?;
    let text = text(&args.file)?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(refused(&args.file, &ConditionsError::TooLong(text.len())));
    }
    let new = NewConditions {
        file: args.file.display().to_string(),
        text,
        widen: args.widen,
    };
    match reload(&found, &partition, new)? {
        Answer::Refused {
            code,
            message,
            help,
        } => Err(Failure::complain(code, message, help)),
        Answer::Reloaded {
            conditions,
            widened,
        } => {
            if let Some(why) = widened {
                // Without anybody to read it, it is on record.
                let line = format!("bulkhead: they may permit more than those before: {why}\n");
                let _ = io::stderr().write_all(line.as_bytes());
            }
            crate::print(format!("{conditions}\n").as_bytes())
        }
        _ => Ok(()),
    }
}

//! `bulkhead stop --all --now`, the emergency stop, and `bulkhead resume --all`, its end.

use crate::cli::StopArgs;
use crate::failure::Failure;
use crate::table;
use bulkhead_supervisor::{Halted, StateRoot, go_on_all, halt_all};

/// Halts everything, and says what became of each system.
pub(crate) fn run(_confirmed: &StopArgs) -> Result<(), Failure> {
    let halted = halt_all(&StateRoot::locate()?)?;
    let row = |system: &Halted| {
        let end = system
            .end
            .as_ref()
            .map_or("still there", |end| end.as_str());
        [system.system.clone(), end.to_owned()]
    };
    crate::print(table::lines(["SYSTEM", "STATE"], halted.iter().map(row)).as_bytes())?;
    for system in halted {
        system.end?;
    }
    Ok(())
}

/// Lets everything go on.
pub(crate) fn resume() -> Result<(), Failure> {
    let root = StateRoot::locate()?;
    if !root.is_halted() {
        let failure = Failure::new("not-halted", "nothing is halted");
        return Err(failure.help("`bulkhead resume NAME/PARTITION` lets a paused one go on"));
    }
    let silent = go_on_all(&root)?.into_iter().next();
    silent.map_or(Ok(()), |error| Err(error.into()))
}

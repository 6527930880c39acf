//! `bulkhead down`: ends systems, each within a second, and removes what they left.

use crate::cli::DownArgs;
use crate::failure::Failure;
use bulkhead_supervisor::{StateRoot, down};

/// Ends the named systems, or all. Every one is tried; the first failure is told.
pub(crate) fn run(args: &DownArgs) -> Result<(), Failure> {
    let root = StateRoot::locate()?;
    let systems = if args.all {
        root.list()?
    } else {
        args.names
            .iter()
            .map(|name| root.find(name))
            .collect::<Result<_, _>>()?
    };
    let mut first = Ok(());
    for system in &systems {
        let done = down(&root, system);
        if first.is_ok() {
            first = done;
        }
    }
    Ok(first?)
}

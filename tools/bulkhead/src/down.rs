//! `bulkhead down`: ends systems, each within a second, and removes what they left.

use crate::cli::DownArgs;
use crate::failure::Failure;
use bulkhead_supervisor::{StateRoot, down};

/// Ends the named systems, or all. Every one is tried; the first failure is told.
pub(crate) fn run(args: &DownArgs) -> Result<(), Failure> {
    let root = StateRoot::locate()?;
    let systems = if args.all {
        root.list()?.into_iter().map(Ok).collect()
    } else {
        let find = |name: &String| root.find(name);
        args.names.iter().map(find).collect::<Vec<_>>()
    };
    let mut first = Ok(());
    for system in systems {
        let done = system.and_then(|system| down(&root, &system));
        if first.is_ok() {
            first = done;
        }
    }
    Ok(first?)
}

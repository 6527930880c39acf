//! `instructions`: how many instructions the microkernel takes for each of its paths.
//!
//! A debugger of our own, on the VMM's debug socket, steps through the kernel from each entry that
//! counts to the instruction by which it leaves. Which entries count is said by the measured
//! programs (`guest-kernel/paths`), with marks. [`remote`] speaks to the VMM, [`image`] knows the
//! kernel's image, [`guest`] steps, [`paths`] adds up.

mod guest;
mod image;
mod paths;
mod remote;

use std::path::Path;

use bulkhead_supervisor::host::{Installation, KvmKind, kvm_kind};
use serde::Serialize;

use crate::error::Error;
use guest::{Cause, Guest, Kind};
use image::Image;
use paths::Marked;

/// What was counted.
#[derive(Debug, Serialize)]
pub(crate) struct Counted {
    /// How this host's KVM enters the kernel: figures of different kinds differ.
    pub(crate) kvm: KvmKind,
    /// Each path, in the order in which the programs took them.
    pub(crate) paths: Vec<Counts>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Its name.
    pub(crate) name: String,
    /// What it takes, all its entries together.
    pub(crate) instructions: u64,
    /// How often the kernel is entered for it.
    pub(crate) entries: u64,
    /// The most that it may take, where somebody has said so.
    pub(crate) bar: Option<u64>,
}

/// Counts.
pub(crate) fn run(library: &Path) -> Result<Counted, Error> {
    let image = Image::read(&library.join("kernel"))?;
    let mut paths = example(library, &image)?;
    for (kind, program) in [
        (Kind::Native, "@tests/paths"),
        (Kind::LinuxAbi, "@tests/paths-linux-abi"),
    ] {
        paths.extend(marked(Guest::start(library, &image, kind, program)?)?);
    }
    let kvm = kvm_kind(&Installation::new(library));
    Ok(Counted { kvm, paths })
}

/// The example program, whose life does not change with what is measured: its boot, and all of it.
fn example(library: &Path, image: &Image) -> Result<Vec<Counts>, Error> {
    let program = "@examples/hello-native";
    let mut guest = Guest::start(library, image, Kind::Native, program)?;
    let boot = guest.count()?.all;
    let (mut instructions, mut entries) = (boot, 1);
    while guest.next_entry()?.is_some() {
        instructions += guest.count()?.all;
        entries += 1;
    }
    let counts = |name: &str, instructions, entries| Counts {
        name: name.into(),
        instructions,
        entries,
        bar: None,
    };
    Ok(vec![
        counts("boot, to the program", boot, 1),
        counts("hello-native, boot to end", instructions, entries),
    ])
}

/// The paths that a program marks.
fn marked(mut guest: Guest<'_>) -> Result<Vec<Counts>, Error> {
    let mut marked = Marked::default();
    while let Some(entry) = guest.next_entry()? {
        match entry.cause {
            Cause::Mark => marked.begin(guest.mark(&entry)?)?,
            Cause::Timer => marked.interrupted()?,
            Cause::Program if marked.wants_entry() => marked.add_entry(guest.count()?)?,
            Cause::Program => {}
        }
    }
    marked.finish()
}

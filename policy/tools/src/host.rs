//! What tools work on: everything of the host that one partition's tools may touch.

use bulkhead_capability::Grants;

use crate::backups::Backups;
use crate::directories::Directories;
use crate::gate::Gate;
use crate::jobs::Jobs;
use crate::programs::Launcher;

/// Everything of the host that the tools of a partition may touch.
#[derive(Debug)]
pub struct Host {
    /// What the partition was granted, for who asks about it.
    pub grants: Grants,
    /// The granted directories.
    pub directories: Directories,
    /// What rolling back needs.
    pub backups: Backups,
    /// How programs are started.
    pub launcher: Launcher,
    /// Where git is, of the places where hosts have it.
    pub git: Option<&'static str>,
    /// The way to web servers, where the partition has one.
    pub gate: Option<Gate>,
    /// Programs that go on while calls are done.
    pub jobs: Jobs,
}

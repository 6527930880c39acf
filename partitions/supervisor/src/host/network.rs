//! An empty network namespace for the jails of VMMs.

use rustix::thread::UnshareFlags;
use std::fs::File;
use std::thread::{self, JoinHandle};

/// A network namespace in the making, on a thread of its own: the host takes longer for it than a
/// VMM does for all else.
#[derive(Debug)]
pub struct EmptyNetwork(Option<JoinHandle<Option<File>>>);

impl EmptyNetwork {
    /// Begins.
    pub fn begin() -> Self {
        let builder = thread::Builder::new().name("empty-network".to_owned());
        Self(builder.spawn(create).ok())
    }

    /// The namespace; nothing where we may not create one, and each VMM makes its own.
    pub fn finish(self) -> Option<File> {
        self.0?.join().ok()?
    }
}

/// The namespace outlives this thread, which alone enters it, by the file that holds it.
fn create() -> Option<File> {
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe because of a flag that is not used here"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNET).ok()?;
    File::open("/proc/thread-self/ns/net").ok()
}

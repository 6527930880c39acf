//! The Debian of the lab (`cargo xtask lab --debian`): a whole, unmodified distribution to boot as a
//! partition, and a place to run its programs on the host's side.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

/// Its root filesystem; what is written to it lasts as long as the lab runs.
pub const ROOT: &str = "/dev/nvme1n1";

/// Its kernel and initial RAM filesystem.
pub fn boot_file(name: &str) -> PathBuf {
    Path::new("/repo/debian").join(name)
}

/// A disk that holds the script `run`, which the Debian runs when it has the serial number `job`.
pub fn job(scratch: &Scratch, script: &str) -> PathBuf {
    let tree = scratch.path().join("job");
    std::fs::create_dir_all(&tree).expect("the scratch directory is writable");
    std::fs::write(tree.join("run"), script).expect("the scratch directory is writable");
    let image = scratch.path().join("job.img");
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&image)
        .arg("4M")
        .status();
    assert!(made.expect("mke2fs is there").success());
    image
}

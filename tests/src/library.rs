//! A library directory with one file replaced: how a hostile kernel gets into the kernel's place
//! through the front door (`BULKHEAD_LIB`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::bulkhead::Bulkhead;
use crate::scratch::Scratch;

/// The built library, with `content` in the place of `name`.
pub fn with(bulkhead: &Bulkhead, scratch: &Scratch, name: &str, content: &[u8]) -> PathBuf {
    let library = scratch.path().join(format!("lib-{name}"));
    fs::create_dir_all(&library).expect("the scratch directory is writable");
    let built = bulkhead.library("");
    for entry in fs::read_dir(&built).expect("the built library") {
        let entry = entry.expect("the built library");
        if entry.file_name() != name {
            symlink(entry.path(), library.join(entry.file_name())).expect("a fresh directory");
        }
    }
    let file = library.join(name);
    fs::write(&file, content).expect("the scratch directory is writable");
    // It may be a program.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("our own file");
    library
}

/// A copy of the parts of the tree that native partitions need, readable by every user.
pub fn public_copy(bulkhead: &Bulkhead, scratch: &Scratch) -> PathBuf {
    let tree = scratch.path().join("public");
    let copy = |from: PathBuf, to: &str| {
        let to = tree.join(to);
        let dir = to.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).expect("the scratch directory is writable");
        fs::copy(from, to).expect("the built tree");
    };
    copy(bulkhead.program(), "bin/bulkhead");
    for name in [
        "bulkhead-vmm",
        "kernel",
        "probe",
        "linux-personality",
        "examples/hello-native",
    ] {
        copy(bulkhead.library(name), &format!("lib/bulkhead/{name}"));
    }
    tree
}

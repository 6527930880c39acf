//! An initial RAM filesystem: busybox, the drivers of a Linux partition with the order in which they
//! are loaded (`/modules/load-order`), and a script that runs first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bulkhead::Bulkhead;
use crate::scratch::Scratch;

/// Begins a script: file systems, and every driver.
pub const PROLOGUE: &str = "#!/bin/busybox sh
busybox mkdir -p /proc /dev /sys
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t sysfs sysfs /sys
while read -r module; do busybox insmod \"/modules/$module\"; done </modules/load-order
";

/// Packs `init` and what it needs; the archive.
pub fn pack(bulkhead: &Bulkhead, scratch: &Scratch, init: &str) -> PathBuf {
    let tree = scratch.path().join("early");
    busybox(&tree);
    script(&tree.join("init"), init);
    fs::create_dir_all(tree.join("modules")).unwrap();
    for entry in fs::read_dir(bulkhead.library("linux/modules")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), tree.join("modules").join(entry.file_name())).unwrap();
    }
    let archive = scratch.path().join("initrd.cpio");
    let packed = Command::new("sh")
        .args(["-c", "find . | cpio -o -H newc >../initrd.cpio"])
        .current_dir(&tree)
        .output()
        .expect("the lab has a shell");
    assert!(packed.status.success(), "{packed:?}");
    archive
}

/// Puts busybox into `tree`.
pub fn busybox(tree: &Path) {
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
}

/// An executable file.
pub fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

//! What a stock kernel boots into when a suite is about devices: a script of the test's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bulkhead::Bulkhead;
use crate::scratch::Scratch;

/// What the guest's first process does before the test's own script.
const PROLOGUE: &str = "#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod \"/modules/$module\"; done </modules/load-order
";

/// An initial RAM filesystem with busybox, the drivers and `files` (name and content), whose first
/// process runs `script` and powers the guest off.
pub fn with_script(
    bulkhead: &Bulkhead,
    scratch: &Scratch,
    files: &[(&str, &Path)],
    script: &str,
) -> PathBuf {
    let tree = scratch.path().join("guest");
    for dir in ["bin", "dev", "proc", "sys", "modules", "www"] {
        fs::create_dir_all(tree.join(dir)).expect("the scratch directory is writable");
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("the lab has busybox");
    let applets = Command::new("/bin/busybox").arg("--list").output();
    for applet in String::from_utf8_lossy(&applets.expect("busybox").stdout).lines() {
        // `busybox` itself is there.
        let _ = symlink("busybox", tree.join("bin").join(applet));
    }
    let modules = fs::read_dir(bulkhead.library("linux/modules")).expect("the stock modules");
    for entry in modules {
        let entry = entry.expect("the stock modules");
        let to = tree.join("modules").join(entry.file_name());
        fs::copy(entry.path(), to).expect("the scratch directory is writable");
    }
    for (name, content) in files {
        fs::copy(content, tree.join(name)).expect("the test's own file");
    }
    let init = tree.join("init");
    let text = format!("{PROLOGUE}{script}\npoweroff -f\n");
    fs::write(&init, text).expect("the scratch directory is writable");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("our own file");
    let done = Command::new("sh")
        .args(["-c", "find . | cpio -o -H newc >../guest.cpio"])
        .current_dir(&tree)
        .output()
        .expect("the lab has cpio");
    assert!(done.status.success(), "{done:?}");
    scratch.path().join("guest.cpio")
}

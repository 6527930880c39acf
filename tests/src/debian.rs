//! The Debian of the lab (`cargo xtask lab --debian`): a whole, unmodified distribution to boot as a
//! partition, and a place to run its programs on the host's side.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

/// Its root filesystem, a disk.
pub const ROOT: &str = "/dev/nvme1n1";

/// Its kernel and initial RAM filesystem.
pub fn boot_file(name: &str) -> PathBuf {
    Path::new("/repo/debian").join(name)
}

/// The root filesystem on the host's side, read-only, but for a directory that is `/mnt` in there.
#[derive(Debug)]
pub struct Chroot {
    root: PathBuf,
    shared: PathBuf,
}

impl Chroot {
    /// Mounts it.
    pub fn new(scratch: &Scratch) -> Self {
        let chroot = Self {
            root: scratch.path().join("chroot"),
            shared: scratch.path().join("shared"),
        };
        for directory in [&chroot.root, &chroot.shared] {
            std::fs::create_dir(directory).expect("the scratch directory is writable");
        }
        let inside = |path: &str| chroot.root.join(path);
        mount(&[
            "-o".as_ref(),
            "ro".as_ref(),
            ROOT.as_ref(),
            chroot.root.as_ref(),
        ]);
        mount(&["--bind".as_ref(), "/dev".as_ref(), inside("dev").as_ref()]);
        mount(&[
            "--bind".as_ref(),
            chroot.shared.as_ref(),
            inside("mnt").as_ref(),
        ]);
        chroot
    }

    /// The directory of the host that is `/mnt` in there.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// The path on the host of what is `inside` in there.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// A program of the distribution, not yet started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(program);
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("TMPDIR", "/mnt");
        command
    }

    /// Runs one; its standard output.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self
            .command(program)
            .args(args)
            .output()
            .expect("it has the program");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Chroot {
    fn drop(&mut self) {
        for inside in ["mnt", "dev", ""] {
            // What is still mounted goes with the lab.
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.root.join(inside))
                .status();
        }
    }
}

fn mount(args: &[&OsStr]) {
    let status = Command::new("mount").args(args).status();
    assert!(
        status.expect("there is a mount").success(),
        "mount {args:?}"
    );
}

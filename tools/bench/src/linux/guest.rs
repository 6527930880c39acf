//! What is booted, whoever boots it.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Files, disk, net};
use crate::error::Error;

/// What the first process of [`Guest::until_first_process`] says.
pub(super) const UP: &str = "bench: up";

/// A kernel, what goes with it, and disks.
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) cmdline: String,
    pub(super) memory_mib: u64,
    /// Path, and whether it is only read.
    pub(super) disks: Vec<(PathBuf, bool)>,
    /// A tap that exists.
    pub(super) tap: Option<String>,
}

/// The same for all: a serial console without chatter, and an end instead of a wait.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=t,k";

impl Guest {
    /// An initial RAM filesystem with busybox and a script, that says [`UP`] and waits.
    pub(super) fn until_first_process(files: &Files) -> Result<Self, Error> {
        let tree = files.scratch.join("tree");
        let init = tree.join("init");
        let script = format!("#!/busybox sh\necho {UP}\nexec /busybox sleep 100\n");
        std::fs::create_dir_all(&tree)
            .and_then(|()| std::fs::copy("/bin/busybox", tree.join("busybox")))
            .and_then(|_| std::fs::write(&init, script))
            .and_then(|()| std::fs::set_permissions(&init, Permissions::from_mode(0o755)))
            .map_err(Error::io(format!("making {}", tree.display())))?;
        let initrd = files.scratch.join("initrd.cpio");
        pack(&tree, &initrd)?;
        Ok(Self {
            kernel: files.boot.join("vmlinuz"),
            initrd,
            cmdline: CMDLINE.into(),
            memory_mib: 256,
            disks: Vec::new(),
            tap: None,
        })
    }

    /// The distribution's root filesystem with what measures disk and network instead of an init.
    pub(super) fn that_measures(files: &Files) -> Result<Self, Error> {
        let disk = files.scratch.join("disk.img");
        let file = File::create(&disk).map_err(Error::io("making a disk"))?;
        let chunk = vec![0x5a; 1 << 20];
        for _ in 0..disk::DISK_MIB {
            (&file)
                .write_all(&chunk)
                .map_err(Error::io("filling a disk"))?;
        }
        Ok(Self {
            kernel: files.boot.join("vmlinuz"),
            initrd: files.boot.join("initrd.img"),
            cmdline: format!(
                "{CMDLINE} root=/dev/vda ro init=/bin/sh -- -c \"mount -t proc proc /proc; \
                 mount -t sysfs sysfs /sys; {}; {}; sleep 100\"",
                disk::script(),
                net::script()
            ),
            memory_mib: 256,
            disks: vec![(files.root.clone(), true), (disk, false)],
            tap: Some(files.tap.clone()),
        })
    }
}

fn pack(tree: &Path, archive: &Path) -> Result<(), Error> {
    let failed = || Error::io("packing an initial RAM filesystem with cpio");
    let file = File::create(archive).map_err(failed())?;
    let mut cpio = Command::new("cpio")
        .args(["-o", "-H", "newc"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed())?;
    if let Some(mut names) = cpio.stdin.take() {
        names.write_all(b"init\nbusybox\n").map_err(failed())?;
    }
    match cpio.wait().map_err(failed())?.success() {
        true => Ok(()),
        false => Err(failed()(std::io::Error::other("it failed"))),
    }
}

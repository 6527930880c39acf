//! The Debian that the suites boot as a partition: a root filesystem made by mmdebstrap, with the
//! distribution's own kernel and initial RAM filesystem. Cached by its recipe.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{At, Result};
use crate::process::{output, require};
use crate::repo::Repo;
use crate::say::Say;

const SUITE: &str = "bookworm";
/// What it consists of, beyond the essential.
const PACKAGES: &str = "systemd-sysv,systemd-resolved,udev,dbus,kmod,e2fsprogs,iproute2,\
                        linux-image-cloud-amd64,initramfs-tools,lz4,openssh-server,fio,iperf3,\
                        pciutils,curl,python3,git,openssl";
/// Written before any package of [`PACKAGES`] is installed: an initial RAM filesystem with what
/// finds the root and nothing else, since it is unpacked by an emulated CPU.
const INITRAMFS: &str = r#"mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$1/etc/initramfs-tools/conf.d/small"
printf 'virtio_pci\nvirtio_mmio\nvirtio_blk\next4\n' >"$1/etc/initramfs-tools/modules""#;
const CUSTOMIZE: &str = include_str!("../../../../tests/debian/customize.sh");
/// Paths that no test needs.
const EXCLUDED: [&str; 3] = ["doc", "man", "locale"];
/// Size of the disk in MiB: about 400 are used.
const DISK_MIB: u32 = 1200;

/// Where the parts are.
#[derive(Clone, Debug)]
pub(crate) struct Debian {
    /// ext4 image of the root filesystem.
    pub(crate) root: PathBuf,
    /// Directory `debian` with `vmlinuz` and `initrd.img`.
    pub(crate) boot: PathBuf,
}

/// The Debian, made now unless it has been made before: about a minute.
pub(crate) fn get(repo: &Repo, say: &Say) -> Result<Debian> {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, INITRAMFS, CUSTOMIZE, EXCLUDED, DISK_MIB).hash(&mut hasher);
    let dir = (repo.lab()).join(format!("debian-{:016x}", hasher.finish()));
    let debian = Debian {
        root: dir.join("root.ext4"),
        boot: dir.join("debian"),
    };
    if debian.root.exists() {
        return Ok(debian);
    }
    say.step("making a Debian root filesystem");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&debian.boot).at("create", &debian.boot)?;
    let archive = dir.join("root.tar");
    bootstrap(&debian.boot, &archive)?;
    lay_out(&dir, &archive, &debian.root)?;
    fs::remove_file(&archive).at("remove", &archive)?;
    Ok(debian)
}

fn bootstrap(boot: &Path, archive: &Path) -> Result<()> {
    let customize = boot.join("customize.sh");
    fs::write(&customize, CUSTOMIZE).at("write", &customize)?;
    let mut command = Command::new(require("mmdebstrap", "mmdebstrap")?);
    command
        .current_dir(boot)
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={PACKAGES}"))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg(format!("--essential-hook={INITRAMFS}"))
        .arg("--customize-hook=sh ./customize.sh \"$1\"");
    for excluded in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    output(command.arg(SUITE).arg(archive))?;
    fs::remove_file(&customize).at("remove", &customize)
}

/// `mke2fs` under fakeroot: owners and devices come out right whoever we are.
fn lay_out(dir: &Path, archive: &Path, image: &Path) -> Result<()> {
    let tree = dir.join("root");
    let unfinished = image.with_extension("new");
    let script = "mkdir \"$2\" && tar -xf \"$1\" -C \"$2\" && \
                  \"$5\" -q -t ext4 -L root -d \"$2\" \"$3\" \"$4\"";
    let made = output(
        Command::new(require("fakeroot", "fakeroot")?)
            .args(["--", "sh", "-c", script, "sh"])
            .args([archive, &tree, &unfinished])
            .arg(format!("{DISK_MIB}M"))
            .arg(require("mke2fs", "e2fsprogs")?),
    );
    let _ = fs::remove_dir_all(&tree);
    made?;
    fs::rename(&unfinished, image).at("rename", &unfinished)
}

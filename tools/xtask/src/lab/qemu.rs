//! The emulated host as a QEMU command line: a q35 PC with AMD SVM in software, one NVMe disk with
//! the root, and one virtio-serial port to the agent. Recipe and reasons: docs/lab.md.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::tsc;
use crate::failure::{Failure, Result};
use crate::process::require;

/// What the caller may choose.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The kernel that boots.
    pub(crate) kernel: PathBuf,
    /// The root disk; what is written to it is thrown away.
    pub(crate) root: PathBuf,
    /// Processors. More than one boots slower and may stall on a busy machine.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// NVMe disks of which writes are thrown away, behind the root.
    pub(crate) scratch_disks: Vec<PathBuf>,
    /// More NVMe disks: raw images that are written to.
    pub(crate) disks: Vec<PathBuf>,
}

impl Machine {
    /// Starts QEMU. Its stdin and stdout are the agent's port, its stderr is the console and
    /// QEMU's own messages. The kernel kills it when this process ends, however it ends.
    pub(crate) fn start(&self) -> Result<Child> {
        let qemu = require("qemu-system-x86_64", "qemu-system-x86")?;
        let mut command = Command::new(require("setpriv", "util-linux")?);
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
        let thread = if self.cpus > 1 { "multi" } else { "single" };
        command
            .args(["-machine", "q35", "-cpu", "max", "-nodefaults"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-accel", &format!("tcg,thread={thread}")])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-chardev", "file,id=console,path=/dev/stderr"])
            .args(["-serial", "chardev:console"])
            .args(["-chardev", "stdio,id=port,signal=off"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=port,name=bulkhead.lab"])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-append", &self.command_line()]);
        disk(&mut command, "root", &self.root, ",snapshot=on");
        for (index, path) in self.scratch_disks.iter().enumerate() {
            disk(
                &mut command,
                &format!("scratch{index}"),
                path,
                ",snapshot=on",
            );
        }
        for (index, path) in self.disks.iter().enumerate() {
            disk(&mut command, &format!("disk{index}"), path, "");
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("cannot start QEMU: {error}")))
    }

    fn command_line(&self) -> String {
        let khz = tsc::khz();
        // Four ticks a jiffy of 250 Hz: what the kernel itself derives from a known counter.
        let lpj = khz * 4;
        format!(
            "console=ttyS0 quiet reboot=t panic=-1 root=/dev/nvme0n1 rw init=/init \
             tsc_early_khz={khz} tsc=reliable clocksource=tsc lpj={lpj}"
        )
    }
}

fn disk(command: &mut Command, id: &str, path: &Path, options: &str) {
    let mut drive = std::ffi::OsString::from(format!("if=none,id={id},format=raw{options},file="));
    // QEMU splits options at commas and reads a doubled one as itself.
    drive.push(path.to_string_lossy().replace(',', ",,"));
    command.arg("-drive").arg(drive);
    command
        .arg("-device")
        .arg(format!("nvme,drive={id},serial={id}"));
}

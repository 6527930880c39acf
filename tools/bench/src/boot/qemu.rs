//! The peer: QEMU's microvm machine, given the same probe and the settings that its documentation
//! ("microvm virtual platform", "Running a microvm-based VM") gives for the smallest footprint, but
//! with the serial port, which the probe needs.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::launch::first_byte;
use crate::child::Watched;
use crate::clock::now_ns;
use crate::error::Error;

/// A QEMU that can be asked.
pub(super) struct Qemu {
    program: PathBuf,
    probe: PathBuf,
}

impl Qemu {
    /// QEMU, if it is in PATH.
    pub(super) fn find(library: &Path) -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let program = std::env::split_paths(&path)
            .map(|directory| directory.join("qemu-system-x86_64"))
            .find(|program| program.is_file())?;
        Some(Self {
            program,
            probe: library.join("probe"),
        })
    }

    /// Nanoseconds from before its creation to the first byte of the probe.
    pub(super) fn measure(&self) -> Result<u64, Error> {
        let (mut console, theirs) = io::pipe().map_err(Error::io("creating a pipe"))?;
        let machine = concat!(
            "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,",
            "auto-kernel-cmdline=off"
        );
        let mut command = Command::new(&self.program);
        (command.args(["-M", machine]))
            .args([
                "-cpu",
                "host",
                "-smp",
                "1",
                "-m",
                "16",
                "-nodefaults",
                "-no-user-config",
            ])
            .args([
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
                "-kernel",
            ])
            .arg(&self.probe)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(Stdio::null());
        let start = now_ns();
        let child = command
            .spawn()
            .map_err(Error::io(format!("running {}", self.program.display())))?;
        let _child = Watched(child);
        // The pipe's other end has to be QEMU's alone, or its death would go unseen.
        drop(command);
        first_byte(&mut console, "QEMU").map(|first| first - start)
    }
}

//! The lab: an emulated host with real KVM semantics, for machines whose own KVM cannot run
//! everything. `cargo xtask lab -- COMMAND` boots it, runs the command and returns its status.

mod debian;
mod image;
pub(crate) mod kernel;
mod qemu;
mod session;
mod tsc;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::failure::{At, Failure, Result};
use crate::process::{require, run, which};
use crate::repo::Repo;
use crate::say::Say;
use kernel::Kernel;
use qemu::Machine;
use session::{End, Job};

/// Status when the time was up, as timeout(1) has it.
pub(crate) const TIMED_OUT: i32 = 124;
/// Bound on the boot alone. On an idle machine it takes about 3 s.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);

/// Options of `cargo xtask lab`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds that boot and command may take together
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub(crate) timeout: u64,
    /// Processors of the emulated host; more than one is slower to boot
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) cpus: u32,
    /// Memory of the emulated host in MiB
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    pub(crate) memory: u64,
    /// One more NVMe disk, a raw image that the command may write to (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Vec<PathBuf>,
    /// Bring a Debian: its root filesystem on /dev/nvme1n1, its kernel and initial RAM filesystem
    /// in debian/
    #[arg(long)]
    pub(crate) debian: bool,
    /// A file or directory to copy beside the command's working directory (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(crate) with: Vec<PathBuf>,
    /// A dynamically linked program of this machine, with its libraries (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) program: Vec<String>,
    /// NAME=value for the command (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// A path in the lab to copy to target/lab/out when the command has ended (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Vec<String>,
    /// Show the emulated host's console on stderr
    #[arg(long)]
    pub(crate) console: bool,
    /// Use the tree that was built last
    #[arg(long)]
    pub(crate) no_build: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: 300,
            cpus: 1,
            memory: 2048,
            disk: Vec::new(),
            debian: false,
            with: Vec::new(),
            program: Vec::new(),
            env: Vec::new(),
            out: Vec::new(),
            console: false,
            no_build: false,
        }
    }
}

/// What the lab lacks on this machine, as one sentence; nothing when it can run.
pub(crate) fn missing() -> Option<String> {
    [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("mke2fs", "e2fsprogs"),
        ("setpriv", "util-linux"),
        ("mmdebstrap", "mmdebstrap"),
        ("fakeroot", "fakeroot"),
    ]
    .iter()
    .find(|(program, _)| which(program).is_none())
    .map(|(program, package)| format!("{program} is not installed (package {package})"))
}

/// Runs `command` in the lab with our streams; its status.
pub(crate) fn run_here(repo: &Repo, options: &Options, command: &[String]) -> Result<i32> {
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    Lab::get(repo, options)?.run(command, &mut stdout, &mut stderr, true)
}

/// The emulated host, ready to boot: any number of times, also side by side, for no boot sees what
/// another wrote.
pub(crate) struct Lab {
    machine: Machine,
    options: Options,
    out: PathBuf,
}

impl Lab {
    /// Makes or finds its kernel and disks.
    pub(crate) fn get(repo: &Repo, options: &Options) -> Result<Self> {
        let say = Say::new("lab");
        let kernel = Kernel::get(repo, &say)?;
        let mut with = options.with.clone();
        let mut scratch_disks = Vec::new();
        if options.debian {
            let debian = debian::get(repo, &say)?;
            scratch_disks.push(debian.root);
            with.push(debian.boot);
        }
        let root = image::get(repo, &kernel, &with, &options.program, &say)?;
        Ok(Self {
            machine: Machine {
                kernel: kernel.image,
                root,
                cpus: options.cpus,
                memory_mib: options.memory,
                scratch_disks,
                disks: options.disk.clone(),
            },
            options: options.clone(),
            out: repo.lab().join("out"),
        })
    }

    /// Boots it for one `command`; its status. Output goes where the caller wants it.
    pub(crate) fn run(
        &self,
        command: &[String],
        stdout: &mut impl Write,
        stderr: &mut impl Write,
        stdin: bool,
    ) -> Result<i32> {
        let say = Say::new("lab");
        let Self { options, out, .. } = self;
        let archive = (!options.out.is_empty()).then(|| out.with_extension("tar"));
        if let Some(archive) = &archive {
            let _ = fs::remove_file(archive);
        }
        let job = Job {
            command: command.to_vec(),
            env: options.env.clone(),
            out: options.out.clone(),
            archive: archive.clone(),
            timeout: Duration::from_secs(options.timeout),
            boot_timeout: BOOT_TIMEOUT,
            show_console: options.console,
            stdin,
        };
        let mut end = session::run(&self.machine, &job, stdout, stderr, &say)?;
        if let End::Stalled(console) = end {
            let limit = BOOT_TIMEOUT.as_secs();
            say.line(&format!(
                "the boot stalled for {limit} s; trying once more\n{console}"
            ));
            end = session::run(&self.machine, &job, stdout, stderr, &say)?;
        }
        if let Some(archive) = archive {
            unpack(&archive, out)?;
        }
        match end {
            End::Status(status) => Ok(status),
            End::Stalled(console) => Err(Failure::new(format!(
                "the emulated host does not boot\n{console}"
            ))),
            End::TimedOut(console) => {
                let limit = options.timeout;
                say.line(&format!("stopped after {limit} s (--timeout)\n{console}"));
                Ok(TIMED_OUT)
            }
            End::Broken(failure) => Err(failure),
        }
    }
}

fn unpack(archive: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).at("create", out)?;
    if archive.exists() {
        run(Command::new(require("tar", "tar")?)
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(out))?;
        fs::remove_file(archive).at("remove", archive)?;
    }
    Ok(())
}

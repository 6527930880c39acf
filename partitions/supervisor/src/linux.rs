//! What a Linux partition that runs one command boots into: the guest agent as its first process,
//! the modules of its devices, and a specification for the agent.

use crate::error::Error;
use crate::initramfs::Initramfs;
use crate::library::{Library, LibraryFile};
use crate::secrets::{self, PartitionSecret};
use crate::web::{self, Authority};
use bulkhead_capability::CapabilityName;
use bulkhead_guest_agent::{AGENT_PATH, SPEC_PATH, Spec};
use bulkhead_machine::Transport;
use bulkhead_manifest::{Partition, Program};
use std::fs::{self, File};
use std::path::PathBuf;

/// Directory of the library with the modules that belong to its kernel.
const MODULES: &str = "linux/modules";
/// File in there with a line for each driver: its name, a colon, and the modules it is made of, each
/// after those it needs.
const DRIVERS: &str = "drivers";

/// Kernel arguments of every Linux partition with a command: end on a panic instead of waiting,
/// and end by the reset that the VMM watches for.
const ARGUMENTS: &str = "panic=-1 reboot=k";
/// How a kernel is told to use its console: for what is critical only, since every byte is an exit.
const CONSOLE_ARGUMENTS: &str = "console=ttyS0 loglevel=3";

/// The drivers of the partition's devices, and of what can be plugged in.
fn drivers(partition: &Partition) -> Vec<&'static str> {
    let mut drivers = Vec::new();
    for grant in partition.grants.capabilities() {
        let own: &[&str] = match grant.name() {
            CapabilityName::Console => &["virtio_console"],
            CapabilityName::Entropy => &["virtio_rng"],
            CapabilityName::BlockRead
            | CapabilityName::BlockWrite
            | CapabilityName::VhostUserBlock => &["virtio_blk"],
            CapabilityName::DnsResolve
            | CapabilityName::ModelChat
            | CapabilityName::NetConnect
            | CapabilityName::NetListen
            | CapabilityName::NetLoopback
            | CapabilityName::NetTap
            | CapabilityName::VhostUserNet => &["virtio_net"],
            CapabilityName::FsRead | CapabilityName::FsWrite => &["virtiofs"],
            CapabilityName::Vsock => &["vmw_vsock_virtio_transport"],
            CapabilityName::PmemRead | CapabilityName::PmemWrite => &["virtio_pmem", "nd_pmem"],
            CapabilityName::DevicePci
            | CapabilityName::Exec
            | CapabilityName::PartitionSpawn
            | CapabilityName::RingReceive
            | CapabilityName::RingSend
            | CapabilityName::SecretUse
            | CapabilityName::Time
            | CapabilityName::ToolCall => &[],
        };
        drivers.extend_from_slice(own);
    }
    if partition.memory.balloon.is_some() {
        drivers.push("virtio_balloon");
    }
    if partition.memory.pluggable_mib > 0 {
        drivers.push("virtio_mem");
    }
    match partition.transport {
        Transport::Pci => drivers.extend(["virtio_pci", "virtio_blk", "virtio_net", "virtiofs"]),
        Transport::Mmio if !drivers.is_empty() => drivers.push("virtio_mmio"),
        Transport::Mmio => {}
    }
    drivers
}

/// Paths of the modules to load, in order: their drivers bind to what was granted, and to nothing
/// else.
fn modules(partition: &Partition, library: &Library) -> Result<Vec<PathBuf>, Error> {
    let drivers = drivers(partition);
    if drivers.is_empty() {
        return Ok(Vec::new());
    }
    let directory = library.path().join(MODULES);
    let path = directory.join(DRIVERS);
    let known = fs::read_to_string(&path);
    let known = known.map_err(|_| Error::NotInstalled {
        what: "list of kernel modules",
        path,
    })?;
    let mut paths = Vec::new();
    for line in known.lines() {
        let (driver, modules) = line.split_once(':').unwrap_or((line, ""));
        if !drivers.contains(&driver) {
            continue;
        }
        for module in modules.split_whitespace() {
            let path = directory.join(module);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// The kernel command line.
pub(crate) fn cmdline(partition: &Partition, more: Option<&str>) -> String {
    let console = partition
        .grants
        .capabilities()
        .any(|grant| grant.name() == CapabilityName::Console);
    let init = format!("rdinit=/{AGENT_PATH}");
    let console = console.then_some(CONSOLE_ARGUMENTS);
    let parts = [Some(init.as_str()), Some(ARGUMENTS), console, more];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What the guest agent is told beside the partition's program.
pub(crate) struct Agent<'a> {
    /// The console is a terminal.
    pub(crate) tty: bool,
    /// It says when it is ready for input.
    pub(crate) announce: bool,
    /// Whom programs are to trust.
    pub(crate) authority: Option<&'a Authority>,
    /// Its secrets, of which the guest gets placeholders.
    pub(crate) secrets: &'a [PartitionSecret],
}

/// The initial RAM filesystem.
pub(crate) fn initramfs(
    partition: &Partition,
    program: &Program,
    library: &Library,
    agent: Agent<'_>,
) -> Result<File, Error> {
    let mut archive = Initramfs::new(partition)?;
    archive.program(program, library)?;
    for directory in ["dev", "proc", "sys", "tmp", "run"] {
        archive.directory(directory)?;
    }
    archive.copy(&library.file(LibraryFile::GuestAgent)?, AGENT_PATH, 0o755)?;
    let mut paths = Vec::new();
    for module in modules(partition, library)? {
        let Some(file) = module.file_name().filter(|_| module.is_file()) else {
            return Err(Error::NotInstalled {
                what: "kernel module",
                path: module,
            });
        };
        let name = format!("bulkhead/modules/{}", file.to_string_lossy());
        archive.copy(&module, &name, 0o644)?;
        paths.push(format!("/{name}"));
    }
    let mut env = secrets::with_placeholders(program.env.clone(), agent.secrets);
    if let Some(authority) = agent.authority {
        let certificate = authority.certificate.as_bytes();
        archive.file(web::CERTIFICATE, 0o644, certificate)?;
        archive.file(web::BUNDLE, 0o644, authority.bundle().as_bytes())?;
        env = web::with_trust(env);
    }
    let spec = Spec {
        command: program.command.clone(),
        env,
        modules: paths,
        tty: agent.tty,
        announce: agent.announce,
    };
    let spec = serde_json::to_vec(&spec).map_err(Error::system("describe a command"))?;
    archive.file(SPEC_PATH, 0o600, &spec)?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::partition;

    fn granted(grants: &str) -> Partition {
        partition(&format!(
            "kernel = \"linux\"\ncommand = [\"/x\"]\ngrants = [{grants}]\n"
        ))
    }

    #[test]
    fn modules_are_loaded_in_order_where_there_is_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::at(dir.path()).unwrap();
        let names = |grants: &str| -> Result<Vec<String>, &'static str> {
            let paths = modules(&granted(grants), &library).map_err(|error| error.code())?;
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            Ok(paths.iter().map(name).collect())
        };
        assert_eq!(names("\"console\""), Err("library-incomplete"));
        fs::create_dir_all(dir.path().join(MODULES)).unwrap();
        let known = "virtio_mmio: virtio.ko mmio.ko\nvirtio_blk: virtio.ko blk.ko\n\
                     virtio_console: virtio.ko console.ko\nvirtio_net: virtio.ko failover.ko net.ko\n";
        fs::write(dir.path().join(MODULES).join(DRIVERS), known).unwrap();
        assert_eq!(names("").unwrap(), [""; 0]);
        assert_eq!(names("\"time\"").unwrap(), [""; 0]);
        assert_eq!(
            names("\"console\"").unwrap(),
            ["virtio.ko", "mmio.ko", "console.ko"]
        );
        assert_eq!(
            names("\"net.connect:a.org:80\", \"block.read:a\"").unwrap(),
            ["virtio.ko", "mmio.ko", "blk.ko", "failover.ko", "net.ko"]
        );
    }

    #[test]
    fn a_console_is_named_only_where_it_was_granted() {
        assert!(!cmdline(&granted(""), None).contains("console"));
        let line = cmdline(&granted("\"console\""), Some("loglevel=7"));
        assert!(line.contains("console=ttyS0") && line.ends_with(" loglevel=7"));
        assert!(line.starts_with("rdinit=/bulkhead/"));
    }
}

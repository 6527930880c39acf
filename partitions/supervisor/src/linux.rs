//! What a Linux partition that runs one command boots into: the guest agent as its first process,
//! the modules of its devices, and a specification for the agent.

use crate::error::Error;
use crate::initramfs::Initramfs;
use crate::library::{Library, LibraryFile};
use bulkhead_capability::CapabilityName;
use bulkhead_guest_agent::{AGENT_PATH, SPEC_PATH, Spec};
use bulkhead_manifest::{Partition, Program};
use std::fs::File;

/// Modules that every virtio-mmio device needs, in the order of their dependencies.
const TRANSPORT: [&str; 3] = ["virtio_ring", "virtio", "virtio_mmio"];

/// Kernel arguments of every Linux partition with a command: end on a panic instead of waiting,
/// and end by the reset that the VMM watches for.
const ARGUMENTS: &str = "panic=-1 reboot=k";
/// How a kernel is told to use its console. `quiet`, since every byte of it is an exit.
const CONSOLE_ARGUMENTS: &str = "console=ttyS0 quiet";

/// The module of each device that a partition was granted.
fn modules(partition: &Partition) -> Vec<&'static str> {
    let has = |wanted: &[CapabilityName]| {
        partition
            .grants
            .iter()
            .any(|grant| wanted.contains(&grant.name()))
    };
    let mut modules = Vec::new();
    if has(&[CapabilityName::BlockRead, CapabilityName::BlockWrite]) {
        modules.push("virtio_blk");
    }
    if has(&[CapabilityName::Console]) {
        modules.push("virtio_console");
    }
    if has(&[CapabilityName::Entropy]) {
        modules.push("virtio-rng");
    }
    if !modules.is_empty() {
        modules.splice(0..0, TRANSPORT);
    }
    modules
}

/// The kernel command line.
pub(crate) fn cmdline(partition: &Partition, more: Option<&str>) -> String {
    let console = partition
        .grants
        .iter()
        .any(|grant| grant.name() == CapabilityName::Console);
    let init = format!("rdinit=/{AGENT_PATH}");
    let console = console.then_some(CONSOLE_ARGUMENTS);
    let parts = [Some(init.as_str()), Some(ARGUMENTS), console, more];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The initial RAM filesystem.
pub(crate) fn initramfs(
    partition: &Partition,
    program: &Program,
    library: &Library,
    tty: bool,
) -> Result<File, Error> {
    let mut archive = Initramfs::new(partition)?;
    archive.program(program, library)?;
    for directory in ["dev", "proc", "sys", "tmp", "run"] {
        archive.directory(directory)?;
    }
    archive.copy(&library.file(LibraryFile::GuestAgent)?, AGENT_PATH, 0o755)?;
    let mut paths = Vec::new();
    for module in modules(partition) {
        let source = library.path().join(format!("linux/modules/{module}.ko"));
        if !source.is_file() {
            return Err(Error::NotInstalled {
                what: "kernel module",
                path: source,
            });
        }
        let name = format!("bulkhead/modules/{module}.ko");
        archive.copy(&source, &name, 0o644)?;
        paths.push(format!("/{name}"));
    }
    let spec = Spec {
        command: program.command.clone(),
        env: program.env.clone(),
        modules: paths,
        tty,
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
    fn only_granted_devices_get_their_modules() {
        assert!(modules(&granted("")).is_empty());
        assert!(modules(&granted("\"time\"")).is_empty());
        assert_eq!(
            modules(&granted("\"block.read:a\"")),
            ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"]
        );
        assert_eq!(
            modules(&granted("\"console\", \"entropy\", \"block.write:a\"")).len(),
            6
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

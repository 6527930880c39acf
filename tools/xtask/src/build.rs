//! `build`: everything that ships, laid out in `target/bulkhead/` as docs/process-model.md says.

use std::fs;
use std::path::Path;

use crate::failure::{At, Result};
use crate::lab::kernel::Kernel;
use crate::process::{cargo, run};
use crate::repo::{BARE, MUSL, Repo, in_ci};
use crate::say::Say;
use crate::setup;

/// A program: its package, its binary, and its place in the tree.
struct Program {
    package: &'static str,
    binary: &'static str,
    place: &'static str,
}

const fn program(package: &'static str, binary: &'static str, place: &'static str) -> Program {
    Program {
        package,
        binary,
        place,
    }
}

/// What runs on the host, or on a Linux kernel, or on the Linux personality.
const HOSTED: [Program; 9] = [
    program("bulkhead", "bulkhead", "bin/bulkhead"),
    program(
        "bulkhead-hypervisor",
        "bulkhead-vmm",
        "lib/bulkhead/bulkhead-vmm",
    ),
    program(
        "bulkhead-gateway",
        "bulkhead-gateway",
        "lib/bulkhead/bulkhead-gateway",
    ),
    program("bulkhead-fs", "bulkhead-fs", "lib/bulkhead/bulkhead-fs"),
    program(
        "fs-conformance",
        "fs-conformance",
        "lib/bulkhead/tests/fs-conformance",
    ),
    program(
        "bulkhead-guest-agent",
        "guest-agent",
        "lib/bulkhead/guest-agent",
    ),
    program(
        "hello-linux-abi",
        "hello-linux-abi",
        "lib/bulkhead/examples/hello-linux-abi",
    ),
    program("bulkhead-bench", "bench", "bin/bulkhead-bench"),
    program(
        "bulkhead-vsock-peer",
        "vsock-peer",
        "lib/bulkhead/tests/vsock-peer",
    ),
];

/// What runs without an operating system below it.
const BARE_METAL: [Program; 6] = [
    program("bulkhead-kernel", "kernel", "lib/bulkhead/kernel"),
    program(
        "bulkhead-linux",
        "linux-personality",
        "lib/bulkhead/linux-personality",
    ),
    program("bulkhead-probe", "probe", "lib/bulkhead/probe"),
    program(
        "hello-native",
        "hello-native",
        "lib/bulkhead/examples/hello-native",
    ),
    program(
        "bulkhead-conformance",
        "conformance",
        "lib/bulkhead/tests/conformance",
    ),
    program(
        "bulkhead-hostile-driver",
        "hostile-driver",
        "lib/bulkhead/tests/hostile-driver",
    ),
];

/// Drivers that a Linux partition may need; which ones a kernel has built in is its business.
const GUEST_MODULES: [&str; 14] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_mem",
    "virtio_pmem",
    "nd_pmem",
    "pvpanic-mmio",
    "wdat_wdt",
];

/// Builds and lays out.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    let say = Say::new("build");
    setup::compiler()?;
    setup::targets(repo, &say)?;
    for (target, programs) in [(MUSL, &HOSTED[..]), (BARE, &BARE_METAL[..])] {
        say.step(&format!("programs for {target}"));
        say.clear();
        let mut command = cargo(repo.root());
        command.args(["build", "--quiet", "--release", "--target", target]);
        for program in programs {
            command.args(["--package", program.package]);
            command.args(["--bin", program.binary]);
        }
        run(&mut command)?;
        for program in programs {
            let built = repo.target().join(target).join("release");
            place(
                &built.join(program.binary),
                &repo.dist().join(program.place),
            )?;
        }
    }
    linux(repo, &say)
}

/// The stock kernel and its modules, where Debian's packages can be had.
fn linux(repo: &Repo, say: &Say) -> Result<()> {
    let kernel = match Kernel::get(repo, say) {
        Ok(kernel) => kernel,
        Err(failure) if !in_ci() => {
            say.line(&format!(
                "LINUX PARTITIONS AND THE LAB HAVE NO KERNEL: {failure}"
            ));
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let dir = repo.dist().join("lib/bulkhead/linux");
    place(&kernel.image, &dir.join("vmlinuz"))?;
    let name = |module: &Path| -> String {
        let name = module.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let mut order = String::new();
    for module in kernel.modules(&GUEST_MODULES)? {
        place(&module, &dir.join("modules").join(name(&module)))?;
        order += &format!("{}\n", name(&module));
    }
    let mut drivers = String::new();
    for driver in GUEST_MODULES {
        let modules = kernel.modules(&[driver])?;
        let modules: Vec<String> = modules.iter().map(|module| name(module)).collect();
        drivers += &format!("{driver}: {}\n", modules.join(" "));
    }
    for (file, text) in [("load-order", order), ("drivers", drivers)] {
        let file = dir.join("modules").join(file);
        if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            fs::write(&file, text).at("write", &file)?;
        }
    }
    Ok(())
}

/// Copies where the content differs: an unchanged file keeps its time, so the lab keeps its image.
/// The copy replaces the name, never the bytes: the old file may be running.
fn place(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).at("read", from)?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let part = to.with_extension(format!("part.{}", std::process::id()));
    fs::copy(from, &part).at("copy", from)?;
    fs::rename(&part, to).at("create", to)
}

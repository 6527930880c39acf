//! `build`: everything that ships, laid out in `target/bulkhead/` as docs/process-model.md says.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{At, Result};
use crate::lab::kernel::Kernel;
use crate::process::{cargo, require, run};
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
const HOSTED: [Program; 15] = [
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
        "bulkhead-ledger",
        "bulkhead-ledger",
        "lib/bulkhead/bulkhead-ledger",
    ),
    program(
        "bulkhead-decision",
        "bulkhead-decision",
        "lib/bulkhead/bulkhead-decision",
    ),
    program(
        "bulkhead-tools",
        "bulkhead-tools",
        "lib/bulkhead/bulkhead-tools",
    ),
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
        "bulkhead-attacker",
        "attacker",
        "lib/bulkhead/tests/attacker",
    ),
    program(
        "bulkhead-rogue-vmm",
        "rogue-vmm",
        "lib/bulkhead/tests/rogue-vmm",
    ),
    program(
        "bulkhead-vsock-peer",
        "vsock-peer",
        "lib/bulkhead/tests/vsock-peer",
    ),
    program(
        "bulkhead-paths",
        "paths",
        "lib/bulkhead/tests/paths-linux-abi",
    ),
];

/// What runs without an operating system below it.
const BARE_METAL: [Program; 8] = [
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
    program("bulkhead-hostile", "hostile", "lib/bulkhead/tests/hostile"),
    program("bulkhead-paths", "paths", "lib/bulkhead/tests/paths"),
    program(
        "bulkhead-hostile-driver",
        "hostile-driver",
        "lib/bulkhead/tests/hostile-driver",
    ),
];

/// Inputs of the hostile program.
const HOSTILE_PROGRAMS: &str = "lib/bulkhead/tests/hostile-programs";

/// Native programs in C: their source, and their place in the tree.
const C_PROGRAMS: [(&str, &str); 1] = [(
    "docs/examples/hello/native-c/hello.c",
    "lib/bulkhead/examples/hello-native-c",
)];
/// What every native program in C is compiled with: options for the compiler, and sources.
const C_FLAGS: &str = "@guest-kernel/runtime/c/program.flags";
const C_RUNTIME: [&str; 2] = [
    "guest-kernel/runtime/c/start.c",
    "guest-kernel/runtime/c/memory.c",
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
    c_programs(repo, &say)?;
    hostile_programs(repo)?;
    linux(repo, &say)
}

/// What the fuzz target `system_calls` found by coverage, in one file, as the hostile program reads it:
/// each input behind its length in four bytes.
fn hostile_programs(repo: &Repo) -> Result<()> {
    let seeds = repo.root().join("tests/fuzz/seeds/system_calls");
    let mut files = fs::read_dir(&seeds)
        .and_then(|entries| {
            let paths = entries.map(|entry| entry.map(|entry| entry.path()));
            paths.collect::<std::io::Result<Vec<_>>>()
        })
        .at("read", &seeds)?;
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(&file).at("read", &file)?;
        all.extend((bytes.len() as u32).to_le_bytes());
        all.extend(bytes);
    }
    let to = repo.dist().join(HOSTILE_PROGRAMS);
    if fs::read(&to).is_ok_and(|old| old == all) {
        return Ok(());
    }
    fs::write(&to, all).at("write", &to)
}

/// As docs/native-programs.md tells people to do it.
fn c_programs(repo: &Repo, say: &Say) -> Result<()> {
    say.step("native programs in C");
    say.clear();
    let built = repo.target().join("native-c");
    fs::create_dir_all(&built).at("create", &built)?;
    for (source, to) in C_PROGRAMS {
        let program = built.join(Path::new(to).file_name().unwrap_or_default());
        let mut gcc = Command::new(require("gcc", "gcc")?);
        gcc.current_dir(repo.root()).args([C_FLAGS, source]);
        run(gcc.args(C_RUNTIME).arg("-o").arg(&program))?;
        place(&program, &repo.dist().join(to))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::output;

    /// Against this machine's C library, under other names: overlaps both ways, all small lengths.
    #[test]
    fn the_memory_functions_of_c_programs_do_what_their_names_say() {
        let own = ["memcpy", "memmove", "memset", "memcmp"];
        let checks = r#"
            #include <stdio.h>
            #include <string.h>
            void *own_memcpy(void *, const void *, size_t);
            void *own_memmove(void *, const void *, size_t);
            void *own_memset(void *, int, size_t);
            int own_memcmp(const void *, const void *, size_t);
            static int sign(int value) { return (value > 0) - (value < 0); }
            static unsigned char one[64], other[64];
            static void fill(void)
            {
                for (int i = 0; i < 64; i++)
                    one[i] = other[i] = (unsigned char)(i * 37 + 200);
            }
            int main(void)
            {
                for (size_t from = 0; from < 16; from++)
                    for (size_t to = 0; to < 16; to++)
                        for (size_t length = 0; length < 40; length++) {
                            fill();
                            if (own_memmove(one + to, one + from, length) != one + to)
                                return 1;
                            memmove(other + to, other + from, length);
                            if (memcmp(one, other, 64) != 0)
                                return 2;
                            fill();
                            own_memset(one + to, 0x1ff, length);
                            memset(other + to, 0x1ff, length);
                            if (memcmp(one, other, 64) != 0)
                                return 3;
                            fill();
                            own_memcpy(one, other + from, length);
                            if (memcmp(one, other + from, length) != 0)
                                return 4;
                            fill();
                            if (sign(own_memcmp(one + from, other + to, length))
                                != sign(memcmp(one + from, other + to, length)))
                                return 5;
                        }
                puts("equal");
                return 0;
            }
        "#;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("checks.c"), checks).unwrap();
        let source = Repo::find().root().join(C_RUNTIME[1]);
        let mut object = Command::new("gcc");
        object.args(["-std=gnu11", "-O2", "-ffreestanding", "-c"]);
        object.args(own.map(|name| format!("-D{name}=own_{name}")));
        output(object.arg(source).arg("-o").arg(at("own.o"))).unwrap();
        let mut program = Command::new("gcc");
        program.arg(at("checks.c")).arg(at("own.o"));
        output(program.arg("-o").arg(at("checks"))).unwrap();
        assert_eq!(output(&mut Command::new(at("checks"))).unwrap(), "equal\n");
    }
}

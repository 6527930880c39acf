//! The root disk of the lab's emulated host: an ext4 image with busybox, the filesystem tools, the
//! modules, the built tree and the examples. Cached by what went into it.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::kernel::Kernel;
use crate::failure::{At, Failure, Result};
use crate::process::{cargo, output, require, run};
use crate::repo::{MUSL, Repo};
use crate::say::Say;

/// What runs first in the lab.
const INIT: &str = include_str!("init.sh");
/// The modules of the emulated host: its KVM, and the port to us.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "kvm_amd", "tun"];
/// Dynamically linked tools that tests use, with their packages' names.
const TOOLS: [&str; 3] = ["mke2fs", "e2fsck", "debugfs"];
/// Free space for what the command writes, in MiB.
const SLACK_MIB: u64 = 1024;
/// How many images stay cached: one per set of extra files in use at a time.
const KEPT: usize = 4;

/// What goes onto the disk: path in the lab to file on the host.
type Contents = BTreeMap<PathBuf, PathBuf>;

/// The image for the tree as it is now, plus `extra` files in the command's directory.
pub(crate) fn get(
    repo: &Repo,
    kernel: &Kernel,
    extra: &[PathBuf],
    programs: &[String],
    say: &Say,
) -> Result<PathBuf> {
    let lab = repo.lab();
    fs::create_dir_all(&lab).at("create", &lab)?;
    let agent = build_agent(repo)?;
    let modules = kernel.modules(&MODULES)?;
    let contents = contents(repo, &agent, &modules, extra, programs)?;
    let image = lab.join(format!("root-{:016x}.ext4", key(&contents)?));
    if !image.exists() {
        say.step("laying out its disk");
        let tree = lab.join(format!("root.{}", std::process::id()));
        let made = lay_out(&tree, &contents, &modules).and_then(|()| make(&tree, &image));
        let _ = fs::remove_dir_all(&tree);
        made?;
        prune(&lab, &image)?;
    }
    Ok(image)
}

fn build_agent(repo: &Repo) -> Result<PathBuf> {
    run(cargo(repo.root())
        .args(["build", "--quiet", "--release", "--package", "lab-agent"])
        .args(["--target", MUSL]))?;
    Ok(repo.target().join(MUSL).join("release/lab-agent"))
}

fn contents(
    repo: &Repo,
    agent: &Path,
    modules: &[PathBuf],
    extra: &[PathBuf],
    programs: &[String],
) -> Result<Contents> {
    let mut contents = Contents::new();
    let mut put = |to: &str, from: &Path| contents.insert(PathBuf::from(to), from.to_path_buf());
    put("sbin/lab-agent", agent);
    put("bin/busybox", &require("busybox", "busybox-static")?);
    for module in modules {
        put(&format!("lib/modules/{}", file_name(module)), module);
    }
    let tools = TOOLS.iter().map(|tool| (*tool, "e2fsprogs"));
    let programs = (programs.iter()).map(|name| (name.as_str(), "see cargo xtask setup"));
    for (tool, package) in tools.chain(programs) {
        let path = require(tool, package)?;
        put(&format!("sbin/{tool}"), &path);
        for library in libraries(&output(Command::new("ldd").arg(&path))?) {
            put(library.trim_start_matches('/'), Path::new(library.as_str()));
        }
    }
    let config = Path::new("/etc/mke2fs.conf");
    if config.exists() {
        put("etc/mke2fs.conf", config);
    }
    for path in extra {
        if path.is_dir() {
            add_tree(
                path,
                &Path::new("repo").join(file_name(path)),
                &mut contents,
            )?;
        } else {
            let to = Path::new("repo").join(file_name(path));
            contents.insert(to, path.clone());
        }
    }
    for (from, to) in [
        (repo.dist(), "opt/bulkhead"),
        (repo.root().join("docs/examples"), "repo/docs/examples"),
    ] {
        if from.is_dir() {
            add_tree(&from, Path::new(to), &mut contents)?;
        }
    }
    Ok(contents)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The files that `ldd` names, the loader included.
fn libraries(ldd: &str) -> Vec<String> {
    ldd.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

fn add_tree(from: &Path, to: &Path, contents: &mut Contents) -> Result<()> {
    for entry in fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            add_tree(&from, &to, contents)?;
        } else {
            contents.insert(to, from);
        }
    }
    Ok(())
}

/// Changes whenever a file's place, size or time does, or this program's share of the disk.
fn key(contents: &Contents) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (INIT, SLACK_MIB).hash(&mut hasher);
    for (to, from) in contents {
        let meta = fs::metadata(from).at("read", from)?;
        let time = (meta.mtime(), meta.mtime_nsec());
        (to, from, meta.len(), meta.mode(), time).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn lay_out(tree: &Path, contents: &Contents, modules: &[PathBuf]) -> Result<()> {
    for dir in [
        "bin", "sbin", "etc", "root", "proc", "sys", "dev", "tmp", "run", "repo",
    ] {
        let dir = tree.join(dir);
        fs::create_dir_all(&dir).at("create", &dir)?;
    }
    for (to, from) in contents {
        let to = tree.join(to);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        fs::copy(from, &to).at("copy", from)?;
    }
    let busybox = tree.join("bin/busybox");
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        let link = tree.join("bin").join(applet);
        if !link.exists() && !tree.join("sbin").join(applet).exists() {
            symlink("busybox", &link).at("create", &link)?;
        }
    }
    let order: String = modules
        .iter()
        .map(|module| file_name(module) + "\n")
        .collect();
    let write = |to: &str, text: &str| {
        let to = tree.join(to);
        fs::write(&to, text).at("write", &to)
    };
    write("lib/modules/load-order", &order)?;
    write(
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    write("init", INIT)?;
    let init = tree.join("init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).at("write", &init)
}

/// Makes the image; it appears under its name only when it is complete.
fn make(tree: &Path, image: &Path) -> Result<()> {
    let kib = output(Command::new("du").args(["-sk"]).arg(tree))?
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<u64>().ok())
        .ok_or_else(|| Failure::new(format!("cannot measure {}", tree.display())))?;
    let part = image.with_extension(format!("part.{}", std::process::id()));
    let made = output(
        Command::new(require("mke2fs", "e2fsprogs")?)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(tree)
            .arg(&part)
            .arg(format!("{}M", kib / 1024 * 5 / 4 + SLACK_MIB)),
    )
    .and_then(|_| fs::rename(&part, image).at("create", image));
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    made
}

/// Removes all but the newest images. A lab that runs keeps its own open.
fn prune(lab: &Path, current: &Path) -> Result<()> {
    let mut images: Vec<(SystemTime, PathBuf)> = fs::read_dir(lab)
        .at("list", lab)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let ours = path.extension()? == "ext4" && path != current;
            ours.then_some((fs::metadata(&path).ok()?.modified().ok()?, path))
        })
        .collect();
    images.sort();
    images.reverse();
    for (_, path) in images.iter().skip(KEPT - 1) {
        // Another lab may have removed it first.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_become_files() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(libraries(text), ["/lib/libc.so.6", "/lib64/ld.so"]);
    }
}

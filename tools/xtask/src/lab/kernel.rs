//! The stock kernel of the lab and of Linux partitions: Debian's linux-image-cloud-amd64, taken by
//! package name, unpacked and not installed. Also which modules a job needs, in order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{At, Failure, Result};
use crate::process::{output, require, run};
use crate::repo::Repo;
use crate::say::Say;

/// Depends on the current kernel's own package, whose name carries the version.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// `lib/modules/<version>`.
    modules: PathBuf,
}

impl Kernel {
    /// The cached kernel, or a fresh download.
    pub(crate) fn get(repo: &Repo, say: &Say) -> Result<Self> {
        let cache = repo.lab().join("linux");
        if let Some(kernel) = Self::unpacked(&cache)? {
            return Ok(kernel);
        }
        say.step("downloading the stock kernel");
        download(&repo.lab(), &cache)?;
        Self::unpacked(&cache)?.ok_or_else(|| {
            Failure::new(format!(
                "the kernel package did not unpack to a kernel in {}",
                cache.display()
            ))
        })
    }

    fn unpacked(cache: &Path) -> Result<Option<Self>> {
        let boot = cache.join("boot");
        if !boot.is_dir() {
            return Ok(None);
        }
        for entry in fs::read_dir(&boot).at("list", &boot)? {
            let entry = entry.at("list", &boot)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(version) = name.strip_prefix("vmlinuz-") {
                let modules = ["lib/modules", "usr/lib/modules"]
                    .map(|dir| cache.join(dir).join(version))
                    .into_iter()
                    .find(|dir| dir.is_dir());
                if let Some(modules) = modules {
                    let image = entry.path();
                    return Ok(Some(Self { image, modules }));
                }
            }
        }
        Ok(None)
    }

    /// The files of the modules `wanted` and of all that they depend on, dependencies first.
    /// What is built into the kernel is left out.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = BTreeMap::new();
        index(&self.modules.join("kernel"), &mut files)?;
        let list = self.modules.join("modules.builtin");
        let builtin: Vec<String> = fs::read_to_string(&list)
            .at("read", &list)?
            .lines()
            .filter_map(|line| module_name(line.rsplit('/').next()?))
            .collect();
        let mut order = Vec::new();
        for name in wanted {
            visit(&name.replace('-', "_"), &files, &builtin, &mut order)?;
        }
        Ok(order)
    }
}

/// Downloads and unpacks into `cache`, which appears only when it is complete.
fn download(lab: &Path, cache: &Path) -> Result<()> {
    let fetch = lab.join(format!("linux.{}", std::process::id()));
    fs::create_dir_all(&fetch).at("create", &fetch)?;
    let done = (|| {
        let package = real_package()?;
        run(Command::new(require("apt-get", "apt")?)
            .args(["-q", "-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(&package)
            .current_dir(&fetch))?;
        let deb = fs::read_dir(&fetch)
            .at("list", &fetch)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .ok_or_else(|| Failure::new(format!("apt-get left no file of {package}")))?;
        let tree = fetch.join("tree");
        run(Command::new(require("dpkg", "dpkg")?)
            .arg("-x")
            .arg(&deb)
            .arg(&tree))?;
        if !cache.exists() {
            fs::rename(&tree, cache).at("create", cache)?;
        }
        Ok(())
    })();
    let _ = fs::remove_dir_all(&fetch);
    done
}

/// The versioned package behind [`META_PACKAGE`]; fetches apt's lists when they are missing.
fn real_package() -> Result<String> {
    let apt_cache = require("apt-cache", "apt")?;
    let ask = || {
        output(Command::new(&apt_cache).args(["show", "--no-all-versions", META_PACKAGE]))
            .ok()
            .and_then(|text| versioned_dependency(&text))
    };
    if let Some(package) = ask() {
        return Ok(package);
    }
    if rustix::process::geteuid().is_root() {
        run(Command::new(require("apt-get", "apt")?).args(["-q", "update"]))?;
    }
    ask().ok_or_else(|| {
        Failure::new(format!("apt knows no package {META_PACKAGE}"))
            .remedy("run `sudo apt-get update`; only Debian carries this package, see docs/lab.md")
    })
}

/// The first `linux-image-` package in the `Depends:` line.
fn versioned_dependency(show: &str) -> Option<String> {
    show.lines()
        .filter_map(|line| line.strip_prefix("Depends:"))
        .flat_map(|list| list.split(','))
        .filter_map(|item| item.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// `a/virtio-rng.ko` is module `virtio_rng`.
fn module_name(file: &str) -> Option<String> {
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = path
            .file_name()
            .and_then(|name| module_name(&name.to_string_lossy()))
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &[String],
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    if builtin.iter().any(|known| known == name) {
        return Ok(());
    }
    let path = files.get(name).ok_or_else(|| {
        Failure::new(format!("the kernel has no module {name}"))
            .remedy("only Debian's cloud kernel is known to fit, see docs/lab.md")
    })?;
    if order.contains(path) {
        return Ok(());
    }
    let bytes = fs::read(path).at("read", path)?;
    for dependency in dependencies(&bytes) {
        visit(&dependency, files, builtin, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The `depends=` string of a module's `.modinfo` section (include/linux/module.h of Linux). The
/// section holds NUL-terminated strings, so the bytes before it end in NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let list = module.get(at + KEY.len()..).unwrap_or_default();
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_package_is_found() {
        let show = "Package: linux-image-cloud-amd64\nDepends: foo, linux-image-6.1.0-9-cloud-amd64 (= 6.1.2-1), bar\n";
        assert_eq!(
            versioned_dependency(show).as_deref(),
            Some("linux-image-6.1.0-9-cloud-amd64")
        );
        assert_eq!(versioned_dependency("Depends: linux-base\n"), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"xx\0license=GPL\0depends=kvm,rng-core\0name=y\0"),
            ["kvm", "rng_core"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let module = |name: &str, depends: &str| {
            let path = dir.join("kernel/drivers").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("ELF\0depends={depends}\0")).unwrap();
        };
        module("a.ko", "b-b,c");
        module("b-b.ko", "c");
        module("c.ko", "built_in");
        fs::write(dir.join("modules.builtin"), "kernel/built-in.ko\n").unwrap();
        let kernel = Kernel {
            image: PathBuf::new(),
            modules: dir.clone(),
        };
        let names = |wanted: &[&str]| -> Result<Vec<String>> {
            let files = kernel.modules(wanted)?;
            let name = |file: PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
            Ok(files.into_iter().map(name).collect())
        };
        assert_eq!(
            names(&["a", "b_b", "built-in"]).unwrap(),
            ["c.ko", "b-b.ko", "a.ko"]
        );
        assert!(names(&["absent"]).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}

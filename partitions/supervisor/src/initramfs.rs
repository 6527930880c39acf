//! Packs a partition's root directory and mounts into an archive in memory: a snapshot of the host
//! files as they were when the partition started. No temporary file is made.

use crate::cpio::{DIRECTORY, Metadata, REGULAR, Writer};
use crate::error::Error;
use crate::library::Library;
use bulkhead_manifest::{GuestPath, Partition, Program};
use rustix::fs::{MemfdFlags, OFlags, major, memfd_create, minor};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Most symbolic links that a mount's target may lead through, as in Linux.
const MAX_LINKS: usize = 40;
const LINK: u32 = 0o120_000;
const TYPE_MASK: u32 = 0o170_000;

/// An archive being packed for one partition.
#[derive(Debug)]
pub(crate) struct Initramfs<'p> {
    partition: &'p Partition,
    writer: Writer<BufWriter<File>>,
    /// Directories that the archive has already, without leading slash.
    directories: BTreeSet<String>,
}

/// A file without a name, in memory.
pub(crate) fn memory_file(name: &CStr) -> Result<File, Error> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).map_err(Error::system("create a memfd"))?;
    Ok(file.into())
}

impl<'p> Initramfs<'p> {
    /// Starts an archive that may grow to the partition's memory.
    pub(crate) fn new(partition: &'p Partition) -> Result<Self, Error> {
        let output = BufWriter::with_capacity(256 * 1024, memory_file(c"initramfs")?);
        let limit = partition.memory.mib.saturating_mul(1024 * 1024);
        Ok(Self {
            partition,
            writer: Writer::new(output, limit),
            directories: BTreeSet::from([String::new()]),
        })
    }

    /// Adds the program's root directory and its mounts over it.
    pub(crate) fn program(&mut self, program: &Program, library: &Library) -> Result<(), Error> {
        let root = program
            .root
            .as_ref()
            .map(|root| root.resolve(library.path()));
        let mut mounts: Vec<(PathBuf, GuestPath)> = Vec::new();
        for mount in &program.mounts {
            let target = match &root {
                Some(root) => follow_links(root, &mount.target).map_err(|source| Error::Pack {
                    path: root.clone(),
                    source,
                })?,
                None => mount.target.clone(),
            };
            mounts.push((mount.source.resolve(library.path()), target));
        }
        if let Some(root) = root {
            let what = "root";
            match fs::metadata(&root) {
                Ok(kind) if kind.is_dir() => {}
                Ok(_) => {
                    return Err(Error::FileKind {
                        what,
                        path: root,
                        found: "no directory",
                    });
                }
                Err(source) => {
                    return Err(Error::Open {
                        what,
                        path: root,
                        source,
                    });
                }
            }
            let hidden: BTreeSet<&str> = mounts.iter().map(|(_, at)| at.below_root()).collect();
            self.tree(&root, "", &hidden)?;
        }
        for (source, target) in &mounts {
            self.parents(target.below_root())?;
            self.mount(source, target)?;
        }
        Ok(())
    }

    /// Adds a file of Bulkhead's own.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<(), Error> {
        self.parents(name)?;
        let metadata = Metadata {
            mode: REGULAR | mode,
            ..Metadata::default()
        };
        let done = self.writer.small(name, metadata, contents);
        done.map_err(|source| self.failed(Path::new(name), source))
    }

    /// Adds a copy of a host file under `name`, with `mode`.
    pub(crate) fn copy(&mut self, path: &Path, name: &str, mode: u32) -> Result<(), Error> {
        self.parents(name)?;
        self.regular(path, name, Some(mode))
    }

    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, name: &str) -> Result<(), Error> {
        self.parents(name)?;
        self.new_directory(name, 0o755, 0)
    }

    /// Ends the archive.
    pub(crate) fn finish(self) -> Result<File, Error> {
        let failed = Error::system("write an initramfs");
        let finish = || -> io::Result<File> {
            let mut file = self
                .writer
                .finish()?
                .into_inner()
                .map_err(io::Error::from)?;
            file.rewind()?;
            Ok(file)
        };
        finish().map_err(failed)
    }

    fn failed(&self, path: &Path, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::FileTooLarge {
            return Error::FilesExceedMemory {
                partition: self.partition.name.clone(),
                memory_mib: self.partition.memory.mib,
            };
        }
        Error::Pack {
            path: path.to_owned(),
            source,
        }
    }

    fn parents(&mut self, name: &str) -> Result<(), Error> {
        let slashes: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
        for at in slashes {
            self.new_directory(name.get(..at).unwrap_or(name), 0o755, 0)?;
        }
        Ok(())
    }

    fn new_directory(&mut self, name: &str, mode: u32, mtime: i64) -> Result<(), Error> {
        if !self.directories.insert(name.to_owned()) {
            return Ok(());
        }
        let metadata = Metadata {
            mode: DIRECTORY | mode & 0o7777,
            mtime,
            device: (0, 0),
        };
        let done = self.writer.small(name, metadata, &[]);
        done.map_err(|source| self.failed(Path::new(name), source))
    }

    /// The source of a mount may be a symbolic link; what it leads to is mounted.
    fn mount(&mut self, source: &Path, target: &GuestPath) -> Result<(), Error> {
        let failed = |error| Error::Open {
            what: "mount source",
            path: source.to_owned(),
            source: error,
        };
        let kind = fs::metadata(source).map_err(failed)?;
        let name = target.below_root();
        if kind.is_dir() {
            self.new_directory(name, kind.mode(), kind.mtime())?;
            self.tree(source, name, &BTreeSet::new())
        } else if kind.is_file() {
            self.regular(source, name, None)
        } else {
            let found = "neither a file nor a directory";
            Err(Error::FileKind {
                what: "mount source",
                path: source.to_owned(),
                found,
            })
        }
    }

    /// Adds what is in `directory`, below `prefix`, but not what `hidden` names.
    fn tree(
        &mut self,
        directory: &Path,
        prefix: &str,
        hidden: &BTreeSet<&str>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Pack {
            path: directory.to_owned(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort_unstable();
        for name in names {
            let path = directory.join(&name);
            let Some(text) = name.to_str() else {
                let source = io::Error::other("its name is not UTF-8");
                return Err(Error::Pack { path, source });
            };
            let below = if prefix.is_empty() {
                text.to_owned()
            } else {
                format!("{prefix}/{text}")
            };
            if hidden.contains(below.as_str()) {
                continue;
            }
            if GuestPath::new(&format!("/{below}")).is_err() {
                let source = io::Error::other("its name is too long");
                return Err(Error::Pack { path, source });
            }
            let kind = fs::symlink_metadata(&path).map_err(|source| Error::Pack {
                path: path.clone(),
                source,
            })?;
            if kind.is_dir() {
                self.new_directory(&below, kind.mode(), kind.mtime())?;
                self.tree(&path, &below, hidden)?;
            } else if kind.is_file() {
                self.regular(&path, &below, None)?;
            } else {
                self.special(&path, &below, &kind)?;
            }
        }
        Ok(())
    }

    fn regular(&mut self, path: &Path, name: &str, mode: Option<u32>) -> Result<(), Error> {
        let mut copy = || -> io::Result<()> {
            // NONBLOCK: between looking and opening, somebody may have put a FIFO there.
            let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
            let mut file = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(path)?;
            let kind = file.metadata()?;
            let mode = mode.unwrap_or(kind.mode());
            let metadata = Metadata {
                mode: REGULAR | mode & 0o7777,
                mtime: kind.mtime(),
                device: (0, 0),
            };
            self.writer.entry(name, metadata, &mut file, kind.len())
        };
        let done = copy();
        done.map_err(|source| self.failed(path, source))
    }

    /// Links, device nodes, FIFOs and sockets: a name and numbers, no contents but a link's target.
    fn special(&mut self, path: &Path, name: &str, kind: &fs::Metadata) -> Result<(), Error> {
        let device = (major(kind.rdev()), minor(kind.rdev()));
        let metadata = Metadata {
            mode: kind.mode(),
            mtime: kind.mtime(),
            device,
        };
        let add = |writer: &mut Writer<BufWriter<File>>| -> io::Result<()> {
            if kind.mode() & TYPE_MASK == LINK {
                let target = fs::read_link(path)?;
                return writer.small(name, metadata, target.as_os_str().as_encoded_bytes());
            }
            writer.small(name, metadata, &[])
        };
        let done = add(&mut self.writer);
        done.map_err(|source| self.failed(path, source))
    }
}

/// Where `target` leads in the tree at `root` when its directories are symbolic links, as with
/// `/bin` on a merged-/usr system. The links are read as the guest would read them.
fn follow_links(root: &Path, target: &GuestPath) -> io::Result<GuestPath> {
    let mut rest: Vec<String> = target
        .below_root()
        .split('/')
        .rev()
        .map(str::to_owned)
        .collect();
    let mut at: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(name);
        let path = root.join(at.join("/"));
        // The last component is the mount itself and covers whatever is there.
        if rest.is_empty() || !path.is_symlink() {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        at.pop();
        let link = fs::read_link(&path)?;
        for component in link.components().rev() {
            match component {
                Component::Normal(name) => rest.push(name.to_string_lossy().into_owned()),
                Component::ParentDir => rest.push("..".to_owned()),
                Component::RootDir => at.clear(),
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    GuestPath::new(&format!("/{}", at.join("/"))).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::partition;
    use bulkhead_manifest::Kernel;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use tempfile::{TempDir, tempdir};

    /// Names, types and contents of an archive, in order.
    fn entries(mut archive: File) -> Vec<(String, u32, Vec<u8>)> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).unwrap();
        let mut at = 0;
        let mut list = Vec::new();
        loop {
            let field = |n: usize| {
                let start = at + 6 + n * 8;
                let text = str::from_utf8(&bytes[start..start + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = str::from_utf8(&bytes[at + 110..at + 109 + name_size])
                .unwrap()
                .to_owned();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return list;
            }
            list.push((
                name,
                mode as u32 & TYPE_MASK,
                bytes[data..data + size].to_vec(),
            ));
            at = (data + size).next_multiple_of(4);
        }
    }

    fn pack(root: Option<&Path>, mounts: &[(&Path, &str)], memory: &str) -> Result<File, Error> {
        let mut lines = format!("memory = \"{memory}\"\n");
        if let Some(root) = root {
            lines += &format!("root = {:?}\n", root.to_str().unwrap());
        }
        for (source, target) in mounts {
            lines += &format!(
                "[[partition.mounts]]\nsource = {:?}\ntarget = \"{target}\"\n",
                source.to_str().unwrap()
            );
        }
        let partition = partition(&format!(
            "kernel = \"linux-abi\"\ncommand = [\"/bin/x\"]\n{lines}"
        ));
        let Kernel::LinuxAbi { program, .. } = &partition.kernel else {
            panic!("linux-abi")
        };
        let library = Library::at(Path::new("/")).unwrap();
        let mut archive = Initramfs::new(&partition)?;
        archive.program(program, &library)?;
        archive.finish()
    }

    fn names(archive: File) -> Vec<String> {
        entries(archive).into_iter().map(|entry| entry.0).collect()
    }

    fn tree() -> TempDir {
        let dir = tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/tool"), "tool").unwrap();
        symlink("usr/bin", dir.path().join("bin")).unwrap();
        dir
    }

    #[test]
    fn mounts_bring_their_parents() {
        let dir = tree();
        let tool = dir.path().join("usr/bin/tool");
        let archive = pack(None, &[(&tool, "/opt/a/b")], "16MiB").unwrap();
        let list = entries(archive);
        assert_eq!(list[0], ("opt".to_owned(), DIRECTORY, vec![]));
        assert_eq!(list[1], ("opt/a".to_owned(), DIRECTORY, vec![]));
        assert_eq!(list[2], ("opt/a/b".to_owned(), REGULAR, b"tool".to_vec()));
        assert_eq!(list.len(), 3);
    }

    #[test]
    fn a_root_is_copied_with_links_and_in_order() {
        let dir = tree();
        let list = entries(pack(Some(dir.path()), &[], "16MiB").unwrap());
        let names: Vec<&str> = list.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["bin", "usr", "usr/bin", "usr/bin/tool"]);
        assert_eq!(list[0], ("bin".to_owned(), LINK, b"usr/bin".to_vec()));
    }

    #[test]
    fn mounts_cover_the_root_and_follow_its_links() {
        let dir = tree();
        let other = dir.path().join("other");
        fs::write(&other, "other").unwrap();
        let root = dir.path().join("usr");
        symlink("/bin", root.join("sbin")).unwrap();
        let mounts = [(other.as_path(), "/sbin/tool")];
        let list = entries(pack(Some(&root), &mounts, "16MiB").unwrap());
        let tools: Vec<_> = list.iter().filter(|entry| entry.0 == "bin/tool").collect();
        assert_eq!(
            tools,
            [&("bin/tool".to_owned(), REGULAR, b"other".to_vec())]
        );
        assert!(list.iter().all(|entry| entry.0 != "sbin/tool"));
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let dir = tree();
        let bytes = || {
            let mut bytes = Vec::new();
            let mut archive = pack(Some(dir.path()), &[], "16MiB").unwrap();
            archive.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let dir = tree();
        let code = |source: &Path| pack(None, &[(source, "/x")], "16MiB").unwrap_err().code();
        assert_eq!(code(Path::new("/nonexistent")), "file-not-found");
        assert_eq!(code(Path::new("/dev/null")), "file-kind");
        let missing = pack(Some(Path::new("/nonexistent")), &[], "16MiB").unwrap_err();
        assert_eq!(missing.code(), "file-not-found");
        let big = dir.path().join("big");
        File::create(&big).unwrap().set_len(3 << 20).unwrap();
        assert_eq!(
            pack(Some(&big), &[], "16MiB").unwrap_err().code(),
            "file-kind"
        );
        let refused = pack(None, &[(&big, "/big")], "2MiB").unwrap_err();
        assert_eq!(refused.code(), "files-exceed-memory");
        symlink("loop", dir.path().join("loop")).unwrap();
        let looped = pack(Some(dir.path()), &[(&big, "/loop/x")], "16MiB").unwrap_err();
        assert_eq!(looped.code(), "file-not-copied");
        assert!(names(pack(Some(dir.path()), &[], "16MiB").unwrap()).contains(&"loop".to_owned()));
    }
}

//! The granted directories, and how a path of a call becomes a file beneath one of them. Used by
//! every tool that touches files, and by back-ups.
//!
//! A path is absolute and has no `.`, no `..` and no empty part. It is resolved from the directory
//! that was granted, never follows a link of any kind, and never leaves the filesystem of that
//! directory: a link that appears while a call runs leads nowhere either.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;

use crate::error::ToolError;

/// Longest path in bytes, as Linux has it.
const MAX_PATH: usize = 4095;
/// How names are resolved.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// One granted directory.
#[derive(Debug)]
pub struct Root {
    /// Its path in calls.
    pub path: PathBuf,
    /// The directory, `O_PATH`.
    pub file: OwnedFd,
    /// It may be changed.
    pub write: bool,
}

/// All that are granted.
#[derive(Debug, Default)]
pub struct Directories(Vec<Root>);

/// A place beneath a granted directory, which may hold a file or not.
#[derive(Debug)]
pub struct Place<'d> {
    root: &'d Root,
    /// From the root; `.` for the root itself.
    relative: PathBuf,
}

/// The directory of a place, and the last part of its path.
#[derive(Debug)]
pub struct Entry {
    /// The directory, for calls that name what is in it.
    pub directory: OwnedFd,
    /// The name in it.
    pub name: OsString,
}

impl Directories {
    /// These.
    pub fn new(roots: Vec<Root>) -> Self {
        Self(roots)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Root> {
        self.0.iter()
    }

    /// True when a tool may read (and change, for `write`) what is at `path`.
    pub fn allow(&self, path: &Path, write: bool) -> bool {
        let holds = |root: &Root| path.starts_with(&root.path) && (root.write || !write);
        is_plain(path) && self.0.iter().any(holds)
    }

    /// The place of `path`.
    ///
    /// # Errors
    /// The path is no plain one, or lies in no granted directory.
    pub fn place(&self, path: &Path) -> Result<Place<'_>, ToolError> {
        if !is_plain(path) {
            return Err(ToolError::Path(path.to_owned()));
        }
        let root = self.0.iter().find(|root| path.starts_with(&root.path));
        let root = root.ok_or_else(|| ToolError::NotGranted(path.to_owned()))?;
        let relative = path.strip_prefix(&root.path).unwrap_or(Path::new(""));
        let relative = match relative.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => relative.to_owned(),
        };
        Ok(Place { root, relative })
    }
}

/// Absolute, not too long, and every part a name.
fn is_plain(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    let parts = text.strip_prefix(b"/");
    text.len() <= MAX_PATH
        && !text.contains(&0)
        && parts.is_some_and(|parts| parts.split(|byte| *byte == b'/').all(plain))
}

impl Place<'_> {
    /// The path in calls.
    pub fn path(&self) -> PathBuf {
        match self.is_root() {
            true => self.root.path.clone(),
            false => self.root.path.join(&self.relative),
        }
    }

    fn is_root(&self) -> bool {
        self.relative.components().eq([Component::CurDir])
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(Errno) -> ToolError {
        let path = self.path();
        move |errno| ToolError::host(doing, &path, errno)
    }

    fn open(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        openat2(
            &self.root.file,
            &self.relative,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
            BENEATH,
        )
    }

    /// What is there, whatever it is; nothing when there is nothing.
    ///
    /// # Errors
    /// It is behind a link, or the host refuses.
    pub fn look(&self) -> Result<Option<Stat>, ToolError> {
        match self.stat() {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at")(errno)),
        }
    }

    fn stat(&self) -> Result<Stat, Errno> {
        if self.is_root() {
            return fstat(&self.root.file);
        }
        let (directory, name) = self.split()?;
        rustix::fs::statat(&directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The regular file there, to be read.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn read(&self) -> Result<File, ToolError> {
        self.regular(OFlags::RDONLY)
    }

    /// The regular file there, to be written.
    ///
    /// # Errors
    /// As [`Place::read`]; or the directory is only read.
    pub fn write(&self) -> Result<File, ToolError> {
        self.may_change()?;
        self.regular(OFlags::RDWR)
    }

    /// A new empty file.
    ///
    /// # Errors
    /// Something is there already, or the directory is only read.
    pub fn create(&self, mode: Mode) -> Result<File, ToolError> {
        self.may_change()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.open(flags, mode).map_err(self.failed("create"))?;
        Ok(File::from(file))
    }

    fn regular(&self, flags: OFlags) -> Result<File, ToolError> {
        // What waits for a peer, as a FIFO does, is told apart before it is opened for real.
        let looked = self.open(OFlags::PATH, Mode::empty());
        let looked = looked.map_err(self.failed("open"))?;
        let kind = |fd: BorrowedFd<'_>| {
            let stat = fstat(fd).map_err(self.failed("look at"))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Ok((stat.st_dev, stat.st_ino)),
                _ => Err(ToolError::NotAFile(self.path())),
            }
        };
        let expected = kind(looked.as_fd())?;
        let file = self.open(flags | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty());
        let file = file.map_err(self.failed("open"))?;
        match kind(file.as_fd())? == expected {
            true => Ok(File::from(file)),
            false => Err(self.failed("open")(Errno::AGAIN)),
        }
    }

    /// The directory there, to be listed.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn directory(&self) -> Result<OwnedFd, ToolError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.open(flags, Mode::empty()).map_err(self.failed("open"))
    }

    /// The directory that holds it, to change what is in there.
    ///
    /// # Errors
    /// The directory does not exist, is only read, or the place is a granted directory itself.
    pub fn entry(&self) -> Result<Entry, ToolError> {
        self.may_change()?;
        if self.is_root() {
            return Err(ToolError::Root(self.path()));
        }
        let split = self.split().map_err(self.failed("open"))?;
        Ok(Entry {
            directory: split.0,
            name: split.1.to_owned(),
        })
    }

    /// The target of the link there.
    ///
    /// # Errors
    /// It is no link.
    pub fn link(&self) -> Result<OsString, ToolError> {
        let (directory, name) = self.split().map_err(self.failed("open"))?;
        let target = rustix::fs::readlinkat(&directory, name, Vec::new());
        let target = target.map_err(self.failed("read the link"))?;
        Ok(OsStr::from_bytes(target.as_bytes()).to_owned())
    }

    fn split(&self) -> Result<(OwnedFd, &OsStr), Errno> {
        let name = self.relative.file_name().ok_or(Errno::INVAL)?;
        let parent = match self.relative.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = openat2(&self.root.file, parent, flags, Mode::empty(), BENEATH)?;
        Ok((directory, name))
    }

    fn may_change(&self) -> Result<(), ToolError> {
        match self.root.write {
            true => Ok(()),
            false => Err(ToolError::ReadOnly(self.path())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    /// The directory at `path`, granted.
    pub(crate) fn granted(path: &Path, write: bool) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root {
            path: path.to_owned(),
            file: rustix::fs::open(path, flags, Mode::empty()).unwrap(),
            write,
        }
    }

    #[test]
    fn paths_that_are_not_plain_are_no_paths() {
        let directories = Directories::default();
        for path in [
            "", "/", "a", "./a", "/a/../b", "/..", "/.", "/a/.", "/a//b", "//a", "/a/", "/a\0b",
        ] {
            let refused = directories.place(Path::new(path)).unwrap_err();
            assert!(matches!(refused, ToolError::Path(_)), "{path:?}");
            assert!(!directories.allow(Path::new(path), false), "{path:?}");
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        assert!(directories.place(Path::new(&long)).is_err());
    }

    #[test]
    fn a_name_that_begins_alike_is_not_beneath() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("data");
        fs::create_dir(&inside).unwrap();
        fs::create_dir(dir.path().join("data2")).unwrap();
        let directories = Directories::new(vec![granted(&inside, false)]);
        assert!(directories.allow(&inside, false));
        assert!(directories.allow(&inside.join("x"), false));
        assert!(!directories.allow(&inside.join("x"), true));
        let refused = directories.place(&dir.path().join("data2/x")).unwrap_err();
        assert!(matches!(refused, ToolError::NotGranted(_)));
    }

    #[test]
    fn links_of_any_kind_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        fs::create_dir_all(inside.join("deep")).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        fs::write(inside.join("deep/file"), "f").unwrap();
        symlink("../secret", inside.join("up")).unwrap();
        symlink(dir.path(), inside.join("out")).unwrap();
        symlink("deep", inside.join("within")).unwrap();
        symlink("/proc/self/fd", inside.join("magic")).unwrap();
        let directories = Directories::new(vec![granted(&inside, true)]);
        let place = |name: &str| directories.place(&inside.join(name)).unwrap();
        assert!(place("deep/file").read().is_ok());
        for name in ["up", "out/secret", "within/file", "magic/0", "magic"] {
            let place = place(name);
            assert!(place.read().is_err(), "{name}");
            assert!(place.write().is_err(), "{name}");
            assert!(place.directory().is_err(), "{name}");
        }
        assert!(place("out/new").create(Mode::RUSR).is_err());
        assert!(place("out/secret").entry().is_err());
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        let directories = Directories::new(vec![granted(dir.path(), true)]);
        // A FIFO without a writer would be waited for.
        for name in ["fifo", "socket"] {
            let path = dir.path().join(name);
            let place = directories.place(&path).unwrap();
            assert!(matches!(place.read(), Err(ToolError::NotAFile(_))));
            assert!(matches!(place.write(), Err(ToolError::NotAFile(_))));
        }
    }

    #[test]
    fn a_directory_that_is_only_read_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        let directories = Directories::new(vec![granted(dir.path(), false)]);
        let path = dir.path().join("f");
        let place = directories.place(&path).unwrap();
        assert!(place.read().is_ok());
        for refused in [
            place.write().err(),
            place.create(Mode::RUSR).err(),
            place.entry().err(),
        ] {
            assert!(matches!(refused, Some(ToolError::ReadOnly(_))));
        }
    }
}

//! The state directory: one directory for each system, held by a lock of its live supervisor.
//!
//! A directory whose lock is free belongs to a system that is over: either it ended in peace and
//! left its logs ([`Standing::Finished`]), or its supervisor was killed and the next command
//! removes it. Directories are created and removed under the lock of the whole. One without a
//! record is not a system's: people may name a directory that holds other things of theirs.

use crate::cgroup;
use crate::error::Error;
use crate::record::SystemRecord;
use bulkhead_capability::Grants;
use bulkhead_manifest::System;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most bytes of the directory's path: what leaves room for a system's name and its socket in the
/// 108 bytes of a Unix socket address.
const MAX_PATH: usize = 50;
const RECORD: &str = "system.json";
const GRANTS: &str = "grants.json";
/// Longest file of grants that is read, in bytes.
const MAX_GRANTS: u64 = 64 * 1024 * 1024;
const SOCKET: &str = "control.sock";
/// Exists while everything is halted. No system is called so.
const HALTED: &str = ".halted";

/// The directory of all systems of this user. It exists while there is a system, and is checked to
/// be theirs alone whenever it is used.
#[derive(Clone, Debug)]
pub struct StateRoot {
    path: PathBuf,
}

/// A system's directory, with its lock held. Dropping it removes it, unless it is kept.
#[derive(Debug)]
pub struct SystemDir {
    root: StateRoot,
    path: PathBuf,
    keep: bool,
    _lock: File,
}

/// How a system's directory was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its supervisor lives.
    Live,
    /// It ended and left its logs.
    Finished,
}

/// A system's directory as another process sees it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Name of the system.
    pub name: String,
    /// Whether it lives.
    pub standing: Standing,
    /// Its directory.
    pub path: PathBuf,
    /// What its supervisor wrote down.
    pub record: SystemRecord,
}

impl Found {
    /// The supervisor's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// What each partition was granted when it started, by its name.
    ///
    /// # Errors
    /// There is no such file, or none that makes sense.
    pub fn grants(&self) -> Result<BTreeMap<String, Grants>, Error> {
        let path = self.path.join(GRANTS);
        let failed = |source| Error::StateDir {
            path: path.clone(),
            source,
        };
        let mut json = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        file.take(MAX_GRANTS)
            .read_to_end(&mut json)
            .map_err(failed)?;
        serde_json::from_slice(&json).map_err(|error| failed(error.into()))
    }
}

impl StateRoot {
    /// The state directory is `$BULKHEAD_STATE_DIR`; else `/run/bulkhead` for root; else
    /// `$XDG_RUNTIME_DIR/bulkhead`, or `/tmp/bulkhead-UID` where there is none. It is not made yet.
    ///
    /// # Errors
    /// Its path is relative or too long.
    pub fn locate() -> Result<Self, Error> {
        let variable = |name| {
            let value = env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let uid = rustix::process::getuid();
        let path = if let Some(path) = variable("BULKHEAD_STATE_DIR") {
            path
        } else if uid.is_root() {
            PathBuf::from("/run/bulkhead")
        } else if let Some(runtime) = variable("XDG_RUNTIME_DIR").filter(|p| p.is_absolute()) {
            runtime.join("bulkhead")
        } else {
            PathBuf::from(format!("/tmp/bulkhead-{}", uid.as_raw()))
        };
        Self::at(&path)
    }

    /// As [`StateRoot::locate`], at `path`.
    ///
    /// # Errors
    /// See there.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let problem = if path.is_relative() {
            // It would be another one in every working directory.
            Some("has no absolute path")
        } else if path.as_os_str().len() > MAX_PATH {
            Some("has a path of more than 50 bytes")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Error::StateDirUnsafe {
                path: path.to_owned(),
                problem,
            });
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is. Nothing says that it exists.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory of a system that starts. One of the same name that is over is replaced.
    ///
    /// # Errors
    /// A system of this name lives, everything is halted, or the directory cannot be made.
    pub fn create(&self, system: &str) -> Result<SystemDir, Error> {
        let path = self.path.join(system);
        let failed = |source| Error::StateDir {
            path: path.clone(),
            source,
        };
        let all = self.make_and_lock()?;
        if self.is_halted() {
            return Err(Error::Halted);
        }
        self.clean()?;
        if path.exists() {
            if try_lock(&path).map_err(failed)?.is_none() {
                return Err(Error::AlreadyRunning(system.to_owned()));
            }
            if SystemRecord::read(&path.join(RECORD)).is_none() {
                return Err(failed(rustix::io::Errno::EXIST.into()));
            }
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed)?;
        let Some(lock) = try_lock(&path).map_err(failed)? else {
            return Err(Error::AlreadyRunning(system.to_owned()));
        };
        let directory = SystemDir {
            root: self.clone(),
            path,
            keep: false,
            _lock: lock,
        };
        // From the start: it says that the directory is ours to remove.
        match directory.write(&SystemRecord::default()) {
            Ok(()) => Ok(directory),
            Err(error) => {
                // Dropping it takes the lock of the whole.
                drop(all);
                Err(error)
            }
        }
    }

    /// All systems, by name; what killed supervisors left is removed on the way.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, Error> {
        let Some(_all) = self.lock()? else {
            return Ok(Vec::new());
        };
        let systems = self.clean()?;
        self.remove_if_empty();
        Ok(systems)
    }

    /// One system.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn find(&self, system: &str) -> Result<Found, Error> {
        let all = self.list()?;
        let found = all.into_iter().find(|found| found.name == system);
        found.ok_or_else(|| Error::NoSuchSystem(system.to_owned()))
    }

    /// Removes what a system that is over left behind.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_finished(&self, found: &Found) -> Result<(), Error> {
        let failed = |source| Error::StateDir {
            path: found.path.clone(),
            source,
        };
        let Some(_all) = self.lock()? else {
            return Ok(());
        };
        if found.path.exists() && try_lock(&found.path).map_err(failed)?.is_some() {
            fs::remove_dir_all(&found.path).map_err(failed)?;
        }
        self.remove_if_empty();
        Ok(())
    }

    /// From now on no system starts. Those that begin to are refused, or in [`Self::list`].
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn halt(&self) -> Result<(), Error> {
        let path = self.path.join(HALTED);
        let _all = self.make_and_lock()?;
        let made = File::create(&path).map(drop);
        made.map_err(|source| Error::StateDir { path, source })
    }

    /// Lets systems start again.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn go_on(&self) -> Result<(), Error> {
        let Some(_all) = self.lock()? else {
            return Ok(());
        };
        let path = self.path.join(HALTED);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::StateDir { path, source });
            }
            _ => {}
        }
        self.remove_if_empty();
        Ok(())
    }

    /// True while no system may start.
    pub fn is_halted(&self) -> bool {
        fs::symlink_metadata(self.path.join(HALTED)).is_ok()
    }

    /// The lock of the whole; makes the directory if need be.
    fn make_and_lock(&self) -> Result<File, Error> {
        loop {
            match DirBuilder::new().mode(0o700).create(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::StateDir {
                        path: self.path.clone(),
                        source,
                    });
                }
                _ => {}
            }
            // Somebody's last system may have ended just now and taken the directory along.
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
        }
    }

    /// The lock of the whole, or nothing where there is no directory.
    fn lock(&self) -> Result<Option<File>, Error> {
        let failed = |source| Error::StateDir {
            path: self.path.clone(),
            source,
        };
        // Somebody else may have made it first, in a directory that all can write.
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => self.check(&metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let directory = match File::open(&self.path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        flock(&directory, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        let locked = directory.metadata().map_err(failed)?;
        // The lock counts only if the directory has not been replaced while we waited for it.
        let same = fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == locked.ino());
        Ok(same.then_some(directory))
    }

    fn check(&self, metadata: &fs::Metadata) -> Result<(), Error> {
        let problem = if !metadata.is_dir() {
            "is no directory"
        } else if metadata.uid() != rustix::process::getuid().as_raw() {
            "belongs to another user"
        } else if metadata.mode() & 0o077 != 0 {
            "is open to other users (chmod 700 would close it)"
        } else {
            return Ok(());
        };
        Err(Error::StateDirUnsafe {
            path: self.path.clone(),
            problem,
        })
    }

    /// Leaves nothing behind when the last system is gone. The caller holds the lock of the whole.
    fn remove_if_empty(&self) {
        // Not empty, or not ours to remove: then it stays.
        let _ = fs::remove_dir(&self.path);
    }

    /// Removes the systems that nobody holds and nobody finished; gives back the others. The caller
    /// holds the lock of the whole.
    fn clean(&self) -> Result<Vec<Found>, Error> {
        let failed = |source| Error::StateDir {
            path: self.path.clone(),
            source,
        };
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if !entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            let lock = try_lock(&path).map_err(failed)?;
            let record = SystemRecord::read(&path.join(RECORD));
            let standing = match (&lock, &record) {
                (None, _) => Standing::Live,
                (Some(_), Some(record)) if record.finished => Standing::Finished,
                (Some(_), Some(record)) => {
                    cgroup::remove(&record.cgroups);
                    fs::remove_dir_all(&path).map_err(failed)?;
                    continue;
                }
                (Some(_), None) => {
                    // Its supervisor was killed before it wrote anything; or it is no system, and
                    // is not empty.
                    let _ = fs::remove_dir(&path);
                    continue;
                }
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            all.push(Found {
                name,
                standing,
                path,
                record: record.unwrap_or_default(),
            });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// The lock of a system's directory, or nothing when somebody holds it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// True while the supervisor that holds the directory lives.
pub(crate) fn is_held(path: &Path) -> bool {
    matches!(try_lock(path), Ok(None))
}

impl SystemDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the supervisor listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Writes the system's record, at once or not at all.
    pub(crate) fn write(&self, record: &SystemRecord) -> Result<(), Error> {
        let failed = |source| Error::StateDir {
            path: self.path.clone(),
            source,
        };
        let new = self.path.join("system.json.new");
        let json = serde_json::to_vec(record).map_err(Error::system("describe a system"))?;
        fs::write(&new, json).map_err(failed)?;
        fs::rename(&new, self.path.join(RECORD)).map_err(failed)
    }

    /// Writes down what the partitions are granted.
    pub(crate) fn write_grants(&self, system: &System) -> Result<(), Error> {
        let path = self.path.join(GRANTS);
        let all: BTreeMap<&str, &Grants> = (system.partitions.iter())
            .map(|partition| (partition.name.as_str(), &partition.grants))
            .collect();
        let json = serde_json::to_vec(&all).map_err(Error::system("describe grants"))?;
        fs::write(&path, json).map_err(|source| Error::StateDir { path, source })
    }

    /// Leaves the directory behind, with its logs.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
        let _ = fs::remove_file(self.socket());
    }
}

impl Drop for SystemDir {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Nothing can be done about a failure here; the next command cleans up.
        let _all = self.root.lock();
        let _ = fs::remove_dir_all(&self.path);
        self.root.remove_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::tempdir;

    fn names(root: &StateRoot) -> Vec<String> {
        root.list()
            .unwrap()
            .into_iter()
            .map(|found| found.name)
            .collect()
    }

    #[test]
    fn what_was_granted_is_written_down() {
        let dir = tempdir().unwrap();
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let directory = root.create("web").unwrap();
        assert!(root.find("web").unwrap().grants().is_err());
        let text = "name = \"web\"\n[[partition]]\nname = \"a\"\nkernel = \"linux\"\n\
                    command = [\"/x\"]\ngrants = [\"net.connect:a.org:443\"]\n\
                    deny = [\"tool.call:*\"]\n";
        let system = bulkhead_manifest::parse(text.as_bytes(), Path::new("/s.toml")).unwrap();
        directory.write_grants(&system).unwrap();
        let grants = root.find("web").unwrap().grants().unwrap();
        assert_eq!(grants["a"], system.partitions[0].grants);
        fs::write(directory.path().join(GRANTS), "{").unwrap();
        assert!(root.find("web").unwrap().grants().is_err());
    }

    #[test]
    fn a_live_system_is_listed_and_its_end_removes_it() {
        let dir = tempdir().unwrap();
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let system = root.create("web").unwrap();
        system.write(&SystemRecord::default()).unwrap();
        let found = root.find("web").unwrap();
        assert_eq!(found.standing, Standing::Live);
        assert!(is_held(&found.path));
        assert_eq!(root.create("web").unwrap_err().code(), "already-running");
        assert!(root.create("other").is_ok());
        drop(system);
        assert!(
            !dir.path().join("s").exists(),
            "the last system takes the directory along"
        );
        assert!(names(&root).is_empty());
        assert_eq!(root.find("web").unwrap_err().code(), "no-such-system");
    }

    #[test]
    fn what_a_killed_supervisor_left_is_removed() {
        let dir = tempdir().unwrap();
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let _held = root.create("held").unwrap();
        let stale = dir.path().join("s/stale");
        let record = fs::read(dir.path().join("s/held").join(RECORD)).unwrap();
        for files in [&[][..], &[RECORD], &[RECORD, "web.log"]] {
            fs::create_dir(&stale).unwrap();
            for file in files {
                fs::write(stale.join(file), &record).unwrap();
            }
            assert_eq!(names(&root), ["held"], "{files:?}");
            assert!(!stale.exists(), "{files:?}");
        }
    }

    #[test]
    fn what_is_no_system_is_left_alone() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        let root = StateRoot::at(&path).unwrap();
        let held = root.create("held").unwrap();
        let precious = path.join("web/diary");
        fs::create_dir(path.join("web")).unwrap();
        for file in [&precious, &path.join("web").join(RECORD)] {
            fs::write(file, "{}").unwrap();
        }
        assert_eq!(names(&root), ["held"]);
        assert_eq!(root.create("web").unwrap_err().code(), "state-dir");
        drop(held);
        assert!(precious.exists());
    }

    #[test]
    fn a_finished_system_stays_until_it_is_removed_or_replaced() {
        let dir = tempdir().unwrap();
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let mut system = root.create("web").unwrap();
        system
            .write(&SystemRecord {
                finished: true,
                ..SystemRecord::default()
            })
            .unwrap();
        system.keep();
        drop(system);
        let found = root.find("web").unwrap();
        assert_eq!(found.standing, Standing::Finished);
        drop(root.create("web").unwrap());
        assert!(names(&root).is_empty());
        root.remove_finished(&found).unwrap();
    }

    #[test]
    fn while_everything_is_halted_nothing_starts() {
        let dir = tempdir().unwrap();
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let held = root.create("held").unwrap();
        root.halt().unwrap();
        root.halt().unwrap();
        assert_eq!(root.create("web").unwrap_err().code(), "halted");
        assert_eq!(names(&root), ["held"]);
        drop(held);
        assert!(root.is_halted(), "also when the last system has ended");
        assert_eq!(root.create("web").unwrap_err().code(), "halted");
        root.go_on().unwrap();
        assert!(!dir.path().join("s").exists());
        root.go_on().unwrap();
        assert!(root.create("web").is_ok());
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let code = |path: &Path| {
            StateRoot::at(path)
                .and_then(|root| root.create("x"))
                .map(drop)
        };
        let code = |path: &Path| code(path).unwrap_err().code();
        assert_eq!(code(&path), "state-dir-unsafe");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(StateRoot::at(&path).unwrap().list().unwrap().is_empty());
        fs::create_dir(&path).unwrap();
        let link = dir.path().join("l");
        symlink(&path, &link).unwrap();
        assert_eq!(code(&link), "state-dir-unsafe");
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        assert_eq!(code(&file), "state-dir-unsafe");
        assert_eq!(code(&dir.path().join("x".repeat(60))), "state-dir-unsafe");
        assert_eq!(code(Path::new("relative")), "state-dir-unsafe");
        assert_eq!(code(&dir.path().join("a/b")), "state-dir");
    }
}

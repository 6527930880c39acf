//! What rolling a call back needs: the state of what it touches, taken before it runs and kept in a
//! directory of the host that no tool reaches. Used by the pipeline and by `tool.rollback`.
//!
//! A back-up is a small file `CALL.json` and one `CALL-n` for each file's contents. Only so many are
//! kept: the oldest goes first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::directories::{Directories, Place};
use crate::error::ToolError;

/// Most back-ups that are kept.
pub const MAX_KEPT: usize = 64;
/// Most bytes of one file that is backed up.
pub const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Most bytes of all that is kept.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Most places that one call touches.
pub const MAX_PLACES: usize = 1024;
/// Most bytes of a description of a back-up.
const MAX_JSON: u64 = 4 * 1024 * 1024;
/// The bits of a mode that a back-up keeps.
const MODE: u32 = 0o7777;

/// What was at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Absent,
    File {
        mode: u32,
        /// Which of the call's contents.
        contents: usize,
    },
    Directory {
        mode: u32,
    },
    Link {
        target: Vec<u8>,
    },
}

/// One step back. The steps of a call are taken in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Undo {
    Restore { path: PathBuf, state: State },
    MoveBack { from: PathBuf, to: PathBuf },
}

impl Undo {
    /// Where something was changed.
    fn path(&self) -> &Path {
        match self {
            Self::Restore { path, .. } => path,
            Self::MoveBack { from, .. } => from,
        }
    }
}

/// What a place looks like, to tell later whether somebody has changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Print {
    Absent,
    File {
        mode: u32,
        sha256: Vec<u8>,
    },
    Directory {
        mode: u32,
    },
    Link {
        target: Vec<u8>,
    },
    /// A file of which more would have to be read than is backed up of any: the host notes when it was
    /// changed.
    Large {
        file: [u64; 5],
        bytes: u64,
    },
    /// What no call leaves, and so what somebody else has made.
    Other,
}

/// A call that can be rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The call: the index of its intent in the ledger.
    pub call: u64,
    /// The tool that was called.
    pub tool: String,
    undo: Vec<Undo>,
    /// How each place of `undo` was left; absent while the call runs.
    left: Option<Vec<Print>>,
    bytes: u64,
}

impl Kept {
    /// The places that rolling it back changes.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        fn both(undo: &Undo) -> [Option<&Path>; 2] {
            match undo {
                Undo::Restore { path, .. } => [Some(path), None],
                Undo::MoveBack { from, to } => [Some(from), Some(to)],
            }
        }
        self.undo.iter().flat_map(both).flatten()
    }
}

/// A back-up in the making.
#[derive(Debug)]
pub struct Draft<'b> {
    backups: &'b Backups,
    undo: Vec<Undo>,
    contents: Vec<OwnedName>,
    bytes: u64,
}

/// A file of the store that goes when nobody keeps it.
#[derive(Debug)]
struct OwnedName {
    name: String,
}

/// All back-ups of a partition.
#[derive(Debug)]
pub struct Backups {
    directory: OwnedFd,
    kept: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    calls: VecDeque<Kept>,
    drafts: u64,
}

impl Backups {
    /// Those in `directory`: what cannot be read as a back-up is removed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(directory: OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = openat(&directory, c".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&list)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        let mut calls: Vec<Kept> = (names.iter())
            .filter_map(|name| read_kept(&directory, name))
            .collect();
        calls.sort_by_key(|kept| kept.call);
        let known: Vec<String> = calls.iter().flat_map(files_of).collect();
        for name in names.iter().filter(|name| !known.contains(name)) {
            let _ = unlinkat(&directory, name.as_str(), AtFlags::empty());
        }
        let backups = Self {
            directory,
            kept: Mutex::new(Table {
                calls: calls.into(),
                drafts: 0,
            }),
        };
        backups.shrink(&mut backups.lock());
        Ok(backups)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one.
    pub fn draft(&self) -> Draft<'_> {
        Draft {
            backups: self,
            undo: Vec::new(),
            contents: Vec::new(),
            bytes: 0,
        }
    }

    /// The calls that can be rolled back, the oldest first.
    pub fn calls(&self) -> Vec<(u64, String)> {
        let state = self.lock();
        let calls = state.calls.iter().filter(|kept| kept.left.is_some());
        calls.map(|kept| (kept.call, kept.tool.clone())).collect()
    }

    /// What is kept of `call`.
    pub fn find(&self, call: u64) -> Option<Kept> {
        let state = self.lock();
        state.calls.iter().find(|kept| kept.call == call).cloned()
    }

    /// Puts back what was there before `call`, and forgets it. Unless `force` says so, nothing is
    /// put back where somebody has changed a place since.
    ///
    /// # Errors
    /// It is not kept, somebody changed a place since, or the host refuses.
    pub fn roll_back(
        &self,
        directories: &Directories,
        call: u64,
        force: bool,
    ) -> Result<Vec<PathBuf>, ToolError> {
        let kept = self.find(call);
        let kept = kept.ok_or_else(|| {
            ToolError::refused(format!(
                "call {call} cannot be rolled back: nothing is kept of it"
            ))
        })?;
        if !force {
            let left = kept.left.iter().flatten();
            let mut room = MAX_BYTES;
            for (undo, left) in kept.undo.iter().zip(left) {
                let now = print(&directories.place(undo.path())?, &mut room)?;
                if now == Print::Other || now != *left {
                    return Err(ToolError::refused(format!(
                        "`{}` was changed since; `force` rolls back all the same",
                        undo.path().display()
                    )));
                }
            }
        }
        self.put_back(directories, &kept)?;
        let paths = kept.paths().map(Path::to_owned).collect();
        self.forget(call);
        Ok(paths)
    }

    /// Takes the steps back of a call.
    fn put_back(&self, directories: &Directories, kept: &Kept) -> Result<(), ToolError> {
        for undo in &kept.undo {
            match undo {
                Undo::Restore { path, state } => {
                    let place = directories.place(path)?;
                    self.restore(&place, state, kept.call)?;
                }
                Undo::MoveBack { from, to } => {
                    let (from, to) = (directories.place(from)?, directories.place(to)?);
                    // A call that failed may not have moved it.
                    if to.look()?.is_none() {
                        move_entry(&from, &to)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn restore(&self, place: &Place<'_>, state: &State, call: u64) -> Result<(), ToolError> {
        let now = place.look()?;
        let kind = now.map(|stat| FileType::from_raw_mode(stat.st_mode));
        let path = place.path();
        let failed = |doing| move |errno| ToolError::host(doing, &path, errno);
        match (state, kind) {
            (State::Absent, None) => Ok(()),
            (State::Absent, Some(FileType::Directory)) => {
                let entry = place.entry()?;
                unlinkat(&entry.directory, &entry.name, AtFlags::REMOVEDIR)
                    .map_err(failed("remove"))
            }
            (State::Absent, Some(_)) => {
                let entry = place.entry()?;
                unlinkat(&entry.directory, &entry.name, AtFlags::empty()).map_err(failed("remove"))
            }
            (State::File { mode, contents }, None | Some(FileType::RegularFile)) => {
                let mut file = match kind {
                    None => place.create(Mode::RUSR | Mode::WUSR)?,
                    Some(_) => place.write()?,
                };
                let name = contents_name(call, *contents);
                let mut blob = self
                    .file(&name, OFlags::RDONLY)
                    .map_err(failed("restore"))?;
                let path = place.path();
                let broken = |error: io::Error| ToolError::io("restore", &path, &error);
                file.set_len(0).map_err(broken)?;
                io::copy(&mut blob, &mut file).map_err(broken)?;
                fchmod(&file, Mode::from_raw_mode(*mode)).map_err(|errno| broken(errno.into()))
            }
            (State::Directory { mode }, None | Some(FileType::Directory)) => {
                if kind.is_none() {
                    let entry = place.entry()?;
                    mkdirat(&entry.directory, &entry.name, Mode::RWXU).map_err(failed("create"))?;
                }
                let path = place.path();
                let failed = |errno| ToolError::host("restore", &path, errno);
                fchmod(place.directory()?, Mode::from_raw_mode(*mode)).map_err(failed)
            }
            (State::Link { target }, None) => {
                let entry = place.entry()?;
                symlinkat(target.as_slice(), &entry.directory, &entry.name)
                    .map_err(failed("restore"))
            }
            (State::Link { target }, Some(FileType::Symlink))
                if place.link()?.as_bytes() == target.as_slice() =>
            {
                Ok(())
            }
            (_, Some(_)) => Err(ToolError::refused(format!(
                "`{}` is of another kind now than it was",
                place.path().display()
            ))),
        }
    }

    fn file(&self, name: &str, flags: OFlags) -> Result<File, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }

    /// Writes down what is kept of a call, over what stood there.
    fn write(&self, kept: &Kept) -> Result<(), ToolError> {
        let name = json_name(kept.call);
        let failed = |error: io::Error| ToolError::io("keep", Path::new(&name), &error);
        let text = serde_json::to_vec(kept).map_err(|error| failed(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = self
            .file("new", flags)
            .map_err(|errno| failed(errno.into()))?;
        file.write_all(&text).map_err(failed)?;
        renameat(&self.directory, "new", &self.directory, &name)
            .map_err(|errno| failed(errno.into()))
    }

    /// Forgets a call.
    pub fn forget(&self, call: u64) {
        let mut state = self.lock();
        let at = state.calls.iter().position(|kept| kept.call == call);
        if let Some(kept) = at.and_then(|at| state.calls.remove(at)) {
            self.remove(&kept);
        }
    }

    fn remove(&self, kept: &Kept) {
        for name in files_of(kept) {
            let _ = unlinkat(&self.directory, name.as_str(), AtFlags::empty());
        }
    }

    fn shrink(&self, state: &mut Table) {
        let bytes = |state: &Table| state.calls.iter().map(|kept| kept.bytes).sum::<u64>();
        while state.calls.len() > MAX_KEPT || bytes(state) > MAX_BYTES {
            match state.calls.pop_front() {
                Some(kept) => self.remove(&kept),
                None => break,
            }
        }
    }
}

impl Draft<'_> {
    /// Takes down what is at `place`.
    ///
    /// # Errors
    /// It cannot be read, or is too large.
    pub fn take(&mut self, place: &Place<'_>) -> Result<(), ToolError> {
        self.has_room()?;
        let path = place.path();
        let stat = place.look()?;
        let mode = stat.map_or(0, |stat| stat.st_mode & MODE);
        let state = match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None => State::Absent,
            Some(FileType::Directory) => State::Directory { mode },
            Some(FileType::Symlink) => State::Link {
                target: place.link()?.into_vec(),
            },
            Some(FileType::RegularFile) => {
                let mut file = place.read()?;
                let stat = fstat(&file).map_err(|errno| ToolError::host("read", &path, errno))?;
                let contents = self.contents(&mut file, &path)?;
                State::File {
                    mode: stat.st_mode & MODE,
                    contents,
                }
            }
            Some(_) => return Err(ToolError::NotAFile(path)),
        };
        self.undo.push(Undo::Restore { path, state });
        Ok(())
    }

    /// The call moves `from` to `to`, where nothing is.
    ///
    /// # Errors
    /// The call touches too many places.
    pub fn moves(&mut self, from: &Place<'_>, to: &Place<'_>) -> Result<(), ToolError> {
        self.has_room()?;
        self.undo.push(Undo::MoveBack {
            from: to.path(),
            to: from.path(),
        });
        Ok(())
    }

    fn has_room(&self) -> Result<(), ToolError> {
        match self.undo.len() < MAX_PLACES {
            true => Ok(()),
            false => Err(ToolError::refused(format!(
                "it touches more than {MAX_PLACES} files"
            ))),
        }
    }

    fn contents(&mut self, file: &mut File, path: &Path) -> Result<usize, ToolError> {
        let failed = |error: io::Error| ToolError::io("back up", path, &error);
        let number = {
            let mut state = self.backups.lock();
            state.drafts += 1;
            state.drafts
        };
        let name = format!("draft-{number}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let most = MAX_FILE.min(MAX_BYTES.saturating_sub(self.bytes));
        if file.metadata().map_err(failed)?.len() > most {
            return Err(too_large(path));
        }
        let blob = self.backups.file(&name, flags);
        let mut blob = blob.map_err(|errno| failed(errno.into()))?;
        self.contents.push(OwnedName { name });
        // It may have grown since.
        let copied = io::copy(&mut file.take(most + 1), &mut blob).map_err(failed)?;
        self.bytes += copied;
        if copied > most {
            return Err(too_large(path));
        }
        Ok(self.contents.len() - 1)
    }

    /// Keeps it under the number of its call, before the call runs.
    ///
    /// # Errors
    /// The host refuses; nothing is kept then.
    pub fn keep(mut self, call: u64, tool: &str) -> Result<(), ToolError> {
        if self.undo.is_empty() {
            return Ok(());
        }
        let backups = self.backups;
        let kept = Kept {
            call,
            tool: tool.to_owned(),
            undo: std::mem::take(&mut self.undo),
            left: None,
            bytes: self.bytes,
        };
        for (number, draft) in self.contents.drain(..).enumerate() {
            let name = contents_name(call, number);
            let moved = renameat(
                &backups.directory,
                draft.name.as_str(),
                &backups.directory,
                name.as_str(),
            );
            moved.map_err(|errno| ToolError::host("keep", Path::new(&name), errno))?;
        }
        if let Err(error) = backups.write(&kept) {
            backups.remove(&kept);
            return Err(error);
        }
        let mut state = backups.lock();
        state.calls.push_back(kept);
        backups.shrink(&mut state);
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        for draft in &self.contents {
            let _ = unlinkat(
                &self.backups.directory,
                draft.name.as_str(),
                AtFlags::empty(),
            );
        }
    }
}

impl Backups {
    /// The call has done its work: notes how it left things.
    ///
    /// # Errors
    /// They cannot be looked at, or it cannot be written down.
    pub fn settle(&self, directories: &Directories, call: u64) -> Result<(), ToolError> {
        let Some(mut kept) = self.find(call) else {
            return Ok(());
        };
        let mut room = MAX_BYTES;
        let mut left = Vec::new();
        for undo in &kept.undo {
            left.push(print(&directories.place(undo.path())?, &mut room)?);
        }
        kept.left = Some(left);
        self.write(&kept)?;
        let mut state = self.lock();
        if let Some(place) = state.calls.iter_mut().find(|kept| kept.call == call) {
            *place = kept;
        }
        Ok(())
    }

    /// The call failed on its way: puts back what it may have changed.
    ///
    /// # Errors
    /// The host refuses; the back-up stays.
    pub fn abandon(&self, directories: &Directories, call: u64) -> Result<(), ToolError> {
        if let Some(kept) = self.find(call) {
            self.put_back(directories, &kept)?;
            self.forget(call);
        }
        Ok(())
    }
}

/// Renames without replacing anything.
pub(crate) fn move_entry(from: &Place<'_>, to: &Place<'_>) -> Result<(), ToolError> {
    let (source, target) = (from.entry()?, to.entry()?);
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    let moved = rustix::fs::renameat_with(
        &source.directory,
        &source.name,
        &target.directory,
        &target.name,
        flags,
    );
    moved.map_err(|errno| match errno {
        Errno::EXIST => ToolError::host("replace", &to.path(), errno),
        _ => ToolError::host("move", &from.path(), errno),
    })
}

/// What is at a place. A file is read while there is room for it, of what all places of a call have
/// together.
fn print(place: &Place<'_>, room: &mut u64) -> Result<Print, ToolError> {
    let Some(stat) = place.look()? else {
        return Ok(Print::Absent);
    };
    let mode = stat.st_mode & MODE;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Print::Directory { mode },
        FileType::Symlink => Print::Link {
            target: place.link()?.into_vec(),
        },
        FileType::RegularFile => {
            let file = place.read()?;
            let path = place.path();
            let failed = |error: io::Error| ToolError::io("read", &path, &error);
            let most = MAX_FILE.min(*room);
            let found = file.metadata().map_err(failed)?;
            let large = Print::Large {
                file: [
                    found.dev(),
                    found.ino(),
                    u64::from(found.mode()),
                    found.ctime().unsigned_abs(),
                    found.ctime_nsec().unsigned_abs(),
                ],
                bytes: found.len(),
            };
            if found.len() > most {
                return Ok(large);
            }
            let mut sum = Hashing(Sha256::new());
            // It may have grown since.
            let read = io::copy(&mut file.take(most + 1), &mut sum).map_err(failed)?;
            if read > most {
                return Ok(large);
            }
            *room -= read;
            let sha256 = sum.0.finalize().to_vec();
            Print::File { mode, sha256 }
        }
        _ => Print::Other,
    })
}

/// What is written to it is summed.
struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large(path: &Path) -> ToolError {
    ToolError::refused(format!(
        "`{}` is too large: at most {} MiB of a file, and {} MiB in all, are backed up",
        path.display(),
        MAX_FILE >> 20,
        MAX_BYTES >> 20
    ))
}

fn json_name(call: u64) -> String {
    format!("{call}.json")
}

fn contents_name(call: u64, number: usize) -> String {
    format!("{call}-{number}")
}

/// The names of a back-up's files.
fn files_of(kept: &Kept) -> Vec<String> {
    let contents = kept.undo.iter().filter_map(|undo| match undo {
        Undo::Restore {
            state: State::File { contents, .. },
            ..
        } => Some(contents_name(kept.call, *contents)),
        _ => None,
    });
    contents.chain([json_name(kept.call)]).collect()
}

fn read_kept(directory: &OwnedFd, name: &str) -> Option<Kept> {
    let call: u64 = name.strip_suffix(".json")?.parse().ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    let mut text = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut text).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    (kept.call == call && name == json_name(call)).then_some(kept)
}

//! Names: opening, making, moving and removing them.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::node::{Contents, Kind, Node, NodeId};
use crate::fs::path::{Found, PATH_MAX, find};
use crate::memory::UserPtr;
use crate::process::Process;

/// `AT_FDCWD` as a register holds it.
const HERE: i32 = raw::AT_FDCWD;

/// A path argument.
pub(super) fn read_path(p: &mut Process<'_>, from: UserPtr<u8>) -> Result<Vec<u8>, Errno> {
    p.memory()
        .read_string(from.address(), PATH_MAX, Errno::ENAMETOOLONG)
}

/// Where a relative path of the `*at` family starts.
fn start(p: &Process<'_>, directory: i32, path: &[u8]) -> Result<NodeId, Errno> {
    if directory == HERE || path.first() == Some(&b'/') {
        return Ok(p.directory);
    }
    let file = p.files.get(directory)?;
    p.tree.directory(file.node)?;
    Ok(file.node)
}

/// Reads and follows a path argument.
fn lookup(
    p: &mut Process<'_>,
    directory: i32,
    path: UserPtr<u8>,
    follow: bool,
) -> Result<Found, Errno> {
    let path = read_path(p, path)?;
    let start = start(p, directory, &path)?;
    find(&p.tree, start, &path, follow)
}

/// The node that `path` names, or `directory` itself for an empty path with `AT_EMPTY_PATH`.
pub(super) fn node_at(
    p: &mut Process<'_>,
    directory: i32,
    path: UserPtr<u8>,
    flags: u32,
) -> Result<NodeId, Errno> {
    let path = read_path(p, path)?;
    if path.is_empty() && flags & raw::AT_EMPTY_PATH != 0 {
        return if directory == HERE {
            Ok(p.directory)
        } else {
            p.files.get(directory).map(|file| file.node)
        };
    }
    let start = start(p, directory, &path)?;
    find(&p.tree, start, &path, flags & raw::AT_SYMLINK_NOFOLLOW == 0)?.existing()
}

pub(super) fn open(p: &mut Process<'_>, a: Args) -> Outcome {
    open_at(p, HERE, a.pointer(0), a.uint(1), a.uint(2))
}

pub(super) fn creat(p: &mut Process<'_>, a: Args) -> Outcome {
    let flags = raw::O_CREAT | raw::O_WRONLY | raw::O_TRUNC;
    open_at(p, HERE, a.pointer(0), flags, a.uint(1))
}

pub(super) fn openat(p: &mut Process<'_>, a: Args) -> Outcome {
    open_at(p, a.int(0), a.pointer(1), a.uint(2), a.uint(3))
}

fn open_at(
    p: &mut Process<'_>,
    directory: i32,
    path: UserPtr<u8>,
    flags: u32,
    mode: u32,
) -> Outcome {
    let has = |flag| flags & flag == flag;
    if has(raw::O_PATH) || has(raw::O_TMPFILE) {
        return Err(Errno::EOPNOTSUPP);
    }
    let writes = flags & raw::O_ACCMODE != raw::O_RDONLY;
    let exclusive = has(raw::O_CREAT | raw::O_EXCL);
    let found = lookup(p, directory, path, !has(raw::O_NOFOLLOW) && !exclusive)?;
    let id = match found.node {
        Some(_) if exclusive => return Err(Errno::EEXIST),
        Some(id) => id,
        None if !has(raw::O_CREAT) => return Err(Errno::ENOENT),
        None if found.directory_only => return Err(Errno::EISDIR),
        None => {
            let kind = Kind::File(Contents::Overlay(Vec::new()));
            let mut node = Node::new(kind, mode & 0o7777 & !p.umask);
            node.modified_ns = p.stamp_ns();
            p.tree.add(found.parent, Cow::Owned(found.name), node)?
        }
    };
    match p.tree.get(id).map(|node| &node.kind) {
        Some(Kind::Symlink(_)) => return Err(Errno::ELOOP),
        Some(Kind::Directory(_)) if writes || has(raw::O_CREAT) => return Err(Errno::EISDIR),
        Some(Kind::Directory(_)) => {}
        _ if has(raw::O_DIRECTORY) => return Err(Errno::ENOTDIR),
        Some(Kind::File(_)) if has(raw::O_TRUNC) && writes => {
            let now = p.stamp_ns();
            p.tree.resize(id, 0, now)?;
        }
        _ => {}
    }
    let status = flags & (raw::O_ACCMODE | raw::O_APPEND | raw::O_NONBLOCK | raw::O_DIRECTORY);
    let fd = p.files.open(&mut p.tree, id, status, has(raw::O_CLOEXEC))?;
    Ok(fd as u64)
}

pub(super) fn access(p: &mut Process<'_>, a: Args) -> Outcome {
    may_access(p, HERE, a.pointer(0), a.uint(1), 0)
}

pub(super) fn faccessat(p: &mut Process<'_>, a: Args) -> Outcome {
    may_access(p, a.int(0), a.pointer(1), a.uint(2), 0)
}

pub(super) fn faccessat2(p: &mut Process<'_>, a: Args) -> Outcome {
    may_access(p, a.int(0), a.pointer(1), a.uint(2), a.uint(3))
}

/// Root may read and write everything, and execute what anybody may execute.
fn may_access(
    p: &mut Process<'_>,
    directory: i32,
    path: UserPtr<u8>,
    mode: u32,
    flags: u32,
) -> Outcome {
    if mode & !(raw::R_OK | raw::W_OK | raw::X_OK) != 0 {
        return Err(Errno::EINVAL);
    }
    let id = node_at(p, directory, path, flags)?;
    let node = p.tree.get(id).ok_or(Errno::ENOENT)?;
    let executable = node.permissions & 0o111 != 0 || p.tree.directory(id).is_ok();
    if mode & raw::X_OK != 0 && !executable {
        return Err(Errno::EACCES);
    }
    Ok(0)
}

pub(super) fn readlink(p: &mut Process<'_>, a: Args) -> Outcome {
    link_target(p, HERE, a.pointer(0), a.get(1), a.get(2))
}

pub(super) fn readlinkat(p: &mut Process<'_>, a: Args) -> Outcome {
    link_target(p, a.int(0), a.pointer(1), a.get(2), a.get(3))
}

fn link_target(
    p: &mut Process<'_>,
    directory: i32,
    path: UserPtr<u8>,
    to: u64,
    len: u64,
) -> Outcome {
    if len as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let id = lookup(p, directory, path, false)?.existing()?;
    let Process {
        tree,
        space,
        platform,
        ..
    } = p;
    let Some(Kind::Symlink(target)) = tree.get(id).map(|node| &node.kind) else {
        return Err(Errno::EINVAL);
    };
    let part = target
        .get(..target.len().min(len as usize))
        .unwrap_or_default();
    crate::memory::Memory {
        space,
        platform: *platform,
    }
    .write_bytes(to, part)?;
    Ok(part.len() as u64)
}

pub(super) fn getcwd(p: &mut Process<'_>, a: Args) -> Outcome {
    let mut path = p.tree.path_of(p.directory);
    path.push(0);
    if (path.len() as u64) > a.get(1) {
        return Err(Errno::ERANGE);
    }
    p.memory().write_bytes(a.get(0), &path)?;
    Ok(path.len() as u64)
}

pub(super) fn chdir(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = lookup(p, HERE, a.pointer(0), true)?.existing()?;
    enter(p, id)
}

pub(super) fn fchdir(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = p.files.get(a.int(0))?.node;
    enter(p, id)
}

fn enter(p: &mut Process<'_>, id: NodeId) -> Outcome {
    p.tree.directory(id)?;
    // Held like an open file: it cannot be removed under the process.
    p.tree.opened(id);
    let left = core::mem::replace(&mut p.directory, id);
    p.tree.closed(left);
    Ok(0)
}

pub(super) fn mkdir(p: &mut Process<'_>, a: Args) -> Outcome {
    make_directory(p, HERE, a.pointer(0), a.uint(1))
}

pub(super) fn mkdirat(p: &mut Process<'_>, a: Args) -> Outcome {
    make_directory(p, a.int(0), a.pointer(1), a.uint(2))
}

fn make_directory(p: &mut Process<'_>, directory: i32, path: UserPtr<u8>, mode: u32) -> Outcome {
    let found = lookup(p, directory, path, false)?;
    if found.node.is_some() {
        return Err(Errno::EEXIST);
    }
    let permissions = mode & 0o1777 & !p.umask;
    let id = p
        .tree
        .add_directory(found.parent, Cow::Owned(found.name), permissions)?;
    let now = p.stamp_ns();
    if let Some(node) = p.tree.get_mut(id) {
        node.modified_ns = now;
    }
    Ok(0)
}

pub(super) fn rmdir(p: &mut Process<'_>, a: Args) -> Outcome {
    remove(p, HERE, a.pointer(0), true)
}

pub(super) fn unlink(p: &mut Process<'_>, a: Args) -> Outcome {
    remove(p, HERE, a.pointer(0), false)
}

pub(super) fn unlinkat(p: &mut Process<'_>, a: Args) -> Outcome {
    match a.uint(2) {
        0 => remove(p, a.int(0), a.pointer(1), false),
        raw::AT_REMOVEDIR => remove(p, a.int(0), a.pointer(1), true),
        _ => Err(Errno::EINVAL),
    }
}

fn remove(p: &mut Process<'_>, directory: i32, path: UserPtr<u8>, is_directory: bool) -> Outcome {
    let found = lookup(p, directory, path, false)?;
    found.existing()?;
    if is_directory {
        match found.name.as_slice() {
            b"." => return Err(Errno::EINVAL),
            b".." => return Err(Errno::ENOTEMPTY),
            name => p.tree.remove_directory(found.parent, name)?,
        }
    } else {
        match found.name.as_slice() {
            b"." | b".." => return Err(Errno::EISDIR),
            name => p.tree.unlink(found.parent, name)?,
        }
    }
    Ok(0)
}

pub(super) fn rename(p: &mut Process<'_>, a: Args) -> Outcome {
    move_name(p, (HERE, a.pointer(0)), (HERE, a.pointer(1)), 0)
}

pub(super) fn renameat(p: &mut Process<'_>, a: Args) -> Outcome {
    move_name(p, (a.int(0), a.pointer(1)), (a.int(2), a.pointer(3)), 0)
}

pub(super) fn renameat2(p: &mut Process<'_>, a: Args) -> Outcome {
    move_name(
        p,
        (a.int(0), a.pointer(1)),
        (a.int(2), a.pointer(3)),
        a.uint(4),
    )
}

fn move_name(
    p: &mut Process<'_>,
    from: (i32, UserPtr<u8>),
    to: (i32, UserPtr<u8>),
    flags: u32,
) -> Outcome {
    if flags & !raw::RENAME_NOREPLACE != 0 {
        return Err(Errno::EINVAL);
    }
    let from = lookup(p, from.0, from.1, false)?;
    let to = lookup(p, to.0, to.1, false)?;
    let moved = from.existing()?;
    let dots = |found: &Found| matches!(found.name.as_slice(), b"." | b"..");
    if dots(&from) || dots(&to) {
        return Err(Errno::EBUSY);
    }
    if flags & raw::RENAME_NOREPLACE != 0 && to.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if (from.directory_only || to.directory_only) && p.tree.directory(moved).is_err() {
        return Err(Errno::ENOTDIR);
    }
    p.tree
        .rename((from.parent, &from.name), (to.parent, Cow::Owned(to.name)))?;
    Ok(0)
}

pub(super) fn link(p: &mut Process<'_>, a: Args) -> Outcome {
    new_link(p, (HERE, a.pointer(0)), (HERE, a.pointer(1)), 0)
}

pub(super) fn linkat(p: &mut Process<'_>, a: Args) -> Outcome {
    new_link(
        p,
        (a.int(0), a.pointer(1)),
        (a.int(2), a.pointer(3)),
        a.uint(4),
    )
}

fn new_link(
    p: &mut Process<'_>,
    from: (i32, UserPtr<u8>),
    to: (i32, UserPtr<u8>),
    flags: u32,
) -> Outcome {
    if flags & !raw::AT_SYMLINK_FOLLOW != 0 {
        return Err(Errno::EINVAL);
    }
    let id = lookup(p, from.0, from.1, flags != 0)?.existing()?;
    let to = lookup(p, to.0, to.1, false)?;
    if to.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if to.directory_only {
        return Err(Errno::ENOENT);
    }
    p.tree.link(to.parent, Cow::Owned(to.name), id)?;
    Ok(0)
}

pub(super) fn symlink(p: &mut Process<'_>, a: Args) -> Outcome {
    new_symlink(p, a.pointer(0), HERE, a.pointer(1))
}

pub(super) fn symlinkat(p: &mut Process<'_>, a: Args) -> Outcome {
    new_symlink(p, a.pointer(0), a.int(1), a.pointer(2))
}

fn new_symlink(
    p: &mut Process<'_>,
    target: UserPtr<u8>,
    directory: i32,
    path: UserPtr<u8>,
) -> Outcome {
    let target = read_path(p, target)?;
    let found = lookup(p, directory, path, false)?;
    if target.is_empty() || (found.node.is_none() && found.directory_only) {
        return Err(Errno::ENOENT);
    }
    if found.node.is_some() {
        return Err(Errno::EEXIST);
    }
    let mut node = Node::new(Kind::Symlink(Cow::Owned(target)), 0o777);
    node.modified_ns = p.stamp_ns();
    p.tree.add(found.parent, Cow::Owned(found.name), node)?;
    Ok(0)
}

pub(super) fn chmod(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = lookup(p, HERE, a.pointer(0), true)?.existing()?;
    set_permissions(p, id, a.uint(1))
}

pub(super) fn fchmod(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = p.files.get(a.int(0))?.node;
    set_permissions(p, id, a.uint(1))
}

pub(super) fn fchmodat(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = lookup(p, a.int(0), a.pointer(1), true)?.existing()?;
    set_permissions(p, id, a.uint(2))
}

fn set_permissions(p: &mut Process<'_>, id: NodeId, mode: u32) -> Outcome {
    p.tree.get_mut(id).ok_or(Errno::ENOENT)?.permissions = mode & 0o7777;
    Ok(0)
}

pub(super) fn truncate(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = lookup(p, HERE, a.pointer(0), true)?.existing()?;
    if a.get(1) > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    if p.tree.directory(id).is_ok() {
        return Err(Errno::EISDIR);
    }
    let now = p.stamp_ns();
    p.tree.resize(id, a.get(1), now)?;
    Ok(0)
}

pub(super) fn umask(p: &mut Process<'_>, a: Args) -> Outcome {
    let old = core::mem::replace(&mut p.umask, a.uint(0) & 0o777);
    Ok(u64::from(old))
}

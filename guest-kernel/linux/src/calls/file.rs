//! What a program learns of files: attributes, directory listings.

use alloc::vec::Vec;

use linux_raw_sys::general as raw;
use zerocopy::FromZeros;

use super::path::node_at;
use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::node::{Kind, Node, NodeId};
use crate::memory::UserPtr;
use crate::process::Process;
use crate::uapi::{Stat, Statfs, Statx, StatxTimestamp, Timespec};

const BLOCK: i64 = 4096;
const SECOND_NS: u64 = 1_000_000_000;
/// Device number of the one file system.
const FILE_SYSTEM: (u32, u32) = (0, 1);
/// Most bytes of directory entries one call returns.
const MAX_LISTING: u64 = 64 * 1024;
/// Size of a directory entry without its name.
const ENTRY_BYTES: usize = 19;

/// `makedev`.
fn device_number((major, minor): (u32, u32)) -> u64 {
    u64::from(major) << 8 | u64::from(minor)
}

pub(super) fn stat(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = node_at(p, raw::AT_FDCWD, a.pointer(0), 0)?;
    report(p, id, a.pointer(1))
}

pub(super) fn lstat(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = node_at(p, raw::AT_FDCWD, a.pointer(0), raw::AT_SYMLINK_NOFOLLOW)?;
    report(p, id, a.pointer(1))
}

pub(super) fn fstat(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = p.files.get(a.int(0))?.node;
    report(p, id, a.pointer(1))
}

pub(super) fn newfstatat(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = node_at(p, a.int(0), a.pointer(1), a.uint(3))?;
    report(p, id, a.pointer(2))
}

fn special(node: &Node<'_>) -> (u32, u32) {
    match node.kind {
        Kind::Device(device) => device.number(),
        _ => (0, 0),
    }
}

/// `st_nlink`: a directory also has its own `.` and its children's `..`; one is enough to say so.
fn links(node: &Node<'_>) -> u32 {
    node.links + u32::from(matches!(node.kind, Kind::Directory(_)))
}

fn report(p: &mut Process<'_>, id: NodeId, to: UserPtr<Stat>) -> Outcome {
    let node = p.tree.get(id).ok_or(Errno::ENOENT)?;
    let size = node.size();
    let (seconds, nanoseconds) = (node.modified_ns / SECOND_NS, node.modified_ns % SECOND_NS);
    let stat = Stat {
        dev: device_number(FILE_SYSTEM),
        ino: id as u64 + 1,
        nlink: u64::from(links(node)),
        mode: node.mode(),
        uid: node.uid,
        gid: node.gid,
        pad0: 0,
        rdev: device_number(special(node)),
        size: size as i64,
        blksize: BLOCK,
        blocks: size.div_ceil(512) as i64,
        atime: seconds,
        atime_nsec: nanoseconds,
        mtime: seconds,
        mtime_nsec: nanoseconds,
        ctime: seconds,
        ctime_nsec: nanoseconds,
        unused: [0; 3],
    };
    p.memory().write(to, &stat)?;
    Ok(0)
}

pub(super) fn statx(p: &mut Process<'_>, a: Args) -> Outcome {
    let id = node_at(p, a.int(0), a.pointer(1), a.uint(2))?;
    let node = p.tree.get(id).ok_or(Errno::ENOENT)?;
    let size = node.size();
    let time = StatxTimestamp {
        sec: (node.modified_ns / SECOND_NS) as i64,
        nsec: (node.modified_ns % SECOND_NS) as u32,
        reserved: 0,
    };
    let (rdev_major, rdev_minor) = special(node);
    let statx = Statx {
        mask: raw::STATX_BASIC_STATS,
        blksize: BLOCK as u32,
        attributes: 0,
        nlink: links(node),
        uid: node.uid,
        gid: node.gid,
        mode: node.mode() as u16,
        spare0: 0,
        ino: id as u64 + 1,
        size,
        blocks: size.div_ceil(512),
        attributes_mask: 0,
        atime: time,
        btime: StatxTimestamp {
            sec: 0,
            nsec: 0,
            reserved: 0,
        },
        ctime: time,
        mtime: time,
        rdev_major,
        rdev_minor,
        dev_major: FILE_SYSTEM.0,
        dev_minor: FILE_SYSTEM.1,
        spare: [0; 14],
    };
    p.memory().write(a.pointer(4), &statx)?;
    Ok(0)
}

pub(super) fn utimensat(p: &mut Process<'_>, a: Args) -> Outcome {
    let path: UserPtr<u8> = a.pointer(1);
    let id = if path.is_null() {
        p.files.get(a.int(0))?.node
    } else {
        node_at(p, a.int(0), path, a.uint(3))?
    };
    let times: UserPtr<Timespec> = a.pointer(2);
    let modified = if times.is_null() {
        p.stamp_ns()
    } else {
        let time = p.memory().read(times.at(1))?;
        match time.nsec as u64 {
            nsec if nsec == u64::from(raw::UTIME_OMIT) => return Ok(0),
            nsec if nsec == u64::from(raw::UTIME_NOW) => p.stamp_ns(),
            _ => super::time::duration_ns(&time)?,
        }
    };
    p.tree.get_mut(id).ok_or(Errno::ENOENT)?.modified_ns = modified;
    Ok(0)
}

pub(super) fn statfs(p: &mut Process<'_>, a: Args) -> Outcome {
    node_at(p, raw::AT_FDCWD, a.pointer(0), 0)?;
    report_file_system(p, a.pointer(1))
}

pub(super) fn fstatfs(p: &mut Process<'_>, a: Args) -> Outcome {
    p.files.get(a.int(0))?;
    report_file_system(p, a.pointer(1))
}

fn report_file_system(p: &mut Process<'_>, to: UserPtr<Statfs>) -> Outcome {
    let blocks = crate::fs::tree::OVERLAY_BYTES as i64 / BLOCK;
    let statfs = Statfs {
        kind: i64::from(raw::TMPFS_MAGIC),
        bsize: BLOCK,
        blocks,
        bfree: blocks,
        bavail: blocks,
        files: crate::fs::tree::MAX_NODES as i64,
        ffree: crate::fs::tree::MAX_NODES as i64,
        namelen: i64::from(raw::NAME_MAX),
        frsize: BLOCK,
        ..Statfs::new_zeroed()
    };
    p.memory().write(to, &statfs)?;
    Ok(0)
}

/// Entries come in the order of their inode numbers, and the position is the last of them: entries
/// that vanish or appear between two calls make no other entry vanish or come twice.
pub(super) fn getdents64(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let room = a.get(2).min(MAX_LISTING) as usize;
    let directory = p.tree.directory(file.node)?;
    let position = file.offset.get();
    let mut listing: Vec<(u64, NodeId, &[u8])> =
        alloc::vec![(1, file.node, &b"."[..]), (2, directory.parent, &b".."[..]),];
    listing.extend(
        directory
            .entries
            .iter()
            .map(|(name, id)| (*id as u64 + 3, *id, name.as_ref())),
    );
    listing.retain(|(cookie, _, _)| *cookie > position);
    listing.sort_unstable();

    let mut bytes = Vec::new();
    let mut reached = position;
    for (cookie, id, name) in listing {
        let len = (ENTRY_BYTES + name.len() + 1).next_multiple_of(8);
        if bytes.len() + len > room {
            if bytes.is_empty() {
                return Err(Errno::EINVAL);
            }
            break;
        }
        let kind = p.tree.get(id).map_or(0, |node| node.mode() >> 12);
        let end = bytes.len() + len;
        bytes.extend_from_slice(&(id as u64 + 1).to_le_bytes());
        bytes.extend_from_slice(&cookie.to_le_bytes());
        bytes.extend_from_slice(&(len as u16).to_le_bytes());
        bytes.push(kind as u8);
        bytes.extend_from_slice(name);
        bytes.resize(end, 0);
        reached = cookie;
    }
    p.memory().write_bytes(a.get(1), &bytes)?;
    file.offset.set(reached);
    Ok(bytes.len() as u64)
}

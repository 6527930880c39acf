//! From a path to a node: symbolic links, `.` and `..`, trailing slashes. Iterative, with Linux's
//! bounds: 40 links, `PATH_MAX` bytes.

use alloc::vec::Vec;

use super::node::{Kind, NodeId, ROOT};
use super::tree::Tree;
use crate::errno::Errno;

/// Longest path in bytes, its NUL included.
pub const PATH_MAX: usize = 4096;
/// Most symbolic links on one way.
const MAX_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The directory that holds, or would hold, the last name.
    pub parent: NodeId,
    /// The last name; `.` for the root itself.
    pub name: Vec<u8>,
    /// The node, if there is one.
    pub node: Option<NodeId>,
    /// The path ended with a slash: only a directory will do.
    pub directory_only: bool,
}

impl Found {
    /// The node.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn existing(&self) -> Result<NodeId, Errno> {
        self.node.ok_or(Errno::ENOENT)
    }
}

/// Follows `path` from `start` (the root if the path is absolute); the last name only if
/// `follow_last`.
///
/// # Errors
/// `ENOENT` for an empty path or a missing directory, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`.
pub fn find(
    tree: &Tree<'_>,
    start: NodeId,
    path: &[u8],
    follow_last: bool,
) -> Result<Found, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut rest = path.to_vec();
    let mut at = start;
    let mut links = 0;
    loop {
        if rest.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if rest.first() == Some(&b'/') {
            at = ROOT;
        }
        let Some((name, tail)) = split_first(&rest) else {
            tree.directory(at)?;
            return Ok(Found {
                parent: at,
                name: b".".to_vec(),
                node: Some(at),
                directory_only: true,
            });
        };
        let last = tail.iter().all(|b| *b == b'/');
        let slash = !tail.is_empty();
        let node = match tree.lookup(at, name) {
            Ok(node) => node,
            Err(Errno::ENOENT) if last => {
                return Ok(Found {
                    parent: at,
                    name: name.to_vec(),
                    node: None,
                    directory_only: slash,
                });
            }
            Err(error) => return Err(error),
        };
        match tree.get(node).map(|n| &n.kind) {
            Some(Kind::Symlink(target)) if !last || follow_last || slash => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP);
                }
                let mut next = target.to_vec();
                if next.is_empty() {
                    return Err(Errno::ENOENT);
                }
                next.extend_from_slice(tail);
                rest = next;
            }
            Some(Kind::Directory(_)) if !last => {
                at = node;
                // The rest is relative now.
                let skip = tail.iter().take_while(|b| **b == b'/').count();
                rest = tail.get(skip..).unwrap_or_default().to_vec();
            }
            Some(kind) if last => {
                if slash && !matches!(kind, Kind::Directory(_)) {
                    return Err(Errno::ENOTDIR);
                }
                return Ok(Found {
                    parent: at,
                    name: name.to_vec(),
                    node: Some(node),
                    directory_only: slash,
                });
            }
            _ => return Err(Errno::ENOTDIR),
        }
    }
}

/// The first name of a path and everything behind it, slashes first.
fn split_first(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|b| *b != b'/')?;
    let path = path.get(start..)?;
    let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
    path.split_at_checked(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::build::archive;
    use crate::platform::Settings;
    use alloc::format;

    fn with_tree(test: impl FnOnce(&Tree<'_>)) {
        let bytes = archive(&[
            ("d/f", 0o100644, b"1"),
            ("d/up", 0o120777, b".."),
            ("to-d", 0o120777, b"d"),
            ("to-f", 0o120777, b"/d/f"),
            ("dangling", 0o120777, b"nowhere"),
            ("me", 0o120777, b"me"),
            ("grow", 0o120777, b"grow/x"),
        ]);
        test(&Tree::new(Some(&bytes), &Settings::default()).unwrap());
    }

    #[test]
    fn finds_what_linux_finds() {
        with_tree(|tree| {
            let d = tree.lookup(ROOT, b"d").unwrap();
            let f = tree.lookup(d, b"f").unwrap();
            let node = |path: &str, follow| {
                find(tree, ROOT, path.as_bytes(), follow).and_then(|f| f.existing())
            };
            for path in [
                "d/f",
                "/d/f",
                "//d//f",
                "./d/./f",
                "to-d/f",
                "to-f",
                "d/up/d/f",
                "to-d/up/to-f",
                "../d/f",
            ] {
                assert_eq!(node(path, true), Ok(f), "{path}");
            }
            for path in ["/", "//", "/.", "d/..", "d/up/", "to-d/up", "/.."] {
                assert_eq!(node(path, true), Ok(ROOT), "{path}");
            }
            assert_eq!(node("to-d/", false), Ok(d));
            assert_eq!(node("to-d", false), tree.lookup(ROOT, b"to-d"));
            for (path, errno) in [
                ("", Errno::ENOENT),
                ("x", Errno::ENOENT),
                ("x/y", Errno::ENOENT),
                ("dangling", Errno::ENOENT),
                ("d/f/", Errno::ENOTDIR),
                ("d/f/x", Errno::ENOTDIR),
                ("to-f/", Errno::ENOTDIR),
                ("me", Errno::ELOOP),
                ("me/x", Errno::ELOOP),
                ("grow", Errno::ELOOP),
            ] {
                assert_eq!(node(path, true), Err(errno), "{path}");
            }
            let long = format!("/{}", "x/".repeat(2048));
            assert_eq!(node(&long, true), Err(Errno::ENAMETOOLONG));
        });
    }

    #[test]
    fn says_where_a_missing_file_would_go() {
        with_tree(|tree| {
            let d = tree.lookup(ROOT, b"d").unwrap();
            let found = find(tree, ROOT, b"to-d/new/", true).unwrap();
            assert_eq!(
                (
                    found.parent,
                    &found.name[..],
                    found.node,
                    found.directory_only
                ),
                (d, &b"new"[..], None, true)
            );
            // Through a dangling link, O_CREAT makes the target.
            let found = find(tree, ROOT, b"dangling", true).unwrap();
            assert_eq!((found.parent, &found.name[..]), (ROOT, &b"nowhere"[..]));
        });
    }
}

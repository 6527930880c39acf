//! What is there before the program starts: the initramfs, and what the personality itself adds,
//! as far as it was granted.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;

use linux_raw_sys::general as raw;

use super::node::{Contents, Device, Kind, Node, NodeId, ROOT};
use super::tree::Tree;
use crate::cpio::{self, CpioError};
use crate::platform::{Settings, Stream};

impl<'a> Tree<'a> {
    /// The tree of an initramfs, with `/dev`, `/proc/self`, `/tmp` added where it has none.
    ///
    /// # Errors
    /// The archive is damaged.
    pub fn new(archive: Option<&'a [u8]>, settings: &Settings) -> Result<Self, CpioError> {
        let mut tree = Self::empty();
        let mut hard_links = BTreeMap::new();
        for entry in archive.map(cpio::entries).into_iter().flatten() {
            tree.add_entry(&entry?, &mut hard_links);
        }
        tree.add_devices(settings);
        Ok(tree)
    }

    /// Adds one entry of the archive. Kinds that do not exist here (devices, sockets, FIFOs)
    /// and entries whose parent is no directory are passed over, as Linux does.
    fn add_entry(
        &mut self,
        entry: &cpio::Entry<'a>,
        hard_links: &mut BTreeMap<(u32, u32, u32), NodeId>,
    ) {
        let mut parts = entry
            .name
            .split(|b| *b == b'/')
            .filter(|p| !p.is_empty() && *p != b".");
        let mut last = parts.next_back();
        let parent = parts.try_fold(ROOT, |at, part| self.make_directory(at, part));
        let Some(parent) = parent else { return };
        let kind = match entry.mode & raw::S_IFMT {
            raw::S_IFDIR => {
                let made = match last.take() {
                    None => Some(ROOT),
                    Some(name) => self.make_directory(parent, name),
                };
                if let Some(node) = made.and_then(|id| self.get_mut(id)) {
                    set_attributes(node, entry);
                }
                return;
            }
            raw::S_IFREG => Kind::File(Contents::Archive(entry.data)),
            raw::S_IFLNK => Kind::Symlink(Cow::Borrowed(entry.data)),
            _ => return,
        };
        let Some(name) = last else { return };
        let is_file = matches!(kind, Kind::File(_));
        let first = hard_links.get(&entry.identity).copied();
        if let Some(first) = first.filter(|_| entry.links > 1 && is_file) {
            let _ = self.link(parent, Cow::Borrowed(name), first);
            // The contents come with the last of the names.
            if let (false, Some(node)) = (entry.data.is_empty(), self.get_mut(first)) {
                node.kind = kind;
            }
            return;
        }
        // The later of two entries with one name wins.
        let _ = self.unlink(parent, name);
        let mut node = Node::new(kind, 0);
        set_attributes(&mut node, entry);
        if let Ok(id) = self.add(parent, Cow::Borrowed(name), node)
            && entry.links > 1
            && is_file
        {
            hard_links.insert(entry.identity, id);
        }
    }

    /// The directory `name` in `parent`, made if there is nothing; `None` if something else is.
    fn make_directory(&mut self, parent: NodeId, name: &'a [u8]) -> Option<NodeId> {
        if let Ok(found) = self.lookup(parent, name) {
            return matches!(self.get(found)?.kind, Kind::Directory(_)).then_some(found);
        }
        self.add_directory(parent, Cow::Borrowed(name), 0o755).ok()
    }

    /// What the personality itself provides.
    fn add_devices(&mut self, settings: &Settings) {
        let always: [(&'static [u8], Device); 3] = [
            (b"null", Device::Null),
            (b"zero", Device::Zero),
            (b"full", Device::Full),
        ];
        let random: [(&'static [u8], Device); 2] =
            [(b"random", Device::Random), (b"urandom", Device::Random)];
        let console: [(&'static [u8], Device); 5] = [
            (b"console", Device::Console(Stream::Output)),
            (b"tty", Device::Console(Stream::Output)),
            (b"stdin", Device::Console(Stream::Output)),
            (b"stdout", Device::Console(Stream::Output)),
            (b"stderr", Device::Console(Stream::Error)),
        ];
        let random = random.iter().filter(|_| settings.entropy_seed.is_some());
        let console = console.iter().filter(|_| settings.console);
        if let Some(dev) = self.make_directory(ROOT, b"dev") {
            for (name, device) in always.iter().chain(random).chain(console) {
                let _ = self.unlink(dev, name);
                let _ = self.add(
                    dev,
                    Cow::Borrowed(*name),
                    Node::new(Kind::Device(*device), 0o666),
                );
            }
        }
        if let Some(tmp) = self
            .make_directory(ROOT, b"tmp")
            .and_then(|id| self.get_mut(id))
        {
            tmp.permissions = 0o1777;
        }
        if let Some(proc) = self.make_directory(ROOT, b"proc") {
            let _ = self.make_directory(proc, b"self");
        }
    }

    /// Points `/proc/self/exe` at the running program.
    pub fn set_program(&mut self, path: &[u8]) {
        let own = self
            .make_directory(ROOT, b"proc")
            .and_then(|id| self.make_directory(id, b"self"));
        if let Some(own) = own {
            let _ = self.unlink(own, b"exe");
            let target = Kind::Symlink(Cow::Owned(path.to_vec()));
            let _ = self.add(own, Cow::Borrowed(b"exe"), Node::new(target, 0o777));
        }
    }
}

fn set_attributes(node: &mut Node<'_>, entry: &cpio::Entry<'_>) {
    node.permissions = entry.mode & 0o7777;
    node.uid = entry.uid;
    node.gid = entry.gid;
    node.modified_ns = u64::from(entry.mtime) * 1_000_000_000;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::build::archive;

    #[test]
    fn grants_decide_which_devices_exist() {
        for (console, seed) in [(false, None), (true, None), (false, Some([1; 32]))] {
            let settings = Settings {
                console,
                entropy_seed: seed,
                ..Settings::default()
            };
            let tree = Tree::new(None, &settings).unwrap();
            let dev = tree.lookup(ROOT, b"dev").unwrap();
            assert_eq!(tree.lookup(dev, b"console").is_ok(), console);
            assert_eq!(tree.lookup(dev, b"urandom").is_ok(), seed.is_some());
            assert!(tree.lookup(dev, b"null").is_ok());
        }
    }

    #[test]
    fn odd_archives_become_sensible_trees() {
        // Parent missing, parent a file, the same name twice, a directory over a file.
        let bytes = archive(&[
            ("a/b/c", 0o100644, b"1"),
            ("f", 0o100644, b"1"),
            ("f/x", 0o100644, b"1"),
            ("f", 0o100600, b"22"),
            ("f", 0o40755, b""),
            (".", 0o40700, b""),
            ("/abs//x", 0o100644, b""),
            ("block", 0o60644, b""),
        ]);
        let tree = Tree::new(Some(&bytes), &Settings::default()).unwrap();
        let f = tree.lookup(ROOT, b"f").unwrap();
        assert_eq!(tree.get(f).unwrap().size(), 2);
        assert_eq!(tree.get(ROOT).unwrap().permissions, 0o700);
        let a = tree.lookup(ROOT, b"a").unwrap();
        let b = tree.lookup(a, b"b").unwrap();
        assert_eq!(tree.path_of(b), b"/a/b");
        assert!(tree.lookup(ROOT, b"abs").is_ok());
        assert!(tree.lookup(ROOT, b"block").is_err());
    }
}

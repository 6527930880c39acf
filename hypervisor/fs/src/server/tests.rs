//! The server, asked by a guest that the tests play.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::open;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::fuse::*;

/// A guest with the directory mounted.
struct Guest {
    server: Server,
    uid: u32,
    gid: u32,
}

type Answer = std::result::Result<Vec<u8>, i32>;

const EXPORTER: Ownership = Ownership::Exporter { uid: 7, gid: 8 };

impl Guest {
    fn new(directory: &Path, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            read_only: false,
            ownership: EXPORTER,
            max_nodes: 2000,
            max_handles: 50,
        };
        change(&mut options);
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(directory, path, Mode::empty()).unwrap();
        let descriptors = open("/proc/self/fd", path, Mode::empty()).unwrap();
        let server = Server::new(root, descriptors, options).unwrap();
        let mut guest = Self {
            server,
            uid: 0,
            gid: 0,
        };
        let init = InitIn {
            major: 7,
            minor: 37,
            max_readahead: 131_072,
            flags: u32::MAX,
        };
        let out: InitOut = guest.get(opcode::INIT, 0, &[init.as_bytes()]);
        assert_eq!((out.major, out.minor, out.max_write), (7, 31, 1 << 20));
        assert_eq!(out.flags, FEATURES);
        guest
    }

    fn ask(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Answer {
        let body = parts.concat();
        let header = InHeader {
            len: (40 + body.len()) as u32,
            opcode,
            unique: 99,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            ..InHeader::default()
        };
        let request = [header.as_bytes(), &body].concat();
        let mut reply = vec![0; MAX_MESSAGE];
        let len = self.server.handle(&request, &mut reply);
        let (head, _) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!((head.len as usize, head.unique), (len, 99));
        match head.error {
            0 => Ok(reply[16..len].to_vec()),
            error => {
                assert_eq!(len, 16);
                Err(-error)
            }
        }
    }

    fn get<T: FromBytes>(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> T {
        let answer = self.ask(opcode, nodeid, parts).unwrap();
        T::read_from_prefix(&answer).unwrap().0
    }

    fn lookup(&mut self, parent: u64, name: &str) -> std::result::Result<EntryOut, i32> {
        let answer = self.ask(opcode::LOOKUP, parent, &[name.as_bytes(), b"\0"])?;
        Ok(EntryOut::read_from_bytes(&answer).unwrap())
    }

    fn node(&mut self, name: &str) -> u64 {
        name.split('/').fold(ROOT_ID, |parent, name| {
            self.lookup(parent, name).unwrap().nodeid
        })
    }

    fn open(&mut self, node: u64, flags: i32) -> std::result::Result<u64, i32> {
        let arg = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        let answer = self.ask(opcode::OPEN, node, &[arg.as_bytes()])?;
        Ok(OpenOut::read_from_bytes(&answer).unwrap().fh)
    }

    fn read(&mut self, fh: u64, offset: u64, size: u32) -> Answer {
        let arg = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.ask(opcode::READ, 0, &[arg.as_bytes()])
    }

    fn write(&mut self, fh: u64, offset: u64, data: &[u8]) -> Answer {
        let arg = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            ..WriteIn::default()
        };
        self.ask(opcode::WRITE, 0, &[arg.as_bytes(), data])
    }

    fn setattr(&mut self, node: u64, valid: u32, change: impl FnOnce(&mut SetattrIn)) -> Answer {
        let mut arg = SetattrIn {
            valid,
            ..SetattrIn::default()
        };
        change(&mut arg);
        self.ask(opcode::SETATTR, node, &[arg.as_bytes()])
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Answer {
        let arg = CreateIn {
            flags: flags as u32,
            mode,
            umask: 0,
            open_flags: 0,
        };
        self.ask(
            opcode::CREATE,
            parent,
            &[arg.as_bytes(), name.as_bytes(), b"\0"],
        )
    }

    /// Names, with their nodes where `plus`.
    fn list(&mut self, node: u64, plus: bool, size: u32) -> Vec<(String, u64)> {
        let opened: OpenOut = self.get(opcode::OPENDIR, node, &[OpenIn::default().as_bytes()]);
        let fh = opened.fh;
        let code = if plus {
            opcode::READDIRPLUS
        } else {
            opcode::READDIR
        };
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let arg = ReadIn {
                fh,
                offset,
                size,
                ..ReadIn::default()
            };
            let answer = self.ask(code, node, &[arg.as_bytes()]).unwrap();
            assert!(answer.len() <= size as usize);
            if answer.is_empty() {
                break;
            }
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let mut id = 0;
                if plus {
                    let (entry, tail) = EntryOut::read_from_prefix(rest).unwrap();
                    (id, rest) = (entry.nodeid, tail);
                }
                let (head, tail) = Dirent::read_from_prefix(rest).unwrap();
                let len = head.namelen as usize;
                all.push((String::from_utf8(tail[..len].to_vec()).unwrap(), id));
                offset = head.off;
                rest = &tail[len.next_multiple_of(8)..];
            }
        }
        let arg = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.ask(opcode::RELEASEDIR, node, &[arg.as_bytes()])
            .unwrap();
        all
    }
}

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn bytes<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}

/// A directory with `inside/`, beside it a secret that nobody must reach.
fn scratch() -> (TempDir, std::path::PathBuf) {
    let scratch = TempDir::new().unwrap();
    fs::write(scratch.path().join("secret"), "secret").unwrap();
    let inside = scratch.path().join("inside");
    fs::create_dir(&inside).unwrap();
    (scratch, inside)
}

#[test]
fn nothing_but_init_is_served_before_init() {
    let (_scratch, inside) = scratch();
    let mut guest = Guest::new(&inside, |_| {});
    guest.ask(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.lookup(ROOT_ID, "x").unwrap_err(), libc::EIO);
    for (major, minor, expected) in [(6, 99, Err(libc::EPROTO)), (7, 30, Err(libc::EPROTO))] {
        let init = InitIn {
            major,
            minor,
            ..InitIn::default()
        };
        assert_eq!(
            guest.ask(opcode::INIT, 0, &[bytes(&init)]).map(drop),
            expected
        );
    }
    // A newer guest is told our version, and asks again.
    let init = InitIn {
        major: 8,
        ..InitIn::default()
    };
    let out: InitOut = guest.get(opcode::INIT, 0, &[bytes(&init)]);
    assert_eq!(out.major, 7);
    assert_eq!(guest.lookup(ROOT_ID, "x").unwrap_err(), libc::EIO);
}

#[test]
fn names_do_not_escape() {
    let (scratch, inside) = scratch();
    symlink("../secret", inside.join("up")).unwrap();
    symlink(scratch.path().join("secret"), inside.join("absolute")).unwrap();
    symlink("..", inside.join("parent")).unwrap();
    let mut guest = Guest::new(&inside, |_| {});
    for bad in ["..", ".", "", "../secret", "/etc/passwd", "up/.."] {
        let got = guest.lookup(ROOT_ID, bad).unwrap_err();
        assert_eq!(got, libc::EINVAL, "{bad:?}");
        let rename = [
            bytes(&RenameIn { newdir: ROOT_ID }),
            &name("up"),
            &name(bad),
        ]
        .concat();
        assert_eq!(
            guest.ask(opcode::RENAME, ROOT_ID, &[&rename]),
            Err(libc::EINVAL)
        );
    }
    for link in ["up", "absolute", "parent"] {
        let entry = guest.lookup(ROOT_ID, link).unwrap();
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(
            guest.open(entry.nodeid, libc::O_RDONLY).unwrap_err(),
            libc::ELOOP
        );
        // Nor as a directory of other names.
        assert_eq!(
            guest.lookup(entry.nodeid, "secret").unwrap_err(),
            libc::ENOTDIR
        );
        let create = guest.create(ROOT_ID, link, libc::O_RDWR | libc::O_TRUNC, 0o600);
        assert_eq!(create.unwrap_err(), libc::ELOOP);
        let size = guest.setattr(entry.nodeid, setattr::SIZE, |_| {});
        assert_eq!(size.unwrap_err(), libc::EINVAL);
    }
    let up = guest.node("up");
    assert_eq!(guest.ask(opcode::READLINK, up, &[]).unwrap(), b"../secret");
    guest
        .setattr(up, setattr::MTIME, |arg| arg.mtime = 5)
        .unwrap();
    assert_eq!(fs::read(scratch.path().join("secret")).unwrap(), b"secret");
    assert_ne!(
        fs::metadata(scratch.path().join("secret")).unwrap().mtime(),
        5
    );
}

#[test]
fn special_files_are_never_opened() {
    let (_scratch, inside) = scratch();
    let mut guest = Guest::new(&inside, |_| {});
    for (mode, expected) in [
        (libc::S_IFIFO | 0o600, Ok(())),
        (libc::S_IFSOCK | 0o600, Ok(())),
        (libc::S_IFREG | 0o640, Ok(())),
        (libc::S_IFCHR | 0o600, Err(libc::EPERM)),
        (libc::S_IFBLK | 0o600, Err(libc::EPERM)),
        (libc::S_IFDIR | 0o600, Err(libc::EPERM)),
        (0, Err(libc::EPERM)),
    ] {
        let arg = MknodIn {
            mode,
            rdev: 0x103,
            ..MknodIn::default()
        };
        let made = guest.ask(
            opcode::MKNOD,
            ROOT_ID,
            &[bytes(&arg), &name(&format!("n{mode:o}"))],
        );
        assert_eq!(made.map(drop), expected, "{mode:o}");
    }
    for mode in [libc::S_IFIFO | 0o600, libc::S_IFSOCK | 0o600] {
        let file = format!("n{mode:o}");
        let node = guest.node(&file);
        assert_eq!(guest.open(node, libc::O_RDONLY).unwrap_err(), libc::ENXIO);
        assert_eq!(
            guest.create(ROOT_ID, &file, libc::O_RDWR, 0).unwrap_err(),
            libc::ENXIO
        );
        assert_eq!(
            guest.setattr(node, setattr::SIZE, |_| {}).unwrap_err(),
            libc::EINVAL
        );
    }
    assert!(
        fs::metadata(inside.join("n10600"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn files_are_created_written_and_read() {
    let (_scratch, inside) = scratch();
    let mut guest = Guest::new(&inside, |_| {});
    let answer = guest
        .create(ROOT_ID, "f", libc::O_RDWR | libc::O_EXCL, 0o4755)
        .unwrap();
    let (entry, rest) = EntryOut::read_from_prefix(&answer).unwrap();
    let fh = OpenOut::read_from_bytes(rest).unwrap().fh;
    assert_eq!(entry.attr.mode & 0o7777, 0o4755);
    assert_eq!((entry.attr.uid, entry.attr.gid), (7, 8));
    let again = guest.create(ROOT_ID, "f", libc::O_RDWR | libc::O_EXCL, 0o600);
    assert_eq!(again.unwrap_err(), libc::EEXIST);
    let data: Vec<u8> = (0..=255).cycle().take(MAX_DATA).collect();
    let wrote = guest.write(fh, 3, &data).unwrap();
    assert_eq!(
        WriteOut::read_from_bytes(&wrote).unwrap().size as usize,
        MAX_DATA
    );
    assert_eq!(guest.read(fh, 3, MAX_DATA as u32).unwrap(), data);
    assert_eq!(guest.read(fh, 3, u32::MAX).unwrap(), data);
    assert_eq!(
        guest.read(fh, MAX_DATA as u64, 100).unwrap(),
        data[MAX_DATA - 3..]
    );
    assert_eq!(guest.read(fh, u64::MAX, 1).unwrap_err(), libc::EINVAL);
    assert_eq!(guest.write(fh, u64::MAX, b"x").unwrap_err(), libc::EINVAL);
    assert_eq!(guest.read(fh + 7, 0, 1).unwrap_err(), libc::EBADF);
    // Data that the request does not hold are not written.
    let arg = WriteIn {
        fh,
        size: 5,
        ..WriteIn::default()
    };
    assert_eq!(
        guest
            .ask(opcode::WRITE, 0, &[bytes(&arg), b"1234"])
            .unwrap_err(),
        libc::EINVAL
    );
    // Appending does not ask where.
    let appender = guest
        .open(entry.nodeid, libc::O_WRONLY | libc::O_APPEND)
        .unwrap();
    guest.write(appender, 0, b"end").unwrap();
    assert!(fs::read(inside.join("f")).unwrap().ends_with(b"end"));
    assert_eq!(guest.read(appender, 0, 1).unwrap_err(), libc::EBADF);
    // An open file outlives its name.
    guest.ask(opcode::UNLINK, ROOT_ID, &[&name("f")]).unwrap();
    guest.write(fh, 0, b"still").unwrap();
    assert_eq!(guest.read(fh, 0, 5).unwrap(), b"still");
    let attr: AttrOut = guest.get(
        opcode::GETATTR,
        entry.nodeid,
        &[GetattrIn::default().as_bytes()],
    );
    assert_eq!(attr.attr.nlink, 0);
    let release = ReleaseIn {
        fh,
        ..ReleaseIn::default()
    };
    guest.ask(opcode::RELEASE, 0, &[bytes(&release)]).unwrap();
    assert_eq!(
        guest
            .ask(opcode::RELEASE, 0, &[bytes(&release)])
            .unwrap_err(),
        libc::EBADF
    );
    assert_eq!(guest.lookup(ROOT_ID, "f").unwrap_err(), libc::ENOENT);
}

#[test]
fn attributes_change() {
    let (_scratch, inside) = scratch();
    fs::write(inside.join("f"), "0123456789").unwrap();
    let mut guest = Guest::new(&inside, |_| {});
    let node = guest.node("f");
    guest
        .setattr(node, setattr::MODE, |arg| arg.mode = 0o100_751)
        .unwrap();
    guest
        .setattr(node, setattr::SIZE, |arg| arg.size = 4)
        .unwrap();
    guest
        .setattr(node, setattr::ATIME | setattr::MTIME, |arg| {
            (arg.atime, arg.mtime, arg.mtimensec) = (10, -20i64 as u64, 30);
        })
        .unwrap();
    let seen = fs::metadata(inside.join("f")).unwrap();
    assert_eq!((seen.mode() & 0o7777, seen.len()), (0o751, 4));
    assert_eq!(
        (seen.atime(), seen.mtime(), seen.mtime_nsec()),
        (10, -20, 30)
    );
    guest
        .setattr(node, setattr::ATIME | setattr::ATIME_NOW, |_| {})
        .unwrap();
    let seen = fs::metadata(inside.join("f")).unwrap();
    assert!(seen.atime() > 1000 && seen.mtime() == -20);
    // Owners are the exporter's, and stay.
    for (valid, expected) in [
        (setattr::UID | setattr::GID, Ok(())),
        (setattr::UID, Ok(())),
        (setattr::GID, Ok(())),
    ] {
        let same = guest.setattr(node, valid, |arg| (arg.uid, arg.gid) = (7, 8));
        assert_eq!(same.map(drop), expected);
        let other = guest.setattr(node, valid, |arg| (arg.uid, arg.gid) = (0, 0));
        assert_eq!(other.unwrap_err(), libc::EPERM);
        let none = guest.setattr(node, valid, |arg| (arg.uid, arg.gid) = (!0, !0));
        assert_eq!(none.unwrap_err(), libc::EINVAL);
    }
    assert_eq!(
        guest.setattr(ROOT_ID, setattr::SIZE, |_| {}).unwrap_err(),
        libc::EISDIR
    );
    assert_eq!(
        guest.setattr(12_345, setattr::MODE, |_| {}).unwrap_err(),
        libc::ESTALE
    );
    let stat: StatfsOut = guest.get(opcode::STATFS, ROOT_ID, &[]);
    assert!(stat.blocks > 0 && stat.namelen >= 255);
}

#[test]
fn names_are_moved_linked_and_removed() {
    let (_scratch, inside) = scratch();
    let mut guest = Guest::new(&inside, |_| {});
    let mkdir = MkdirIn {
        mode: 0o2770,
        umask: 0,
    };
    let entry: EntryOut = guest.get(opcode::MKDIR, ROOT_ID, &[bytes(&mkdir), &name("d")]);
    let directory = entry.nodeid;
    for file in ["a", "b"] {
        guest
            .create(directory, file, libc::O_WRONLY, 0o600)
            .unwrap();
    }
    fs::write(inside.join("d/a"), "a").unwrap();
    let rename = |guest: &mut Guest, from: &str, to: &str, flags| {
        let arg = Rename2In {
            newdir: ROOT_ID,
            flags,
            padding: 0,
        };
        let parts = [bytes(&arg), &name(from), &name(to)].concat();
        guest.ask(opcode::RENAME2, directory, &[&parts]).map(drop)
    };
    assert_eq!(rename(&mut guest, "a", "moved", 0), Ok(()));
    assert_eq!(
        rename(&mut guest, "b", "moved", libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    assert_eq!(
        rename(&mut guest, "b", "moved", libc::RENAME_EXCHANGE),
        Ok(())
    );
    assert_eq!(fs::read(inside.join("d/b")).unwrap(), b"a");
    assert_eq!(
        rename(&mut guest, "b", "moved", libc::RENAME_WHITEOUT),
        Err(libc::EINVAL)
    );
    assert_eq!(rename(&mut guest, "b", "moved", 64), Err(libc::EINVAL));
    assert_eq!(rename(&mut guest, "b", "moved", 0), Ok(()));
    let moved = guest.node("moved");
    let link = LinkIn { oldnodeid: moved };
    let entry: EntryOut = guest.get(opcode::LINK, directory, &[bytes(&link), &name("second")]);
    assert_eq!((entry.nodeid, entry.attr.nlink), (moved, 2));
    let sym = [name("link"), name("/anything at all")].concat();
    let entry: EntryOut = guest.get(opcode::SYMLINK, ROOT_ID, &[&sym]);
    // A symbolic link can have two names as well.
    let link = LinkIn {
        oldnodeid: entry.nodeid,
    };
    let entry: EntryOut = guest.get(opcode::LINK, ROOT_ID, &[bytes(&link), &name("link 2")]);
    assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    let not_empty = guest.ask(opcode::RMDIR, ROOT_ID, &[&name("d")]);
    assert_eq!(not_empty.unwrap_err(), libc::ENOTEMPTY);
    assert_eq!(
        guest
            .ask(opcode::UNLINK, ROOT_ID, &[&name("d")])
            .unwrap_err(),
        libc::EISDIR
    );
    guest
        .ask(opcode::UNLINK, directory, &[&name("second")])
        .unwrap();
    guest.ask(opcode::RMDIR, ROOT_ID, &[&name("d")]).unwrap();
    assert_eq!(
        guest
            .ask(opcode::RMDIR, ROOT_ID, &[&name("moved")])
            .unwrap_err(),
        libc::ENOTDIR
    );
}

#[test]
fn directories_of_any_length_are_listed_once() {
    let (_scratch, inside) = scratch();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for n in 0..1500 {
        let file = format!("{n}-{}", "x".repeat(n % 200));
        fs::write(inside.join(&file), "").unwrap();
        expected.push(file);
    }
    expected.sort();
    let mut guest = Guest::new(&inside, |_| {});
    for (plus, size) in [
        (false, 4096),
        (false, 280),
        (false, 1 << 20),
        (true, 4096),
        (true, 1 << 20),
    ] {
        let mut listed = guest.list(ROOT_ID, plus, size);
        listed.sort();
        let names: Vec<_> = listed.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected, "{plus} {size}");
        assert!(listed[2..].iter().all(|(_, node)| plus == (*node != 0)));
        assert!(listed[..2].iter().all(|(_, node)| *node == 0));
    }
    let file = guest.lookup(ROOT_ID, &expected[5]).unwrap().nodeid;
    let open = OpenIn::default();
    assert_eq!(
        guest
            .ask(opcode::OPENDIR, file, &[bytes(&open)])
            .unwrap_err(),
        libc::ENOTDIR
    );
    let fh = guest.open(file, 0).unwrap();
    let arg = ReadIn {
        fh,
        size: 100,
        ..ReadIn::default()
    };
    assert_eq!(
        guest.ask(opcode::READDIR, 0, &[bytes(&arg)]).unwrap_err(),
        libc::ENOTDIR
    );
    assert!(guest.read(fh, 0, 1).is_ok(), "the handle is still there");
    assert_eq!(guest.open(ROOT_ID, 0).unwrap_err(), libc::EISDIR);
}

#[test]
fn holes_and_space_are_managed() {
    let (_scratch, inside) = scratch();
    fs::write(inside.join("f"), vec![1; 16 * 4096]).unwrap();
    let mut guest = Guest::new(&inside, |_| {});
    let node = guest.node("f");
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let mut allocate = |mode, offset, length| {
        let arg = FallocateIn {
            fh,
            offset,
            length,
            mode,
            padding: 0,
        };
        guest.ask(opcode::FALLOCATE, 0, &[bytes(&arg)]).map(drop)
    };
    assert_eq!(allocate(punch, 4096, 8192), Ok(()));
    assert_eq!(allocate(0, 16 * 4096, 4096), Ok(()));
    assert_eq!(
        allocate(libc::FALLOC_FL_COLLAPSE_RANGE as u32, 0, 4096),
        Err(libc::EOPNOTSUPP)
    );
    assert_eq!(allocate(0, u64::MAX, u64::MAX), Err(libc::EINVAL));
    assert_eq!(fs::metadata(inside.join("f")).unwrap().len(), 17 * 4096);
    let mut seek = |whence, offset| {
        let arg = LseekIn {
            fh,
            offset,
            whence,
            padding: 0,
        };
        let answer = guest.ask(opcode::LSEEK, 0, &[bytes(&arg)])?;
        Ok(LseekOut::read_from_bytes(&answer).unwrap().offset)
    };
    assert_eq!(seek(libc::SEEK_HOLE as u32, 0), Ok(4096));
    assert_eq!(seek(libc::SEEK_DATA as u32, 4096), Ok(3 * 4096));
    assert_eq!(seek(libc::SEEK_DATA as u32, 1 << 40), Err(libc::ENXIO));
    assert_eq!(seek(libc::SEEK_SET as u32, 0), Err(libc::EINVAL));
    let created = guest.create(ROOT_ID, "g", libc::O_RDWR, 0o600).unwrap();
    let fh_out = OpenOut::read_from_suffix(&created).unwrap().1.fh;
    let arg = CopyFileRangeIn {
        fh_in: fh,
        fh_out,
        len: u64::MAX,
        ..CopyFileRangeIn::default()
    };
    let out: WriteOut = guest.get(opcode::COPY_FILE_RANGE, 0, &[bytes(&arg)]);
    assert_eq!(out.size, 17 * 4096);
    for flags in [0, 1] {
        let arg = FsyncIn {
            fh,
            flags,
            padding: 0,
        };
        guest.ask(opcode::FSYNC, 0, &[bytes(&arg)]).unwrap();
    }
    guest.ask(opcode::SYNCFS, 0, &[&[0; 8]]).unwrap();
}

#[test]
fn extended_attributes_of_users_are_the_guests() {
    let (_scratch, inside) = scratch();
    fs::write(inside.join("f"), "").unwrap();
    symlink("f", inside.join("l")).unwrap();
    let mut guest = Guest::new(&inside, |_| {});
    let (file, link) = (guest.node("f"), guest.node("l"));
    let set = |guest: &mut Guest, node, key: &str, value: &[u8], flags| {
        let arg = SetxattrIn {
            size: value.len() as u32,
            flags,
        };
        guest
            .ask(opcode::SETXATTR, node, &[bytes(&arg), &name(key), value])
            .map(drop)
    };
    let get = |guest: &mut Guest, code, key: &[u8], size| {
        let arg = GetxattrIn { size, padding: 0 };
        guest.ask(code, file, &[bytes(&arg), key])
    };
    if set(&mut guest, file, "user.a", b"value", 0) == Err(libc::EOPNOTSUPP) {
        // The scratch filesystem has none.
        return;
    }
    assert_eq!(
        set(&mut guest, file, "user.a", b"v", libc::XATTR_CREATE as u32),
        Err(libc::EEXIST)
    );
    assert_eq!(set(&mut guest, file, "user.b", b"", 0), Ok(()));
    assert_eq!(set(&mut guest, file, "user.b", b"", 64), Err(libc::EINVAL));
    for key in [
        "trusted.a",
        "security.capability",
        "system.posix_acl_access",
        "",
    ] {
        assert_eq!(
            set(&mut guest, file, key, b"x", 0),
            Err(libc::EOPNOTSUPP),
            "{key}"
        );
    }
    assert_eq!(set(&mut guest, link, "user.a", b"x", 0), Err(libc::EPERM));
    assert_eq!(
        get(&mut guest, opcode::GETXATTR, b"user.a\0", 100).unwrap(),
        b"value"
    );
    assert_eq!(
        get(&mut guest, opcode::GETXATTR, b"user.a\0", 0).unwrap()[..4],
        5u32.to_le_bytes()
    );
    assert_eq!(
        get(&mut guest, opcode::GETXATTR, b"user.a\0", 4).unwrap_err(),
        libc::ERANGE
    );
    assert_eq!(
        get(&mut guest, opcode::GETXATTR, b"user.c\0", 4).unwrap_err(),
        libc::ENODATA
    );
    assert_eq!(
        get(&mut guest, opcode::LISTXATTR, b"", 0).unwrap()[..4],
        14u32.to_le_bytes()
    );
    assert_eq!(
        get(&mut guest, opcode::LISTXATTR, b"", 99).unwrap().len(),
        14
    );
    guest
        .ask(opcode::REMOVEXATTR, file, &[&name("user.a")])
        .unwrap();
    assert_eq!(
        get(&mut guest, opcode::LISTXATTR, b"", 99).unwrap(),
        b"user.b\0"
    );
}

#[test]
fn a_read_only_directory_does_not_change() {
    let (_scratch, inside) = scratch();
    fs::write(inside.join("f"), "old").unwrap();
    let mut guest = Guest::new(&inside, |options| options.read_only = true);
    let node = guest.node("f");
    for code in CHANGES {
        let answer = guest.ask(code, ROOT_ID, &[&[0; 64], &name("f"), &name("g")]);
        assert_eq!(answer.unwrap_err(), libc::EROFS, "{code}");
    }
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_TRUNC,
        3,
    ] {
        assert_eq!(guest.open(node, flags).unwrap_err(), libc::EROFS);
    }
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"old");
}

#[test]
fn tables_are_bounded() {
    let (_scratch, inside) = scratch();
    for n in 0..20 {
        fs::write(inside.join(n.to_string()), "").unwrap();
    }
    let mut guest = Guest::new(&inside, |options| {
        (options.max_nodes, options.max_handles) = (11, 3);
    });
    let listed = guest.list(ROOT_ID, true, 1 << 20);
    assert_eq!(listed.len(), 22);
    let known: Vec<u64> = listed
        .iter()
        .map(|entry| entry.1)
        .filter(|node| *node != 0)
        .collect();
    assert_eq!(known.len(), 10);
    let unknown = listed
        .iter()
        .find(|(name, node)| *node == 0 && !name.starts_with('.'))
        .unwrap();
    assert_eq!(guest.lookup(ROOT_ID, &unknown.0).unwrap_err(), libc::ENFILE);
    for _ in 0..3 {
        guest.open(known[0], 0).unwrap();
    }
    assert_eq!(guest.open(known[0], 0).unwrap_err(), libc::ENFILE);
    // What is forgotten makes room; a hostile count forgets no more than there is.
    let batch = BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    let mut request = bytes(&batch).to_vec();
    for nodeid in known.iter().chain(&[ROOT_ID, 0, u64::MAX]) {
        request.extend(bytes(&ForgetOne {
            nodeid: *nodeid,
            nlookup: u64::MAX,
        }));
    }
    let header = InHeader {
        len: (40 + request.len()) as u32,
        opcode: opcode::BATCH_FORGET,
        ..InHeader::default()
    };
    let request = [bytes(&header), &request].concat();
    assert_eq!(guest.server.handle(&request, &mut []), 0);
    assert!(guest.lookup(ROOT_ID, &unknown.0).is_ok());
}

#[test]
fn malformed_requests_are_answered_or_ignored() {
    let (_scratch, inside) = scratch();
    let mut guest = Guest::new(&inside, |_| {});
    let mut reply = [0; 256];
    for len in 0..40 {
        assert_eq!(guest.server.handle(&vec![0; len], &mut reply), 0);
    }
    let header = InHeader {
        len: 41,
        opcode: opcode::GETATTR,
        nodeid: 1,
        ..InHeader::default()
    };
    assert_eq!(guest.server.handle(bytes(&header), &mut reply), 16);
    assert_eq!(
        OutHeader::read_from_prefix(&reply).unwrap().0.error,
        -libc::EIO
    );
    // No room for the answer, or for any.
    let header = InHeader {
        len: 56,
        opcode: opcode::GETATTR,
        nodeid: 1,
        ..InHeader::default()
    };
    let request = [bytes(&header), &[0; 16]].concat();
    for (room, expected) in [(0, 0), (15, 0), (16, 16), (119, 16), (120, 120), (121, 120)] {
        assert_eq!(
            guest.server.handle(&request, &mut reply[..room]),
            expected,
            "{room}"
        );
    }
    for code in 0..100 {
        if [
            opcode::DESTROY,
            opcode::STATFS,
            opcode::SYNCFS,
            opcode::OPENDIR,
        ]
        .contains(&code)
        {
            continue;
        }
        let header = InHeader {
            len: 40,
            opcode: code,
            nodeid: 1,
            ..InHeader::default()
        };
        let len = guest.server.handle(bytes(&header), &mut reply);
        let error = OutHeader::read_from_prefix(&reply).unwrap().0.error;
        assert!(len == 0 || (len == 16 && error < 0), "{code}");
    }
}

#[test]
fn root_acts_as_the_guests_users() {
    if !rustix::process::geteuid().is_root() {
        // Only root can; the suites in the lab are root.
        return;
    }
    let (_scratch, inside) = scratch();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o777)).unwrap();
    let mut guest = Guest::new(&inside, |options| options.ownership = Ownership::Guest);
    (guest.uid, guest.gid) = (1234, 5678);
    let created = guest.create(ROOT_ID, "f", libc::O_RDWR, 0o6755).unwrap();
    let (entry, rest) = EntryOut::read_from_prefix(&created).unwrap();
    let fh = OpenOut::read_from_bytes(rest).unwrap().fh;
    assert_eq!((entry.attr.uid, entry.attr.gid), (1234, 5678));
    let arg = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let made: EntryOut = guest.get(opcode::MKDIR, ROOT_ID, &[bytes(&arg), &name("d")]);
    assert_eq!((made.attr.uid, made.attr.gid), (1234, 5678));
    let sym: EntryOut = guest.get(
        opcode::SYMLINK,
        ROOT_ID,
        &[&[name("s"), name("t")].concat()],
    );
    assert_eq!(sym.attr.uid, 1234);
    assert!(rustix::process::geteuid().is_root());
    let was = fs::metadata(inside.join("f")).unwrap().mode();
    guest.write(fh, 0, b"x").unwrap();
    assert_eq!(fs::metadata(inside.join("f")).unwrap().mode(), was);
    let arg = WriteIn {
        fh,
        size: 1,
        write_flags: WRITE_KILL_SUIDGID,
        ..WriteIn::default()
    };
    guest.ask(opcode::WRITE, 0, &[bytes(&arg), b"x"]).unwrap();
    assert_eq!(
        fs::metadata(inside.join("f")).unwrap().mode() & 0o7777,
        0o755
    );
    guest
        .setattr(entry.nodeid, setattr::UID, |arg| arg.uid = 4321)
        .unwrap();
    assert_eq!(fs::metadata(inside.join("f")).unwrap().uid(), 4321);
    guest.uid = u32::MAX;
    assert_eq!(
        guest.create(ROOT_ID, "g", libc::O_RDWR, 0o600).unwrap_err(),
        libc::EINVAL
    );
}

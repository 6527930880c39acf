//! Creating, linking, renaming and removing names.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, mknodat, open, renameat_with};
use rustix::io::Errno;

use super::Entry;
use crate::check::Needs::Nothing;
use crate::check::{Outcome, fails, same, that};

pub(super) const CASES: &[Entry] = &[
    ("open creates", Nothing, open_creates),
    ("open refuses", Nothing, open_refuses),
    ("open truncates", Nothing, open_truncates),
    ("names of any bytes", Nothing, names_of_any_bytes),
    ("mkdir and rmdir", Nothing, directories),
    ("rename", Nothing, rename),
    ("rename of directories", Nothing, rename_directories),
    ("rename without replacing", Nothing, rename_noreplace),
    ("rename exchanges", Nothing, rename_exchange),
    ("link", Nothing, link),
    ("symlink", Nothing, symlinks),
    ("unlink", Nothing, unlink),
    ("unlink while open", Nothing, unlink_open),
    ("fifo", Nothing, fifo),
    ("socket", Nothing, socket),
];

fn open_creates(at: &Path) -> Outcome {
    for mode in [0o600, 0o644, 0o751, 0o4755, 0o2711, 0o1777] {
        let path = at.join(format!("{mode:o}"));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let file = open(&path, flags, Mode::from_raw_mode(mode))?;
        let stat = rustix::fs::fstat(&file)?;
        same(stat.st_mode & 0o7777, mode)?;
        same((stat.st_size, stat.st_nlink), (0, 1))?;
        fails(open(&path, flags, Mode::empty()), Errno::EXIST)?;
        open(&path, OFlags::CREATE | OFlags::RDONLY, Mode::empty())?;
    }
    Ok(())
}

fn open_refuses(at: &Path) -> Outcome {
    let try_open = |name: &str, flags| open(at.join(name), flags, Mode::empty());
    fs::write(at.join("file"), "x")?;
    fs::create_dir(at.join("dir"))?;
    symlink("file", at.join("link"))?;
    symlink("loop", at.join("loop"))?;
    fails(try_open("none", OFlags::RDONLY), Errno::NOENT)?;
    fails(try_open("file/x", OFlags::RDONLY), Errno::NOTDIR)?;
    fails(try_open("file", OFlags::DIRECTORY), Errno::NOTDIR)?;
    fails(try_open("dir", OFlags::WRONLY), Errno::ISDIR)?;
    fails(try_open("link", OFlags::NOFOLLOW), Errno::LOOP)?;
    fails(try_open("loop", OFlags::RDONLY), Errno::LOOP)?;
    fails(
        try_open("link", OFlags::CREATE | OFlags::EXCL),
        Errno::EXIST,
    )?;
    try_open("link", OFlags::RDONLY)?;
    Ok(())
}

fn open_truncates(at: &Path) -> Outcome {
    let path = at.join("file");
    fs::write(&path, "contents")?;
    let other = File::open(&path)?;
    drop(OpenOptions::new().write(true).truncate(true).open(&path)?);
    same(other.metadata()?.len(), 0)?;
    drop(fs::write(&path, "again"));
    same(fs::read(&path)?, b"again".to_vec())
}

fn names_of_any_bytes(at: &Path) -> Outcome {
    let longest = [b'n'; 255];
    for name in [
        &b"a b"[..],
        b"\xff\xfe\x01",
        "\u{fc}\u{4e16}".as_bytes(),
        b"...",
        &longest,
    ] {
        let path = at.join(OsStr::from_bytes(name));
        fs::write(&path, name)?;
        same(fs::read(&path)?, name.to_vec())?;
        let mut listed = fs::read_dir(at)?;
        let found = listed.any(|entry| entry.is_ok_and(|e| e.file_name().as_bytes() == name));
        that(found)?;
        fs::remove_file(&path)?;
    }
    let too_long = at.join("n".repeat(256));
    fails(File::create(&too_long), Errno::NAMETOOLONG)?;
    fails(fs::create_dir(&too_long), Errno::NAMETOOLONG)?;
    fails(symlink("x", &too_long), Errno::NAMETOOLONG)
}

fn directories(at: &Path) -> Outcome {
    let (outer, inner) = (at.join("outer"), at.join("outer/inner"));
    fs::create_dir(&outer)?;
    same(fs::metadata(&outer)?.nlink(), 2)?;
    fs::create_dir(&inner)?;
    same(fs::metadata(&outer)?.nlink(), 3)?;
    fails(fs::create_dir(&outer), Errno::EXIST)?;
    fails(fs::remove_dir(&outer), Errno::NOTEMPTY)?;
    fails(fs::remove_dir(inner.join(".")), Errno::INVAL)?;
    fs::write(at.join("file"), "")?;
    fails(fs::remove_dir(at.join("file")), Errno::NOTDIR)?;
    fails(fs::create_dir(at.join("file/x")), Errno::NOTDIR)?;
    fails(fs::create_dir(at.join("none/x")), Errno::NOENT)?;
    fs::remove_dir(&inner)?;
    same(fs::metadata(&outer)?.nlink(), 2)?;
    fs::remove_dir(&outer)?;
    fails(fs::remove_dir(&outer), Errno::NOENT)
}

fn rename(at: &Path) -> Outcome {
    let [a, b] = ["a", "b"].map(|name| at.join(name));
    fs::write(&a, "a")?;
    let inode = fs::metadata(&a)?.ino();
    fs::rename(&a, &b)?;
    fails(fs::metadata(&a), Errno::NOENT)?;
    same(fs::metadata(&b)?.ino(), inode)?;
    // Over a file that somebody has open.
    fs::write(&a, "new")?;
    let mut old = File::open(&b)?;
    fs::rename(&a, &b)?;
    same(fs::read(&b)?, b"new".to_vec())?;
    let mut text = String::new();
    old.read_to_string(&mut text)?;
    same(text.as_str(), "a")?;
    same(old.metadata()?.nlink(), 0)?;
    // Two names of one file: nothing happens.
    fs::hard_link(&b, &a)?;
    fs::rename(&a, &b)?;
    same(fs::metadata(&a)?.nlink(), 2)?;
    // Into another directory.
    fs::create_dir(at.join("dir"))?;
    fs::rename(&b, at.join("dir/b"))?;
    same(fs::read(at.join("dir/b"))?, b"new".to_vec())?;
    fails(fs::rename(&b, &a), Errno::NOENT)?;
    fails(fs::rename(&a, at.join("none/a")), Errno::NOENT)
}

fn rename_directories(at: &Path) -> Outcome {
    for name in ["d1", "d1/sub", "d2", "full", "full/x"] {
        fs::create_dir(at.join(name))?;
    }
    fs::write(at.join("file"), "")?;
    let rename = |from: &str, to: &str| fs::rename(at.join(from), at.join(to));
    fails(rename("d1", "d1/sub/d1"), Errno::INVAL)?;
    fails(rename("d1", "full"), Errno::NOTEMPTY)?;
    fails(rename("d1", "file"), Errno::NOTDIR)?;
    fails(rename("file", "d1"), Errno::ISDIR)?;
    rename("d1", "d2")?;
    that(fs::metadata(at.join("d2/sub"))?.is_dir())?;
    rename("d2", "full/d2")?;
    same(fs::metadata(at.join("full"))?.nlink(), 4)?;
    that(at.join("full/d2/sub/..").canonicalize()? == at.join("full/d2").canonicalize()?)
}

fn rename_noreplace(at: &Path) -> Outcome {
    let [a, b, c] = ["a", "b", "c"].map(|name| at.join(name));
    fs::write(&a, "a")?;
    fs::write(&b, "b")?;
    let rename = |from, to| renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
    fails(rename(&a, &b), Errno::EXIST)?;
    same(fs::read(&b)?, b"b".to_vec())?;
    rename(&a, &c)?;
    same(fs::read(&c)?, b"a".to_vec())
}

fn rename_exchange(at: &Path) -> Outcome {
    let [a, b] = ["a", "b"].map(|name| at.join(name));
    fs::write(&a, "file")?;
    fs::create_dir(&b)?;
    let exchange = |from, to| renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
    exchange(&a, &b)?;
    that(fs::metadata(&a)?.is_dir())?;
    same(fs::read(&b)?, b"file".to_vec())?;
    fails(exchange(&a, &at.join("none")), Errno::NOENT)
}

fn link(at: &Path) -> Outcome {
    let [a, b, s] = ["a", "b", "s"].map(|name| at.join(name));
    fs::write(&a, "one")?;
    fs::hard_link(&a, &b)?;
    let (first, second) = (fs::metadata(&a)?, fs::metadata(&b)?);
    same((first.ino(), first.nlink()), (second.ino(), 2))?;
    fs::write(&b, "two")?;
    same(fs::read(&a)?, b"two".to_vec())?;
    fails(fs::hard_link(&a, &b), Errno::EXIST)?;
    fs::create_dir(at.join("dir"))?;
    fails(fs::hard_link(at.join("dir"), at.join("dir2")), Errno::PERM)?;
    fails(fs::hard_link(at.join("none"), at.join("x")), Errno::NOENT)?;
    // Of a symbolic link itself.
    symlink("a", &s)?;
    fs::hard_link(&s, at.join("s2"))?;
    that(fs::symlink_metadata(at.join("s2"))?.is_symlink())?;
    fs::remove_file(&a)?;
    same(fs::metadata(&b)?.nlink(), 1)
}

fn symlinks(at: &Path) -> Outcome {
    let long = "x/".repeat(2000);
    for (name, target) in [
        ("short", "t"),
        ("long", &long),
        ("up", "../.."),
        ("root", "/etc"),
    ] {
        let path = at.join(name);
        symlink(target, &path)?;
        same(fs::read_link(&path)?, Path::new(target).to_owned())?;
        let seen = fs::symlink_metadata(&path)?;
        that(seen.is_symlink())?;
        same(seen.len(), target.len() as u64)?;
    }
    fails(symlink("again", at.join("short")), Errno::EXIST)?;
    fails(fs::read(at.join("short")), Errno::NOENT)?;
    fs::write(at.join("t"), "target")?;
    same(fs::read(at.join("short"))?, b"target".to_vec())?;
    fs::write(at.join("file"), "")?;
    fails(fs::read_link(at.join("file")), Errno::INVAL)?;
    fs::remove_file(at.join("short"))?;
    same(fs::read(at.join("t"))?, b"target".to_vec())
}

fn unlink(at: &Path) -> Outcome {
    fs::write(at.join("file"), "")?;
    fs::create_dir(at.join("dir"))?;
    fs::remove_file(at.join("file"))?;
    fails(fs::remove_file(at.join("file")), Errno::NOENT)?;
    fails(fs::remove_file(at.join("dir")), Errno::ISDIR)?;
    fails(fs::remove_file(at.join("dir/none")), Errno::NOENT)
}

fn unlink_open(at: &Path) -> Outcome {
    let path = at.join("file");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(b"before")?;
    fs::remove_file(&path)?;
    file.write_all(b" after")?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    same(text.as_str(), "before after")?;
    file.set_len(3)?;
    let seen = file.metadata()?;
    same((seen.len(), seen.nlink()), (3, 0))?;
    // The name is free for another file.
    fs::write(&path, "another")?;
    that(fs::metadata(&path)?.ino() != seen.ino() || fs::metadata(&path)?.len() == 7)
}

fn fifo(at: &Path) -> Outcome {
    let path = at.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    let seen = fs::metadata(&path)?;
    that(seen.file_type().is_fifo())?;
    same(seen.mode() & 0o7777, 0o640)?;
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || fs::write(path, "through"))
    };
    same(fs::read(&path)?, b"through".to_vec())?;
    that(writer.join().is_ok_and(|outcome| outcome.is_ok()))
}

fn socket(at: &Path) -> Outcome {
    // The path is too long for a socket's address: by way of the working directory.
    std::env::set_current_dir(at)?;
    let listener = UnixListener::bind("s")?;
    let seen = fs::symlink_metadata("s")?;
    that(seen.file_type().is_socket())?;
    let mut client = UnixStream::connect("s")?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"hi")?;
    let mut got = [0; 2];
    server.read_exact(&mut got)?;
    std::env::set_current_dir("/")?;
    same(&got, b"hi")
}

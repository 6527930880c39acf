//! Modes, times, extended attributes, the filesystem's figures.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, getxattr, listxattr,
    removexattr, setxattr, statvfs, utimensat,
};
use rustix::io::Errno;

use super::Entry;
use crate::check::Needs::Nothing;
use crate::check::{Outcome, fails, same, that};

pub(super) const CASES: &[Entry] = &[
    ("chmod", Nothing, chmod),
    ("times are set", Nothing, times),
    ("times move by themselves", Nothing, times_move),
    ("extended attributes", Nothing, xattrs),
    ("statfs", Nothing, statfs),
];

fn chmod(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "")?;
    for mode in [0, 0o777, 0o640, 0o4711, 0o2755, 0o1777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        same(fs::metadata(&path)?.mode() & 0o7777, mode)?;
        fs::set_permissions(at, fs::Permissions::from_mode(mode | 0o700))?;
        same(fs::metadata(at)?.mode() & 0o7777, mode | 0o700)?;
    }
    // Through a symbolic link; and by a descriptor of what has no name any more.
    symlink("f", at.join("link"))?;
    fs::set_permissions(at.join("link"), fs::Permissions::from_mode(0o600))?;
    let file = File::open(&path)?;
    fs::remove_file(&path)?;
    file.set_permissions(fs::Permissions::from_mode(0o611))?;
    same(file.metadata()?.mode() & 0o7777, 0o611)
}

fn at_time(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

fn times(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "")?;
    symlink("f", at.join("link"))?;
    let set = |name: &str, last_access, last_modification, flags| {
        let times = Timestamps {
            last_access,
            last_modification,
        };
        utimensat(CWD, at.join(name), &times, flags)
    };
    let nothing = AtFlags::empty();
    set("f", at_time(1_000, 123_456_789), at_time(-5, 7), nothing)?;
    let seen = fs::metadata(&path)?;
    same((seen.atime(), seen.atime_nsec()), (1_000, 123_456_789))?;
    same((seen.mtime(), seen.mtime_nsec()), (-5, 7))?;
    set("f", at_time(0, UTIME_OMIT), at_time(2_000, 0), nothing)?;
    same(fs::metadata(&path)?.atime(), 1_000)?;
    same(fs::metadata(&path)?.mtime(), 2_000)?;
    set("f", at_time(0, UTIME_NOW), at_time(0, UTIME_OMIT), nothing)?;
    that(fs::metadata(&path)?.atime() > 1_000)?;
    // A symbolic link has times of its own.
    set(
        "link",
        at_time(1, 0),
        at_time(2, 0),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    same(fs::symlink_metadata(at.join("link"))?.mtime(), 2)?;
    same(fs::metadata(&path)?.mtime(), 2_000)?;
    fails(
        set("none", at_time(1, 0), at_time(2, 0), nothing),
        Errno::NOENT,
    )
}

fn times_move(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "x")?;
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let reset = || File::options().write(true).open(&path)?.set_modified(old);
    reset()?;
    let before = fs::metadata(&path)?;
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, "y")?;
    let after = fs::metadata(&path)?;
    that(after.mtime() > 1_000_000)?;
    let changed = |seen: &fs::Metadata| (seen.ctime(), seen.ctime_nsec());
    that(changed(&after) > changed(&before))?;
    std::thread::sleep(Duration::from_millis(20));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    that(changed(&fs::metadata(&path)?) > changed(&after))?;
    let directory = fs::metadata(at)?;
    std::thread::sleep(Duration::from_millis(20));
    fs::rename(&path, at.join("g"))?;
    that(changed(&fs::metadata(at)?) > changed(&directory))
}

fn xattrs(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "")?;
    let long = vec![7; 2_000];
    let none = XattrFlags::empty();
    for target in [&path, at] {
        setxattr(target, "user.one", b"1", none)?;
        setxattr(target, "user.long", &long, none)?;
        setxattr(target, "user.empty", b"", none)?;
        let mut value = [0; 4096];
        let len = getxattr(target, "user.long", &mut value)?;
        that(value[..len] == long[..])?;
        same(getxattr(target, "user.empty", &mut value)?, 0)?;
        fails(getxattr(target, "user.long", &mut [0; 10]), Errno::RANGE)?;
        fails(getxattr(target, "user.none", &mut value), Errno::NODATA)?;
        fails(
            setxattr(target, "user.one", b"2", XattrFlags::CREATE),
            Errno::EXIST,
        )?;
        fails(
            setxattr(target, "user.none", b"2", XattrFlags::REPLACE),
            Errno::NODATA,
        )?;
        let len = listxattr(target, &mut value[..])?;
        let names = String::from_utf8_lossy(&value[..len]).into_owned();
        for name in ["user.one", "user.long", "user.empty"] {
            that(names.split('\0').any(|listed| listed == name))?;
        }
        removexattr(target, "user.one")?;
        fails(removexattr(target, "user.one"), Errno::NODATA)?;
    }
    Ok(())
}

fn statfs(at: &Path) -> Outcome {
    let seen = statvfs(at)?;
    same(seen.f_namemax, 255)?;
    that(seen.f_blocks > 0 && seen.f_bfree <= seen.f_blocks && seen.f_bsize > 0)
}

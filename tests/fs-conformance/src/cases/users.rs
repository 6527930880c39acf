//! Owners and permissions, of several users or of the one who exports.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;

use rustix::io::Errno;

use super::Entry;
use crate::check::Needs::{Exporter, Users};
use crate::check::{Failure, Outcome, as_user, fails, same, that};

pub(super) const CASES: &[Entry] = &[
    ("users own what they create", Users, creators),
    ("chown", Users, change_owner),
    ("chown takes set-id bits away", Users, chown_kills),
    ("writing takes set-id bits away", Users, write_kills),
    ("modes bind users", Users, modes_bind),
    ("supplementary groups count", Users, groups),
    ("set-group-id directories", Users, inherit_group),
    ("sticky directories", Users, sticky),
    ("only owners change", Users, owners_change),
    ("one owner for everything", Exporter, one_owner),
];

const ALICE: u32 = 12_001;
const BOB: u32 = 12_002;
const TEAM: u32 = 12_010;

fn open_to_all(path: &Path) -> Outcome {
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o777),
    )?)
}

fn mode(path: &Path) -> Result<u32, Failure> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn owner(path: &Path) -> Result<(u32, u32), Failure> {
    let seen = fs::symlink_metadata(path)?;
    Ok((seen.uid(), seen.gid()))
}

fn creators(at: &Path) -> Outcome {
    open_to_all(at)?;
    as_user(ALICE, TEAM, &[], || {
        fs::write(at.join("file"), "mine")?;
        fs::create_dir(at.join("dir"))?;
        symlink("x", at.join("link"))?;
        fs::hard_link(at.join("file"), at.join("second"))?;
        for name in ["file", "dir", "link", "second"] {
            same(owner(&at.join(name))?, (ALICE, TEAM))?;
        }
        same(fs::read(at.join("file"))?, b"mine".to_vec())
    })
}

fn change_owner(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "")?;
    symlink("f", at.join("link"))?;
    chown(&path, Some(ALICE), Some(TEAM))?;
    same(owner(&path)?, (ALICE, TEAM))?;
    chown(&path, None, Some(BOB))?;
    same(owner(&path)?, (ALICE, BOB))?;
    chown(&path, Some(BOB), None)?;
    same(owner(&path)?, (BOB, BOB))?;
    lchown(at.join("link"), Some(ALICE), Some(ALICE))?;
    same(owner(&at.join("link"))?, (ALICE, ALICE))?;
    same(owner(&path)?, (BOB, BOB))
}

fn chown_kills(at: &Path) -> Outcome {
    let path = at.join("f");
    fs::write(&path, "")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755))?;
    chown(&path, Some(ALICE), Some(TEAM))?;
    same(mode(&path)?, 0o755)
}

fn write_kills(at: &Path) -> Outcome {
    let path = at.join("f");
    let reset = || -> Outcome {
        fs::write(&path, "0123456789")?;
        chown(&path, Some(BOB), Some(BOB))?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o6777),
        )?)
    };
    reset()?;
    as_user(ALICE, ALICE, &[], || {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(b"x", 0)?;
        same(mode(&path)?, 0o777)
    })?;
    reset()?;
    as_user(ALICE, ALICE, &[], || {
        OpenOptions::new().write(true).open(&path)?.set_len(3)?;
        same(mode(&path)?, 0o777)
    })?;
    reset()?;
    as_user(ALICE, ALICE, &[], || {
        drop(OpenOptions::new().write(true).truncate(true).open(&path)?);
        same(mode(&path)?, 0o777)
    })
}

fn modes_bind(at: &Path) -> Outcome {
    fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
    for (name, mode) in [("private", 0o600), ("readable", 0o644), ("shared", 0o666)] {
        fs::write(at.join(name), "text")?;
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode))?;
    }
    fs::create_dir(at.join("closed"))?;
    fs::write(at.join("closed/inner"), "")?;
    fs::set_permissions(at.join("closed"), fs::Permissions::from_mode(0o700))?;
    as_user(ALICE, ALICE, &[], || {
        let write = |name: &str| OpenOptions::new().append(true).open(at.join(name));
        fails(File::open(at.join("private")), Errno::ACCESS)?;
        fails(write("readable"), Errno::ACCESS)?;
        fails(File::create(at.join("new")), Errno::ACCESS)?;
        fails(fs::create_dir(at.join("new")), Errno::ACCESS)?;
        fails(fs::remove_file(at.join("shared")), Errno::ACCESS)?;
        fails(fs::rename(at.join("shared"), at.join("x")), Errno::ACCESS)?;
        fails(fs::metadata(at.join("closed/inner")), Errno::ACCESS)?;
        fails(fs::read_dir(at.join("closed")), Errno::ACCESS)?;
        File::open(at.join("readable"))?;
        write("shared")?.write_all(b" more")?;
        same(fs::read(at.join("shared"))?, b"text more".to_vec())
    })
}

fn groups(at: &Path) -> Outcome {
    chown(at, Some(0), Some(TEAM))?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o770))?;
    as_user(ALICE, ALICE, &[TEAM], || {
        fs::write(at.join("f"), "")?;
        same(owner(&at.join("f"))?, (ALICE, ALICE))?;
        fs::create_dir(at.join("d"))?;
        Ok(fs::remove_file(at.join("f"))?)
    })?;
    as_user(ALICE, ALICE, &[], || fails(fs::read_dir(at), Errno::ACCESS))
}

fn inherit_group(at: &Path) -> Outcome {
    chown(at, Some(0), Some(TEAM))?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o2777))?;
    as_user(ALICE, ALICE, &[], || {
        fs::write(at.join("f"), "")?;
        same(owner(&at.join("f"))?, (ALICE, TEAM))?;
        fs::create_dir(at.join("d"))?;
        same(owner(&at.join("d"))?, (ALICE, TEAM))?;
        same(mode(&at.join("d"))? & 0o2000, 0o2000)
    })
}

fn sticky(at: &Path) -> Outcome {
    fs::set_permissions(at, fs::Permissions::from_mode(0o1777))?;
    as_user(ALICE, ALICE, &[], || Ok(fs::write(at.join("f"), "")?))?;
    as_user(BOB, BOB, &[], || {
        fails(fs::remove_file(at.join("f")), Errno::PERM)?;
        fails(fs::rename(at.join("f"), at.join("g")), Errno::PERM)
    })?;
    as_user(ALICE, ALICE, &[], || Ok(fs::remove_file(at.join("f"))?))
}

fn owners_change(at: &Path) -> Outcome {
    open_to_all(at)?;
    let path = at.join("f");
    as_user(ALICE, ALICE, &[], || {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o646))?;
        fails(chown(&path, Some(BOB), None), Errno::PERM)?;
        fails(chown(&path, None, Some(TEAM)), Errno::PERM)
    })?;
    as_user(ALICE, ALICE, &[TEAM], || {
        Ok(chown(&path, None, Some(TEAM))?)
    })?;
    same(owner(&path)?, (ALICE, TEAM))?;
    as_user(BOB, BOB, &[], || {
        let to = fs::Permissions::from_mode(0o777);
        fails(fs::set_permissions(&path, to), Errno::PERM)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        let old = std::time::SystemTime::UNIX_EPOCH;
        fails(file.set_modified(old), Errno::PERM)
    })
}

fn one_owner(at: &Path) -> Outcome {
    let (uid, gid) = owner(at)?;
    let path = at.join("f");
    fs::write(&path, "")?;
    same(owner(&path)?, (uid, gid))?;
    chown(&path, Some(uid), Some(gid))?;
    fails(chown(&path, Some(uid + 1), None), Errno::PERM)?;
    fails(chown(&path, None, Some(gid + 1)), Errno::PERM)?;
    that(owner(&path)? == (uid, gid))
}

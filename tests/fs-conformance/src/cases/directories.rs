//! Listing directories, long ones as well.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::Dir;

use super::Entry;
use crate::check::Needs::Nothing;
use crate::check::{Outcome, same, that};

pub(super) const CASES: &[Entry] = &[
    ("list thousands", Nothing, thousands),
    ("list and remove", Nothing, list_and_remove),
    ("list again from a place", Nothing, places),
    ("list a directory that is gone", Nothing, gone),
    ("what a listing says", Nothing, kinds),
];

fn fill(at: &Path, count: usize) -> Result<BTreeSet<String>, crate::check::Failure> {
    let mut names = BTreeSet::new();
    for n in 0..count {
        let name = format!("{n}-{}", "n".repeat(n % 60));
        File::create(at.join(&name))?;
        names.insert(name);
    }
    Ok(names)
}

fn thousands(at: &Path) -> Outcome {
    let wanted = fill(at, 3000)?;
    for _ in 0..2 {
        let mut listed = Vec::new();
        for entry in fs::read_dir(at)? {
            listed.push(entry?.file_name().to_string_lossy().into_owned());
        }
        same(listed.len(), wanted.len())?;
        that(listed.into_iter().collect::<BTreeSet<_>>() == wanted)?;
    }
    // Each with its attributes, as `ls -l` wants them.
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        same(entry.ino(), entry.metadata()?.ino())?;
    }
    Ok(())
}

fn list_and_remove(at: &Path) -> Outcome {
    fill(at, 700)?;
    for entry in fs::read_dir(at)? {
        fs::remove_file(entry?.path())?;
    }
    same(fs::read_dir(at)?.count(), 0)
}

fn places(at: &Path) -> Outcome {
    fill(at, 300)?;
    let mut directory = Dir::read_from(File::open(at)?)?;
    let mut first = Vec::new();
    while let Some(entry) = directory.read() {
        let entry = entry?;
        first.push((entry.file_name().to_owned(), entry.offset()));
    }
    same(first.len(), 302)?;
    for place in [0, 1, 150, 300] {
        directory.seek(first[place].1)?;
        let mut rest = Vec::new();
        while let Some(entry) = directory.read() {
            rest.push(entry?.file_name().to_owned());
        }
        let wanted: Vec<_> = first[place + 1..]
            .iter()
            .map(|entry| entry.0.clone())
            .collect();
        that(rest == wanted)?;
    }
    directory.rewind();
    same(directory.count(), 302)
}

fn gone(at: &Path) -> Outcome {
    let path = at.join("d");
    fs::create_dir(&path)?;
    let open = File::open(&path)?;
    fs::remove_dir(&path)?;
    // A removed directory has no entries, perhaps not even its own two.
    let left = Dir::read_from(&open)?.filter_map(Result::ok).count();
    that(left == 0 || left == 2)
}

fn kinds(at: &Path) -> Outcome {
    fs::create_dir(at.join("dir"))?;
    fs::write(at.join("file"), "")?;
    symlink("x", at.join("link"))?;
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        same(kind.is_dir(), name == "dir")?;
        same(kind.is_file(), name == "file")?;
        same(kind.is_symlink(), name == "link")?;
    }
    Ok(())
}

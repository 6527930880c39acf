//! `count`: how thin the VMM is. Counted is the Rust that runs in the VMM's process and is this
//! repository's own: lines that are neither blank nor comment, without tests. Build scripts and what
//! others make for the VMM, before it starts or after it has ended, do not run in that process.

use std::fs;
use std::path::Path;

use crate::failure::{At, Failure, Result};
use crate::repo::Repo;

/// What bulkhead-vmm is made of.
const ROOTS: [&str; 3] = [
    "hypervisor/src",
    "hypervisor/description/src",
    "hypervisor/jail/src",
];
/// The bars: lines of code, and lines of a file with its comments and tests.
const MAX_CODE: usize = 15_000;
const MAX_FILE: usize = 800;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    code: usize,
    unsafe_blocks: usize,
    /// Lines and name of the longest file.
    longest: (usize, String),
}

/// Prints the figures; an error where one is above its bar.
pub(crate) fn run(repo: &Repo) -> Result<()> {
    let mut all = Counted::default();
    for root in ROOTS {
        let before = all.code;
        folder(&repo.root().join(root), &mut all)?;
        println!("{:>6}  {root}", all.code - before);
    }
    let (lines, name) = &all.longest;
    let name = Path::new(name);
    let name = name.strip_prefix(repo.root()).unwrap_or(name).display();
    println!(
        "{:>6}  lines of code in the VMM, at most {MAX_CODE}",
        all.code
    );
    println!("{:>6}  unsafe blocks", all.unsafe_blocks);
    println!("{lines:>6}  lines in its longest file, at most {MAX_FILE}: {name}");
    if all.code > MAX_CODE || *lines > MAX_FILE {
        let failure = Failure::new("the VMM is not thin");
        return Err(failure.remedy("take out of its process what need not be in it"));
    }
    Ok(())
}

fn folder(path: &Path, all: &mut Counted) -> Result<()> {
    for entry in fs::read_dir(path).at("read", path)? {
        let path = entry.at("read", path)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            folder(&path, all)?;
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).at("read", &path)?;
            let length = text.lines().count();
            if length > all.longest.0 {
                all.longest = (length, path.display().to_string());
            }
            let is_test = |part: &std::ffi::OsStr| {
                ["tests", "tests.rs", "testing.rs"]
                    .iter()
                    .any(|test| part == *test)
            };
            if !path.iter().any(is_test) {
                let (code, unsafe_blocks) = file(&text);
                all.code += code;
                all.unsafe_blocks += unsafe_blocks;
            }
        }
    }
    Ok(())
}

/// Lines of code and unsafe blocks in `text`, which rustfmt has laid out, without what is for tests.
fn file(text: &str) -> (usize, usize) {
    let mut lines = text.lines();
    let (mut code, mut unsafe_blocks) = (0, 0);
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if trimmed.starts_with("#[cfg(test)") || trimmed.starts_with("#[cfg(all(test") {
            skip_item(&mut lines);
        } else if !trimmed.is_empty() && !trimmed.starts_with("//") {
            code += 1;
            unsafe_blocks += trimmed.matches("unsafe {").count();
            unsafe_blocks += trimmed.matches("unsafe impl").count();
        }
    }
    (code, unsafe_blocks)
}

/// Passes over the item behind an attribute: to its `;` or `,`, or the brace that closes it.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let mut lines = lines.skip_while(|line| line.trim().starts_with("#["));
    let Some(first) = lines.next() else { return };
    if first.ends_with([';', ',', '}']) {
        return;
    }
    let indent = first.len() - first.trim_start().len();
    let end = format!("{:indent$}}}", "");
    // The rest of the file where nothing closes it: it does not compile either.
    lines.find(|line| line.starts_with(&end));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_tests_do_not_count() {
        let text = "//! Head.\n\nuse a;\n/// What.\nfn f() {\n    // SAFETY: none.\n    \
                    unsafe { g() }\n}\n\n#[cfg(test)]\nuse b;\n\n#[cfg(test)]\n#[allow(x)]\n\
                    pub(crate) mod testing;\n\nimpl S {\n    #[cfg(test)]\n    fn t() {\n        \
                    if x {\n        }\n    }\n\n    fn u() {}\n}\nunsafe impl Send for S {}\n\n\
                    #[cfg(all(test, y))]\nmod tests {\n    fn v() {\n        unsafe { g() }\n    }\n}\n";
        // use a; fn f; unsafe; }; impl; fn u; }; unsafe impl.
        assert_eq!(file(text), (8, 2));
    }

    #[test]
    fn the_vmm_is_counted_and_its_tests_are_not() {
        let mut all = Counted::default();
        for root in ROOTS {
            folder(&Repo::find().root().join(root), &mut all).unwrap();
        }
        assert!(all.code > 10_000 && all.unsafe_blocks > 0, "{all:?}");
        let mut tests = Counted::default();
        let folder_of_tests = "hypervisor/src/devices/virtio/blk/tests";
        folder(&Repo::find().root().join(folder_of_tests), &mut tests).unwrap();
        assert!(tests.code == 0 && tests.longest.0 > 0, "{tests:?}");
    }
}

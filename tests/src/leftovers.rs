//! Counts what a command may leave behind: processes, sockets, temporary files, cgroups. Compare
//! two censuses, one before and one after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bulkhead;

/// How long a killed process may take to disappear.
const GRACE: Duration = Duration::from_secs(5);

/// One count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    things: BTreeSet<String>,
}

impl Census {
    /// Counts now: processes by their program's place, and files and sockets with `bulkhead` in
    /// their names in the places where programs leave them.
    pub fn take() -> Self {
        let mut things = BTreeSet::new();
        processes(&mut things);
        sockets(&mut things);
        for dir in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
            files(Path::new(dir), 0, &mut things);
        }
        if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
            files(Path::new(&dir), 0, &mut things);
        }
        files(Path::new("/sys/fs/cgroup"), 4, &mut things);
        Self { things }
    }

    /// Demands that nothing is there that was not there at `self`'s time.
    #[track_caller]
    pub fn expect_nothing_new(&self) {
        let end = Instant::now() + GRACE;
        let mut new = self.new_things();
        while !new.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            new = self.new_things();
        }
        assert!(new.is_empty(), "left behind: {new:#?}");
    }

    fn new_things(&self) -> Vec<String> {
        Self::take()
            .things
            .difference(&self.things)
            .cloned()
            .collect()
    }
}

/// True for names that a test of ours made for itself.
fn of_a_test(name: &str) -> bool {
    name.contains("bulkhead-test-")
}

fn processes(things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let dist = fs::canonicalize(bulkhead::dist()).unwrap_or_default();
    for entry in entries.flatten() {
        // A zombie has no `exe`: its parent is the one to blame, and still here.
        if let Ok(exe) = fs::read_link(entry.path().join("exe")) {
            // Others may run their own.
            let ours = exe.starts_with(&dist) || of_a_test(&exe.to_string_lossy());
            if ours && exe != std::env::current_exe().unwrap_or_default() {
                let id = entry.file_name().to_string_lossy().into_owned();
                things.insert(format!("process {id} {}", exe.display()));
            }
        }
    }
}

fn sockets(things: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for path in table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
    {
        if path.contains("bulkhead") && !of_a_test(path) {
            things.insert(format!("socket {path}"));
        }
    }
}

/// Everything named after us at most `depth` directories down, and all that is in it. What the
/// suites run has its temporary and its state directory below one that is named after us.
fn files(dir: &Path, depth: u32, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if of_a_test(&name) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if name.contains("bulkhead") && !of_a_test(&name) {
                things.insert(format!("file {}", path.display()));
            }
        } else if name.contains("bulkhead") {
            everything(&path, things);
        } else if depth > 0 {
            files(&path, depth - 1, things);
        }
    }
}

fn everything(path: &Path, things: &mut BTreeSet<String>) {
    things.insert(format!("file {}", path.display()));
    // A file, or a directory of another user: itself is all that counts.
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            everything(&entry.path(), things);
        } else {
            things.insert(format!("file {}", entry.path().display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_noticed() {
        let before = Census::take();
        before.expect_nothing_new();
        let path = std::env::temp_dir().join(format!("bulkhead-census-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let new = before.new_things();
        fs::remove_file(&path).unwrap();
        assert_eq!(new, [format!("file {}", path.display())]);
    }
}

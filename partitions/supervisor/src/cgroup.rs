//! Control groups: one for each partition that has limits, with all of its processes in it.
//!
//! A group is a directory in one or more hierarchies: version 2 is one, version 1 one for each
//! controller. It is made below the supervisor's own group; or, where version 2 forbids processes
//! beside groups, in the nearest group above that lets us. Removing waits for the last process.

use crate::error::Error;
use bulkhead_manifest::Limits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What names of our groups start with.
const PREFIX: &str = "bulkhead-";
/// Microseconds of a CPU's time in which a share of it is counted.
const PERIOD: u64 = 100_000;
/// How often a group whose last process is dying is tried again, and how long between.
const REMOVALS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// Files under `/proc` and `/sys`, as they are on this host.
struct Host {
    /// `/proc/self/mounts`.
    mounts: String,
    /// `/proc/self/cgroup`.
    own: String,
}

/// A controller: what it is called, and what is written into which of its files.
struct Controller {
    name: &'static str,
    v1: Vec<(&'static str, String)>,
    v2: Vec<(&'static str, String)>,
}

/// A partition's group. Dropping it removes it; its processes have to be dead.
#[derive(Debug)]
pub(crate) struct Group {
    directories: Vec<PathBuf>,
}

impl Group {
    /// Makes the group of `partition`, with `memory_mib` MiB for the guest itself; none where
    /// nothing is limited.
    pub(crate) fn new(
        system: &str,
        partition: &str,
        limits: &Limits,
        memory_mib: u64,
    ) -> Result<Option<Self>, Error> {
        if !limits.any() {
            return Ok(None);
        }
        let read = |path: &str| fs::read_to_string(path).map_err(Error::system("find cgroups"));
        let host = Host {
            mounts: read("/proc/self/mounts")?,
            own: read("/proc/self/cgroup")?,
        };
        let name = format!("{PREFIX}{system}-{partition}-{}", std::process::id());
        host.group(&name, &controllers(limits, memory_mib))
            .map(Some)
            .map_err(|(controller, source)| Error::Limits {
                partition: partition.to_owned(),
                controller,
                source,
            })
    }

    /// Moves a process into the group.
    pub(crate) fn add(&self, pid: u32) -> Result<(), Error> {
        for directory in &self.directories {
            fs::write(directory.join("cgroup.procs"), pid.to_string())
                .map_err(Error::system("move a process into its cgroup"))?;
        }
        Ok(())
    }

    /// Its directories, for whoever comes after a supervisor that was killed.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.directories);
    }
}

/// Removes the directories of a group whose processes are dead or dying. Anything else of that
/// name is left alone: only groups of ours are removed, and only empty ones can be.
pub(crate) fn remove(directories: &[PathBuf]) {
    for directory in directories {
        let name = directory.file_name().map(|name| name.to_string_lossy());
        if !name.is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        for _ in 0..REMOVALS {
            match fs::remove_dir(directory) {
                // A process leaves its group some time after it has ended.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(PAUSE),
                Ok(()) | Err(_) => break,
            }
        }
    }
}

/// The files that say what `limits` says (Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst).
fn controllers(limits: &Limits, memory_mib: u64) -> Vec<Controller> {
    let mut controllers = Vec::new();
    if let Some(percent) = limits.cpu_percent {
        let quota = percent * PERIOD / 100;
        controllers.push(Controller {
            name: "cpu",
            v1: vec![
                ("cpu.cfs_period_us", PERIOD.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ],
            v2: vec![("cpu.max", format!("{quota} {PERIOD}"))],
        });
    }
    if let Some(overhead) = limits.memory_overhead_mib {
        let bytes = ((memory_mib + overhead) * 1024 * 1024).to_string();
        controllers.push(Controller {
            name: "memory",
            v1: vec![("memory.limit_in_bytes", bytes.clone())],
            v2: vec![("memory.max", bytes)],
        });
    }
    if let Some(pids) = limits.pids {
        controllers.push(Controller {
            name: "pids",
            v1: vec![("pids.max", pids.to_string())],
            v2: vec![("pids.max", pids.to_string())],
        });
    }
    controllers
}

type Refused = (&'static str, io::Error);

impl Host {
    /// Makes a group `name` with all these controllers, or none of it.
    fn group(&self, name: &str, controllers: &[Controller]) -> Result<Group, Refused> {
        let mut group = Group {
            directories: Vec::new(),
        };
        let (v2, v1): (Vec<&Controller>, Vec<&Controller>) = controllers
            .iter()
            .partition(|controller| self.has_v2(controller.name));
        if let Some(first) = v2.first() {
            let directory = self
                .make_v2(name, &v2)
                .map_err(|error| (first.name, error))?;
            group.directories.push(directory.clone());
            for controller in v2 {
                write_all(&directory, &controller.v2).map_err(|error| (controller.name, error))?;
            }
        }
        for controller in v1 {
            let failed = |error| (controller.name, error);
            let parent = self.own_v1(controller.name);
            let absent = || failed(io::ErrorKind::NotFound.into());
            let directory = parent.ok_or_else(absent)?.join(name);
            // Two controllers may share a hierarchy.
            if !group.directories.contains(&directory) {
                fs::create_dir(&directory).map_err(failed)?;
                group.directories.push(directory.clone());
            }
            write_all(&directory, &controller.v1).map_err(failed)?;
        }
        Ok(group)
    }

    /// Where a hierarchy is mounted: `wanted` decides by file system type and options.
    fn mount(&self, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
        self.mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            wanted(fields.next()?, fields.next()?).then(|| PathBuf::from(path))
        })
    }

    fn mount_v2(&self) -> Option<PathBuf> {
        self.mount(|kind, _| kind == "cgroup2")
    }

    /// Whether version 2 rules this controller.
    fn has_v2(&self, controller: &str) -> bool {
        let root = self.mount_v2().unwrap_or_default();
        let all = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        all.split_whitespace().any(|name| name == controller)
    }

    /// The supervisor's own group in the hierarchy whose line of `/proc/self/cgroup` is `wanted`.
    fn own(&self, root: PathBuf, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
        let path = self.own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })?;
        Some(root.join(path.trim_start_matches('/')))
    }

    fn own_v1(&self, controller: &str) -> Option<PathBuf> {
        let has = |names: &str| names.split(',').any(|name| name == controller);
        let root = self.mount(|kind, options| kind == "cgroup" && has(options))?;
        self.own(root, has)
    }

    /// Makes a group of version 2 with `controllers`, as far down as it may be.
    fn make_v2(&self, name: &str, controllers: &[&Controller]) -> io::Result<PathBuf> {
        let root = self.mount_v2().ok_or(io::ErrorKind::NotFound)?;
        let own = self
            .own(root.clone(), str::is_empty)
            .ok_or(io::ErrorKind::NotFound)?;
        let mut refused = None;
        for parent in own
            .ancestors()
            .take_while(|parent| parent.starts_with(&root))
        {
            match make_below(parent, name, controllers) {
                Ok(directory) => return Ok(directory),
                // The nearest group's answer is the one that people can do something about.
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(refused.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }
}

/// Makes a group of version 2 below `parent`, which has to hand on the controllers.
fn make_below(parent: &Path, name: &str, controllers: &[&Controller]) -> io::Result<PathBuf> {
    let handed = parent.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&handed)?;
    for controller in controllers {
        if !enabled
            .split_whitespace()
            .any(|name| name == controller.name)
        {
            // Refused with EBUSY where the group has processes of its own.
            fs::write(&handed, format!("+{}", controller.name))?;
        }
    }
    let directory = parent.join(name);
    fs::create_dir(&directory)?;
    Ok(directory)
}

fn write_all(directory: &Path, files: &[(&'static str, String)]) -> io::Result<()> {
    for (file, value) in files {
        fs::write(directory.join(file), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    const LIMITS: Limits = Limits {
        cpu_percent: Some(150),
        memory_overhead_mib: Some(32),
        pids: Some(64),
    };

    fn made(host: &Host) -> Group {
        host.group("bulkhead-x", &controllers(&LIMITS, 96)).unwrap()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn version_1_has_a_group_in_each_hierarchy() {
        let dir = tempdir().unwrap();
        let root = dir.path().display();
        for path in ["cpu/own", "memory/own/deep", "pids"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let host = Host {
            mounts: format!(
                "cgroup {root}/cpu cgroup rw,cpu,cpuacct 0 0\n\
                 cgroup {root}/memory cgroup rw,memory 0 0\ncgroup {root}/pids cgroup rw,pids 0 0\n"
            ),
            own: "3:pids:/\n2:cpu,cpuacct:/own\n1:memory:/own/deep\n0::/elsewhere\n".to_owned(),
        };
        let group = made(&host);
        let file = |path: &str| read(&dir.path().join(path));
        assert_eq!(file("cpu/own/bulkhead-x/cpu.cfs_quota_us"), "150000");
        let bytes = (128_u64 << 20).to_string();
        assert_eq!(
            file("memory/own/deep/bulkhead-x/memory.limit_in_bytes"),
            bytes
        );
        assert_eq!(file("pids/bulkhead-x/pids.max"), "64");
        group.add(42).unwrap();
        assert_eq!(file("pids/bulkhead-x/cgroup.procs"), "42");
        assert_eq!(group.directories().len(), 3);
    }

    #[test]
    fn version_2_has_one_group_where_controllers_are_handed_on() {
        let dir = tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("slice/scope")).unwrap();
        fs::write(root.join("cgroup.controllers"), "cpu memory pids").unwrap();
        // The scope cannot be asked at all, as one of another user's cannot.
        fs::write(root.join("slice/cgroup.subtree_control"), "memory pids").unwrap();
        let host = Host {
            mounts: format!("cgroup2 {} cgroup2 rw 0 0\n", root.display()),
            own: "0::/slice/scope\n".to_owned(),
        };
        let group = made(&host);
        let own = root.join("slice/bulkhead-x");
        assert_eq!(group.directories(), std::slice::from_ref(&own));
        assert_eq!(read(&root.join("slice/cgroup.subtree_control")), "+cpu");
        assert_eq!(read(&own.join("cpu.max")), "150000 100000");
        assert_eq!(read(&own.join("memory.max")), (128_u64 << 20).to_string());
    }

    #[test]
    fn what_is_nowhere_is_refused() {
        let host = Host {
            mounts: String::new(),
            own: String::new(),
        };
        let refused = host
            .group("bulkhead-x", &controllers(&LIMITS, 96))
            .unwrap_err();
        assert_eq!(refused.0, "cpu");
        let none = Group::new("s", "p", &Limits::default(), 96).unwrap();
        assert!(none.is_none(), "nothing is made where nothing is limited");
    }

    #[test]
    fn only_groups_of_ours_are_removed() {
        let dir = tempdir().unwrap();
        let [ours, other] = ["bulkhead-x", "other"].map(|name| dir.path().join(name));
        for path in [&ours, &other] {
            fs::create_dir(path).unwrap();
        }
        remove(&[ours.clone(), other.clone()]);
        assert!(!ours.exists() && other.exists());
    }
}

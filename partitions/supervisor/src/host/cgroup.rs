//! Control groups: which version rules CPU time, memory and process counts.

use super::{Finding, read};

const ID: &str = "cgroup";
/// The controllers that limit a partition.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// Reads the mounted hierarchies.
pub(super) fn inspect() -> Finding {
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let unified = unified_mount(&mounts)
        .and_then(|path| read(format!("{path}/cgroup.controllers")))
        .unwrap_or_default();
    judge(&mounts, &unified)
}

/// Where version 2 is mounted.
fn unified_mount(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then_some(path)
    })
}

/// Judges the mount table and the controllers of version 2.
fn judge(mounts: &str, unified: &str) -> Finding {
    let in_v1 = |controller: &str| {
        mounts.lines().any(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            matches!(fields.as_slice(), [_, _, "cgroup", options, ..]
                if options.split(',').any(|option| option == controller))
        })
    };
    let in_v2 = |controller: &str| unified.split_whitespace().any(|name| name == controller);
    let (mut v1, mut v2, mut nowhere) = (vec![], vec![], vec![]);
    for controller in WANTED {
        if in_v2(controller) {
            v2.push(controller);
        } else if in_v1(controller) {
            v1.push(controller);
        } else {
            nowhere.push(controller);
        }
    }
    let parts: Vec<_> = [
        ("version 2", &v2),
        ("version 1", &v1),
        ("nowhere", &nowhere),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(place, names)| format!("{place}: {}", names.join(", ")))
    .collect();
    let what = parts.join("; ");
    if nowhere.is_empty() {
        Finding::ok(ID, what)
    } else {
        Finding::warn(
            ID,
            what,
            "boot with systemd.unified_cgroup_hierarchy=1, or mount the missing controllers",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    const V1: &str = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n";

    #[test]
    fn each_controller_is_found_where_it_is() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        for (mounts, unified, level, what) in [
            (
                v2,
                "cpuset cpu io memory pids",
                Level::Ok,
                "version 2: cpu, memory, pids",
            ),
            (V1, "", Level::Ok, "version 1: cpu, memory, pids"),
            (
                V1,
                "hugetlb memory",
                Level::Ok,
                "version 2: memory; version 1: cpu, pids",
            ),
            (
                v2,
                "cpu",
                Level::Warn,
                "version 2: cpu; nowhere: memory, pids",
            ),
            ("", "", Level::Warn, "nowhere: cpu, memory, pids"),
            // A directory or option that only contains the name does not count.
            (
                "cgroup /cpu cgroup rw,cpuacct 0 0\n",
                "cpuset",
                Level::Warn,
                "nowhere: cpu, memory, pids",
            ),
        ] {
            let finding = judge(mounts, unified);
            assert_eq!(
                (finding.level, finding.what.as_str()),
                (level, what),
                "{mounts}"
            );
        }
    }

    #[test]
    fn version_2_is_found_beside_version_1() {
        let both = format!("{V1}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        assert_eq!(unified_mount(&both), Some("/sys/fs/cgroup/unified"));
        assert_eq!(unified_mount(V1), None);
        assert_eq!(unified_mount("cgroup2\n\n"), None);
    }
}

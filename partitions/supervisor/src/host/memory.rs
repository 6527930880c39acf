//! Memory and huge pages.

use super::{Finding, read, read_number};

/// Less than this many MiB available and even small partitions are refused.
const LEAST_MIB: u64 = 64;
/// Less than this many MiB available and Linux partitions get tight.
const COMFORTABLE_MIB: u64 = 512;

/// Reads memory and huge pages.
pub(super) fn inspect() -> [Finding; 2] {
    let pools: Vec<_> = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib = name.to_str()?.strip_prefix("hugepages-")?;
            Some(Pool {
                kib: kib.strip_suffix("kB")?.parse().ok()?,
                total: read_number(entry.path().join("nr_hugepages"))?,
                free: read_number(entry.path().join("free_hugepages"))?,
            })
        })
        .collect();
    [
        judge_memory(&read("/proc/meminfo").unwrap_or_default()),
        judge_huge_pages(
            pools,
            read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").as_deref(),
        ),
    ]
}

/// Judges the text of `/proc/meminfo`.
fn judge_memory(meminfo: &str) -> Finding {
    let id = "memory";
    let mib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1024)
    };
    let (Some(available), Some(total)) = (mib("MemAvailable:"), mib("MemTotal:")) else {
        return Finding::warn(id, "/proc/meminfo cannot be read", "mount /proc");
    };
    let what = format!("{available} MiB of {total} MiB available");
    match available {
        ..LEAST_MIB => Finding::fail(id, what, "end programs that use memory"),
        LEAST_MIB..COMFORTABLE_MIB => {
            Finding::warn(id, what, "give partitions less memory than the default")
        }
        _ => Finding::ok(id, what),
    }
}

/// The huge pages of one size.
struct Pool {
    kib: u64,
    total: u64,
    free: u64,
}

/// Judges huge pages; `shmem` is `shmem_enabled` of transparent huge pages, which rules guest memory.
fn judge_huge_pages(mut pools: Vec<Pool>, shmem: Option<&str>) -> Finding {
    pools.sort_by_key(|pool| pool.kib);
    let reserved: Vec<_> = (pools.iter().filter(|pool| pool.total > 0))
        .map(|pool| {
            let mib = pool.kib / 1024;
            format!("{} of {} pages of {mib} MiB free", pool.free, pool.total)
        })
        .collect();
    let reserved = match reserved.as_slice() {
        [] => "none reserved, none needed".into(),
        some => some.join(", "),
    };
    // The chosen value stands in brackets: `always within_size advise [never] deny force`.
    let chosen = shmem.and_then(|all| Some(all.split_once('[')?.1.split_once(']')?.0));
    let transparent = match chosen {
        None => "no transparent ones in this kernel".into(),
        Some(chosen) => format!("transparent ones for shared memory: {chosen}"),
    };
    Finding::ok("huge-pages", format!("{reserved}; {transparent}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    #[test]
    fn memory_is_judged_by_what_is_available() {
        for (kib, level) in [
            (8_000_000, Level::Ok),
            (524_288, Level::Ok),
            (524_287, Level::Warn),
            (65_536, Level::Warn),
            (65_535, Level::Fail),
            (0, Level::Fail),
        ] {
            let text = format!("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable: {kib} kB\n");
            assert_eq!(judge_memory(&text).level, level, "{kib}");
        }
        for text in ["", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB"] {
            assert_eq!(judge_memory(text).level, Level::Warn, "{text:?}");
        }
    }

    #[test]
    fn huge_pages_are_told_smallest_first() {
        let pool = |kib, total, free| Pool { kib, total, free };
        let pools = vec![pool(1 << 20, 2, 1), pool(2048, 10, 10), pool(64, 0, 0)];
        assert_eq!(
            judge_huge_pages(pools, Some("always [advise] never")).what,
            "10 of 10 pages of 2 MiB free, 1 of 2 pages of 1024 MiB free; transparent ones for \
             shared memory: advise"
        );
        assert_eq!(
            judge_huge_pages(vec![], None).what,
            "none reserved, none needed; no transparent ones in this kernel"
        );
    }
}

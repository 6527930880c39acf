//! What a VMM costs beyond its guest's memory.

use crate::error::Error;

/// Resident KiB of process `pid` in all mappings but those that are as large as the guest's memory
/// (or its parts below and above 4 GiB), which are the guest's.
pub(super) fn own_kib(pid: u32, guest_mib: u64) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    Ok(sum(&text, guest_mib * 1024))
}

fn sum(smaps: &str, guest_kib: u64) -> u64 {
    let kib = |line: &str, key: &str| -> Option<u64> {
        let value = line.strip_prefix(key)?.trim().strip_suffix(" kB")?;
        value.parse().ok()
    };
    let (mut size, mut own) = (0, 0);
    for line in smaps.lines() {
        if let Some(now) = kib(line, "Size:") {
            size = now;
        } else if let Some(resident) = kib(line, "Rss:")
            && size < guest_kib
        {
            own += resident;
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_vmms() {
        let smaps = "1-2 r--p 0 fe:00 1 /vmm\nSize: 8 kB\nRss: 8 kB\nPss: 4 kB\n\
                     3-4 rw-p 0 00:00 0\nSize: 1024 kB\nRss: 700 kB\n\
                     5-6 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nRss: 12 kB\n";
        assert_eq!(sum(smaps, 1024), 20);
        assert_eq!(sum(smaps, 4096), 720);
        assert_eq!(sum("", 1), 0);
    }
}

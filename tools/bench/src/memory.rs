//! What a VMM costs beyond its guest's memory.

use crate::error::Error;

/// Resident KiB of process `pid` but for the guest's memory: runs of adjacent mappings of at least
/// `least` KiB together, the guest's memory or its parts below and above 4 GiB. A VMM that treats
/// parts of it differently has a mapping for each.
pub(crate) fn own_kib(pid: u32, least: u64) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    Ok(sum(&text, least))
}

fn sum(smaps: &str, least: u64) -> u64 {
    let (mut own, mut end, mut size, mut resident) = (0, 0, 0, 0);
    for line in smaps.lines() {
        if let Some((from, to)) = range(line) {
            if from != end {
                own += if size < least { resident } else { 0 };
                (size, resident) = (0, 0);
            }
            end = to;
            size += (to - from) / 1024;
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            let kib = rest.trim().strip_suffix(" kB").unwrap_or_default();
            resident += kib.parse().unwrap_or(0);
        }
    }
    own + if size < least { resident } else { 0 }
}

/// The addresses of a mapping, where a line begins one.
fn range(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.split_whitespace().next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(from)?, address(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_vmms() {
        let smaps = "1000-3000 r--p 0 fe:00 1 /vmm\nSize: 8 kB\nRss: 8 kB\nPss: 4 kB\n\
                     100000-180000 rw-p 0 00:00 0\nSize: 512 kB\nRss: 400 kB\n\
                     180000-200000 rw-p 0 00:00 0\nSize: 512 kB\nRss: 300 kB\n\
                     300000-321000 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nRss: 12 kB\n";
        assert_eq!(sum(smaps, 1024), 20);
        assert_eq!(sum(smaps, 4096), 720);
        assert_eq!(sum("", 1), 0);
    }
}

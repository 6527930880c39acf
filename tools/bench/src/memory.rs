//! What a VMM costs beyond its guest's memory.

use crate::error::Error;

/// Resident KiB of process `pid` but for the guest's memory of `guest` KiB; nothing where it has ended.
///
/// # Errors
/// Its mappings cannot be read, or no guest of that size is among them.
pub(crate) fn own_kib(pid: u32, guest: u64) -> Result<Option<u64>, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    let missing =
        || std::io::Error::other(format!("no guest of {guest} KiB is among the mappings"));
    if text.is_empty() {
        return Ok(None);
    }
    let own = sum(&text, guest).ok_or_else(|| Error::io(format!("reading {path}"))(missing()));
    own.map(Some)
}

/// A mapping: its addresses, and how much of it is resident, in KiB.
struct Mapping {
    from: u64,
    to: u64,
    resident: u64,
}

/// What is resident outside of the guest's memory. That is one mapping, or several side by side where
/// a VMM treats parts of it differently; others may lie right beside it.
fn sum(smaps: &str, guest: u64) -> Option<u64> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some((from, to)) = range(line) {
            mappings.push(Mapping {
                from,
                to,
                resident: 0,
            });
        } else if let (Some(rest), Some(last)) = (line.strip_prefix("Rss:"), mappings.last_mut()) {
            let kib = rest.trim().strip_suffix(" kB").unwrap_or_default();
            last.resident = kib.parse().unwrap_or(0);
        }
    }
    let resident = |mappings: &[Mapping]| -> u64 { mappings.iter().map(|it| it.resident).sum() };
    let parts = (0..mappings.len()).find_map(|first| parts(mappings.get(first..)?, guest))?;
    Some(resident(&mappings) - resident(parts))
}

/// The first mappings, where they lie side by side and are `guest` KiB together.
fn parts(mappings: &[Mapping], guest: u64) -> Option<&[Mapping]> {
    let start = mappings.first()?.from;
    let adjacent = mappings.windows(2).take_while(|pair| match pair {
        [a, b] => a.to == b.from,
        _ => false,
    });
    let run = mappings.get(..adjacent.count() + 1)?;
    let last = run.iter().position(|it| it.to - start == guest * 1024)?;
    run.get(..=last)
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
    fn the_guests_memory_is_not_the_vmms_and_its_neighbours_are() {
        let smaps = "1000-3000 r--p 0 fe:00 1 /vmm\nSize: 8 kB\nRss: 8 kB\nPss: 4 kB\n\
                     100000-180000 rw-p 0 00:00 0\nSize: 512 kB\nRss: 400 kB\n\
                     180000-200000 rw-p 0 00:00 0\nSize: 512 kB\nRss: 300 kB\n\
                     200000-221000 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nRss: 12 kB\n";
        assert_eq!(sum(smaps, 1024), Some(20));
        assert_eq!(sum(smaps, 512), Some(320));
        assert_eq!(sum(smaps, 4096), None);
        assert_eq!(sum("", 1), None);
    }
}

//! How much of an amount is used, as a file has it: what a gateway leaves to the one that comes after
//! it. Written by the gateway, kept by the supervisor while the partition lives.

/// Seconds that are looked back: those of a minute, wherever in a second it begins.
pub const USED_SECONDS: usize = 61;
/// Bytes of one amount in a file; the amounts of a description follow each other in its order.
pub const USED_BYTES: usize = 16 + 4 * USED_SECONDS;

/// What is used of one amount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Bytes in all, and those that may have been moved since they were noted.
    pub bytes: u64,
    /// The last second in which there was a call, of the host's clock since its start.
    second: u64,
    /// Calls in each of the seconds until then.
    calls: [u32; USED_SECONDS],
}

impl Default for Used {
    fn default() -> Self {
        Self {
            bytes: 0,
            second: 0,
            calls: [0; USED_SECONDS],
        }
    }
}

impl Used {
    /// It is `second` now: what was a minute ago does not count any more.
    pub fn pass_to(&mut self, second: u64) {
        let most = USED_SECONDS as u64;
        let passed = second.saturating_sub(self.second).min(most);
        for later in 1..=passed {
            if let Some(calls) = self.calls_at(self.second.saturating_add(later)) {
                *calls = 0;
            }
        }
        self.second = self.second.max(second);
    }

    fn calls_at(&mut self, second: u64) -> Option<&mut u32> {
        let place = second % USED_SECONDS as u64;
        self.calls.get_mut(place as usize)
    }

    /// Calls of the last minute.
    pub fn calls_in_minute(&self) -> u64 {
        self.calls.iter().map(|calls| u64::from(*calls)).sum()
    }

    /// One more call, now.
    pub fn count_call(&mut self) {
        if let Some(calls) = self.calls_at(self.second) {
            *calls = calls.saturating_add(1);
        }
    }

    /// As a file has it, little-endian.
    pub fn to_bytes(&self) -> [u8; USED_BYTES] {
        let mut bytes = [0; USED_BYTES];
        let calls = self.calls.iter().flat_map(|calls| calls.to_le_bytes());
        let all = self.bytes.to_le_bytes().into_iter();
        let all = all.chain(self.second.to_le_bytes()).chain(calls);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        bytes
    }

    /// The reverse.
    pub fn from_bytes(bytes: &[u8; USED_BYTES]) -> Self {
        let number = |at: usize| {
            let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
            u64::from_le_bytes(part.copied().unwrap_or_default())
        };
        let mut used = Self {
            bytes: number(0),
            second: number(8),
            ..Self::default()
        };
        let (parts, _) = bytes.split_at(16).1.as_chunks();
        let parts = parts.iter().copied().map(u32::from_le_bytes);
        used.calls
            .iter_mut()
            .zip(parts)
            .for_each(|(to, from)| *to = from);
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_all_of_it() {
        let mut used = Used {
            bytes: u64::MAX - 7,
            ..Used::default()
        };
        used.pass_to(1_000_003);
        used.count_call();
        used.pass_to(1_000_063);
        used.count_call();
        used.count_call();
        assert_eq!(used.calls_in_minute(), 3);
        let mut read = Used::from_bytes(&used.to_bytes());
        assert_eq!(read, used);
        read.pass_to(1_000_064);
        assert_eq!(read.calls_in_minute(), 2);
        assert_eq!(Used::from_bytes(&[0; USED_BYTES]), Used::default());
    }
}

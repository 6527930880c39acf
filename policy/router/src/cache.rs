//! Answers that are given again to whoever asks exactly the same at temperature 0. Bounded in
//! entries and bytes; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};

use hyper::body::Bytes;

/// Most entries.
const MAX_ENTRIES: usize = 1000;
/// Most bytes, of questions and answers together.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Questions and their answers.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Bytes, Entry>,
    /// Questions by when they were last asked.
    order: BTreeMap<u64, Bytes>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Bytes,
    used: u64,
}

impl Cache {
    /// The answer to `question`, if it is there.
    pub(crate) fn get(&mut self, question: &[u8]) -> Option<Bytes> {
        let entry = self.entries.get_mut(question)?;
        self.clock += 1;
        if let Some(question) = self.order.remove(&entry.used) {
            self.order.insert(self.clock, question);
        }
        entry.used = self.clock;
        Some(entry.answer.clone())
    }

    /// Keeps `answer`. One that is too big by itself is not kept.
    pub(crate) fn put(&mut self, question: Bytes, answer: Bytes) {
        let size = question.len() + answer.len();
        if size > MAX_BYTES / 16 {
            return;
        }
        self.remove(&question);
        self.clock += 1;
        self.bytes += size;
        self.order.insert(self.clock, question.clone());
        self.entries.insert(
            question,
            Entry {
                answer,
                used: self.clock,
            },
        );
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, question: &Bytes) {
        if let Some(entry) = self.entries.remove(question) {
            self.order.remove(&entry.used);
            self.bytes = self
                .bytes
                .saturating_sub(question.len() + entry.answer.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: usize, length: usize) -> Bytes {
        let mut bytes = number.to_string().into_bytes();
        bytes.resize(length.max(bytes.len()), b' ');
        Bytes::from(bytes)
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::default();
        for number in 0..MAX_ENTRIES {
            cache.put(bytes(number, 0), bytes(number, 0));
        }
        assert!(cache.get(b"0").is_some());
        cache.put(bytes(MAX_ENTRIES, 0), bytes(7, 0));
        assert!(cache.get(b"0").is_some(), "used a moment ago");
        assert!(cache.get(b"1").is_none());
        assert_eq!(
            cache.get(MAX_ENTRIES.to_string().as_bytes()),
            Some(bytes(7, 0))
        );
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert_eq!(cache.order.len(), MAX_ENTRIES);
    }

    #[test]
    fn bytes_are_bounded_and_counted() {
        let mut cache = Cache::default();
        for number in 0..40 {
            cache.put(bytes(number, 16), bytes(number, 1_000_000));
        }
        assert!(cache.bytes <= MAX_BYTES);
        let counted: usize = cache
            .entries
            .iter()
            .map(|(q, e)| q.len() + e.answer.len())
            .sum();
        assert_eq!(cache.bytes, counted);
        cache.put(bytes(99, 0), bytes(0, 2_000_000));
        assert!(cache.get(b"99").is_none(), "too big by itself");
        for _ in 0..3 {
            cache.put(bytes(1, 16), bytes(2, 10));
        }
        assert_eq!(cache.get(&bytes(1, 16)), Some(bytes(2, 10)));
    }
}

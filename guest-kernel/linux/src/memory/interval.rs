//! A map from page ranges to values: the one data structure behind the VMA table and the table of
//! what the kernel has mapped. It knows nothing of either.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// Disjoint half-open ranges, each with a value; touching ranges of equal value are one.
#[derive(Clone, Debug, Default)]
pub struct IntervalMap<V> {
    /// Start to (end, value).
    map: BTreeMap<u64, (u64, V)>,
}

impl<V: Copy + PartialEq> IntervalMap<V> {
    /// An empty map.
    pub const fn new() -> Self {
        Self {
            map: BTreeMap::new(),
        }
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// True when there is no range.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The range that holds `at`, and its value.
    pub fn get(&self, at: u64) -> Option<(Range<u64>, V)> {
        let (&start, &(end, value)) = self.map.range(..=at).next_back()?;
        (at < end).then_some((start..end, value))
    }

    /// The parts of ranges that lie in `within`, ascending.
    pub fn overlapping(&self, within: Range<u64>) -> impl Iterator<Item = (Range<u64>, V)> + '_ {
        let first = match self.get(within.start) {
            Some((range, _)) => range.start,
            None => within.start,
        };
        // An empty `within` may have its end below `first`, where BTreeMap::range would panic.
        let end = if within.is_empty() { first } else { within.end };
        self.map
            .range(first..end)
            .map(move |(&start, &(end, value))| {
                (start.max(within.start)..end.min(within.end), value)
            })
    }

    /// The first part of `within` that no range holds.
    pub fn first_gap(&self, within: Range<u64>) -> Option<Range<u64>> {
        let mut from = within.start;
        for (range, _) in self.overlapping(within.clone()) {
            if range.start > from {
                return Some(from..range.start);
            }
            from = range.end;
        }
        (from < within.end).then_some(from..within.end)
    }

    /// Gives all of `range` the value, whatever was there before.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let Range { mut start, mut end } = range;
        if let Some((before, v)) = start.checked_sub(1).and_then(|at| self.get(at))
            && v == value
        {
            start = before.start;
        }
        if let Some(&(after, v)) = self.map.get(&end)
            && v == value
        {
            self.map.remove(&end);
            end = after;
        }
        self.map.insert(start, (end, value));
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        while let Some((&start, _)) = self.map.range(range.clone()).next() {
            self.map.remove(&start);
        }
    }

    /// Makes `at` the border of two ranges where it was inside one.
    fn split(&mut self, at: u64) {
        if let Some((range, value)) = self.get(at)
            && range.start < at
        {
            self.map.insert(range.start, (at, value));
            self.map.insert(at, (range.end, value));
        }
    }

    /// Start of the highest free range of `len` that begins on `align` (a power of two) within
    /// `within`.
    pub fn find_free(&self, within: Range<u64>, len: u64, align: u64) -> Option<u64> {
        let fits = |floor: u64, top: u64| {
            let start = top.checked_sub(len)? & !(align - 1);
            (start >= floor).then_some(start)
        };
        let mut top = within.end;
        for (&start, &(end, _)) in self.map.range(..within.end).rev() {
            if top <= within.start {
                return None;
            }
            if let Some(found) = fits(end.max(within.start), top) {
                return Some(found);
            }
            top = top.min(start);
        }
        fits(within.start, top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const PAGES: u64 = 64;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64, u8),
        Remove(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..PAGES, 0..PAGES, 0..3u8).prop_map(|(a, b, v)| Op::Insert(a.min(b), a.max(b), v)),
            (0..PAGES, 0..PAGES).prop_map(|(a, b)| Op::Remove(a.min(b), a.max(b))),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_an_array_of_pages(ops in prop::collection::vec(op(), 0..60),
                                         a in 0..PAGES, b in 0..PAGES, len in 1..9u64, shift in 0..4u32) {
            let mut map = IntervalMap::new();
            let mut model = [None; PAGES as usize];
            for op in ops {
                match op {
                    Op::Insert(s, e, v) => { map.insert(s..e, v); model[s as usize..e as usize].fill(Some(v)); }
                    Op::Remove(s, e) => { map.remove(s..e); model[s as usize..e as usize].fill(None); }
                }
            }
            for at in 0..PAGES {
                prop_assert_eq!(map.get(at).map(|(_, v)| v), model[at as usize]);
            }
            // Ranges are maximal: no two touch with one value.
            let all: Vec<_> = map.overlapping(0..PAGES).collect();
            for pair in all.windows(2) {
                prop_assert!(pair[0].0.end < pair[1].0.start || pair[0].1 != pair[1].1);
            }
            let within = a.min(b)..a.max(b);
            let covered: u64 = map.overlapping(within.clone()).map(|(r, _)| r.end - r.start).sum();
            let expected = within.clone().filter(|p| model[*p as usize].is_some()).count() as u64;
            prop_assert_eq!(covered, expected);
            let gap = within.clone().find(|p| model[*p as usize].is_none());
            prop_assert_eq!(map.first_gap(within.clone()).map(|g| g.start), gap);
            let align = 1 << shift;
            let free = within.clone().rev().find(|s| {
                s % align == 0 && s + len <= within.end
                    && (*s..s + len).all(|p| model[p as usize].is_none())
            });
            prop_assert_eq!(map.find_free(within, len, align), free);
        }
    }

    #[test]
    fn extremes_of_the_address_range() {
        let mut map = IntervalMap::new();
        map.insert(0..u64::MAX, 1);
        map.remove(5..6);
        assert_eq!(map.first_gap(0..u64::MAX), Some(5..6));
        assert_eq!(map.find_free(0..u64::MAX, u64::MAX, 1), None);
        assert_eq!(map.overlapping(7..7).count(), 0);
        assert_eq!(map.len(), 2);
    }
}

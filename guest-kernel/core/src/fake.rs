//! A machine for the tests: memory page by page as it is touched, a clock that stands still, a
//! console that records.

extern crate std;
use std::boxed::Box;
use std::collections::{HashMap, VecDeque};
use std::string::{String, ToString};
use std::vec::Vec;

use bulkhead_abi::machine::{CONSOLE_READ, CONSOLE_WOULD_BLOCK};
use bulkhead_abi::restricted::RestrictedState;

use crate::hardware::{Hardware, PhysPage, TABLE_ENTRIES};

pub(crate) struct Fake {
    pages: HashMap<PhysPage, Box<[u64; TABLE_ENTRIES]>>,
    states: HashMap<PhysPage, RestrictedState>,
    pub(crate) now: u64,
    /// Console operations as they came: operation, guest-physical address, length.
    pub(crate) console: Vec<(u32, u64, u32)>,
    /// What the next console reads return; without an entry a read would block.
    pub(crate) reads: VecDeque<i64>,
    pub(crate) reports: Vec<String>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            pages: HashMap::new(),
            states: HashMap::new(),
            now: 1_000,
            console: Vec::new(),
            reads: VecDeque::new(),
            reports: Vec::new(),
        }
    }
}

impl Hardware for Fake {
    fn words(&mut self, page: PhysPage) -> &mut [u64; TABLE_ENTRIES] {
        assert_ne!(page.address(), 0, "page 0 is nobody's");
        self.pages
            .entry(page)
            .or_insert_with(|| Box::new([0; TABLE_ENTRIES]))
    }
    fn restricted_state(&mut self, page: PhysPage) -> &mut RestrictedState {
        self.states.entry(page).or_default()
    }
    fn invalidate(&mut self, _: u64) {}
    fn invalidate_all(&mut self) {}
    fn now(&mut self) -> u64 {
        self.now
    }
    fn console(&mut self, op: u32, address: u64, len: u32) -> i64 {
        self.console.push((op, address, len));
        if op == CONSOLE_READ {
            return self.reads.pop_front().unwrap_or(CONSOLE_WOULD_BLOCK);
        }
        i64::from(len)
    }
    fn report(&mut self, line: core::fmt::Arguments<'_>) {
        self.reports.push(line.to_string());
    }
}

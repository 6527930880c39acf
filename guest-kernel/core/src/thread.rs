//! Threads, and who runs next: round robin over a fixed table.
//!
//! The state of the FPU and its descendants is not switched: native programs are built without it
//! (target `x86_64-unknown-none`, soft float), and only one thread of a partition may use
//! restricted mode ([`crate::restricted`]), whose program then has those registers to itself.

use crate::frame::Frame;
use crate::hardware::PhysPage;

/// Most threads of a partition.
pub const MAX_THREADS: usize = 32;
/// How long a thread runs while others are ready, in milliseconds.
pub const QUANTUM_MS: u64 = 10;

/// A bit for each thread, number 0 at the top: so the first of a set is found by `bsr`. The other
/// way round it would be `tzcnt`, which hosts that interpret guest kernel mode execute as `bsf`.
type Set = u32;
const _: () = assert!(Set::BITS as usize == MAX_THREADS);

/// Which of its two register sets a thread runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The native program, or the personality.
    Native,
    /// The program under the personality.
    Restricted,
}

/// A thread's registers.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    pub(crate) mode: Mode,
    pub(crate) native: Frame,
    pub(crate) restricted: Frame,
    /// Time stamp counter at which a sleeping thread wakes.
    pub(crate) wakes_at: u64,
    /// FS base while the thread does not run; kept by the architecture's switch.
    pub fs_base: u64,
    /// GS base while the thread does not run; kept by the architecture's switch.
    pub gs_base: u64,
}

impl Thread {
    const UNUSED: Self = Self {
        mode: Mode::Native,
        native: Frame::ZERO,
        restricted: Frame::ZERO,
        wakes_at: 0,
        fs_base: 0,
        gs_base: 0,
    };

    /// Where traps of this thread store its registers now, and resuming takes them from.
    pub fn frame(&mut self) -> &mut Frame {
        match self.mode {
            Mode::Native => &mut self.native,
            Mode::Restricted => &mut self.restricted,
        }
    }

    /// Which registers it runs with.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }
}

/// The page through which a thread and the kernel pass restricted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatePage {
    pub(crate) thread: usize,
    pub(crate) address: u64,
    pub(crate) page: PhysPage,
}

/// All threads.
#[derive(Debug)]
pub struct Threads {
    table: [Thread; MAX_THREADS],
    current: usize,
    ready: Set,
    sleeping: Set,
    waiting_for_input: Set,
    quantum: u64,
    quantum_ends: u64,
}

impl Threads {
    /// No thread.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            table: [Thread::UNUSED; MAX_THREADS],
            current: 0,
            ready: 0,
            sleeping: 0,
            waiting_for_input: 0,
            quantum: 0,
            quantum_ends: 0,
        }
    }

    pub(crate) const fn set_quantum(&mut self, ticks: u64) {
        self.quantum = ticks;
    }

    /// Number of the thread that runs, or ran last.
    #[must_use]
    pub const fn current(&self) -> usize {
        self.current
    }

    /// The thread that runs, or ran last.
    pub fn current_thread(&mut self) -> &mut Thread {
        self.thread(self.current)
    }

    /// A thread by its number; numbers beyond the table wrap round.
    pub fn thread(&mut self, number: usize) -> &mut Thread {
        &mut self.table[number % MAX_THREADS]
    }

    /// Makes a thread that starts with `frame`; its number, or `None` when the table is full.
    pub(crate) fn spawn(&mut self, frame: Frame, now: u64) -> Option<usize> {
        let free = !(self.ready | self.sleeping | self.waiting_for_input);
        if free == 0 {
            return None;
        }
        let number = free.leading_zeros() as usize;
        *self.thread(number) = Thread {
            native: frame,
            ..Thread::UNUSED
        };
        if self.ready.is_power_of_two() {
            // The running thread had the CPU to itself; from here on it shares.
            self.quantum_ends = now.saturating_add(self.quantum);
        }
        self.ready |= bit(number);
        Some(number)
    }

    /// Ends the running thread; true when it was the last.
    pub(crate) const fn end_current(&mut self) -> bool {
        self.ready &= !bit(self.current);
        self.ready | self.sleeping | self.waiting_for_input == 0
    }

    pub(crate) fn sleep_current(&mut self, wakes_at: u64) {
        self.current_thread().wakes_at = wakes_at;
        self.ready &= !bit(self.current);
        self.sleeping |= bit(self.current);
    }

    pub(crate) const fn wait_for_input_current(&mut self) {
        self.ready &= !bit(self.current);
        self.waiting_for_input |= bit(self.current);
    }

    /// Console input came: whoever waits tries again.
    pub(crate) const fn wake_readers(&mut self) {
        self.ready |= self.waiting_for_input;
        self.waiting_for_input = 0;
    }

    /// Wakes sleepers whose time has come.
    pub(crate) fn wake_sleepers(&mut self, now: u64) {
        let mut rest = self.sleeping;
        while rest != 0 {
            let number = rest.leading_zeros() as usize;
            rest &= !bit(number);
            if self.thread(number).wakes_at <= now {
                self.sleeping &= !bit(number);
                self.ready |= bit(number);
            }
        }
    }

    /// Whether the running thread's time is up while others are ready.
    pub(crate) const fn quantum_is_over(&self, now: u64) -> bool {
        now >= self.quantum_ends
    }

    /// Makes the next ready thread after the running one the running one; false when none is ready.
    pub(crate) const fn switch(&mut self, now: u64) -> bool {
        if self.ready == 0 {
            return false;
        }
        let after = (self.current as u32 + 1) % Set::BITS;
        let distance = self.ready.rotate_left(after).leading_zeros();
        self.current = ((after + distance) % Set::BITS) as usize;
        self.quantum_ends = now.saturating_add(self.quantum);
        true
    }

    /// Whether the running thread is ready to go on running.
    pub(crate) const fn current_is_ready(&self) -> bool {
        self.ready & bit(self.current) != 0
    }

    /// Time stamp counter at which the kernel wants a timer interrupt, or `None`.
    pub(crate) fn deadline(&mut self) -> Option<u64> {
        let shared = self.ready & self.ready.wrapping_sub(1) != 0;
        let mut deadline = shared.then_some(self.quantum_ends);
        let mut rest = self.sleeping;
        while rest != 0 {
            let number = rest.leading_zeros() as usize;
            rest &= !bit(number);
            let wakes_at = self.thread(number).wakes_at;
            deadline = Some(deadline.map_or(wakes_at, |d| d.min(wakes_at)));
        }
        deadline
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self::new()
    }
}

const fn bit(number: usize) -> Set {
    (1 << (Set::BITS - 1)) >> (number % MAX_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(count: usize) -> Threads {
        let mut threads = Threads::new();
        threads.set_quantum(100);
        for number in 0..count {
            assert_eq!(
                threads.spawn(Frame::start(number as u64, 0, 0), 0),
                Some(number)
            );
        }
        threads
    }

    #[test]
    fn round_robin_visits_all_ready_threads() {
        let mut t = threads(MAX_THREADS);
        assert_eq!(t.spawn(Frame::ZERO, 0), None, "the table is full");
        for turn in 1..200 {
            assert!(t.switch(0));
            assert_eq!(t.current(), turn % MAX_THREADS);
        }
    }

    #[test]
    fn a_single_thread_needs_no_timer() {
        let mut t = threads(1);
        assert_eq!(t.deadline(), None);
        t.spawn(Frame::ZERO, 50);
        assert_eq!(t.deadline(), Some(150));
        assert!(!t.quantum_is_over(149));
        assert!(t.quantum_is_over(150));
        t.switch(150);
        assert_eq!(t.current(), 1);
        assert!(!t.end_current());
        t.switch(160);
        assert_eq!((t.current(), t.deadline()), (0, None));
        assert!(t.end_current(), "the last thread");
    }

    #[test]
    fn sleepers_wake_in_time_and_numbers_are_reused() {
        let mut t = threads(3);
        t.sleep_current(500);
        assert!(t.switch(0));
        assert_eq!(t.current(), 1);
        t.sleep_current(300);
        t.switch(0);
        t.wait_for_input_current();
        assert!(!t.switch(0), "nobody is ready");
        assert_eq!(t.deadline(), Some(300));
        t.wake_sleepers(300);
        assert!(t.switch(300));
        assert_eq!((t.current(), t.deadline()), (1, Some(500)));
        assert!(!t.end_current());
        assert_eq!(t.spawn(Frame::ZERO, 0), Some(1));
        t.wake_readers();
        assert!(t.switch(0));
        assert_eq!(t.current(), 2);
    }
}

//! Who runs next, and on whose time.
//!
//! A thread runs on a scheduling context: so many ticks in each period. Its own is its *home*; a
//! thread without one runs on that of whoever calls it, until it answers. A context that is lent
//! comes back as soon as its owner is ready, however that came about.
//!
//! Among ready threads the highest priority runs, and threads of one priority in turn. The running
//! thread stands in no list.

#[cfg(test)]
extern crate std;

use bulkhead_abi::syscall::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::{Memory, Ref, Stored, link};
use super::thread::{List, Membership, State, Thread};
use super::{Error, Objects};

/// Number of priorities.
pub const PRIORITIES: usize = 256;
/// Shortest budget, in ticks of the time stamp counter: about what a switch costs where the
/// kernel is interpreted.
pub const MIN_BUDGET: u64 = 50_000;

/// A right to CPU time.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedContext {
    /// Ticks a period.
    budget: u64,
    /// Ticks from one filling to the next.
    period: u64,
    /// Ticks left of this period's.
    left: u64,
    /// When this period began.
    began: u64,
    owner: u64,
    holder: u64,
    reserved: [u64; 10],
}

impl Stored for SchedContext {}

impl SchedContext {
    /// The thread whose it is.
    pub(super) const fn owner(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.owner)
    }

    /// From now on `thread` runs on it.
    pub(super) const fn hold(&mut self, thread: Ref<Thread>) {
        self.holder = thread.address();
    }

    /// The thread that runs on it.
    pub(super) const fn holder(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.holder)
    }

    /// Whether a new period began at `now`.
    #[cfg(test)]
    pub(super) const fn is_filled_at(&self, now: u64) -> bool {
        self.began == now
    }

    /// Whether it lets others of its priority run only when its budget is spent.
    const fn is_round_robin(&self) -> bool {
        self.budget == self.period
    }
}

/// All that is ready to run on the CPU, and what runs.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Scheduler {
    ready: [List; PRIORITIES],
    /// A bit for each priority with somebody in its list. The highest is found by counting zeros
    /// from the top (`bsr`); from the bottom it would be `tzcnt`, which hosts that interpret guest
    /// kernel mode execute as `bsf`.
    occupied: [u64; PRIORITIES / 64],
    /// One more than the highest of them; zero for none. It is asked for more often than it changes.
    above: u64,
    /// Threads that wait for a point in time, the next one first: those that sleep, those whose
    /// context is filled then, and those that do not wait for longer.
    timers: List,
    /// The thread that runs, as a link: one word is what messages have to change.
    current: u64,
    /// When the running thread's time was last counted.
    counted: u64,
    /// What [`Objects::schedule`] said last need not hold any more.
    stale: bool,
    /// The thread that the CPU's other registers are set up for, as a link.
    loaded: u64,
}

impl Scheduler {
    pub(super) const fn new() -> Self {
        Self {
            ready: [List::EMPTY; PRIORITIES],
            occupied: [0; PRIORITIES / 64],
            above: 0,
            timers: List::EMPTY,
            current: 0,
            counted: 0,
            stale: true,
            loaded: 0,
        }
    }

    /// The highest priority with somebody ready.
    const fn highest(&self) -> Option<u64> {
        self.above.checked_sub(1)
    }

    /// Notes that somebody of this priority is ready.
    fn occupy(&mut self, priority: usize) {
        self.occupied[priority / 64] |= 1 << (priority % 64);
        self.above = self.above.max(priority as u64 + 1);
    }

    /// Notes that nobody of this priority is ready any more.
    fn vacate(&mut self, priority: usize) {
        self.occupied[priority / 64] &= !(1 << (priority % 64));
        if self.above != priority as u64 + 1 {
            return;
        }
        self.above = (0..PRIORITIES / 64)
            .rev()
            .find(|word| self.occupied[*word] != 0)
            .map_or(0, |word| {
                let bits = u64::BITS - self.occupied[word].leading_zeros();
                word as u64 * 64 + u64::from(bits)
            });
    }
}

impl<M: Memory> Objects<M> {
    /// The thread that runs.
    #[must_use]
    pub const fn current(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.scheduler.current)
    }

    /// Whether [`Objects::schedule`] would say what it said last, as long as no time passes.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        !self.scheduler.stale
    }

    /// The thread that the CPU's other registers were last set up for, while it exists.
    #[must_use]
    pub const fn loaded(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.scheduler.loaded)
    }

    /// The CPU's other registers are not those of `thread` any more: they are loaded again before
    /// it runs.
    pub fn forget_loaded(&mut self, thread: Ref<Thread>) {
        if self.scheduler.loaded == thread.address() {
            self.scheduler.loaded = 0;
        }
    }

    /// Remembers whom the CPU's other registers are set up for.
    pub const fn set_loaded(&mut self, thread: Ref<Thread>) {
        self.scheduler.loaded = thread.address();
    }

    /// Stops the running thread until `due`.
    pub fn sleep(&mut self, thread: Ref<Thread>, due: u64) {
        self.unready(thread);
        self.memory.get_mut(thread).set_state(State::Sleeping);
        self.set_timer(thread, due);
    }

    /// Has `thread` wait for no more than `ticks` from now, if it waits for another or for a signal:
    /// then it goes on with [`Status::TimedOut`].
    pub fn limit_wait(&mut self, thread: Ref<Thread>, ticks: u64) {
        let state = self.memory.get(thread).state();
        if matches!(
            state,
            State::Sending | State::Receiving | State::Calling | State::Waiting
        ) {
            let due = self.scheduler.counted.saturating_add(ticks);
            self.set_timer(thread, due);
        }
    }

    /// The time that `thread` gave what it waits for is over.
    fn time_out(&mut self, thread: Ref<Thread>) {
        let found = self.memory.get(thread);
        if found.context().is_none() && found.home().is_none() {
            // It waits on, for it could do nothing else: what it waits for brings the time to go on.
            return;
        }
        self.end_wait(thread);
        self.memory.get_mut(thread).frame.rax = Status::TimedOut as u64;
        self.make_ready(thread);
    }

    /// Gives a context its budget and period, in ticks, from `now` on.
    ///
    /// # Errors
    /// [`Error::Range`] for a budget below [`MIN_BUDGET`] or above the period.
    pub fn configure_context(
        &mut self,
        context: Ref<SchedContext>,
        budget: u64,
        period: u64,
        now: u64,
    ) -> Result<(), Error> {
        if budget < MIN_BUDGET || budget > period {
            return Err(Error::Range {
                min: MIN_BUDGET,
                max: period,
            });
        }
        self.count_time(now);
        self.scheduler.stale = true;
        let configured = self.memory.get_mut(context);
        configured.budget = budget;
        configured.period = period;
        configured.left = budget;
        configured.began = now;
        if let Some(holder) = configured.holder() {
            self.unready(holder);
            self.ready_again(holder);
        }
        Ok(())
    }

    /// Makes a context a thread's own.
    ///
    /// # Errors
    /// [`Error::DeleteFirst`] when one of the two belongs to another already.
    pub fn bind_context(
        &mut self,
        thread: Ref<Thread>,
        context: Ref<SchedContext>,
    ) -> Result<(), Error> {
        if self.memory.get(context).owner().is_some() || self.memory.get(thread).home().is_some() {
            return Err(Error::DeleteFirst);
        }
        self.memory.get_mut(context).owner = thread.address();
        self.memory.get_mut(thread).set_home(Some(context));
        self.ready_again(thread);
        Ok(())
    }

    /// Undoes [`Objects::bind_context`]; whoever runs on the context stops.
    pub fn unbind_context(&mut self, context: Ref<SchedContext>) {
        let found = *self.memory.get(context);
        if let Some(holder) = found.holder() {
            self.unready(holder);
            self.memory.get_mut(holder).set_context(None);
        }
        if let Some(owner) = found.owner() {
            self.memory.get_mut(owner).set_home(None);
        }
        let left = self.memory.get_mut(context);
        left.owner = 0;
        left.holder = 0;
    }

    /// Sets a thread's priority and the highest it may give.
    ///
    /// # Errors
    /// [`Error::Range`] for one above `ceiling`, the highest that the caller may give.
    pub fn set_priority(
        &mut self,
        thread: Ref<Thread>,
        priority: u64,
        given: u64,
        ceiling: u64,
    ) -> Result<(), Error> {
        if priority.max(given) > ceiling {
            return Err(Error::Range {
                min: 0,
                max: ceiling,
            });
        }
        // The running thread stands in no list, and may have to let others run from now on.
        self.scheduler.stale = true;
        let queued = self.is_queued(thread);
        if queued {
            self.unready(thread);
        }
        let changed = self.memory.get_mut(thread);
        changed.priority = priority;
        changed.ceiling = given;
        if queued {
            self.ready_again(thread);
        }
        Ok(())
    }

    /// Lends the context that `from` runs on to `to`, which has none. Who runs without one runs no
    /// longer.
    pub(super) fn lend_context(&mut self, from: Ref<Thread>, to: Ref<Thread>) {
        self.unready(from);
        let context = self.memory.get(from).context();
        self.memory.get_mut(from).set_context(None);
        self.memory.get_mut(to).set_context(context);
        if let Some(context) = context {
            self.memory.get_mut(context).hold(to);
        }
    }

    /// Takes a thread's own context back from whoever it was lent to. A thread without one of its
    /// own keeps what it has.
    fn take_context_home(&mut self, thread: Ref<Thread>) {
        let Some(home) = self.memory.get(thread).home() else {
            return;
        };
        let holder = self.memory.get(home).holder();
        if holder == Some(thread) {
            return;
        }
        if let Some(holder) = holder {
            self.unready(holder);
            self.memory.get_mut(holder).set_context(None);
        }
        if let Some(lent) = self.memory.get(thread).context() {
            self.memory.get_mut(lent).holder = 0;
        }
        self.memory.get_mut(home).hold(thread);
        self.memory.get_mut(thread).set_context(Some(home));
    }

    /// A thread that was blocked or stopped can go on.
    pub(super) fn make_ready(&mut self, thread: Ref<Thread>) {
        let ready = self.memory.get_mut(thread);
        ready.set_state(State::Ready);
        if ready.due != 0 {
            // It came in time.
            self.forget_timer(thread);
        }
        self.ready_again(thread);
    }

    /// Puts a thread that is ready, and not the running one, where it belongs: among those that
    /// can run, or among those that wait for their context's next period.
    fn ready_again(&mut self, thread: Ref<Thread>) {
        if self.memory.get(thread).state() != State::Ready {
            return;
        }
        self.take_context_home(thread);
        let found = self.memory.get(thread);
        let Some(context) = found.context() else {
            return;
        };
        if self.scheduler.current == thread.address() || found.due != 0 || self.is_queued(thread) {
            return;
        }
        let now = self.scheduler.counted;
        let filled = self.memory.get_mut(context);
        if filled.budget == 0 {
            // Nobody has said yet how much time it is.
            return;
        }
        if now.wrapping_sub(filled.began) >= filled.period {
            filled.left = filled.budget;
            filled.began = now;
        }
        if filled.left == 0 {
            let due = filled.began.saturating_add(filled.period);
            self.set_timer(thread, due);
        } else {
            self.enqueue(thread);
        }
    }

    /// Takes a thread out of all lists of those that would run, now or in time; it does not run any
    /// more. What it waits for, and for how long, stays.
    pub(super) fn unready(&mut self, thread: Ref<Thread>) {
        if self.scheduler.current == thread.address() {
            self.scheduler.current = 0;
            self.scheduler.stale = true;
            return;
        }
        let found = self.memory.get(thread);
        if found.due != 0 && found.state() == State::Ready {
            self.forget_timer(thread);
        } else if self.is_queued(thread) {
            self.dequeue(thread);
        }
    }

    /// Takes a thread out of the list of those who wait for a point in time.
    pub(super) fn forget_timer(&mut self, thread: Ref<Thread>) {
        let timers = self.scheduler.timers;
        self.scheduler.timers = timers.without(&mut self.memory, Membership::Timer, thread);
        self.memory.get_mut(thread).due = 0;
        self.scheduler.stale = true;
    }

    /// Counts what the running thread used of its context until `now`.
    pub fn count_time(&mut self, now: u64) {
        let used = now.saturating_sub(self.scheduler.counted);
        self.scheduler.counted = now;
        let Some(context) = self
            .current()
            .and_then(|thread| self.memory.get(thread).context())
        else {
            return;
        };
        let running = self.memory.get_mut(context);
        running.left = running.left.saturating_sub(used);
    }

    /// Acts on all timers that are due.
    #[cold]
    fn act_on_timers(&mut self, now: u64) {
        while let Some(thread) = self.scheduler.timers.first()
            && self.memory.get(thread).due <= now
        {
            self.forget_timer(thread);
            let due = self.memory.get_mut(thread);
            match due.state() {
                State::Sleeping => {
                    due.frame.rax = Status::Ok as u64;
                    self.make_ready(thread);
                }
                State::Ready => self.ready_again(thread),
                _ => self.time_out(thread),
            }
        }
    }

    /// Acts on the passage of time and says who runs: the running thread goes on unless its budget
    /// is spent or a more urgent one is ready. `None` when nobody can run.
    pub fn schedule(&mut self, now: u64) -> Option<Ref<Thread>> {
        self.count_time(now);
        if (self.scheduler.timers.first()).is_some_and(|thread| self.memory.get(thread).due <= now)
        {
            self.act_on_timers(now);
        }
        if let Some(thread) = self.current()
            && self.must_yield(thread)
        {
            self.scheduler.current = 0;
            self.ready_again(thread);
        }
        if self.scheduler.current == 0
            && let Some(priority) = self.scheduler.highest()
            && let Some(thread) = self.scheduler.ready[priority as usize].first()
        {
            self.dequeue(thread);
            self.scheduler.current = thread.address();
        }
        self.scheduler.stale = false;
        self.current()
    }

    /// Whether the running thread has to let others run.
    fn must_yield(&mut self, thread: Ref<Thread>) -> bool {
        let found = self.memory.get(thread);
        let priority = found.priority;
        let Some(context) = found.context() else {
            return true;
        };
        let running = self.memory.get_mut(context);
        if running.left == 0 {
            if running.is_round_robin() {
                running.left = running.budget;
                running.began = self.scheduler.counted;
            }
            return true;
        }
        if self
            .scheduler
            .highest()
            .is_some_and(|ready| ready > priority)
        {
            // It was interrupted, not at its end: it stays the first of its priority.
            let first = self.scheduler.ready[priority as usize % PRIORITIES].first();
            self.scheduler.current = 0;
            self.enqueue_before(thread, first);
        }
        self.scheduler.current == 0
    }

    /// The running thread lets others of its priority run first.
    pub fn yield_now(&mut self) {
        self.scheduler.stale = true;
        if let Some(thread) = self.current() {
            self.scheduler.current = 0;
            self.ready_again(thread);
        }
    }

    /// Time stamp counter at which [`Objects::schedule`] is to be called: the running thread's
    /// budget is spent then, or a waiting context is filled.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let running = self.current().and_then(|thread| {
            let context = self.memory.get(self.memory.get(thread).context()?);
            // Whoever runs alone needs no turn to end.
            (!context.is_round_robin() || self.scheduler.highest().is_some())
                .then(|| self.scheduler.counted.saturating_add(context.left))
        });
        let timer = (self.scheduler.timers.first()).map(|thread| self.memory.get(thread).due);
        match (running, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Switches straight to `to`, which was just made ready to run in the place of the thread that
    /// ran; only if nobody ready is more urgent.
    pub(super) fn switch_to(&mut self, to: Ref<Thread>) {
        if self.scheduler.current == 0
            && self.is_queued(to)
            && self.scheduler.highest() == Some(self.memory.get(to).priority)
        {
            self.dequeue(to);
            self.scheduler.current = to.address();
        }
    }

    /// Whether nobody ready is more urgent than `priority`.
    pub(super) fn is_highest(&self, priority: u64) -> bool {
        (self.scheduler.highest()).is_none_or(|highest| highest <= priority)
    }

    /// Runs `thread`, which stands in no list, in the place of the running one.
    pub(super) const fn run_instead(&mut self, thread: Ref<Thread>) {
        self.scheduler.current = thread.address();
    }

    /// Runs a thread that is ready, whether or not it is its turn.
    #[cfg(test)]
    pub(super) fn force(&mut self, thread: Ref<Thread>) {
        if self.is_queued(thread) {
            self.dequeue(thread);
        }
        self.scheduler.current = thread.address();
    }

    /// Whether nothing is left of a context's period.
    #[cfg(test)]
    pub(super) fn is_spent(&self, context: Ref<SchedContext>) -> bool {
        self.memory.get(context).left == 0
    }

    /// Who waits for a point in time, the first one first.
    #[cfg(test)]
    pub(super) fn timers(&self) -> std::vec::Vec<Ref<Thread>> {
        let next = |thread: &Ref<Thread>| List::after(&self.memory, Membership::Timer, *thread);
        core::iter::successors(self.scheduler.timers.first(), next).collect()
    }

    /// The priority of the most urgent thread that could run and does not.
    #[cfg(test)]
    pub(super) fn most_urgent(&self) -> Option<u64> {
        self.scheduler.highest()
    }

    fn is_queued(&self, thread: Ref<Thread>) -> bool {
        self.memory.get(thread).queued != 0
    }

    fn enqueue(&mut self, thread: Ref<Thread>) {
        self.enqueue_before(thread, None);
    }

    fn enqueue_before(&mut self, thread: Ref<Thread>, next: Option<Ref<Thread>>) {
        self.scheduler.stale = true;
        let changed = self.memory.get_mut(thread);
        changed.queued = 1;
        let priority = changed.priority as usize % PRIORITIES;
        let list = self.scheduler.ready[priority];
        self.scheduler.ready[priority] =
            list.inserted(&mut self.memory, Membership::Ready, thread, next);
        self.scheduler.occupy(priority);
    }

    fn dequeue(&mut self, thread: Ref<Thread>) {
        self.scheduler.stale = true;
        let changed = self.memory.get_mut(thread);
        changed.queued = 0;
        let priority = changed.priority as usize % PRIORITIES;
        let list =
            self.scheduler.ready[priority].without(&mut self.memory, Membership::Ready, thread);
        self.scheduler.ready[priority] = list;
        if list.is_empty() {
            self.scheduler.vacate(priority);
        }
    }

    fn set_timer(&mut self, thread: Ref<Thread>, due: u64) {
        // Zero says that there is none.
        let due = due.max(1);
        self.scheduler.stale = true;
        self.memory.get_mut(thread).due = due;
        let mut next = self.scheduler.timers.first();
        while let Some(other) = next
            && self.memory.get(other).due <= due
        {
            next = List::after(&self.memory, Membership::Timer, other);
        }
        let timers = self.scheduler.timers;
        self.scheduler.timers = timers.inserted(&mut self.memory, Membership::Timer, thread, next);
    }

    /// Takes away what `thread` has of scheduling, for its end.
    pub(super) fn forget_scheduling(&mut self, thread: Ref<Thread>) {
        self.unready(thread);
        self.forget_loaded(thread);
        let found = *self.memory.get(thread);
        if let Some(home) = found.home() {
            self.unbind_context(home);
        }
        if let Some(lent) = self.memory.get(thread).context() {
            self.memory.get_mut(lent).holder = link::<Thread>(None);
            self.memory.get_mut(thread).set_context(None);
        }
    }
}

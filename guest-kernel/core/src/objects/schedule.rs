//! Who runs next, and on whose time.
//!
//! A thread runs on a scheduling context: so many ticks in each period. Its own is its *home*; a
//! thread without one runs on that of whoever calls it, until it answers. A context that is lent
//! comes back as soon as its owner is ready, however that came about.
//!
//! Among ready threads the highest priority runs, and threads of one priority in turn. The running
//! thread stands in no list.
//!
//! Each CPU has lists of its own. A thread runs on the CPU that the context it has is of; so a server
//! on lent time runs where its caller does. One CPU at a time runs the kernel, and what it needs of
//! its own lies at hand: [`Objects::enter_cpu`] brings it there. Where it changes what another CPU is
//! to do, it calls that one into the kernel.

#[cfg(test)]
extern crate std;

use bulkhead_abi::syscall::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::{Memory, Ref, Stored, link};
use super::thread::{List, Membership, State, Thread};
use super::{Error, Objects};

/// Number of priorities.
pub const PRIORITIES: usize = 256;
/// Most CPUs.
pub const MAX_CPUS: usize = bulkhead_abi::machine::MAX_CPUS;
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
    /// Number of the CPU whose time it is.
    cpu: u64,
    reserved: [u64; 9],
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

    /// The CPU whose time it is.
    const fn cpu(&self) -> usize {
        // Configured as one of them.
        self.cpu as usize % MAX_CPUS
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

/// What of a CPU changes with each switch of threads.
#[derive(Clone, Copy, Debug)]
struct Running {
    /// One more than the highest priority with somebody ready; zero for none. It is asked for more
    /// often than it changes.
    above: u64,
    /// Threads that wait for a point in time, the next one first: those that sleep, those whose
    /// context is filled then, and those that do not wait for longer.
    timers: List,
    /// The thread that runs, as a link: one word is what messages have to change.
    current: u64,
    /// When the running thread's time was last counted.
    counted: u64,
    /// What [`Objects::schedule`] said last still holds. Of another CPU: it was not called into the
    /// kernel since it last left it.
    settled: bool,
    /// The thread that the CPU's other registers are set up for, as a link.
    loaded: u64,
    /// When the timer is to interrupt.
    deadline: Option<u64>,
    /// The running thread's page table root may be another one than before.
    space_changed: bool,
}

impl Running {
    const NOBODY: Self = Self {
        above: 0,
        timers: List::EMPTY,
        current: 0,
        counted: 0,
        settled: false,
        loaded: 0,
        deadline: None,
        space_changed: false,
    };

    /// The highest priority with somebody ready.
    const fn highest(&self) -> Option<u64> {
        self.above.checked_sub(1)
    }
}

/// Who is ready to run on a CPU.
#[derive(Clone, Copy, Debug)]
struct Ready {
    lists: [List; PRIORITIES],
    /// A bit for each priority with somebody in its list. The highest is found by counting zeros
    /// from the top (`bsr`); from the bottom it would be `tzcnt`, which hosts that interpret guest
    /// kernel mode execute as `bsf`.
    occupied: [u64; PRIORITIES / 64],
}

impl Ready {
    const NOBODY: Self = Self {
        lists: [List::EMPTY; PRIORITIES],
        occupied: [0; PRIORITIES / 64],
    };

    /// One more than the highest priority with somebody in its list.
    fn above(&self) -> u64 {
        (0..PRIORITIES / 64)
            .rev()
            .find(|word| self.occupied[*word] != 0)
            .map_or(0, |word| {
                let bits = u64::BITS - self.occupied[word].leading_zeros();
                word as u64 * 64 + u64::from(bits)
            })
    }
}

/// All that is ready to run, and what runs.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Scheduler {
    /// The CPU that runs the kernel.
    active: usize,
    /// Whether another one than the first was active ever.
    several: bool,
    /// What it has.
    here: Running,
    /// What the others have.
    elsewhere: [Running; MAX_CPUS],
    ready: [Ready; MAX_CPUS],
}

impl Scheduler {
    pub(super) const fn new() -> Self {
        Self {
            active: 0,
            several: false,
            here: Running::NOBODY,
            elsewhere: [Running::NOBODY; MAX_CPUS],
            ready: [Ready::NOBODY; MAX_CPUS],
        }
    }

    fn of(&self, cpu: usize) -> &Running {
        if cpu == self.active {
            &self.here
        } else {
            &self.elsewhere[cpu % MAX_CPUS]
        }
    }

    fn of_mut(&mut self, cpu: usize) -> &mut Running {
        if cpu == self.active {
            &mut self.here
        } else {
            &mut self.elsewhere[cpu % MAX_CPUS]
        }
    }
}

impl<M: Memory> Objects<M> {
    /// CPU number `cpu` runs the kernel from now on.
    ///
    /// # Panics
    /// Never: a number that is none is taken modulo [`MAX_CPUS`].
    pub fn enter_cpu(&mut self, cpu: usize) {
        let all = &mut self.scheduler;
        let cpu = cpu % MAX_CPUS;
        if all.active != cpu {
            all.elsewhere[all.active % MAX_CPUS] = all.here;
            all.here = all.elsewhere[cpu];
            all.active = cpu;
            all.several = true;
        }
    }

    /// The CPU that runs the kernel.
    #[must_use]
    pub const fn active_cpu(&self) -> usize {
        self.scheduler.active
    }

    /// The CPU that a thread runs on, or would: that of its time.
    pub(super) fn cpu_of(&self, thread: Ref<Thread>) -> usize {
        match self.memory.get(thread).context() {
            Some(context) => self.memory.get(context).cpu(),
            None => self.scheduler.active,
        }
    }

    /// What a CPU is to do has changed: it finds out before it goes on.
    fn disturb(&mut self, cpu: usize) {
        let disturbed = self.scheduler.of_mut(cpu);
        let settled = core::mem::replace(&mut disturbed.settled, false);
        if settled && cpu != self.scheduler.active {
            self.memory.call_cpu(cpu);
        }
    }

    /// Whether it runs, on whichever CPU.
    fn is_running(&self, thread: Ref<Thread>) -> bool {
        self.scheduler.of(self.cpu_of(thread)).current == thread.address()
    }

    /// Has a thread that runs on another CPU stop there until this CPU leaves the kernel: all of its
    /// registers are in memory then. A system call that it was about to make it will make again.
    pub(crate) fn hold_still(&mut self, thread: Ref<Thread>) {
        let cpu = self.cpu_of(thread);
        if cpu == self.scheduler.active || !self.is_running(thread) {
            return;
        }
        let [fs, gs] = self.memory.stop_cpu(cpu);
        let there = self.scheduler.of_mut(cpu);
        if let Some(loaded) = Ref::<Thread>::from_link(core::mem::take(&mut there.loaded)) {
            let loaded = self.memory.get_mut(loaded);
            (loaded.fs_base, loaded.gs_base) = (fs, gs);
        }
        // It waits to enter the kernel, and looks at what it is to do as soon as it can.
        self.scheduler.of_mut(cpu).settled = false;
    }

    /// Whether the root of this CPU's running thread may have changed since the last question.
    #[inline]
    pub const fn take_space_changed(&mut self) -> bool {
        core::mem::replace(&mut self.scheduler.here.space_changed, false)
    }

    /// A thread gets or loses an address space: all CPUs look again at what they run, before it runs
    /// on.
    pub(crate) fn space_changes(&mut self) {
        self.scheduler.here.space_changed = true;
        if !self.scheduler.several {
            return;
        }
        let active = self.active_cpu();
        for cpu in (0..MAX_CPUS).filter(|cpu| *cpu != active) {
            let there = self.scheduler.of_mut(cpu);
            there.space_changed = true;
            if let Some(runs) = Ref::from_link(there.current) {
                self.hold_still(runs);
            }
        }
    }

    /// The thread that runs on this CPU.
    #[must_use]
    pub const fn current(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.scheduler.here.current)
    }

    /// Whether [`Objects::schedule`] would say what it said last, as long as no time passes.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.scheduler.here.settled
    }

    /// The thread that the CPU's other registers were last set up for, while it exists.
    #[must_use]
    pub const fn loaded(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.scheduler.here.loaded)
    }

    /// The CPU's other registers are not those of `thread` any more: they are loaded again before
    /// it runs.
    pub fn forget_loaded(&mut self, thread: Ref<Thread>) {
        if self.scheduler.here.loaded == thread.address() {
            self.scheduler.here.loaded = 0;
        }
    }

    /// Remembers whom the CPU's other registers are set up for.
    pub const fn set_loaded(&mut self, thread: Ref<Thread>) {
        self.scheduler.here.loaded = thread.address();
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
            let due = self.scheduler.here.counted.saturating_add(ticks);
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

    /// Gives a context its budget and period, in ticks of CPU number `cpu`, from `now` on.
    ///
    /// # Errors
    /// [`Error::Range`] for a budget below [`MIN_BUDGET`] or above the period.
    pub fn configure_context(
        &mut self,
        context: Ref<SchedContext>,
        [budget, period]: [u64; 2],
        cpu: u64,
        now: u64,
    ) -> Result<(), Error> {
        if budget < MIN_BUDGET || budget > period {
            return Err(Error::Range {
                min: MIN_BUDGET,
                max: period,
            });
        }
        self.count_time(now);
        self.scheduler.here.settled = false;
        let holder = self.memory.get(context).holder();
        if let Some(holder) = holder {
            self.unready(holder);
        }
        let configured = self.memory.get_mut(context);
        configured.budget = budget;
        configured.period = period;
        configured.left = budget;
        configured.began = now;
        configured.cpu = cpu;
        if let Some(holder) = holder {
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
        self.scheduler.here.settled = false;
        if self.is_running(thread) {
            self.disturb(self.cpu_of(thread));
        }
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
            // What it used there is of the time that was lent.
            let (from, to) = (self.memory.get(lent).cpu(), self.memory.get(home).cpu());
            if from != to || from != self.scheduler.active && self.is_running(thread) {
                self.unready(thread);
            }
            self.memory.get_mut(lent).holder = 0;
        }
        self.memory.get_mut(home).hold(thread);
        self.memory.get_mut(thread).set_context(Some(home));
        if self.is_running(thread) {
            // Its turn ends at another time.
            self.disturb(self.cpu_of(thread));
        }
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
        let (due, priority) = (found.due, found.priority);
        let cpu = self.memory.get(context).cpu();
        let runs = self.scheduler.of(cpu).current == thread.address();
        if runs || due != 0 || self.is_queued(thread) {
            return;
        }
        // What was counted last can be long ago, and before what another CPU has seen.
        let now = self.memory.now().max(self.scheduler.here.counted);
        let filled = self.memory.get_mut(context);
        if filled.budget == 0 {
            // Nobody has said yet how much time it is.
            return;
        }
        if now.saturating_sub(filled.began) >= filled.period {
            filled.left = filled.budget;
            filled.began = now;
        }
        if filled.left == 0 {
            let due = filled.began.saturating_add(filled.period);
            self.set_timer(thread, due);
        } else {
            self.enqueue(thread, (cpu, priority), None);
        }
    }

    /// Takes a thread out of all lists of those that would run, now or in time; it does not run any
    /// more. What it waits for, and for how long, stays.
    pub(super) fn unready(&mut self, thread: Ref<Thread>) {
        if self.scheduler.here.current == thread.address() {
            self.scheduler.here.current = 0;
            self.scheduler.here.settled = false;
            return;
        }
        if self.is_running(thread) {
            self.stop_elsewhere(thread);
            return;
        }
        let found = self.memory.get(thread);
        if found.due != 0 && found.state() == State::Ready {
            self.forget_timer(thread);
        } else if self.is_queued(thread) {
            self.dequeue(thread, self.cpu_of(thread));
        }
    }

    /// Stops a thread that runs on another CPU, and counts what it used.
    #[cold]
    fn stop_elsewhere(&mut self, thread: Ref<Thread>) {
        self.hold_still(thread);
        let now = self.memory.now();
        let there = self.scheduler.of_mut(self.cpu_of(thread));
        let used = now.saturating_sub(there.counted);
        there.counted = now;
        there.current = 0;
        self.spend(thread, used);
    }

    /// Takes a thread out of the list of those who wait for a point in time.
    pub(super) fn forget_timer(&mut self, thread: Ref<Thread>) {
        let cpu = self.memory.get(thread).timer_cpu as usize;
        let timers = self.scheduler.of(cpu).timers;
        let timers = timers.without(&mut self.memory, Membership::Timer, thread);
        self.scheduler.of_mut(cpu).timers = timers;
        self.memory.get_mut(thread).due = 0;
        // Another CPU's timer may come for nothing.
        self.scheduler.here.settled = false;
    }

    /// Counts what the running thread used of its context until `now`.
    pub fn count_time(&mut self, now: u64) {
        let used = now.saturating_sub(self.scheduler.here.counted);
        self.scheduler.here.counted = now;
        if let Some(thread) = self.current() {
            self.spend(thread, used);
        }
    }

    /// Takes `used` ticks off what a thread has.
    #[inline]
    fn spend(&mut self, thread: Ref<Thread>, used: u64) {
        if let Some(context) = self.memory.get(thread).context() {
            let running = self.memory.get_mut(context);
            running.left = running.left.saturating_sub(used);
        }
    }

    /// Acts on all timers that are due.
    #[cold]
    fn act_on_timers(&mut self, now: u64) {
        while let Some(thread) = self.scheduler.here.timers.first()
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
        let first = self.scheduler.here.timers.first();
        if first.is_some_and(|thread| self.memory.get(thread).due <= now) {
            self.act_on_timers(now);
        }
        if let Some(thread) = self.current()
            && self.must_yield(thread)
        {
            self.scheduler.here.current = 0;
            self.ready_again(thread);
        }
        if self.scheduler.here.current == 0
            && let Some(priority) = self.scheduler.here.highest()
            && let Some(thread) = self.ready_here(priority).first()
        {
            self.dequeue(thread, self.scheduler.active);
            self.scheduler.here.current = thread.address();
        }
        self.scheduler.here.settled = true;
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
                running.began = self.scheduler.here.counted;
            }
            return true;
        }
        let highest = self.scheduler.here.highest();
        if highest.is_some_and(|ready| ready > priority) {
            // It was interrupted, not at its end: it stays the first of its priority.
            let first = self.ready_here(priority).first();
            self.scheduler.here.current = 0;
            self.enqueue(thread, (self.scheduler.active, priority), first);
        }
        self.scheduler.here.current == 0
    }

    /// Who is ready here, of one priority.
    const fn ready_here(&self, priority: u64) -> List {
        self.scheduler.ready[self.scheduler.active % MAX_CPUS].lists[priority as usize % PRIORITIES]
    }

    /// The running thread lets others of its priority run first.
    pub fn yield_now(&mut self) {
        self.scheduler.here.settled = false;
        if let Some(thread) = self.current() {
            self.scheduler.here.current = 0;
            self.ready_again(thread);
        }
    }

    /// Time stamp counter at which [`Objects::schedule`] is to be called: the running thread's
    /// budget is spent then, or a waiting context is filled.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let here = &self.scheduler.here;
        let running = self.current().and_then(|thread| {
            let context = self.memory.get(self.memory.get(thread).context()?);
            // Whoever runs alone needs no turn to end.
            (!context.is_round_robin() || here.highest().is_some())
                .then(|| here.counted.saturating_add(context.left))
        });
        let timer = (here.timers.first()).map(|thread| self.memory.get(thread).due);
        match (running, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// When the timer of this CPU is to interrupt.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        self.scheduler.here.deadline
    }

    /// Remembers when the timer of this CPU is to interrupt.
    pub(crate) const fn set_deadline(&mut self, deadline: Option<u64>) {
        self.scheduler.here.deadline = deadline;
    }

    /// Switches straight to `to`, which was just made ready to run in the place of the thread that
    /// ran; only if nobody ready is more urgent.
    pub(super) fn switch_to(&mut self, to: Ref<Thread>) {
        if self.scheduler.here.current == 0
            && self.is_queued(to)
            && self.cpu_of(to) == self.scheduler.active
            && self.scheduler.here.highest() == Some(self.memory.get(to).priority)
        {
            self.dequeue(to, self.scheduler.active);
            self.scheduler.here.current = to.address();
        }
    }

    /// Whether nobody ready is more urgent than `priority`.
    pub(super) fn is_highest(&self, priority: u64) -> bool {
        (self.scheduler.here.highest()).is_none_or(|highest| highest <= priority)
    }

    /// Runs `thread`, which stands in no list, in the place of the running one.
    pub(super) const fn run_instead(&mut self, thread: Ref<Thread>) {
        self.scheduler.here.current = thread.address();
    }

    /// Runs a thread that is ready, whether or not it is its turn.
    #[cfg(test)]
    pub(super) fn force(&mut self, thread: Ref<Thread>) {
        if self.is_queued(thread) {
            self.dequeue(thread, self.cpu_of(thread));
        }
        self.scheduler.here.current = thread.address();
    }

    /// Whether nothing is left of a context's period.
    #[cfg(test)]
    pub(super) fn is_spent(&self, context: Ref<SchedContext>) -> bool {
        self.memory.get(context).left == 0
    }

    /// Who waits for a point in time on a CPU, the first one first.
    #[cfg(test)]
    pub(super) fn timers_of(&self, cpu: usize) -> std::vec::Vec<Ref<Thread>> {
        let next = |thread: &Ref<Thread>| List::after(&self.memory, Membership::Timer, *thread);
        core::iter::successors(self.scheduler.of(cpu).timers.first(), next).collect()
    }

    /// The priority of the most urgent thread that could run on a CPU and does not.
    #[cfg(test)]
    pub(super) fn most_urgent_of(&self, cpu: usize) -> Option<u64> {
        self.scheduler.of(cpu).highest()
    }

    /// Who runs on a CPU.
    #[cfg(test)]
    pub(super) fn running_on(&self, cpu: usize) -> Option<Ref<Thread>> {
        Ref::from_link(self.scheduler.of(cpu).current)
    }

    /// Whether a CPU was not called since it last looked at what it is to do.
    #[cfg(test)]
    pub(super) fn is_settled_on(&self, cpu: usize) -> bool {
        self.scheduler.of(cpu).settled
    }

    fn is_queued(&self, thread: Ref<Thread>) -> bool {
        self.memory.get(thread).queued != 0
    }

    /// Puts a thread into the list of its CPU and priority, before `next` or at its end.
    fn enqueue(
        &mut self,
        thread: Ref<Thread>,
        (cpu, priority): (usize, u64),
        next: Option<Ref<Thread>>,
    ) {
        self.memory.get_mut(thread).queued = 1;
        let priority = priority as usize % PRIORITIES;
        let ready = &mut self.scheduler.ready[cpu % MAX_CPUS];
        ready.occupied[priority / 64] |= 1 << (priority % 64);
        let list = ready.lists[priority];
        ready.lists[priority] = list.inserted(&mut self.memory, Membership::Ready, thread, next);
        let there = self.scheduler.of_mut(cpu);
        there.above = there.above.max(priority as u64 + 1);
        self.disturb(cpu);
    }

    /// Takes a thread out of the list of its CPU and priority.
    fn dequeue(&mut self, thread: Ref<Thread>, cpu: usize) {
        let changed = self.memory.get_mut(thread);
        changed.queued = 0;
        let priority = changed.priority as usize % PRIORITIES;
        let ready = &mut self.scheduler.ready[cpu % MAX_CPUS];
        let list = ready.lists[priority];
        let list = list.without(&mut self.memory, Membership::Ready, thread);
        ready.lists[priority] = list;
        if list.is_empty() {
            ready.occupied[priority / 64] &= !(1 << (priority % 64));
            if self.scheduler.of(cpu).above == priority as u64 + 1 {
                let above = self.scheduler.ready[cpu % MAX_CPUS].above();
                self.scheduler.of_mut(cpu).above = above;
            }
        }
        self.scheduler.here.settled = false;
    }

    fn set_timer(&mut self, thread: Ref<Thread>, due: u64) {
        let cpu = self.cpu_of(thread);
        // Zero says that there is none.
        let due = due.max(1);
        let changed = self.memory.get_mut(thread);
        changed.due = due;
        changed.timer_cpu = cpu as u64;
        let timers = self.scheduler.of(cpu).timers;
        let mut next = timers.first();
        while let Some(other) = next
            && self.memory.get(other).due <= due
        {
            next = List::after(&self.memory, Membership::Timer, other);
        }
        let timers = timers.inserted(&mut self.memory, Membership::Timer, thread, next);
        self.scheduler.of_mut(cpu).timers = timers;
        self.disturb(cpu);
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

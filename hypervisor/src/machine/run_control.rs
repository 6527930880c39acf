//! Run control: brings every vCPU to a stop between two guest instructions, and lets them go on.
//!
//! vCPUs run while nobody holds them. The controller holds them for the supervisor and for dumps, a
//! debugger for itself; while it does, the holder may read and write their registers. vCPU threads
//! look at [`Cpu::is_held`] before each entry and stand in `RunControl::stand`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::ending::Ending;

/// How long vCPUs may take to stand. What can hold one up is console output that nobody reads.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the signal is repeated: one may arrive just before the thread enters the guest.
const REPEAT: Duration = Duration::from_micros(200);
/// How long threads may take to end before the process exits without them.
const END_PATIENCE: Duration = Duration::from_millis(200);

/// Who holds the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holder {
    /// The supervisor, by `pause`.
    Supervisor = 1 << 0,
    /// The writer of a dump.
    Dump = 1 << 1,
    /// A debugger, or the wait for one.
    Debugger = 1 << 2,
}

/// A vCPU did not come to a stop in time; all go on as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a vcpu does not stop: it waits for somebody to read its console; read it and try again")]
pub struct Busy;

/// One vCPU. Aligned so that no two count their exits on one cache line.
#[repr(align(64))]
pub struct Cpu {
    fd: Mutex<VcpuFd>,
    held: AtomicBool,
    exits: AtomicU64,
}

impl Cpu {
    fn new(fd: VcpuFd) -> Self {
        Self {
            fd: Mutex::new(fd),
            held: AtomicBool::new(false),
            exits: AtomicU64::new(0),
        }
    }

    /// The vCPU itself: free while it stands.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its thread is to stand before it enters the guest again.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Counts an exit; called by its thread alone.
    pub fn count_exit(&self) {
        let exits = self.exits.load(Ordering::Relaxed);
        self.exits.store(exits.wrapping_add(1), Ordering::Relaxed);
    }
}

/// See the module.
pub struct RunControl {
    cpus: Box<[Cpu]>,
    threads: OnceLock<Vec<JoinHandle<()>>>,
    state: Mutex<State>,
    changed: Condvar,
    ending: Ending,
}

struct State {
    /// Bits of [`Holder`].
    holders: u8,
    /// For each vCPU: its thread stands.
    standing: Box<[bool]>,
    /// The debugger lets only these go on; all where it is empty.
    chosen: Box<[bool]>,
}

impl RunControl {
    /// Control of `vcpus`, held by `holders` from the start.
    pub fn new(vcpus: Vec<VcpuFd>, holders: &[Holder], ending: Ending) -> Self {
        let state = State {
            holders: 0,
            standing: vec![false; vcpus.len()].into(),
            chosen: Box::default(),
        };
        let control = Self {
            cpus: vcpus.into_iter().map(Cpu::new).collect(),
            threads: OnceLock::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            ending,
        };
        for holder in holders {
            control.change(|state| state.holders |= *holder as u8);
        }
        control
    }

    /// All vCPUs, by number.
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// Exits of each vCPU so far.
    pub fn exits(&self) -> Vec<u64> {
        let exits = |cpu: &Cpu| cpu.exits.load(Ordering::Relaxed);
        self.cpus.iter().map(exits).collect()
    }

    /// The vCPUs' threads; once.
    pub(super) fn set_threads(&self, threads: Vec<JoinHandle<()>>) {
        // The machine, which starts the threads, does so once.
        let _ = self.threads.set(threads);
    }

    /// Stops all vCPUs, and returns when they stand, or the partition is over.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn hold(&self, holder: Holder) -> Result<(), Busy> {
        self.change(|state| state.holders |= holder as u8);
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while state.standing.contains(&false) && !self.ending.is_over() {
            if Instant::now() > deadline {
                drop(state);
                self.release(holder);
                return Err(Busy);
            }
            self.kick(|id| state.standing.get(id) == Some(&false));
            let waited = self.changed.wait_timeout(state, REPEAT);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Asks for what [`Self::hold`] waits for: for a vCPU's thread, which may not wait.
    pub fn ask_to_hold(&self, holder: Holder) {
        self.change(|state| state.holders |= holder as u8);
    }

    /// Lets the vCPUs go on, unless somebody else holds them.
    pub fn release(&self, holder: Holder) {
        self.change(|state| state.holders &= !(holder as u8));
    }

    /// Lets only some vCPUs go on when nobody holds them; all, where `chosen` is empty.
    pub fn choose(&self, chosen: Box<[bool]>) {
        self.change(|state| state.chosen = chosen);
    }

    /// True while `holder` holds the vCPUs.
    pub fn is_held_by(&self, holder: Holder) -> bool {
        self.state().holders & holder as u8 != 0
    }

    /// Called by the thread of vCPU `id` between two instructions: waits until it may go on, or the
    /// partition is over.
    pub(super) fn stand(&self, id: usize) {
        let mut state = self.state();
        set(&mut state.standing, id, true);
        self.changed.notify_all();
        while state.must_stand(id) && !self.ending.is_over() {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        set(&mut state.standing, id, false);
    }

    /// Ends all threads, and waits for `other`; the [`Ending`] must have come. A thread that does not
    /// return in 200 ms is left to the end of the process.
    pub(super) fn end(&self, other: Option<&JoinHandle<()>>) {
        let deadline = Instant::now() + END_PATIENCE;
        let threads = || self.threads.get().into_iter().flatten().chain(other);
        while threads().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            self.kick(|_| true);
            self.changed.notify_all();
            std::thread::sleep(REPEAT);
        }
    }

    /// Gets threads out of the guest, and out of any wait but that of [`Self::stand`].
    fn kick(&self, which: impl Fn(usize) -> bool) {
        for (id, thread) in self.threads.get().into_iter().flatten().enumerate() {
            if which(id) && !thread.is_finished() {
                // A thread that ends meanwhile needs no signal.
                let _ = thread.kill(SIGRTMIN());
                thread.thread().unpark();
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        for (id, cpu) in self.cpus.iter().enumerate() {
            cpu.held.store(state.must_stand(id), Ordering::Release);
        }
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn must_stand(&self, id: usize) -> bool {
        self.holders != 0 || !self.chosen.get(id).copied().unwrap_or(true)
    }
}

fn set(flags: &mut [bool], id: usize, value: bool) {
    if let Some(flag) = flags.get_mut(id) {
        *flag = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_go_on_when_nobody_holds_them() {
        let control = RunControl::new(Vec::new(), &[Holder::Debugger], Ending::new().unwrap());
        let must_stand = || control.state().must_stand(0);
        assert!(must_stand());
        control.hold(Holder::Supervisor).unwrap();
        control.hold(Holder::Supervisor).unwrap();
        control.release(Holder::Debugger);
        control.release(Holder::Debugger);
        assert!(must_stand() && control.is_held_by(Holder::Supervisor));
        control.release(Holder::Supervisor);
        assert!(!must_stand() && !control.is_held_by(Holder::Supervisor));
        control.choose([false, true].into());
        assert!(must_stand());
        assert!(!control.state().must_stand(1));
        control.choose(Box::default());
        assert!(!must_stand());
    }
}

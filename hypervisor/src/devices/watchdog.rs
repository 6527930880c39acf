//! A watchdog of three byte-wide ports, which an ACPI table describes to the guest: once the guest
//! has started it, it has to be fed, or the partition ends.
//!
//! Time is counted in ticks of the event loop, one a second: while the partition is paused there are
//! none.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_machine::control::Ended;
use bulkhead_machine::pc::watchdog::{CONTROL, COUNTDOWN, FEED, MAX_COUNT, PERIOD_MS};
use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmm_sys_util::epoll::EventSet;

use crate::error::Error;
use crate::machine::bus::BusDevice;
use crate::machine::ending::Ending;
use crate::machine::notices::{Notice, Notices};

#[derive(Debug)]
struct State {
    running: bool,
    count: u8,
    /// Ticks left; one more than the count when it was fed, as the first may come at once.
    left: u16,
}

impl State {
    fn feed(&mut self) {
        self.left = u16::from(self.count) + 1;
    }

    /// A period went by; true when it was the last.
    fn tick(&mut self) -> bool {
        if self.running {
            self.left = self.left.saturating_sub(1);
        }
        self.running && self.left == 0
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ports.
#[derive(Debug)]
pub struct WatchdogPorts(Arc<Mutex<State>>);

impl BusDevice for WatchdogPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.0);
        data.fill(match u16::try_from(offset) {
            Ok(CONTROL) => state.running.into(),
            Ok(COUNTDOWN) => state.left.min(state.count.into()) as u8,
            _ => 0,
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first().copied() else {
            return;
        };
        let mut state = lock(&self.0);
        match u16::try_from(offset) {
            Ok(CONTROL) => state.running = value & 1 != 0,
            Ok(COUNTDOWN) => state.count = value,
            Ok(FEED) => {}
            _ => return,
        }
        state.feed();
    }
}

/// The event loop's part: counts, and ends the partition.
pub struct Timer {
    state: Arc<Mutex<State>>,
    timer: OwnedFd,
    notices: Notices,
    ending: Ending,
}

/// A watchdog that does not run yet.
///
/// # Errors
/// The host gives no timer.
pub fn build(notices: Notices, ending: Ending) -> Result<(WatchdogPorts, Timer), Error> {
    let refused = Error::io("cannot make the watchdog's timer");
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let period = Timespec {
        tv_sec: i64::from(PERIOD_MS / 1000),
        tv_nsec: 0,
    };
    let always = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    // Ticks whether it runs or not: no thread of the guest's may set timers.
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
        .and_then(|timer| {
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &always)?;
            Ok(timer)
        })
        .map_err(refused)?;
    let state = Arc::new(Mutex::new(State {
        running: false,
        count: MAX_COUNT,
        left: u16::from(MAX_COUNT) + 1,
    }));
    let ports = WatchdogPorts(state.clone());
    let timer = Timer {
        state,
        timer,
        notices,
        ending,
    };
    Ok((ports, timer))
}

impl MutEventSubscriber for Timer {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new_raw(self.timer.as_raw_fd(), EventSet::IN)) {
            self.ending.fail(Error::Io {
                what: "the watchdog's timer cannot be waited for",
                source: std::io::Error::other(e.to_string()),
            });
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // However many periods went by: the loop, or the whole host, stood still for the others.
        let _ = rustix::io::read(self.timer.as_fd(), &mut [0; 8]);
        if lock(&self.state).tick() {
            self.notices.give(Notice::WatchdogExpired);
            self.ending.end(Ended::Watchdog);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchdog() -> (WatchdogPorts, Notices, Ending) {
        let (notices, ending) = (Notices::new().unwrap(), Ending::new().unwrap());
        let (ports, _) = build(notices.clone(), ending.clone()).unwrap();
        (ports, notices, ending)
    }

    fn read(ports: &mut WatchdogPorts, register: u16) -> u8 {
        let mut value = [0xee];
        ports.read(register.into(), &mut value);
        value[0]
    }

    /// Ticks until it ends, at most 300.
    fn ticks(ports: &WatchdogPorts) -> usize {
        (1..300).find(|_| lock(&ports.0).tick()).unwrap_or(300)
    }

    #[test]
    fn it_runs_when_it_is_started() {
        let (mut ports, ..) = watchdog();
        assert_eq!(read(&mut ports, CONTROL), 0);
        assert_eq!(ticks(&ports), 300);
        ports.write(CONTROL.into(), &[1]);
        assert_eq!(read(&mut ports, CONTROL), 1);
        assert_eq!(ticks(&ports), 256);
        for (count, want) in [(30, 31), (1, 2), (0, 1)] {
            ports.write(COUNTDOWN.into(), &[count]);
            assert_eq!(read(&mut ports, COUNTDOWN), count);
            assert_eq!(ticks(&ports), want);
        }
        ports.write(COUNTDOWN.into(), &[10]);
        for _ in 0..20 {
            assert!(!(0..9).any(|_| lock(&ports.0).tick()));
            assert_eq!(read(&mut ports, COUNTDOWN), 2);
            ports.write(FEED.into(), &[7]);
        }
        ports.write(CONTROL.into(), &[0]);
        assert_eq!(ticks(&ports), 300);
    }

    #[test]
    fn other_accesses_do_nothing() {
        let (mut ports, ..) = watchdog();
        ports.write(CONTROL.into(), &[1]);
        ports.write(COUNTDOWN.into(), &[5]);
        let _ = lock(&ports.0).tick();
        ports.write(FEED.into(), &[]);
        ports.write(3, &[1]);
        ports.write(u64::MAX, &[1]);
        assert_eq!(lock(&ports.0).left, 5);
        assert_eq!(read(&mut ports, 3), 0);
        assert_eq!(read(&mut ports, FEED), 0);
    }

    #[test]
    fn its_end_is_told_before_that_of_the_partition() {
        let (notices, ending) = (Notices::new().unwrap(), Ending::new().unwrap());
        let (mut ports, timer) = build(notices.clone(), ending.clone()).unwrap();
        ports.write(CONTROL.into(), &[1]);
        ports.write(COUNTDOWN.into(), &[0]);
        let mut manager = event_manager::EventManager::<Timer>::new().unwrap();
        event_manager::SubscriberOps::add_subscriber(&mut manager, timer);
        manager.run_with_timeout(30_000).unwrap();
        assert!(notices.take(Notice::WatchdogExpired));
        assert!(matches!(ending.outcome(), Some(Ok(Ended::Watchdog))));
    }
}

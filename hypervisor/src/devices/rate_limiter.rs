//! How fast a device may be: token buckets for bytes and for operations, and the timer that says when
//! the next request could go. Used by devices that serve requests on the event loop's thread.
//!
//! A request may go when each bucket holds what the request costs, or is full; it is then charged in
//! full, so that one larger than a bucket leaves a debt that time pays off first. Over any span of
//! time no more passes than the burst, what the rate yields in it, and the excess of one request
//! over the burst.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bulkhead_machine::device::{RateLimit, TokenBucket};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use vmm_sys_util::epoll::EventSet;

use super::virtio::Interest;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Limits requests; one without a limit holds nothing and lets everything pass.
#[derive(Debug, Default)]
pub struct RateLimiter(Option<Box<Limited>>);

#[derive(Debug)]
struct Limited {
    buckets: Buckets,
    timer: OwnedFd,
    /// A request was held back, and the timer is set for it.
    waiting: bool,
}

impl RateLimiter {
    /// A limiter for `limit`, its buckets full. Call before the jail closes: it makes a timer.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(limit: &RateLimit) -> io::Result<Self> {
        if limit.bytes.is_none() && limit.operations.is_none() {
            return Ok(Self(None));
        }
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(Some(Box::new(Limited {
            buckets: Buckets::new(limit, now_ns()),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            waiting: false,
        }))))
    }

    /// Whether a request of `bytes` may go now. If not, [`Self::interest`] becomes ready when it
    /// may. One whose length is not known yet asks for 1.
    pub fn allows(&mut self, bytes: u64) -> bool {
        let Some(limited) = &mut self.0 else {
            return true;
        };
        let wait = limited.buckets.wait_ns(now_ns(), bytes);
        limited.waiting = wait > 0 && limited.set_timer(wait);
        // Without a timer the request would wait for ever.
        !limited.waiting
    }

    /// Takes the tokens of a request of `bytes`, whether there are as many or not.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(limited) = &mut self.0 {
            limited.buckets.charge(bytes);
        }
    }

    /// The timer, while a request is held back.
    pub fn interest(&self) -> Option<Interest> {
        let limited = self.0.as_ref().filter(|limited| limited.waiting)?;
        Some(Interest {
            fd: limited.timer.as_raw_fd(),
            events: EventSet::IN,
        })
    }

    /// Whether `fd` is this limiter's timer. It is not waited for any more: the device tries again.
    pub fn take_expiry(&mut self, fd: RawFd) -> bool {
        match &mut self.0 {
            Some(limited) if limited.timer.as_raw_fd() == fd => {
                limited.waiting = false;
                true
            }
            _ => false,
        }
    }

    /// Nothing is held back any more: the device was reset. What was spent stays spent.
    pub fn cancel(&mut self) {
        if let Some(limited) = &mut self.0 {
            limited.waiting = false;
        }
    }
}

impl Limited {
    /// Makes the timer readable in `ns`, and not before, whatever it was set for.
    fn set_timer(&self, ns: u64) -> bool {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec {
            // At most 2^64 / 10^9 and 10^9 - 1.
            tv_sec: (ns / NS_PER_SECOND) as i64,
            tv_nsec: (ns % NS_PER_SECOND) as i64,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok()
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64)
        .saturating_mul(NS_PER_SECOND)
        .saturating_add(now.tv_nsec as u64)
}

/// The two buckets, with time as an argument.
#[derive(Clone, Copy, Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn new(limit: &RateLimit, now_ns: u64) -> Self {
        let bucket = |shape: TokenBucket| Bucket::new(shape, now_ns);
        Self {
            bytes: limit.bytes.map(bucket),
            operations: limit.operations.map(bucket),
        }
    }

    /// Nanoseconds until a request of `bytes` may go; 0: now.
    fn wait_ns(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let wait = |bucket: &mut Option<Bucket>, cost| {
            bucket.as_mut().map_or(0, |b| b.wait_ns(now_ns, cost))
        };
        wait(&mut self.bytes, bytes).max(wait(&mut self.operations, 1))
    }

    fn charge(&mut self, bytes: u64) {
        for (bucket, cost) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.charge(cost);
            }
        }
    }
}

/// One bucket. It counts parts of a token, a thousand-millionth each, so that a nanosecond yields a
/// whole number of them and nothing is ever rounded away; 128 bits hold any number of tokens so.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Parts gained in a nanosecond, which is tokens gained in a second; at least 1.
    rate: u64,
    /// Parts it holds.
    capacity: i128,
    /// Parts in it; negative: debt.
    level: i128,
    /// When `level` was right.
    at_ns: u64,
}

fn parts(tokens: u64) -> i128 {
    i128::from(tokens) * i128::from(NS_PER_SECOND)
}

impl Bucket {
    fn new(shape: TokenBucket, now_ns: u64) -> Self {
        let capacity = parts(shape.burst.max(1));
        Self {
            rate: shape.per_second.max(1),
            capacity,
            level: capacity,
            at_ns: now_ns,
        }
    }

    fn wait_ns(&mut self, now_ns: u64, cost: u64) -> u64 {
        let gained =
            i128::from(now_ns.saturating_sub(self.at_ns)).saturating_mul(i128::from(self.rate));
        self.level = self.level.saturating_add(gained).min(self.capacity);
        self.at_ns = self.at_ns.max(now_ns);
        let missing = parts(cost).min(self.capacity).saturating_sub(self.level);
        if missing <= 0 {
            return 0;
        }
        let rate = u128::from(self.rate);
        u64::try_from(missing.unsigned_abs().div_ceil(rate)).unwrap_or(u64::MAX)
    }

    fn charge(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(parts(cost));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use rustix::event::{PollFd, PollFlags, Timespec as PollTime, poll};

    use super::*;

    const SECOND: u64 = NS_PER_SECOND;

    fn limit(per_second: u64, burst: u64) -> RateLimit {
        RateLimit {
            bytes: Some(TokenBucket { per_second, burst }),
            operations: None,
        }
    }

    #[test]
    fn a_full_bucket_then_the_rate() {
        let mut buckets = Buckets::new(&limit(100, 1000), 0);
        assert_eq!(buckets.wait_ns(0, 1000), 0);
        buckets.charge(1000);
        assert_eq!(buckets.wait_ns(0, 1), SECOND / 100);
        assert_eq!(buckets.wait_ns(SECOND, 100), 0);
        assert_eq!(buckets.wait_ns(SECOND, 101), SECOND / 100);
        assert_eq!(buckets.wait_ns(100 * SECOND, 1000), 0, "it is full again");
        buckets.charge(1000);
        assert!(buckets.wait_ns(100 * SECOND, 1) > 0, "and no fuller");
    }

    #[test]
    fn a_request_beyond_the_burst_passes_and_leaves_a_debt() {
        let mut buckets = Buckets::new(&limit(10, 10), 0);
        assert_eq!(buckets.wait_ns(0, 1000), 0);
        buckets.charge(1000);
        assert_eq!(buckets.wait_ns(0, 1), 991 * SECOND / 10);
        assert_eq!(buckets.wait_ns(99 * SECOND, 1), SECOND / 10);
        assert_eq!(buckets.wait_ns(100 * SECOND, 1000), 0);
    }

    #[test]
    fn the_scarcer_bucket_decides() {
        let both = RateLimit {
            bytes: Some(TokenBucket {
                per_second: 1,
                burst: 1_000_000,
            }),
            operations: Some(TokenBucket {
                per_second: 2,
                burst: 1,
            }),
        };
        let mut buckets = Buckets::new(&both, 0);
        buckets.charge(1);
        assert_eq!(buckets.wait_ns(0, 1), SECOND / 2);
        assert_eq!(buckets.wait_ns(SECOND / 2, 1), 0);
    }

    #[test]
    fn no_limit_holds_nothing_back_and_has_no_timer() {
        let mut limiter = RateLimiter::new(&RateLimit::default()).unwrap();
        limiter.charge(u64::MAX);
        assert!(limiter.allows(u64::MAX));
        assert!(limiter.0.is_none() && limiter.interest().is_none());
    }

    #[test]
    fn the_timer_becomes_ready_when_the_request_may_go() {
        let mut limiter = RateLimiter::new(&limit(100, 1)).unwrap();
        assert!(limiter.allows(1) && limiter.interest().is_none());
        limiter.charge(1);
        assert!(!limiter.allows(1));
        let fd = limiter.interest().expect("it waits").fd;
        let timer = limiter.0.as_ref().unwrap().timer.try_clone().unwrap();
        let mut fds = [PollFd::new(&timer, PollFlags::IN)];
        // The kernel's clock is read twice, so being too early is a fault however slow the host is.
        let limit = PollTime {
            tv_sec: 60,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
        assert!(!limiter.take_expiry(-1) && limiter.take_expiry(fd));
        assert!(limiter.interest().is_none() && limiter.allows(1));
    }

    #[test]
    fn a_reset_device_waits_for_nothing() {
        let mut limiter = RateLimiter::new(&limit(1, 1)).unwrap();
        limiter.charge(5);
        assert!(!limiter.allows(1));
        limiter.cancel();
        assert!(limiter.interest().is_none());
        assert!(!limiter.allows(1), "the debt remains");
    }

    proptest! {
        /// Whatever comes when, no more passes than the promise at the head of the file.
        #[test]
        fn what_passes_is_bounded(
            rate in 0u64..5_000_000,
            burst in 0u64..100_000,
            requests in vec((0u64..200_000_000, 0u64..200_000), 1..200),
        ) {
            let mut buckets = Buckets::new(&limit(rate, burst), 0);
            let (rate, burst) = (u128::from(rate.max(1)), u128::from(burst.max(1)));
            let (mut now, mut passed, mut excess) = (0u64, 0u128, 0u128);
            for (pause, cost) in requests {
                now += pause;
                let wait = buckets.wait_ns(now, cost);
                if wait == 0 {
                    buckets.charge(cost);
                    passed += u128::from(cost);
                    excess = excess.max(u128::from(cost).saturating_sub(burst));
                    let yielded = rate * u128::from(now) / u128::from(SECOND);
                    prop_assert!(passed <= burst + yielded + excess);
                } else {
                    // It may go exactly when it was told to come back.
                    prop_assert!(buckets.clone().wait_ns(now + wait - 1, cost) > 0);
                    prop_assert_eq!(buckets.clone().wait_ns(now + wait, cost), 0);
                }
            }
        }

        /// No number overflows, and time that runs backwards gives nothing.
        #[test]
        fn any_numbers_do(
            rate in prop_oneof![any::<u64>(), 0u64..3, u64::MAX - 2..],
            burst in prop_oneof![any::<u64>(), 0u64..3, u64::MAX - 2..],
            requests in vec((any::<u64>(), prop_oneof![any::<u64>(), u64::MAX - 2..]), 1..50),
        ) {
            let mut buckets = Buckets::new(&limit(rate, burst), 0);
            for (now, cost) in requests {
                let wait = buckets.wait_ns(now, cost);
                prop_assert_eq!(buckets.wait_ns(now, cost), wait);
                buckets.charge(cost);
            }
        }
    }
}

//! Notifications: signalled, taken, waited for, bound.

use alloc::string::String;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::object::RIGHTS_ALL;
use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{Endpoint, Notification};
use bulkhead_runtime::{thread, time};

use super::bench::{Bench, OWN, asleep_until, at_priority, shared, stop, until};
use super::{check, check_eq, named};

fn word(index: usize) -> u64 {
    shared(index).load(Ordering::Relaxed)
}

pub(super) fn poll() -> Result<(), String> {
    let bench = Bench::new()?;
    let notification = bench.notification()?;
    check_eq!(notification.poll(), Ok(0), "N1");
    let badged = Notification(bench.badged(notification.0, 2)?);
    check_eq!(badged.signal(), Ok(()), "N2: signal");
    check_eq!(
        (notification.poll(), notification.poll()),
        (Ok(2), Ok(0)),
        "N2"
    );
    let four = Notification(bench.badged(notification.0, 4)?);
    let one = Notification(bench.badged(notification.0, 1)?);
    for signal in [one, four, four] {
        signal.signal().map_err(named)?;
    }
    check_eq!(notification.wait(), Ok(5), "N3");
    check_eq!(notification.poll(), Ok(0), "N3: once");
    let deaf = Notification(bench.minted(notification.0, RIGHTS_ALL & !1, 0)?);
    let mute = Notification(bench.minted(notification.0, RIGHTS_ALL & !2, 0)?);
    check_eq!(
        deaf.poll(),
        Err(Status::IllegalOperation),
        "without the right to read"
    );
    check_eq!(
        mute.signal(),
        Err(Status::IllegalOperation),
        "without the right to write"
    );
    bench.finish()
}

extern "C" fn wait_often(own: u64, on: u64, times: u64, _: u64) -> ! {
    for _ in 0..times {
        shared(1).fetch_add(1, Ordering::Relaxed);
        if let Ok(badge) = Notification(on).wait() {
            shared(0).fetch_add(badge, Ordering::Relaxed);
        }
    }
    stop(own)
}

/// A signal wakes who waits, whether more or less urgent than who signals.
pub(super) fn wakes() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let notification = bench.notification()?;
    let badged = Notification(bench.badged(notification.0, 1)?);
    bench.start(OWN + 1, wait_often, [notification.0, 3, 0])?;
    check_eq!(word(1), 1, "N6: the more urgent one waits at once");
    for signals in 1..=3 {
        badged.signal().map_err(named)?;
        check_eq!(word(0), signals, "N6: it wakes before the signal returns");
    }
    bench.start(OWN - 1, wait_often, [notification.0, 3, 0])?;
    for signals in 4..=6 {
        check!(
            asleep_until(|| word(1) == signals),
            "N6: the less urgent one does not wait"
        );
        time::sleep_ns(1_000_000);
        badged.signal().map_err(named)?;
        check_eq!(word(0), signals - 1, "N6: the less urgent one runs later");
        check!(asleep_until(|| word(0) == signals), "N6: it does not wake");
    }
    bench.finish()
}

extern "C" fn receive_both(own: u64, from: u64, times: u64, _: u64) -> ! {
    for _ in 0..times {
        if let Ok(received) = Endpoint(from).receive(None) {
            let place = if received.badge == 7 { 0 } else { 1 };
            shared(place).fetch_add(1, Ordering::Relaxed);
        }
    }
    stop(own)
}

/// A thread in receive also has the signals of its notification, told apart by their badge.
pub(super) fn bound() -> Result<(), String> {
    const EACH: u64 = 20;
    let mut bench = Bench::new()?;
    let (notification, endpoint) = (bench.notification()?, bench.endpoint()?);
    let signal = Notification(bench.badged(notification.0, 7)?);
    let sender = Endpoint(bench.badged(endpoint.0, 9)?);
    let assistant = bench.assistant(OWN + 1)?;
    assistant.thread.bind(notification).map_err(named)?;
    let twice = assistant.thread.bind(notification);
    check_eq!(twice, Err(Status::DeleteFirst), "N4: bound already");
    assistant.begin(receive_both, [endpoint.0, 2 * EACH, 0])?;
    for _ in 0..EACH {
        signal.signal().map_err(named)?;
        sender.send(&Message::new(1)).map_err(named)?;
    }
    check_eq!((word(0), word(1)), (EACH, EACH), "N4");
    check_eq!(assistant.thread.unbind(), Ok(()), "unbind");
    bench.finish()
}

extern "C" fn wait_for_what_goes(own: u64, on: u64, _: u64, _: u64) -> ! {
    shared(1).store(1, Ordering::Relaxed);
    let ended = Notification(on).wait();
    shared(0).store(
        1 + u64::from(ended == Err(Status::Aborted)),
        Ordering::Relaxed,
    );
    stop(own)
}

pub(super) fn deleted() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let notification = bench.notification()?;
    bench.start(OWN, wait_for_what_goes, [notification.0, 0, 0])?;
    check!(until(|| word(1) == 1), "the assistant does not start");
    thread::yield_now();
    notification.place().delete().map_err(named)?;
    check!(until(|| word(0) != 0), "who waits hangs");
    check_eq!(word(0), 2, "who waits is told");
    let priority = at_priority(OWN + 5, thread::yield_now);
    check_eq!(priority, Ok(()), "priority");
    bench.finish()
}

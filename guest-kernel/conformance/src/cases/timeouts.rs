//! Waits that the clock ends.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;
use core::time::Duration;

use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{Endpoint, Reply};
use bulkhead_runtime::{thread, time};

use super::bench::{Bench, OWN, asleep_until, shared, stop, until};
use super::{check, check_eq, named};

const SHORT: Duration = Duration::from_millis(2);
/// Far longer than a case takes, also on a busy host.
const LONG: Duration = Duration::from_secs(600);

fn word(index: usize) -> u64 {
    shared(index).load(Ordering::Relaxed)
}

/// How a wait ended that nothing ends but the clock: never too early.
fn timed<T>(what: &str, wait: impl FnOnce() -> Result<T, Status>) -> Result<(), String> {
    let before = time::monotonic_ns();
    let ended = wait().map(|_| ());
    let took = u128::from(time::monotonic_ns() - before);
    check_eq!(ended, Err(Status::TimedOut), format!("T1: {what}"));
    check!(took >= SHORT.as_nanos(), "T1: {what} ended after {took} ns");
    Ok(())
}

/// Calls, with a timeout of so many milliseconds or none.
extern "C" fn call_once(own: u64, to: u64, value: u64, milliseconds: u64) -> ! {
    let message = Message::new(7).word(value);
    let called = match milliseconds {
        0 => Endpoint(to).call(&message),
        _ => Endpoint(to).call_within(&message, Duration::from_millis(milliseconds)),
    };
    let left = match called {
        Ok(answer) => 100 + answer.words().first().copied().unwrap_or(0),
        Err(status) => status as u64,
    };
    shared(0).store(left, Ordering::Relaxed);
    stop(own)
}

/// Every operation that waits, with nobody there.
pub(super) fn every_wait() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, notification, reply) =
        (bench.endpoint()?, bench.notification()?, bench.reply()?);
    let message = Message::new(1).word(2);
    for _ in 0..3 {
        timed("wait", || notification.wait_within(SHORT))?;
        timed("send", || endpoint.send_within(&message, SHORT))?;
        timed("call", || endpoint.call_within(&message, SHORT))?;
        timed("receive", || endpoint.receive_within(None, SHORT))?;
        timed("with a reply object", || {
            endpoint.receive_within(Some(reply), SHORT)
        })?;
    }
    // Nobody stands in a queue any more: what is sent now is the first there is.
    let nothing = endpoint.try_receive(None).map_err(named)?;
    check_eq!((nothing.badge, nothing.length), (0, 0), "T1: nobody sends");
    bench.start(OWN, call_once, [endpoint.0, 5, 0])?;
    let received = endpoint.receive_within(Some(reply), LONG).map_err(named)?;
    check_eq!(received.words(), &[5][..], "T1: the reply object is free");
    timed("reply and receive", || {
        endpoint.reply_receive_within(reply, &Message::new(0).word(6), SHORT)
    })?;
    check!(
        until(|| word(0) == 106),
        "T1: the answer was given: {}",
        word(0)
    );
    bench.finish()
}

/// What comes in time is what comes without a timeout.
pub(super) fn in_time() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, notification, reply) =
        (bench.endpoint()?, bench.notification()?, bench.reply()?);
    notification.signal().map_err(named)?;
    check_eq!(
        notification.wait_within(LONG).map(|_| ()),
        Ok(()),
        "T2: a signal"
    );
    bench.start(OWN, call_once, [endpoint.0, 5, 0])?;
    let received = endpoint.receive_within(Some(reply), LONG).map_err(named)?;
    check_eq!(
        (received.label, received.words()),
        (7, &[5][..]),
        "T2: received"
    );
    check_eq!(reply.answer(&Message::new(0)), Ok(()), "T2: answered");
    check!(until(|| word(0) == 100), "T2: the caller hangs");
    // The timeout is the sender's own affair.
    let server = bench.start(OWN + 1, serve, [endpoint.0, reply.0, 0])?;
    let answer = endpoint
        .call_within(&Message::new(9).word(4), LONG)
        .map_err(named)?;
    check_eq!((answer.label, answer.words()), (9, &[4][..]), "T2: called");
    check_eq!(word(1), 0, "T2: other bits of the message");
    server.thread.suspend().map_err(named)?;
    bench.finish()
}

/// Answers each call with what it brings.
extern "C" fn serve(own: u64, from: u64, reply: u64, pause: u64) -> ! {
    let (endpoint, reply) = (Endpoint(from), Reply(reply));
    let mut received = endpoint.receive(Some(reply));
    loop {
        let Ok(message) = received else { stop(own) };
        shared(1).fetch_add(message.capabilities, Ordering::Relaxed);
        if pause != 0 {
            time::sleep_ns(pause);
        }
        let answer = Message::new(message.label).words(message.words());
        received = endpoint.reply_receive(reply, &answer);
        if let Err(status) = received {
            shared(2).store(status as u64, Ordering::Relaxed);
            received = endpoint.receive(Some(reply));
        }
    }
}

/// Who called has gone on: the answer comes too late, and the next call is served.
pub(super) fn late_answer() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    bench.start(OWN + 1, serve, [endpoint.0, reply.0, 20_000_000])?;
    timed("a slow server", || {
        endpoint.call_within(&Message::new(1).word(2), SHORT)
    })?;
    check!(
        asleep_until(|| word(2) == Status::NoCaller as u64),
        "T3: the late answer was {}",
        word(2)
    );
    let answer = endpoint
        .call_within(&Message::new(1).word(3), LONG)
        .map_err(named)?;
    check_eq!(answer.words(), &[3][..], "T3: the next call");
    bench.finish()
}

/// What ends a wait otherwise leaves no timer behind: the next wait is not cut short.
pub(super) fn nothing_left() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let caller = bench.assistant(OWN)?;
    // A host that is busy for so long ends the first wait before it is stopped.
    for milliseconds in [10, 100, 1_000, 10_000] {
        caller.begin(call_once, [endpoint.0, 1, milliseconds])?;
        thread::yield_now();
        caller.thread.suspend().map_err(named)?;
        if shared(0).swap(0, Ordering::Relaxed) != 0 {
            continue;
        }
        caller.begin(call_once, [endpoint.0, 2, 0])?;
        let pause = 1_500_000 * milliseconds;
        time::sleep_ns(pause);
        check_eq!(word(0), 0, "T4: it waits without a timeout");
        let received = endpoint.receive(Some(reply)).map_err(named)?;
        check_eq!(received.words(), &[2][..], "T4: its second call");
        time::sleep_ns(pause);
        check_eq!(word(0), 0, "T4: it waits for its answer");
        reply.answer(&Message::new(0).word(8)).map_err(named)?;
        check!(until(|| word(0) == 108), "T4: the answer");
        return bench.finish();
    }
    Err(String::from("T4: the host is too busy"))
}

/// A server without time of its own waits on when the clock ends its wait: it could not go on.
pub(super) fn passive_server() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let server = bench.start(OWN + 1, serve_shortly, [endpoint.0, reply.0, 0])?;
    server.context.unbind().map_err(named)?;
    for value in 1..4 {
        let answer = endpoint
            .call_within(&Message::new(1).word(value), LONG)
            .map_err(named)?;
        check_eq!(answer.words(), &[value][..], "T5: served");
        time::sleep_ns(2 * SHORT.as_nanos() as u64);
    }
    check_eq!(word(2), 0, "T5: a wait of the server ended");
    bench.finish()
}

/// Waits for its first call as long as it takes, and from then on not for long.
extern "C" fn serve_shortly(own: u64, from: u64, reply: u64, _: u64) -> ! {
    let (endpoint, reply) = (Endpoint(from), Reply(reply));
    let mut received = endpoint.receive(Some(reply));
    loop {
        let Ok(message) = received else {
            shared(2).fetch_add(1, Ordering::Relaxed);
            stop(own)
        };
        let answer = Message::new(message.label).words(message.words());
        received = endpoint.reply_receive_within(reply, &answer, SHORT);
    }
}

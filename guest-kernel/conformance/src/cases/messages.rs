//! Messages: sent, received, called and answered, once and to nobody else.

use alloc::string::String;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::object::{MAX_WORDS, RIGHTS_ALL};
use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{Endpoint, Place, Reply};
use bulkhead_runtime::thread;

use super::bench::{Bench, OWN, asleep_until, shared, stop, until};
use super::{check, check_eq, named};

const READ: u64 = 1;
const WRITE: u64 = 2;
const GRANT: u64 = 4;
const GRANT_REPLY: u64 = 8;

fn word(index: usize) -> u64 {
    shared(index).load(Ordering::Relaxed)
}

/// What the word `n` of a message is in these cases.
const fn pattern(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995
}

fn patterned(length: u64) -> Message {
    (0..length).fold(Message::new(length as u32), |m, n| m.word(pattern(n)))
}

extern "C" fn send_lengths(own: u64, to: u64, most: u64, _: u64) -> ! {
    for length in 0..=most {
        let sent = Endpoint(to).send(&patterned(length));
        shared(1).store(
            sent.map_or_else(|status| status as u64, |()| 0),
            Ordering::Relaxed,
        );
    }
    stop(own)
}

extern "C" fn receive_lengths(own: u64, from: u64, most: u64, _: u64) -> ! {
    for length in 0..=most {
        let Ok(received) = Endpoint(from).receive(None) else {
            stop(own)
        };
        let words = received.words();
        let right = received.length as u64 == length
            && u64::from(received.label) == length
            && (0..).zip(words).all(|(n, word)| *word == pattern(n));
        if right {
            shared(0).fetch_add(1, Ordering::Relaxed);
        }
    }
    stop(own)
}

/// All lengths in registers, between all priorities, whoever comes first.
pub(super) fn lengths() -> Result<(), String> {
    const MOST: u64 = 10;
    for priority in 98..=102 {
        for receiver_first in [false, true] {
            let mut bench = Bench::new()?;
            let endpoint = bench.endpoint()?;
            let (sender, receiver) = (bench.assistant(100)?, bench.assistant(priority)?);
            let mut starts = [
                (sender, send_lengths as super::bench::Body),
                (receiver, receive_lengths),
            ];
            if receiver_first {
                starts.reverse();
            }
            for (assistant, body) in starts {
                assistant.begin(body, [endpoint.0, MOST, 0])?;
            }
            // Both are less urgent than this one: they run while it sleeps.
            asleep_until(|| word(0) > MOST);
            check_eq!(word(0), MOST + 1, alloc::format!("E1 at {priority}"));
            check_eq!(word(1), 0, "E1: the last send");
            bench.finish()?;
        }
    }
    Ok(())
}

pub(super) fn too_long() -> Result<(), String> {
    let bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    for length in [MAX_WORDS as usize + 1, 200, 255] {
        let sent = endpoint.try_send(&Message::new(0).length(length));
        check_eq!(sent, Err(Status::OutOfRange), "E3");
    }
    let sent = endpoint.try_send(&Message::new(0).length(11));
    check_eq!(
        sent,
        Err(Status::InvalidArgument),
        "E3: without a message buffer"
    );
    bench.finish()
}

pub(super) fn nonblocking() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    check_eq!(
        endpoint.try_send(&Message::new(1)),
        Ok(()),
        "E4: nobody receives"
    );
    let nothing = endpoint.try_receive(None).map_err(named)?;
    check_eq!(
        (nothing.badge, nothing.length),
        (0, 0),
        "E4: it was dropped"
    );
    // More urgent than this thread: it waits before this one goes on.
    bench.start(OWN + 1, receive_lengths, [endpoint.0, 1, 0])?;
    check_eq!(
        endpoint.try_send(&patterned(0)),
        Ok(()),
        "E4: somebody receives"
    );
    check!(until(|| word(0) == 1), "E4: it was not delivered");
    bench.finish()
}

extern "C" fn send_once(own: u64, to: u64, value: u64, _: u64) -> ! {
    shared(2).fetch_add(1, Ordering::Relaxed);
    let sent = Endpoint(to).send(&Message::new(7).word(value));
    let status = sent.map_or_else(|status| status as u64, |()| 0);
    shared(value as usize % 8 + 8).store(status + 100, Ordering::Relaxed);
    stop(own)
}

extern "C" fn call_once(own: u64, to: u64, value: u64, _: u64) -> ! {
    shared(2).fetch_add(1, Ordering::Relaxed);
    match Endpoint(to).call(&Message::new(7).word(value)) {
        Ok(answer) => {
            shared(4).store(
                answer.words().first().copied().unwrap_or(0),
                Ordering::Relaxed,
            );
            shared(3).fetch_add(1, Ordering::Relaxed);
        }
        Err(status) => shared(5).store(status as u64, Ordering::Relaxed),
    }
    stop(own)
}

pub(super) fn badge() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    let badged = bench.badged(endpoint.0, 1)?;
    bench.start(OWN, send_once, [badged, 5, 0])?;
    check!(until(|| word(2) == 1), "the sender does not start");
    thread::yield_now();
    let first = endpoint.try_receive(None).map_err(named)?;
    check_eq!((first.badge, first.words()), (1, &[5][..]), "E6");
    let second = endpoint.try_receive(None).map_err(named)?;
    check_eq!((second.badge, second.length), (0, 0), "E6: nothing");
    let copy = bench.minted(badged, RIGHTS_ALL, 0)?;
    bench.start(OWN, send_once, [copy, 6, 0])?;
    let third = endpoint.receive(None).map_err(named)?;
    check_eq!(
        (third.badge, third.words()),
        (1, &[6][..]),
        "E7: by the copy"
    );
    for badge in [2, 0, 1] {
        let to = bench.slot()?;
        let minted = Place::own(to).mint(Place::own(badged), RIGHTS_ALL, badge);
        check_eq!(minted, Err(Status::IllegalOperation), "E8");
    }
    bench.finish()
}

/// A caller whose request was received is stopped, goes on, and is deleted.
pub(super) fn caller_is_stopped() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let caller = bench.start(OWN, call_once, [endpoint.0, 1, 0])?;
    endpoint.receive(Some(reply)).map_err(named)?;
    check_eq!(caller.thread.suspend(), Ok(()), "E9: suspend");
    check_eq!(caller.thread.resume(), Ok(()), "E9: resume");
    check!(until(|| word(5) != 0), "E9: it hangs");
    check_eq!(word(5), Status::Aborted as u64, "E9: the call is over");
    check_eq!(caller.thread.suspend(), Ok(()), "E9: suspend again");
    check_eq!(caller.thread.place().delete(), Ok(()), "E9: delete");
    bench.finish()
}

pub(super) fn rights() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    for rights in 0..16_u64 {
        let weak = Endpoint(bench.minted(endpoint.0, rights, 0)?);
        if rights & WRITE == 0 {
            for sent in [weak.send(&Message::new(1)), weak.try_send(&Message::new(1))] {
                check_eq!(
                    sent,
                    Err(Status::IllegalOperation),
                    alloc::format!("E10: {rights}")
                );
            }
        }
        let called = rights & WRITE != 0 && rights & (GRANT | GRANT_REPLY) != 0;
        if !called {
            let refused = weak.call(&Message::new(1)).map(|_| ());
            check_eq!(
                refused,
                Err(Status::IllegalOperation),
                alloc::format!("call: {rights}")
            );
        }
        if rights & READ == 0 {
            let refused = weak.try_receive(None).map(|_| ());
            check_eq!(
                refused,
                Err(Status::IllegalOperation),
                alloc::format!("receive: {rights}")
            );
        }
        Place::own(weak.0).delete().map_err(named)?;
    }
    let nothing = endpoint.try_receive(None).map_err(named)?;
    check_eq!(
        (nothing.badge, nothing.length),
        (0, 0),
        "E10: something arrived"
    );
    // Write with one of the two is enough for a call.
    for rights in [WRITE | GRANT, WRITE | GRANT_REPLY] {
        let (caller, reply) = (bench.minted(endpoint.0, rights, 0)?, bench.reply()?);
        shared(4).store(0, Ordering::Relaxed);
        bench.start(OWN, call_once, [caller, 3, 0])?;
        let received = endpoint.receive(Some(reply)).map_err(named)?;
        check_eq!(received.words(), &[3][..], "E14: the request");
        check_eq!(reply.answer(&Message::new(0).word(44)), Ok(()), "E14");
        check!(until(|| word(4) == 44), "E14: the answer");
    }
    bench.finish()
}

pub(super) fn one_shot() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    bench.start(OWN, call_once, [endpoint.0, 1, 0])?;
    endpoint.receive(Some(reply)).map_err(named)?;
    check_eq!(reply.answer(&Message::new(0).word(5)), Ok(()), "E16");
    check_eq!(
        reply.answer(&Message::new(0).word(6)),
        Err(Status::NoCaller),
        "E16: again"
    );
    check!(until(|| word(3) == 1), "E16: the caller hangs");
    thread::yield_now();
    check_eq!((word(3), word(4)), (1, 5), "E16: once");
    let free = bench.reply()?;
    check_eq!(
        free.answer(&Message::new(0)),
        Err(Status::NoCaller),
        "a free reply object"
    );
    bench.finish()
}

/// Who is gone is not answered, and nobody in his place.
pub(super) fn dead_caller() -> Result<(), String> {
    for delete in [false, true] {
        let mut bench = Bench::new()?;
        let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
        let caller = bench.start(OWN, call_once, [endpoint.0, 1, 0])?;
        let other = bench.start(OWN, call_once, [endpoint.0, 2, 0])?;
        let first = endpoint.receive(Some(reply)).map_err(named)?;
        check_eq!(first.words(), &[1][..], "E17: first come, first served");
        match delete {
            true => caller.thread.place().delete(),
            false => caller.thread.suspend(),
        }
        .map_err(named)?;
        let dead = reply.answer(&Message::new(0).word(9));
        check_eq!(dead, Err(Status::NoCaller), "E17");
        let also = endpoint
            .reply_receive(reply, &Message::new(0).word(9))
            .map(|_| ());
        check_eq!(also, Err(Status::NoCaller), "E17: with a receive");
        thread::yield_now();
        check_eq!(word(3), 0, "E17: somebody else was answered");
        let second = endpoint.receive(Some(reply)).map_err(named)?;
        check_eq!(second.words(), &[2][..], "E17: the other call");
        check_eq!(
            reply.answer(&Message::new(0).word(2)),
            Ok(()),
            "E17: is answered"
        );
        check!(until(|| word(4) == 2), "E17: the other caller hangs");
        other.thread.suspend().map_err(named)?;
        bench.finish()?;
    }
    Ok(())
}

/// Of senders by differently badged copies exactly one fails.
pub(super) fn cancel_one() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let endpoint = bench.endpoint()?;
    let mut badged = [0; 4];
    for (number, place) in badged.iter_mut().enumerate() {
        *place = bench.badged(endpoint.0, number as u64 + 1)?;
        bench.start(OWN, send_once, [*place, number as u64, 0])?;
    }
    check!(until(|| word(2) == 4), "the senders do not start");
    thread::yield_now();
    Place::own(badged[2]).revoke().map_err(named)?;
    Endpoint(badged[2]).cancel_badged_sends().map_err(named)?;
    check!(until(|| word(10) != 0), "E19: the sender hangs");
    check_eq!(
        word(10),
        100 + Status::Aborted as u64,
        "E19: its send failed"
    );
    check_eq!([8, 9, 11].map(word), [0; 3], "E19: the others wait");
    for wanted in [1, 2, 4] {
        let received = endpoint.receive(None).map_err(named)?;
        check_eq!(received.badge, wanted, "E19: the others arrive");
    }
    bench.finish()
}

extern "C" fn serve(own: u64, from: u64, reply: u64, _: u64) -> ! {
    shared(6).store(1, Ordering::Relaxed);
    let received = Endpoint(from).receive(Some(Reply(reply)));
    shared(6).store(2 + u64::from(received.is_err()), Ordering::Relaxed);
    stop(own)
}

/// Who was received stays as he is until the reply object goes; who was not stays queued.
pub(super) fn dead_server() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let server = bench.start(OWN, serve, [endpoint.0, reply.0, 0])?;
    check!(until(|| word(6) == 1), "the server does not start");
    bench.start(OWN, call_once, [endpoint.0, 1, 0])?;
    check!(until(|| word(6) == 2), "E21: the call is not received");
    bench.start(OWN, call_once, [endpoint.0, 2, 0])?;
    check!(until(|| word(2) == 2), "the second caller does not start");
    thread::yield_now();
    check_eq!(server.thread.place().delete(), Ok(()), "E21: the server");
    thread::yield_now();
    check_eq!((word(3), word(5)), (0, 0), "E21: both wait");
    // Another one that holds the reply object answers in the server's place.
    check_eq!(
        reply.answer(&Message::new(0).word(1)),
        Ok(()),
        "E21: the first is answered"
    );
    check!(until(|| word(3) == 1), "E21: the first hangs");
    let second = endpoint.receive(Some(reply)).map_err(named)?;
    check_eq!(second.words(), &[2][..], "E21: the second is queued still");
    check_eq!(reply.place().delete(), Ok(()), "E21: the reply object");
    check!(
        until(|| word(5) == Status::Aborted as u64),
        "E21: the second hangs"
    );
    bench.finish()
}

extern "C" fn echo(own: u64, from: u64, reply: u64, _: u64) -> ! {
    let (endpoint, reply) = (Endpoint(from), Reply(reply));
    let mut received = endpoint.receive(Some(reply));
    loop {
        let Ok(message) = received else { stop(own) };
        let sum = message
            .words()
            .iter()
            .fold(0, |sum: u64, w| sum.wrapping_add(*w));
        let answer = Message::new(message.label).words(message.words()).word(sum);
        received = endpoint.reply_receive(reply, &answer);
    }
}

/// A server without time of its own answers on its callers'.
pub(super) fn passive_server() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    let server = bench.assistant(OWN + 1)?;
    server.begin(echo, [endpoint.0, reply.0, 0])?;
    thread::yield_now();
    // It waits now; from here on it has no time but its callers'.
    server.context.unbind().map_err(named)?;
    for length in 0..9_u64 {
        let answer = endpoint.call(&patterned(length)).map_err(named)?;
        check_eq!(u64::from(answer.label), length, "label");
        check_eq!(answer.length as u64, length + 1, "length");
        let words = answer.words();
        let same = (0..length).zip(words).all(|(n, word)| *word == pattern(n));
        let sum = (0..length).fold(0, |sum: u64, n| sum.wrapping_add(pattern(n)));
        check!(
            same && words.last() == Some(&sum),
            "words of length {length}"
        );
    }
    bench.finish()
}

/// A server without time of its own that answers one caller and finds the next one waiting goes on
/// with it, on its time.
pub(super) fn queued_callers() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
    // Less urgent than its callers: all of them call before it answers the first.
    let server = bench.assistant(OWN - 1)?;
    server.begin(echo, [endpoint.0, reply.0, 0])?;
    // An answer and the wait for the next call are one step.
    endpoint.call(&Message::new(1)).map_err(named)?;
    server.context.unbind().map_err(named)?;
    for number in [1, 2, 3] {
        bench.start(OWN, call_once, [endpoint.0, number, 0])?;
    }
    check!(
        asleep_until(|| word(3) == 3),
        "E23: {} of 3 callers are answered",
        word(3)
    );
    bench.finish()
}

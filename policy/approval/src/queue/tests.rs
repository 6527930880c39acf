//! The queue at its boundaries, with a clock of the test's.

use super::*;
use proptest::prelude::*;

const TICK: Duration = Duration::from_nanos(1);

fn question(object: &str) -> Question {
    Question {
        capability: "tool.call".to_owned(),
        object: object.to_owned(),
        why: "it may destroy something".to_owned(),
        task: None,
    }
}

fn of_task(object: &str, task: &str) -> Question {
    Question {
        task: Some(task.to_owned()),
        ..question(object)
    }
}

#[track_caller]
fn waits(asked: Asked) -> u64 {
    match asked {
        Asked::Waits(id) => id,
        Asked::Decided(decision) => panic!("decided: {decision:?}"),
    }
}

fn decided(asked: Asked) -> Option<Decision> {
    match asked {
        Asked::Waits(_) => None,
        Asked::Decided(decision) => Some(decision),
    }
}

#[test]
fn a_question_is_denied_after_120_seconds_and_not_before() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let id = waits(queue.ask("a", question("x"), now));
    let end = now + Duration::from_secs(120);
    assert_eq!(queue.next_deadline(), Some(end));
    assert_eq!(queue.expire(end - TICK), []);
    assert_eq!(
        queue.allow(id, Scope::Once, end),
        Err(NotPending(id)),
        "too late"
    );
    assert_eq!(queue.deny(id, end), Err(NotPending(id)));
    let settled = queue.expire(end);
    assert_eq!(
        (settled.len(), settled[0].decision),
        (1, Decision::TimedOut)
    );
    assert_eq!((queue.expire(end).len(), queue.next_deadline()), (0, None));
    let id = waits(queue.ask("a", question("x"), now));
    assert!(
        queue.allow(id, Scope::Once, end - TICK).is_ok(),
        "just in time"
    );
}

#[test]
fn the_sixth_question_of_a_partition_is_denied_at_once() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let ids: Vec<u64> = (0..5)
        .map(|n| waits(queue.ask("a", question(&n.to_string()), now)))
        .collect();
    assert_eq!(
        decided(queue.ask("a", question("5"), now)),
        Some(Decision::TooMany)
    );
    assert!(
        decided(queue.ask("b", question("5"), now)).is_none(),
        "another partition has its own five"
    );
    queue.deny(ids[2], now).unwrap();
    assert!(decided(queue.ask("a", question("5"), now)).is_none());
    assert_eq!(
        decided(queue.ask("a", question("6"), now)),
        Some(Decision::TooMany)
    );
    assert_eq!(queue.expire(now + PATIENCE).len(), 6);
    assert!(decided(queue.ask("a", question("6"), now + PATIENCE)).is_none());
}

#[test]
fn a_scope_is_remembered_for_the_same_and_its_time() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let time = Duration::from_secs(60);
    let id = waits(queue.ask("a", question("x"), now));
    let later = now + Duration::from_secs(10);
    assert_eq!(
        queue.allow(id, Scope::For(time), later).unwrap()[0].decision,
        Decision::Allowed(Scope::For(time))
    );
    let remembered = Some(Decision::Remembered(id, Scope::For(time)));
    assert_eq!(decided(queue.ask("a", question("x"), later)), remembered);
    let in_other_words = Question {
        why: "other".to_owned(),
        ..question("x")
    };
    assert_eq!(decided(queue.ask("a", in_other_words, later)), remembered);
    assert_eq!(
        decided(queue.ask("a", question("x"), later + time - TICK)),
        remembered
    );
    let other = Question {
        capability: "exec".to_owned(),
        ..question("x")
    };
    for (partition, question) in [("b", question("x")), ("a", question("xy")), ("a", other)] {
        assert_eq!(decided(queue.ask(partition, question, later)), None);
    }
    assert_eq!(
        decided(queue.ask("a", question("x"), later + time)),
        None,
        "its end does not belong to it"
    );
    assert_eq!(
        decided(queue.ask("a", question("x"), later)),
        None,
        "and is final"
    );
}

#[test]
fn once_is_once_and_a_denial_is_not_remembered() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let id = waits(queue.ask("a", question("x"), now));
    let same = waits(queue.ask("a", question("x"), now));
    assert_eq!(
        queue.allow(id, Scope::Once, now).unwrap().len(),
        1,
        "the same question waits on"
    );
    assert_eq!(
        queue.allow(id, Scope::Once, now),
        Err(NotPending(id)),
        "an answer is one answer"
    );
    queue.deny(same, now).unwrap();
    assert!(waits(queue.ask("a", question("x"), now)) > same);
}

#[test]
fn a_task_is_the_same_task() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let id = waits(queue.ask("a", of_task("x", "t"), now));
    queue.allow(id, Scope::Task, now).unwrap();
    assert!(decided(queue.ask("a", of_task("x", "t"), now)).is_some());
    assert!(decided(queue.ask("a", of_task("x", "u"), now)).is_none());
    assert!(decided(queue.ask("a", question("x"), now)).is_none());
    let none = waits(queue.ask("b", question("x"), now));
    queue.allow(none, Scope::Task, now).unwrap();
    assert!(
        decided(queue.ask("b", question("x"), now)).is_none(),
        "without a task it is once"
    );
}

#[test]
fn a_session_ends_with_its_partition() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let id = waits(queue.ask("a", question("x"), now));
    queue.allow(id, Scope::Session, now).unwrap();
    let much_later = now + Duration::from_secs(1_000_000);
    assert!(decided(queue.ask("a", question("x"), much_later)).is_some());
    let waiting = waits(queue.ask("a", question("y"), much_later));
    let other = waits(queue.ask("b", question("y"), much_later));
    let ended = queue.end("a");
    assert_eq!(
        (ended.len(), ended[0].pending.id, ended[0].decision),
        (1, waiting, Decision::Ended)
    );
    assert_eq!(queue.pending()[0].id, other);
    assert!(decided(queue.ask("a", question("x"), much_later)).is_none());
}

#[test]
fn a_wide_answer_settles_what_waits_as_well() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let old = waits(queue.ask("a", question("x"), now));
    let first = waits(queue.ask("a", question("x"), now + Duration::from_secs(60)));
    let second = waits(queue.ask("a", question("x"), now + Duration::from_secs(60)));
    let other = waits(queue.ask("a", question("y"), now + Duration::from_secs(60)));
    let settled = queue.allow(first, Scope::Session, now + PATIENCE).unwrap();
    let ids: Vec<u64> = settled.iter().map(|settled| settled.pending.id).collect();
    assert_eq!(ids, [first, second], "not {old}, whose time is over");
    assert_eq!(
        settled[1].decision,
        Decision::Remembered(first, Scope::Session)
    );
    assert_eq!(
        queue
            .pending()
            .iter()
            .map(|pending| pending.id)
            .collect::<Vec<_>>(),
        [old, other]
    );
}

proptest! {
    /// Whatever happens: nothing is allowed that no person allowed, no partition has more than five
    /// questions waiting, and each question is settled once.
    #[test]
    fn nothing_is_allowed_by_itself(steps in prop::collection::vec((0..5_u8, 0..3_u8, 0..3_u8, 0..100_u64), 0..80)) {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let mut open = std::collections::BTreeSet::new();
        let mut consents = 0;
        for (act, partition, object, seconds) in steps {
            let partition = format!("p{partition}");
            let settled = match act {
                0 | 1 => {
                    match queue.ask(&partition, question(&format!("o{object}")), now) {
                        Asked::Waits(id) => prop_assert!(open.insert(id)),
                        Asked::Decided(decision) => prop_assert!(!decision.allows() || consents > 0),
                    }
                    Vec::new()
                }
                2 => {
                    now += Duration::from_secs(seconds);
                    queue.expire(now)
                }
                3 => {
                    let id = queue.pending().get(usize::from(object)).map(|pending| pending.id);
                    let scope = Scope::For(Duration::from_secs(seconds + 1));
                    consents += u32::from(id.is_some());
                    id.map_or(Ok(Vec::new()), |id| queue.allow(id, scope, now)).unwrap()
                }
                _ => queue.end(&partition),
            };
            for settled in settled {
                prop_assert!(open.remove(&settled.pending.id));
                prop_assert!(!settled.decision.allows() || act == 3);
            }
            for n in 0..3 {
                let own = queue.pending().iter().filter(|pending| pending.partition == format!("p{n}"));
                prop_assert!(own.count() <= MAX_PENDING);
            }
        }
    }
}

//! Limits, to the call and to the millisecond, with a clock that the tests move.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::{Bench, Setup, Watch};
use bulkhead_capability::{Constraints, Grant, Quota};
use bulkhead_record::Kind;
use bulkhead_toolbox::{Limits, Risk, ToolLimit};
use serde_json::json;
use tools::CallError;
use tools::limiter::Limiter;
use tools::registry::Facts;

const fn facts(name: &'static str, risk: Risk) -> Facts {
    Facts {
        name,
        version: "1",
        summary: "",
        needs: "",
        risk,
        idempotent: false,
        rollback: None,
        timeout: Duration::ZERO,
    }
}

const WRITE: Facts = facts("t.write", Risk::Write);
const DESTROY: Facts = facts("t.destroy", Risk::Destructive);
const NETWORK: Facts = facts("t.network", Risk::Network);

fn limiter(limits: Limits, shared: Option<File>) -> (Limiter, Watch) {
    let watch = Watch::default();
    watch.0.store(1_000_000, Ordering::SeqCst);
    (
        Limiter::new(limits, None, shared, None, Box::new(watch.clone())),
        watch,
    )
}

fn pass(watch: &Watch, millis: u64) {
    watch.0.fetch_add(millis, Ordering::SeqCst);
}

#[test]
fn a_partition_may_call_exactly_so_often_in_any_minute() {
    let (limiter, watch) = limiter(Limits::default(), None);
    for (most, facts) in [(20, &WRITE), (30, &NETWORK)] {
        for _ in 0..most {
            limiter.permit(facts, &[]).unwrap();
            pass(&watch, 1);
        }
        assert!(limiter.permit(facts, &[]).is_err(), "{}", facts.name);
        // The first was so many milliseconds ago.
        pass(&watch, 60_000 - most - 1);
        assert!(limiter.permit(facts, &[]).is_err(), "{}", facts.name);
        pass(&watch, 1);
        limiter.permit(facts, &[]).unwrap();
        assert!(limiter.permit(facts, &[]).is_err(), "{}", facts.name);
        pass(&watch, 60_000);
    }
    for _ in 0..60 {
        limiter.begin().unwrap();
    }
    let refused = limiter.begin().unwrap_err();
    assert!(refused.first);
    assert!(
        refused.reason.ends_with("again in 60 seconds"),
        "{}",
        refused.reason
    );
    assert!(!limiter.begin().unwrap_err().first);
}

#[test]
fn a_destructive_call_is_a_write_too() {
    let (limiter, _) = limiter(Limits::default(), None);
    for _ in 0..5 {
        limiter.permit(&DESTROY, &[]).unwrap();
    }
    assert!(limiter.permit(&DESTROY, &[]).is_err());
    for _ in 0..15 {
        limiter.permit(&WRITE, &[]).unwrap();
    }
    assert!(limiter.permit(&WRITE, &[]).is_err());
}

#[test]
fn a_tool_has_a_limit_and_a_cool_down_of_its_own() {
    let mut limits = Limits::default();
    let limit = ToolLimit {
        per_minute: Some(2),
        cooldown: Some(5),
    };
    limits.tool.insert("t.write".to_owned(), limit);
    let (limiter, watch) = limiter(limits, None);
    limiter.permit(&WRITE, &[]).unwrap();
    pass(&watch, 4_999);
    assert!(
        limiter
            .permit(&WRITE, &[])
            .unwrap_err()
            .reason
            .contains("cool down")
    );
    limiter.permit(&DESTROY, &[]).unwrap();
    pass(&watch, 1);
    limiter.permit(&WRITE, &[]).unwrap();
    pass(&watch, 54_999);
    assert!(
        limiter
            .permit(&WRITE, &[])
            .unwrap_err()
            .reason
            .contains("2 times a minute")
    );
    pass(&watch, 1);
    limiter.permit(&WRITE, &[]).unwrap();
}

#[test]
fn a_cool_down_may_be_longer_than_a_minute() {
    let mut limits = Limits::default();
    let limit = ToolLimit {
        per_minute: None,
        cooldown: Some(600),
    };
    limits.tool.insert("t.write".to_owned(), limit);
    let (limiter, watch) = limiter(limits, None);
    limiter.permit(&WRITE, &[]).unwrap();
    pass(&watch, 599_999);
    assert!(limiter.permit(&WRITE, &[]).is_err());
    pass(&watch, 1);
    limiter.permit(&WRITE, &[]).unwrap();
}

#[test]
fn all_partitions_share_one_limit() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || {
        let file = File::options().read(true).write(true).open(file.path());
        Some(file.unwrap())
    };
    let mut limits = Limits::default();
    limits.all.writes = 30;
    let (first, _) = limiter(limits.clone(), open());
    let (second, watch) = limiter(limits, open());
    for _ in 0..20 {
        first.permit(&WRITE, &[]).unwrap();
    }
    for _ in 0..10 {
        second.permit(&WRITE, &[]).unwrap();
    }
    let refused = second.permit(&WRITE, &[]).unwrap_err();
    assert!(
        refused.reason.contains("all partitions"),
        "{}",
        refused.reason
    );
    pass(&watch, 59_999);
    assert!(second.permit(&WRITE, &[]).is_err());
    pass(&watch, 1);
    second.permit(&WRITE, &[]).unwrap();
}

#[test]
fn what_another_start_of_the_host_counted_does_not_count() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || {
        let file = File::options().read(true).write(true).open(file.path());
        Some(file.unwrap())
    };
    let mut limits = Limits::default();
    limits.all.writes = 1;
    let (before, late) = limiter(limits.clone(), open());
    late.0.store(u64::MAX, Ordering::SeqCst);
    before.permit(&WRITE, &[]).unwrap();
    let (after, _) = limiter(limits, open());
    after.permit(&WRITE, &[]).unwrap();
    assert!(after.permit(&WRITE, &[]).is_err());
}

#[test]
fn a_file_of_counters_that_makes_no_sense_lets_nothing_through_for_a_minute() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // As a kill left it that cut a shorter count off before the rest of a longer one.
    for nonsense in ["nonsense", "{\"calls\":[1]}1]}"] {
        std::fs::write(file.path(), nonsense).unwrap();
        let open = File::options().read(true).write(true).open(file.path());
        let (limiter, watch) = limiter(Limits::default(), Some(open.unwrap()));
        let refused = limiter.permit(&WRITE, &[]).unwrap_err().reason;
        assert!(
            refused.ends_with("is lost, so it counts as too often; again in 60 seconds"),
            "{refused}"
        );
        pass(&watch, 59_999);
        assert!(limiter.permit(&WRITE, &[]).is_err());
        pass(&watch, 1);
        limiter.permit(&WRITE, &[]).unwrap();
    }
}

#[test]
fn a_second_process_begins_with_what_the_first_has_counted() {
    let file = tempfile::tempfile().unwrap();
    let watch = Watch::default();
    watch.0.store(1_000_000, Ordering::SeqCst);
    let mut limits = Limits::default();
    let limit = ToolLimit {
        per_minute: None,
        cooldown: Some(600),
    };
    limits.tool.insert("t.destroy".to_owned(), limit);
    let process = || {
        let kept = Some(file.try_clone().unwrap());
        Limiter::new(limits.clone(), None, None, kept, Box::new(watch.clone()))
    };
    let first = process();
    for _ in 0..60 {
        first.begin().unwrap();
    }
    first.permit(&DESTROY, &[]).unwrap();
    for _ in 0..3 {
        first.permit(&WRITE, &[("both", 3)]).unwrap();
    }
    drop(first);
    let second = process();
    assert!(second.begin().is_err());
    let refused = |facts, quotas| second.permit(facts, quotas).unwrap_err().reason;
    assert!(refused(&DESTROY, &[]).contains("cool down"));
    assert!(refused(&WRITE, &[("both", 3)]).contains("the grant both allows 3"));
    pass(&watch, 60_000);
    second.begin().unwrap();
    second.permit(&WRITE, &[("both", 3)]).unwrap();
    assert!(refused(&DESTROY, &[]).contains("cool down"));
}

#[test]
fn a_budget_is_for_the_life_of_a_partition() {
    let file = tempfile::tempfile().unwrap();
    let watch = Watch::default();
    watch.0.store(1_000_000, Ordering::SeqCst);
    let process = || {
        let kept = Some(file.try_clone().unwrap());
        let limits = Limits::default();
        Limiter::new(limits, Some(10), None, kept, Box::new(watch.clone()))
    };
    let first = process();
    for call in 1..=7 {
        first.permit(&DESTROY, &[]).unwrap();
        assert!(!first.take_alert(), "{call}");
        pass(&watch, 60_000);
    }
    drop(first);
    let second = process();
    for (call, alert) in [(8, true), (9, false), (10, false)] {
        second.permit(&NETWORK, &[]).unwrap();
        assert_eq!(second.take_alert(), alert, "{call}");
    }
    // Waiting is of no use, and one refusal is told.
    for first in [true, false, false] {
        pass(&watch, 600_000);
        let refused = second.permit(&WRITE, &[]).unwrap_err();
        assert!(refused.reason.contains("the 10 calls of its budget"));
        assert_eq!(refused.first, first);
    }
    let third = process();
    assert!(third.permit(&WRITE, &[]).is_err() && !third.take_alert());
    // A refused call spends nothing: whatever is refused is not made.
    third.begin().unwrap();
}

#[test]
fn a_budget_that_is_spent_is_said_also_in_a_flood() {
    let watch = Watch::default();
    let limits = Limits::default();
    let limiter = Limiter::new(limits, Some(6), None, None, Box::new(watch.clone()));
    for _ in 0..5 {
        limiter.permit(&DESTROY, &[]).unwrap();
    }
    // Too many in a minute, and then too many in all.
    assert!(limiter.permit(&DESTROY, &[]).unwrap_err().first);
    pass(&watch, 60_000);
    limiter.permit(&DESTROY, &[]).unwrap();
    assert!(limiter.permit(&DESTROY, &[]).unwrap_err().first);
    assert!(!limiter.permit(&DESTROY, &[]).unwrap_err().first);
}

#[test]
fn a_budget_whose_count_is_lost_is_spent() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"no counter", 0).unwrap();
    let watch = Watch::default();
    watch.0.store(1_000_000, Ordering::SeqCst);
    let process = || {
        let kept = Some(file.try_clone().unwrap());
        let limits = Limits::default();
        Limiter::new(limits, Some(1_000_000), None, kept, Box::new(watch.clone()))
    };
    for _ in 0..2 {
        let limiter = process();
        let refused = limiter.permit(&WRITE, &[]).unwrap_err().reason;
        assert!(
            refused.ends_with("budget of 1000000 calls counts as spent"),
            "{refused}"
        );
        pass(&watch, 60_000);
        // The file is whole again, and does not say otherwise.
        limiter.begin().unwrap();
    }
    // Who has no budget goes on.
    let kept = Some(file.try_clone().unwrap());
    let limiter = Limiter::new(Limits::default(), None, None, kept, Box::new(watch.clone()));
    limiter.permit(&WRITE, &[]).unwrap();
}

#[test]
fn of_a_budget_four_fifths_and_the_end_are_on_record() {
    let bench = Bench::of(Setup {
        budget: Some(5),
        ..Setup::default()
    });
    let stat = json!({ "path": bench.data });
    for _ in 0..3 {
        bench.call("fs.stat", stat.clone()).unwrap();
    }
    let before = bench.kinds().len();
    bench.call("fs.stat", stat.clone()).unwrap();
    use Kind::{Intent, Outcome, Refusal};
    assert_eq!(bench.kinds()[before..], [Intent, Outcome, Outcome]);
    let alert = bench.ledger.entries.lock().unwrap()[before + 1].clone();
    assert_eq!(alert.action, "tool.budget");
    assert_eq!(
        alert.intent,
        Some(before as u64 + 1),
        "indices begin at 1 here"
    );
    bench.call("fs.stat", stat.clone()).unwrap();
    let before = bench.kinds().len();
    for _ in 0..10 {
        let refused = bench.call("fs.stat", stat.clone()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the partition has made the 5 calls of its budget, and may make no more"
        );
    }
    assert_eq!(bench.kinds()[before..], [Refusal]);
}

#[test]
fn refused_calls_count_and_only_the_first_of_a_flood_is_recorded() {
    let bench = Bench::with(Limits::default(), &["fs.stat"], &[]);
    for _ in 0..60 {
        assert!(matches!(
            bench.call("no.tool", json!({})),
            Err(CallError::Unknown(_))
        ));
    }
    for _ in 0..1000 {
        assert!(matches!(
            bench.call("no.tool", json!({})),
            Err(CallError::TooOften(_))
        ));
    }
    assert_eq!(bench.kinds(), [Kind::Refusal; 61]);
    bench.watch.0.fetch_add(60_000, Ordering::SeqCst);
    let stat = json!({ "path": bench.data });
    bench.call("fs.stat", stat).unwrap();
}

/// `tool.call` of these names under these constraints.
fn grant(names: &str, constrain: impl FnOnce(&mut Constraints)) -> Grant {
    let mut constraints = Constraints::default();
    constrain(&mut constraints);
    Grant::new(format!("tool.call:{names}").parse().unwrap(), constraints).unwrap()
}

fn quota(name: &str, calls: u64) -> BTreeMap<String, Quota> {
    let quota = Quota {
        calls_per_minute: Some(calls),
        bytes: None,
    };
    BTreeMap::from([(name.to_owned(), quota)])
}

#[test]
fn grants_of_one_quota_share_it() {
    let more = ["fs.stat", "fs.list"];
    let more = more.map(|tool| grant(tool, |constraints| constraints.quotas = quota("both", 3)));
    let bench = Bench::with_grants(Limits::default(), &[], &[], more.to_vec());
    let path = json!({ "path": bench.data });
    bench.call("fs.stat", path.clone()).unwrap();
    bench.call("fs.list", path.clone()).unwrap();
    bench.call("fs.list", path.clone()).unwrap();
    for tool in more.map(|grant| grant.capability().to_string()) {
        let tool = tool.strip_prefix("tool.call:").unwrap();
        let refused = bench.call(tool, path.clone()).unwrap_err();
        assert!(
            refused.to_string().contains("the grant both allows 3"),
            "{refused}"
        );
    }
    pass(&bench.watch, 60_000);
    bench.call("fs.stat", path).unwrap();
}

#[test]
fn a_grant_ends_and_its_tool_is_gone() {
    let more = vec![grant("fs.stat", |constraints| {
        constraints.lifetime = Some(10)
    })];
    let bench = Bench::with_grants(Limits::default(), &[], &[], more);
    let path = json!({ "path": bench.data });
    pass(&bench.watch, 9_999);
    bench.call("fs.stat", path.clone()).unwrap();
    assert_eq!(bench.pipeline.tools().count(), 1);
    pass(&bench.watch, 1);
    assert_eq!(bench.pipeline.tools().count(), 0);
    let gone = bench.call("fs.stat", path).unwrap_err();
    assert!(matches!(gone, CallError::Unknown(_)), "{gone:?}");
}

#[test]
fn a_grant_that_ends_while_a_person_thinks_lets_nothing_be_done() {
    let more = vec![grant("fs.write", |constraints| {
        constraints.lifetime = Some(10);
        constraints.approval = true;
    })];
    let bench = Bench::with_grants(Limits::default(), &[], &[], more);
    bench.person.allows.store(true, Ordering::SeqCst);
    let write = |name: &str| {
        let file = bench.data.join(name);
        let done = bench.call("fs.write", json!({ "path": file, "content": "x" }));
        (done, file.exists())
    };
    assert!(matches!(write("in time"), (Ok(_), true)));
    let watch = bench.watch.clone();
    let happens: Box<dyn FnOnce() + Send> = Box::new(move || pass(&watch, 10_000));
    *bench.person.meanwhile.lock().unwrap() = Some(happens);
    let (refused, written) = write("too late");
    assert!(
        matches!(refused, Err(CallError::NotPermitted(_))),
        "{refused:?}"
    );
    assert!(!written);
    let last = bench.last_entry();
    assert_eq!(last.kind, Kind::Refusal);
    assert!(last.reason.contains("ended before"), "{}", last.reason);
}

#[test]
fn a_grant_holds_below_its_directories_and_may_ask_a_person() {
    let more = vec![
        grant("fs.stat", |constraints| {
            constraints.below = Some(vec!["/nowhere".into()])
        }),
        grant("fs.list", |constraints| constraints.approval = true),
    ];
    let bench = Bench::with_grants(Limits::default(), &[], &[], more);
    let path = json!({ "path": bench.data });
    let refused = bench.call("fs.stat", path.clone()).unwrap_err();
    assert!(matches!(refused, CallError::NotPermitted(_)), "{refused:?}");
    let denied = bench.call("fs.list", path.clone()).unwrap_err();
    assert!(matches!(denied, CallError::NotConfirmed(_)), "{denied:?}");
    bench.person.allows.store(true, Ordering::SeqCst);
    bench.call("fs.list", path).unwrap();
}

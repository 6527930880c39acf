//! Other conditions for a partition that runs, with a script in the place of `bulkhead-decision`.

use super::*;
use crate::control::{HeldConditions, NewConditions, conditions, reload};
use bulkhead_capability::Adherence;

const OLD: &str = "permit(principal, action, resource);";
const NEW: &str = "forbid(principal, action, resource);";
/// What the script needs beside the prelude: the command that comes, and the answer to it.
const ANSWERS: &str = r#"
reloaded() { printf '{"event":"reloaded","id":%d,"outcome":%s}' "$id" "$1" >&"$control"; }
take() { id=$(request | sed -n 's/.*"id":\([0-9]*\).*/\1/p'); }
printf '{"event":"running","jail_gaps":[]}' >&"$control"
"#;

/// A partition `a` whose conditions are answered for by `script`.
fn house(script: &str) -> House {
    let mut house = House::new("running; exec sleep 1000");
    let decision = house.library.path().join("bulkhead-decision");
    program(&decision, &format!("{PRELUDE}{ANSWERS}{script}\n"));
    let held = Arc::new(PartitionConditions {
        text: OLD.to_owned(),
        world: Vec::new(),
        lineage: Vec::new(),
        adherence: Adherence::Learn,
        inherited: Vec::new(),
    });
    house.conditions.insert("a".to_owned(), held);
    house
}

fn new(widen: bool) -> NewConditions {
    NewConditions {
        file: "new.cedar".to_owned(),
        text: NEW.to_owned(),
        widen,
        of: None,
    }
}

fn refusal(answer: &Answer) -> (&str, &str) {
    match answer {
        Answer::Refused { code, message, .. } => (code, message),
        other => panic!("it was done: {other:?}"),
    }
}

/// Records about conditions: kind, verdict, reason, details.
fn recorded(house: &House) -> Vec<String> {
    let entries = house.writer.entries();
    let own = entries
        .iter()
        .filter(|entry| entry.action == "policy.reload");
    own.map(|entry| {
        assert_eq!(entry.actor, "test/a");
        let detail = |name: &str| entry.detail.get(name).map_or("", |value| value.as_str());
        let sha = |name| {
            let text = [OLD, NEW]
                .into_iter()
                .find(|text| detail(name) == crate::conditions::digest(text));
            match text {
                Some(OLD) => "old",
                Some(_) => "new",
                None => "",
            }
        };
        let more = match entry.intent {
            None => format!("{} widen={}", entry.object, detail("widen")),
            Some(_) => format!("widened={} {}", detail("widened"), entry.reason),
        };
        let (old, new) = (sha("old"), sha("new"));
        format!(
            "{} {} {old} {new} {}",
            entry.kind,
            entry.verdict,
            more.trim_end()
        )
    })
    .collect()
}

fn held(house: &House) -> HeldConditions {
    let found = house.root.find("test").unwrap();
    conditions(&found, "a").unwrap().unwrap()
}

/// Waits until this many records about conditions are there.
fn wait_for_records(house: &House, many: usize) {
    let end = Instant::now() + PATIENCE;
    while recorded(house).len() < many {
        assert!(Instant::now() < end, "{:?}", recorded(house));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn conditions_of_an_ancestor_are_replaced_as_well_and_those_of_nobody_else() {
    let script = r#"take; reloaded '{"outcome":"done","widened":null}'; exec sleep 1000"#;
    let mut house = house(script);
    let held_by = |house: &House| PartitionConditions::clone(&house.conditions["a"]);
    let inherited = |ancestor: &str| crate::Inherited {
        ancestor: ancestor.to_owned(),
        text: OLD.to_owned(),
        learn: false,
        world: Vec::new(),
    };
    let family = PartitionConditions {
        inherited: ["boss", "chief"].map(inherited).into(),
        ..held_by(&house)
    };
    house.conditions.insert("a".to_owned(), Arc::new(family));
    ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        let of = |ancestor: &str| NewConditions {
            of: Some(ancestor.to_owned()),
            ..new(false)
        };
        let answer = reload(&found, "a", of("nobody")).unwrap();
        assert_eq!(refusal(&answer).0, "no-conditions");
        let answer = reload(&found, "a", of("chief")).unwrap();
        assert!(matches!(answer, Answer::Reloaded { .. }), "{answer:?}");
        let held = held(house).conditions;
        let inherited = held.inherited.iter().map(|inherited| &*inherited.text);
        assert_eq!(inherited.collect::<Vec<_>>(), [OLD, NEW]);
        assert_eq!(held.text, OLD);
        wait_for_records(house, 2);
        let entries = house.writer.entries();
        let intent = entries.iter().find(|entry| entry.action == "policy.reload");
        assert_eq!(intent.unwrap().detail["of"], "chief");
        signals.write_all(&[15]).unwrap();
    });
    assert_eq!(
        recorded(&house),
        [
            "intent allowed old new new.cedar widen=may not",
            "outcome done old new widened=no",
        ]
    );
}

#[test]
fn what_holds_from_now_on_is_known_and_on_record() {
    let house = house(
        r#"take; reloaded '{"outcome":"done","widened":"permit `x` is new"}'; exec sleep 1000"#,
    );
    let outcome = ended_by(&house, |house, signals| {
        assert_eq!(held(house).conditions.text, OLD);
        let found = house.root.find("test").unwrap();
        let answer = reload(&found, "a", new(true)).unwrap();
        let Answer::Reloaded {
            conditions,
            widened,
        } = answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!(conditions, crate::conditions::digest(NEW));
        assert_eq!(widened.as_deref(), Some("permit `x` is new"));
        let held = held(house);
        assert_eq!((held.conditions.text.as_str(), held.answered), (NEW, true));
        assert_eq!(held.conditions.adherence, Adherence::Learn);
        let partition = &crate::control::status(&found).partitions[0];
        assert_eq!(partition.conditions, Some(Adherence::Learn));
        wait_for_records(house, 2);
        signals.write_all(&[15]).unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Signal(15)));
    assert_eq!(
        recorded(&house),
        [
            "intent allowed old new new.cedar widen=may",
            "outcome done old new widened=permit `x` is new",
        ]
    );
}

#[test]
fn what_is_refused_changes_nothing_and_is_on_record() {
    let house = house(
        r#"take; reloaded '{"outcome":"refused","code":"conditions-wider","message":"no"}'; exec sleep 1000"#,
    );
    ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        let answer = reload(&found, "a", new(false)).unwrap();
        let said = ("conditions-wider", "no; those that held still hold");
        assert_eq!(refusal(&answer), said);
        assert_eq!(held(house).conditions.text, OLD);
        wait_for_records(house, 2);
        signals.write_all(&[15]).unwrap();
    });
    assert_eq!(
        recorded(&house),
        [
            "intent allowed old new new.cedar widen=may not",
            "outcome failed old new widened= no; those that held still hold",
        ]
    );
}

/// While it is asked, and when somebody asks it again.
#[test]
fn nothing_holds_any_more_when_the_process_is_gone() {
    for script in [
        "take; exit 1",
        "take; printf nonsense >&$control; exec sleep 1000",
    ] {
        let house = house(script);
        ended_by(&house, |house, signals| {
            let found = house.root.find("test").unwrap();
            for _ in 0..2 {
                let answer = reload(&found, "a", new(false)).unwrap();
                assert_eq!(refusal(&answer).0, "conditions-gone");
            }
            assert!(!held(house).answered);
            wait_for_records(house, 4);
            signals.write_all(&[15]).unwrap();
        });
        let recorded = recorded(&house);
        assert!(
            recorded[1].starts_with("outcome failed old new"),
            "{recorded:?}"
        );
        assert!(
            recorded[3].starts_with("outcome failed old new"),
            "{recorded:?}"
        );
    }
}

#[test]
fn one_thing_is_checked_at_a_time() {
    let house = house("take; touch \"$0.taken\"; exec sleep 1000");
    ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        let taken = house.library.path().join("bulkhead-decision.taken");
        thread::scope(|scope| {
            let first = scope.spawn(|| reload(&found, "a", new(false)).unwrap());
            let end = Instant::now() + PATIENCE;
            while !taken.exists() {
                assert!(Instant::now() < end, "it is not asked");
                thread::sleep(Duration::from_millis(5));
            }
            let second = reload(&found, "a", new(false)).unwrap();
            assert_eq!(refusal(&second).0, "conditions-busy");
            // The end of the partition is an answer, too.
            signals.write_all(&[15]).unwrap();
            assert_eq!(refusal(&first.join().unwrap()).0, "conditions-gone");
        });
    });
    let recorded = recorded(&house);
    assert_eq!(recorded.len(), 2, "{recorded:?}");
    assert!(
        recorded[1].ends_with("the partition has ended"),
        "{recorded:?}"
    );
}

#[test]
fn who_has_no_conditions_is_given_none() {
    let house = House::new("running; exec sleep 1000");
    ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        assert_eq!(conditions(&found, "a").unwrap(), None);
        let answer = reload(&found, "a", new(true)).unwrap();
        let said = (
            "no-conditions",
            "partition `a` was started without conditions",
        );
        assert_eq!(refusal(&answer), said);
        let answer = reload(&found, "c", new(true)).unwrap();
        assert_eq!(refusal(&answer).0, "no-such-partition");
        signals.write_all(&[15]).unwrap();
    });
    assert!(recorded(&house).is_empty());
}

#[test]
fn what_cannot_be_recorded_is_not_passed_on() {
    let house = house("take; touch \"$0.taken\"; exec sleep 1000");
    ended_by(&house, |house, signals| {
        house.writer.fill();
        let found = house.root.find("test").unwrap();
        let answer = reload(&found, "a", new(false)).unwrap();
        assert_eq!(refusal(&answer).0, "ledger");
        assert_eq!(held(house).conditions.text, OLD);
        signals.write_all(&[15]).unwrap();
    });
    assert!(
        !house
            .library
            .path()
            .join("bulkhead-decision.taken")
            .exists()
    );
}

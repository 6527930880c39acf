//! When conditions permit nothing that others do not: what a running partition is given without a word.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use bulkhead_capability::table::Moment;
use bulkhead_capability::{Capability, Grants};
use bulkhead_decision::{Act, Circumstances, Conditions, Widening, World, widenings};
use std::time::Duration;

const ALL: &str = "permit(principal, action, resource);";
const READS: &str = r#"@id("reads") permit(principal, action == Action::"fs.read", resource);"#;
const WRITES: &str = r#"@id("writes") permit(principal, action == Action::"fs.write", resource);"#;
const NO_ETC: &str =
    r#"@id("no etc") forbid(principal, action, resource in Directory::"/srv/etc");"#;
const BY_DAY: &str =
    r#"@id("by day") permit(principal, action, resource) when { context.hour < 18 };"#;

fn parse(text: &str) -> Conditions {
    let grants = ["fs.write:/srv", "net.connect:*.example.org:443"];
    let grants: Grants = (grants.iter())
        .map(|grant| grant.parse::<Capability>().unwrap())
        .collect();
    let world = World {
        partitions: vec![("web", &grants)],
    };
    Conditions::parse(text, &world).unwrap()
}

fn told(old: &[&str], new: &[&str]) -> Vec<Widening> {
    widenings(&parse(&old.concat()), &parse(&new.concat())).unwrap()
}

fn permit(name: &str) -> Widening {
    Widening::NewPermit(name.to_owned())
}

fn forbid(name: &str) -> Widening {
    Widening::GoneForbid(name.to_owned())
}

#[test]
fn what_takes_away_or_changes_nothing_is_no_wider() {
    let renamed =
        r#"@id("another") @note("x") permit(principal, action == Action::"fs.read", resource);"#;
    let spaced = "// by name\npermit ( principal,\n action == Action::\"fs.read\", resource ) ;";
    for (old, new) in [
        (&[][..], &[][..]),
        (&[READS], &[READS]),
        (&[READS, WRITES], &[READS]),
        (&[READS, WRITES], &[]),
        (&[READS], &[READS, NO_ETC]),
        (&[ALL, NO_ETC], &[NO_ETC]),
        (&[READS, WRITES, NO_ETC], &[NO_ETC, WRITES, READS]),
        (&[READS, WRITES], &[WRITES, NO_ETC, WRITES]),
        (&[READS], &[renamed]),
        (&[READS], &[spaced]),
        (&[BY_DAY, READS], &[READS]),
    ] {
        assert_eq!(told(old, new), [], "{old:?} {new:?}");
    }
}

#[test]
fn a_new_permit_and_a_forbid_that_is_gone_are_named() {
    let narrow = r#"@id("reads") permit(principal, action == Action::"fs.read", resource in Directory::"/srv/a");"#;
    let unless = r#"@id("no etc") forbid(principal, action, resource in Directory::"/srv/etc") unless { context.hour < 8 };"#;
    let forbidden = r#"@id("reads") forbid(principal, action == Action::"fs.read", resource);"#;
    for (old, new, why) in [
        (&[][..], &[READS][..], vec![permit("reads")]),
        (&[READS], &[READS, WRITES], vec![permit("writes")]),
        (&[READS], &[ALL], vec![permit("policy0")]),
        (&[READS, NO_ETC], &[READS], vec![forbid("no etc")]),
        (&[READS, NO_ETC], &[], vec![forbid("no etc")]),
        (
            &[READS, NO_ETC],
            &[WRITES],
            vec![permit("writes"), forbid("no etc")],
        ),
        // Of the same name, and not the same.
        (&[READS, NO_ETC], &[READS, unless], vec![forbid("no etc")]),
        (
            &[ALL, forbidden],
            &[ALL, READS],
            vec![permit("reads"), forbid("reads")],
        ),
        // It is narrower, which takes more than a look at its form.
        (&[READS], &[narrow], vec![permit("reads")]),
    ] {
        assert_eq!(told(old, new), why, "{old:?} {new:?}");
    }
}

/// While a condition cannot be evaluated nothing is permitted at all: who takes it away lets others
/// permit again.
#[test]
fn a_permit_that_may_be_impossible_to_evaluate_does_not_go_without_a_word() {
    let deep = vec!["!(context.hour == 7)"; 40].join(" && ");
    for (body, can_fail) in [
        ("context.time * 1000000000000 > 0", true),
        ("context.hour + 1 > 0", true),
        ("-context.hour < 0", true),
        ("[1, context.hour - 1].contains(3)", true),
        (
            "if context.hour < 8 then true else context.age * 2 > 9",
            true,
        ),
        ("{ a: context.age + 1 } == { a: 1 }", true),
        (
            r#"principal has system && Partition::"web".system == "x""#,
            true,
        ),
        (r#"ip("10.0.0.1").isLoopback()"#, true),
        (&*deep, true),
        ("context.hour < 8 && context.weekday != 7", false),
        (
            r#"principal.lineage.contains("root") || principal.system like "x*""#,
            false,
        ),
        (
            "[1, 2].containsAny([context.hour]) && !(context.age >= 9)",
            false,
        ),
        (
            r#"resource is Path in Directory::"/srv" && context has age"#,
            false,
        ),
        (
            "if context.hour < 8 then context.age > 9 else context.time > 0",
            false,
        ),
        (
            r#"principal in Partition::"web" && { a: context.age } == { a: 1 }"#,
            false,
        ),
    ] {
        let failing = format!(
            "@id(\"x\") permit(principal, action == Action::\"fs.read\", resource) when {{ {body} }};"
        );
        let gone = told(&[READS, &failing], &[READS]);
        let expected = match can_fail {
            true => vec![Widening::GoneFailing("x".to_owned())],
            false => vec![],
        };
        assert_eq!(gone, expected, "{body}");
        // It goes on failing, and another one fails beside it.
        assert_eq!(told(&[READS, &failing], &[&failing]), [], "{body}");
        let forbids = failing.replace("permit(", "forbid(");
        assert_eq!(told(&[READS], &[READS, &forbids]), [], "{body}");
        let unless = failing.replace(" when ", " unless ");
        assert_eq!(told(&[READS, &unless], &[READS]), expected, "{body}");
    }
}

/// Of every two texts that are made of these conditions: where nothing is told, nothing is permitted that was not.
#[test]
fn what_is_told_to_be_no_wider_permits_nothing_more() {
    let pool = [
        READS.to_owned(),
        BY_DAY.to_owned(),
        NO_ETC.to_owned(),
        READS
            .replace("permit(", "forbid(")
            .replace("resource)", "resource) when { context.hour > 20 }"),
        // It overflows in the evening.
        READS.replace(
            "resource)",
            "resource) when { context.hour * 512409557603043100 > 0 }",
        ),
    ];
    let texts: Vec<Vec<usize>> = (0..1_usize << pool.len())
        .map(|set| (0..pool.len()).filter(|at| set >> at & 1 == 1).collect())
        .collect();
    let acts = [("/srv/a", false), ("/srv/etc/b", false), ("/srv/a", true)];
    let known: Vec<(Conditions, Vec<bool>)> = texts
        .iter()
        .map(|text| {
            let text: String = text.iter().map(|at| pool[*at].as_str()).collect();
            let conditions = parse(&text);
            let mut permits = Vec::new();
            for hour in [7, 17, 19, 22] {
                for (path, write) in acts {
                    let path = path.into();
                    let act = Act::File { path, write };
                    permits.push(conditions.ask(&act, &who(hour)).is_permitted());
                }
            }
            (conditions, permits)
        })
        .collect();
    let (mut silent, mut wider) = (0, 0);
    for (old, old_permits) in &known {
        for (new, new_permits) in &known {
            let more = new_permits
                .iter()
                .zip(old_permits)
                .any(|(new, old)| *new && !old);
            let told = !widenings(old, new).unwrap().is_empty();
            assert!(told || !more, "{old:?} {new:?}");
            silent += usize::from(!told);
            wider += usize::from(more);
        }
    }
    assert!(
        silent > texts.len() && wider > texts.len(),
        "{silent} {wider}"
    );
}

fn who(hour: u64) -> Circumstances {
    let now = Duration::from_secs(hour * 3600);
    Circumstances {
        system: "shop".to_owned(),
        partition: "web".to_owned(),
        lineage: Vec::new(),
        moment: Moment { now, age: now },
        bytes: None,
    }
}

#[test]
fn reasons_are_sentences() {
    let reasons = told(&[NO_ETC], &[READS])
        .into_iter()
        .map(|why| why.to_string());
    let reasons: Vec<String> = reasons.collect();
    assert_eq!(
        reasons,
        ["permit `reads` is new", "forbid `no etc` is gone"]
    );
}

//! Parents and children: what a child may have, from whom it descends, and how long it may run.

use super::*;
use crate::mandate::Lifetime;

#[test]
fn what_is_admitted_knows_from_whom_it_descends() {
    let lineage = |text: &str, given: &Given<'_>| {
        let draft = judge(text, given).unwrap().into_draft();
        draft.mandate.unwrap().value.lineage
    };
    assert!(lineage(MANIFEST, &given()).is_empty());
    let boss = PARENT.replace("[identity]\n", "[identity]\nparent = \"chief\"\n");
    let chief = PARENT.replace("\"boss\"", "\"chief\"");
    let family = Given {
        host: host(&[&boss, &chief]),
        ..given()
    };
    assert_eq!(lineage(&child(MANIFEST), &family), ["boss", "chief"]);
}

#[test]
fn nobody_outlives_whoever_it_descends_from() {
    let boss = PARENT.replace("[identity]\n", "[identity]\nparent = \"chief\"\n");
    let chief = PARENT.replace("\"boss\"", "\"chief\"");
    let lifetime = |hours: &[(&'static str, u64)]| {
        let mut family = Given {
            host: host(&[&boss, &chief]),
            ..given()
        };
        family.host.hours = hours.to_vec();
        let system = SystemDraft {
            name: Some(At::from("s".to_owned())),
            partitions: vec![At::from(
                judge(&child(MANIFEST), &family).unwrap().into_draft(),
            )],
        };
        let system: Validated<_> = validate(&system, Path::new("/elsewhere")).unwrap();
        system.partitions[0].mandate.as_ref().unwrap().lifetime
    };
    let hours = |hours: u64| Lifetime::Seconds(hours * 3600);
    assert_eq!(lifetime(&[]), hours(8), "all are about to start");
    assert_eq!(lifetime(&[("boss", 2)]), hours(6));
    assert_eq!(lifetime(&[("boss", 2), ("chief", 7)]), hours(1));
    assert_eq!(lifetime(&[("chief", 9)]), hours(0));
}

#[test]
fn rule_4_the_parent() {
    let wide = ROLE
        .replace(
            "\"console\",",
            "\"console\", \"time\", \"net.connect:*:80\",",
        )
        .replace("/usr/bin/*", "/**")
        .replace("512MiB", "8GiB")
        .replace("vcpus = 2", "vcpus = 8")
        .replace("8h", "9d");
    let with_parent = || Given {
        role: &wide,
        host: host(&[PARENT]),
        ..given()
    };
    judge(&child(MANIFEST), &with_parent()).unwrap();
    // As much as the parent itself has, and not more.
    let most = child(&with("512MiB", "1GiB").replace("vcpus = 2", "vcpus = 4"));
    judge(&most, &with_parent()).unwrap();
    for (from, to, field) in [
        ("\"console\",", "\"console\", \"time\",", "grants"),
        ("api.example.org:443", "api.example.org:80", "grants"),
        ("/usr/bin/tool", "/usr/sbin/tool", "boot"),
        ("512MiB", "1025MiB", "resources.memory"),
        ("vcpus = 2", "vcpus = 5", "resources.vcpus"),
        ("max = \"8h\"", "max = \"9h\"", "lifetime"),
        (
            "[lifetime]",
            "[spawn]\nroles = [\"worker\"]\ncount = 1\ndepth = 2\n[lifetime]",
            "spawn.depth",
        ),
    ] {
        let found = refused(&child(&with(from, to)), &with_parent());
        assert_eq!((found.0, found.1), (Rule::Parent, field), "{to}");
    }
    let alone = Given {
        role: &wide,
        ..given()
    };
    assert_eq!(
        refused(&child(MANIFEST), &alone),
        (Rule::Parent, "identity.parent", 9)
    );
}

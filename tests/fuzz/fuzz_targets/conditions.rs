//! A partition that puts anything into names, paths and methods, requests and conditions from anybody: no
//! act becomes syntax, what no grant allows is never allowed, and what is proposed for an act is what
//! allows it.
#![no_main]

use bulkhead_capability::table::{Moment, Verdict};
use bulkhead_capability::{Capability, Grants};
use bulkhead_conditions::wire::Request;
use bulkhead_decision::{Act, Circumstances, Conditions, Family, Policy, World, propose};
use bulkhead_network::Protocol;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Grants that speak of nearly everything.
fn grants() -> &'static Grants {
    static GRANTS: OnceLock<Grants> = OnceLock::new();
    GRANTS.get_or_init(|| {
        let all = [
            "net.connect:*:443",
            "tool.call:*",
            "model.chat:*",
            "exec:/**",
            "fs.read:/",
            "secret.use:key",
            "partition.spawn:worker=4",
        ];
        let parsed = all.iter().map(|text| text.parse::<Capability>());
        parsed
            .collect::<Result<Grants, _>>()
            .expect("they are well formed")
    })
}

fn world() -> World<'static> {
    World {
        partitions: vec![("web", grants())],
    }
}

/// Conditions that permit everything, and some that permit nothing.
fn both() -> &'static [Family; 2] {
    static BOTH: OnceLock<[Family; 2]> = OnceLock::new();
    BOTH.get_or_init(|| {
        ["permit(principal, action, resource);", ""]
            .map(|text| Conditions::parse(text, &world()).expect("it is well formed"))
            .map(Family::from)
    })
}

fn act(kind: u8, text: &str, more: &str) -> Act {
    let (text, more) = (text.to_owned(), more.to_owned());
    match kind % 8 {
        0 => Act::Connect {
            protocol: Protocol::Tcp,
            name: Some(text),
            address: None,
            port: 443,
            http: Some(("GET".to_owned(), more)),
        },
        1 => Act::Tool(text, vec![PathBuf::from(more)]),
        2 => Act::Model(text),
        3 => Act::Exec(text),
        4 => Act::File {
            path: text.into(),
            write: false,
        },
        5 => Act::Secret(text),
        6 => Act::Spawn(text, 1),
        _ => Act::Resolve(text),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    let Ok(rest) = std::str::from_utf8(rest) else {
        return;
    };
    let (text, more) = rest.split_once('\n').unwrap_or((rest, ""));
    let who = Circumstances {
        system: more.to_owned(),
        partition: "web".to_owned(),
        lineage: vec![text.to_owned()],
        moment: Moment {
            now: Duration::from_secs(kind.into()),
            age: Duration::ZERO,
        },
        bytes: Some(text.len() as u64),
    };
    // As a process that asks would say it, or as one that was taken over would.
    let act = match serde_json::from_str::<Request>(text) {
        Ok(request) => request.act,
        Err(_) => act(kind, text, more),
    };
    let [all, none] = both();
    let granted = Policy::new(grants(), None).decide(&act, &who).verdict;
    let policy = Policy::new(grants(), Some(all));
    let narrowed = policy.decide(&act, &who);
    assert!(narrowed.verdict == Verdict::Denied || narrowed.verdict == granted);

    let policy = Policy::new(grants(), Some(none));
    let answer = policy.decide(&act, &who);
    assert_eq!(answer.verdict, Verdict::Denied);
    if granted == Verdict::Allowed && narrowed.verdict == Verdict::Allowed {
        let (_, proposed) = propose("web", &[(&act, answer)]);
        // No condition may name a path that is not plain.
        if let Ok(learned) = Conditions::parse(&proposed.join("\n"), &world()) {
            assert!(learned.ask(&act, &who).is_permitted(), "{proposed:?}");
        }
    }
    // Conditions from anybody are refused, or narrow.
    if let Ok(conditions) = Conditions::parse(more, &world()).map(Family::from) {
        let policy = Policy::new(grants(), Some(&conditions));
        let answer = policy.decide(&act, &who);
        assert!(answer.verdict == Verdict::Denied || answer.verdict == granted);
    }
});

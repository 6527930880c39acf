//! What a decision takes: a compiled table, and conditions in Cedar, each decision by itself, beside
//! what reading the clock around it takes.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_capability::table::{Moment, Request, Table, Verdict};
use bulkhead_capability::{Capability, Grants};
use bulkhead_decision::{Act, Circumstances, Conditions, Family, Policy, World};
use bulkhead_network::Protocol;
use serde::Serialize;

use crate::error::Error;

/// Decisions of a run.
const DECISIONS: usize = 20_000;
/// Grants of each kind in the table: what a large manifest has.
const GRANTS: usize = 250;
/// A moment like any other.
const MOMENT: Moment = Moment {
    now: Duration::from_secs(1_800_000_000),
    age: Duration::from_secs(60),
};

/// How long one decision takes.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    /// Stable name.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// Half of them take less, in nanoseconds.
    pub(crate) p50_ns: u64,
    /// All but one of a hundred.
    pub(crate) p99_ns: u64,
    /// What the second has to be below.
    pub(crate) bar_ns: Option<u64>,
}

/// Measures everything.
pub(crate) fn run() -> Result<Vec<Latency>, Error> {
    let grants = grants()?;
    let table = Table::compile(&grants);
    let host = format!("host-{}.example.org", GRANTS / 2);
    let paths = [PathBuf::from("/srv/repo/a")];
    let requests = [
        connect(&host, "/v1/models"),
        connect("a.b.c.example.net", "/"),
        connect("nowhere.example.com", "/"),
        Request::Tool("family-7.tool", &paths),
        Request::Secret("secret-9"),
        Request::Exec("/usr/bin/git"),
    ];
    let clock = measured(|| ());
    let compiled = measured_among(&requests, |request| {
        black_box(table.decide(black_box(request), MOMENT).verdict);
    });
    let conditions = Family::from(conditions(&grants)?);
    let policy = Policy::new(&grants, Some(&conditions));
    let who = Circumstances {
        system: "bench".to_owned(),
        partition: "agent".to_owned(),
        lineage: vec!["root".to_owned()],
        moment: MOMENT,
        bytes: Some(100),
    };
    let acts = [
        Act::Connect {
            protocol: Protocol::Tcp,
            name: Some(host.clone()),
            address: None,
            port: 443,
            http: Some(("GET".to_owned(), "/v1/models".to_owned())),
        },
        Act::Tool("family-7.tool".to_owned(), paths.to_vec()),
        Act::Secret("secret-9".to_owned()),
    ];
    for act in &acts {
        let answer = policy.decide(act, &who);
        if answer.verdict != Verdict::Allowed {
            return Err(Error::Answer(answer.reason()));
        }
    }
    let cedar = measured_among(&acts, |act| {
        black_box(policy.decide(black_box(act), &who).verdict);
    });
    Ok(vec![
        latency("clock", "the clock alone", clock, None),
        latency(
            "compiled",
            "a compiled decision, of 1000 grants",
            compiled,
            Some(50_000),
        ),
        latency("cedar", "the same and 10 conditions in Cedar", cedar, None),
    ])
}

fn connect<'r>(name: &'r str, path: &'r str) -> Request<'r> {
    Request::Connect {
        protocol: Protocol::Tcp,
        name: Some(name),
        address: None,
        port: 443,
        http: Some(("GET", path)),
    }
}

fn grants() -> Result<Grants, Error> {
    let all = (0..GRANTS).flat_map(|n| {
        [
            format!("net.connect:host-{n}.example.org:443"),
            format!("net.connect:*.zone-{n}.example.net:443"),
            format!("tool.call:family-{n}.*"),
            format!("secret.use:secret-{n}"),
        ]
    });
    let all = all.chain([
        "net.connect:*.c.example.net:443".to_owned(),
        "exec:/usr/bin/*".to_owned(),
    ]);
    let parsed: Result<Vec<Capability>, _> = all.map(|text| text.parse()).collect();
    let parsed = parsed.map_err(|error| Error::Answer(error.to_string()))?;
    Ok(parsed.into_iter().collect())
}

fn conditions(grants: &Grants) -> Result<Conditions, Error> {
    let mut text = "permit(principal, action, resource);\n".to_owned();
    for n in 0..9 {
        text += &format!(
            "forbid(principal, action == Action::\"net.connect\", resource == \
             Host::\"host-{n}.example.org\") when {{ context has method && context.method == \
             \"POST\" && context.hour < {n} }};\n"
        );
    }
    let world = World {
        partitions: vec![("agent", grants)],
    };
    Conditions::parse(&text, &world).map_err(|error| Error::Answer(error.to_string()))
}

fn measured(mut act: impl FnMut()) -> Vec<u64> {
    measured_among(&[()], |()| act())
}

/// Nanoseconds of each act, in turn with each of the subjects.
fn measured_among<T>(subjects: &[T], mut act: impl FnMut(&T)) -> Vec<u64> {
    let mut taken: Vec<u64> = subjects
        .iter()
        .cycle()
        .take(DECISIONS)
        .map(|subject| {
            let begun = Instant::now();
            act(subject);
            u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect();
    taken.sort_unstable();
    taken
}

fn latency(id: &'static str, what: &'static str, sorted: Vec<u64>, bar_ns: Option<u64>) -> Latency {
    let at = |percent: usize| {
        sorted
            .get(sorted.len() * percent / 100)
            .copied()
            .unwrap_or(0)
    };
    Latency {
        id,
        what,
        p50_ns: at(50),
        p99_ns: at(99),
        bar_ns,
    }
}

//! Each rule: what it refuses, and what is just within it.

mod denied;

use super::*;
use crate::draft::{At, SystemDraft};
use crate::{Validated, parse_manifest, validate};
use bulkhead_signature::{PrivateKey, PublicKeyFile, Trust};

mod family;

const MANIFEST: &str = r#"grants = [
    "console",
    { capability = "fs.write:/srv/work", tag = "work" },
    "net.connect:api.example.org:443",
]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "linux"
command = ["/bin/tool"]
mounts = [{ source = "/usr/bin/tool", target = "/bin/tool" }]
[resources]
memory = "512MiB"
vcpus = 2
[lifetime]
max = "8h"
"#;

const ROLE: &str = r#"
grants = ["console", "fs.write:/srv/work", "net.connect:*.example.org:443", "partition.spawn:worker=2"]
files = ["/usr/bin/*"]
[resources]
memory = "512MiB"
vcpus = 2
[lifetime]
max = "8h"
[spawn]
count = 2
depth = 2
"#;

const PARENT: &str = r#"
grants = ["console", "fs.write:/srv/work", "net.connect:*.example.org:443"]
[identity]
name = "boss"
role = "coder"
[boot]
kernel = "linux"
command = ["/bin/tool"]
mounts = [{ source = "/usr/bin", target = "/bin" }]
[resources]
memory = "1GiB"
vcpus = 4
[lifetime]
max = "8h"
[spawn]
roles = ["coder=2", "worker=1"]
count = 2
depth = 2
"#;

/// A host with room, on which some run.
struct Fake {
    running: Vec<Manifest>,
    /// How long some of them have run.
    hours: Vec<(&'static str, u64)>,
    capacity: Capacity,
    /// A link and what it leads to.
    link: (PathBuf, PathBuf),
}

impl Host for Fake {
    fn running(&self) -> &[Manifest] {
        &self.running
    }

    fn age(&self, identity: &str) -> Duration {
        let hours = self.hours.iter().find(|(name, _)| *name == identity);
        Duration::from_secs(3600 * hours.map_or(0, |(_, hours)| *hours))
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn real_path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.link.0) {
            Ok(rest) => self.link.1.join(rest).components().collect(),
            Err(_) => path.to_owned(),
        }
    }
}

fn host(running: &[&str]) -> Fake {
    Fake {
        running: running.iter().map(|text| manifest(text)).collect(),
        hours: Vec::new(),
        capacity: Capacity {
            memory_mib: 2048,
            promised_mib: 1024,
            cpus: 4,
        },
        link: (PathBuf::from("/link"), PathBuf::from("/etc")),
    }
}

fn manifest(text: &str) -> Manifest {
    parse_manifest(text.as_bytes(), Path::new("/srv/agent.toml")).unwrap()
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

/// Alice signs, Bob signs and approves.
fn trusted() -> Vec<Trusted> {
    let all = [(1, "alice", Trust::Sign), (2, "bob", Trust::SignAndApprove)];
    let one = |(seed, name, trust)| {
        let file = PublicKeyFile {
            key: key(seed).public(),
            comment: String::new(),
            trust: Some(trust),
        };
        Trusted::new(name, &file).unwrap()
    };
    all.map(one).to_vec()
}

fn signed(manifest: &Manifest, seeds: &[u8]) -> Envelope {
    let (first, others) = seeds.split_first().unwrap();
    let document = manifest.document().to_vec();
    let mut envelope = Envelope::sign(crate::PAYLOAD_TYPE, document, &key(*first)).unwrap();
    for seed in others {
        envelope.add_signature(&key(*seed)).unwrap();
    }
    envelope
}

/// Everything that a judgement depends on.
struct Given<'g> {
    role: &'g str,
    host: Fake,
    seeds: &'g [u8],
    deny: DenyList,
}

fn given<'g>() -> Given<'g> {
    Given {
        role: ROLE,
        host: host(&[]),
        seeds: &[1],
        deny: DenyList::built_in(&[PathBuf::from("/var/lib/bulkhead")]),
    }
}

fn judge(text: &str, given: &Given<'_>) -> Result<Admitted, Box<Rejection>> {
    let manifest = manifest(text);
    let role = parse_role(given.role.as_bytes(), Path::new("/roles/coder.toml")).unwrap();
    let trusted = trusted();
    let policy = Policy {
        trusted: &trusted,
        role: Some(&role),
        deny: &given.deny,
    };
    let envelope = signed(&manifest, given.seeds);
    admit(&manifest, Proof::Signed(&envelope), policy, &given.host)
}

/// Rule, field and line of the refusal of `text`.
#[track_caller]
fn refused(text: &str, given: &Given<'_>) -> (Rule, &'static str, usize) {
    let rejection = judge(text, given).unwrap_err();
    let line = rejection.place.as_ref().map_or(0, |place| place.line);
    assert_eq!(rejection.identity, manifest(text).identity());
    assert!(!rejection.message.is_empty() && !rejection.help.is_empty());
    (rejection.rule, rejection.field, line)
}

#[track_caller]
fn with(from: &str, to: &str) -> String {
    assert!(MANIFEST.contains(from), "{from}");
    MANIFEST.replace(from, to)
}

fn child(text: &str) -> String {
    text.replace("role = \"coder\"", "role = \"coder\"\nparent = \"boss\"")
}

#[test]
fn what_keeps_all_rules_becomes_a_partition() {
    let admitted = judge(MANIFEST, &given()).unwrap();
    assert_eq!(admitted.signers(), ["alice"]);
    let system = SystemDraft {
        name: Some(At::from("s".to_owned())),
        partitions: vec![At::from(admitted.into_draft())],
    };
    let system: Validated<_> = validate(&system, Path::new("/elsewhere")).unwrap();
    let partition = &system.partitions[0];
    let manifest = manifest(MANIFEST);
    let mut mandate = partition.mandate.clone().unwrap();
    let leads = std::mem::take(&mut mandate.leads);
    let files = manifest.boot_files().iter().map(|at| &at.value);
    assert!(files.clone().count() > 0 && files.clone().all(|file| leads.contains_key(file)));
    assert_eq!(mandate, *manifest.mandate());
    assert_eq!(partition.grants, manifest.partition().grants);
}

#[test]
fn rule_2_signatures() {
    let manifest = manifest(MANIFEST);
    let (trusted, given) = (trusted(), given());
    let role = parse_role(ROLE.as_bytes(), Path::new("/r.toml")).unwrap();
    let judge = |proof: Proof<'_>, trusted: &[Trusted]| {
        let policy = Policy {
            trusted,
            role: Some(&role),
            deny: &given.deny,
        };
        let judged = admit(&manifest, proof, policy, &given.host);
        judged
            .map(|admitted| admitted.signers().len())
            .map_err(|r| r.rule)
    };
    let refused = Err(Rule::Signature);
    assert_eq!(judge(Proof::None, &trusted), refused);
    assert_eq!(judge(Proof::Vouched, &trusted), Ok(0));
    let by_alice = signed(&manifest, &[1]);
    assert_eq!(judge(Proof::Signed(&by_alice), &trusted), Ok(1));
    assert_eq!(judge(Proof::Signed(&by_alice), &[]), refused);
    assert_eq!(
        judge(Proof::Signed(&signed(&manifest, &[9])), &trusted),
        refused
    );
    assert_eq!(
        judge(Proof::Signed(&signed(&manifest, &[9, 1])), &trusted),
        Ok(1)
    );
    // An envelope of another manifest, which Alice did sign.
    let other = self::manifest(&with("512MiB", "256MiB"));
    assert_eq!(
        judge(Proof::Signed(&signed(&other, &[1])), &trusted),
        refused
    );
    // The right document under another type.
    let document = manifest.document().to_vec();
    let odd = Envelope::sign("application/json", document, &key(1)).unwrap();
    assert_eq!(judge(Proof::Signed(&odd), &trusted), refused);
}

#[test]
fn rule_3_the_ceiling_of_the_role() {
    let given = given();
    for (from, to, field, line) in [
        ("\"console\",", "\"console\", \"time\",", "grants", 2),
        ("api.example.org:443", "example.org:443", "grants", 4),
        ("api.example.org:443", "api.example.org:80", "grants", 4),
        ("/srv/work", "/srv", "grants", 3),
        ("/srv/work", "/srv/work/below", "grants", 3),
        ("/usr/bin/tool", "/usr/sbin/tool", "boot", 12),
        ("/usr/bin/tool", "/usr/bin", "boot", 12),
        ("/usr/bin/tool", "/link/passwd", "boot", 12),
        ("\"512MiB\"", "\"513MiB\"", "resources.memory", 14),
        (
            "\"512MiB\"",
            "{ size = \"384MiB\", max = \"640MiB\" }",
            "resources.memory",
            14,
        ),
        ("vcpus = 2", "vcpus = 3", "resources.vcpus", 15),
        ("max = \"8h\"", "max = \"481m\"", "lifetime", 17),
        ("max = \"8h\"", "unlimited = true", "lifetime", 17),
    ] {
        let text = with(from, to).replace(
            "kernel = \"linux\"",
            "kernel = \"linux\"\ntransport = \"pci\"",
        );
        let line = line + usize::from(line > 9);
        let found = refused(&text, &given);
        assert_eq!(found, (Rule::Ceiling, field, line), "{to}");
    }
    for lines in [
        "[spawn]\nroles = [\"worker=3\"]\ncount = 2",
        "[spawn]\nroles = [\"other\"]\ncount = 1",
        "[spawn]\nroles = [\"worker\"]\ncount = 3",
        "[spawn]\nroles = [\"worker\"]\ncount = 1\ndepth = 3",
    ] {
        let found = refused(&format!("{MANIFEST}{lines}\n"), &given);
        assert_eq!(found.0, Rule::Ceiling, "{lines}");
    }
    let within = format!("{MANIFEST}[spawn]\nroles = [\"worker=2\"]\ncount = 2\ndepth = 2\n");
    judge(&within, &given).unwrap();
}

#[test]
fn rule_3_files_behind_disks_count_as_grants() {
    let disk = |options: &str| {
        let disk =
            format!("{{ capability = \"block.write:/srv/d.img\", format = \"qcow2\"{options} }},");
        with("\"console\",", &format!("\"console\",\n{disk}"))
    };
    let role = |grants: &str| ROLE.replace("\"console\",", &format!("\"console\", {grants},"));
    let text = disk(", overlay = \"/srv/top.img\", backing = [{ path = \"/srv/base.img\" }]");
    let with_role = |grants: &str| {
        let role = role(grants);
        judge(
            &text,
            &Given {
                role: &role,
                ..given()
            },
        )
        .map(drop)
        .map_err(|r| (r.rule, r.field))
    };
    let wide =
        "\"block.write:/srv/d.img\", \"block.write:/srv/top.img\", \"block.read:/srv/base.img\"";
    assert_eq!(with_role(wide), Ok(()));
    let refused = Err((Rule::Ceiling, "grants"));
    assert_eq!(
        with_role("\"block.write:/srv/d.img\", \"block.read:/srv/base.img\""),
        refused
    );
    assert_eq!(
        with_role("\"block.write:/srv/d.img\", \"block.write:/srv/top.img\""),
        refused
    );
}

#[test]
fn rule_3_a_role_that_nobody_described_has_nothing() {
    let manifest = manifest(MANIFEST);
    let (trusted, given) = (trusted(), given());
    let policy = Policy {
        trusted: &trusted,
        role: None,
        deny: &given.deny,
    };
    let rejection = admit(&manifest, Proof::Vouched, policy, &given.host).unwrap_err();
    assert_eq!(
        (rejection.rule, rejection.field),
        (Rule::Ceiling, "identity.role")
    );
    assert!(
        rejection.to_string().starts_with("/srv/agent.toml:8:8: "),
        "{rejection}"
    );
}

#[test]
fn rule_3_budgets_of_a_role() {
    let role = format!("{ROLE}[budget]\ncalls = 10\n");
    let given = Given {
        role: &role,
        ..given()
    };
    assert_eq!(refused(MANIFEST, &given).1, "budget");
    let over = format!("{MANIFEST}[budget]\ncalls = 11\n");
    assert_eq!(refused(&over, &given), (Rule::Ceiling, "budget", 18));
    judge(&format!("{MANIFEST}[budget]\ncalls = 10\n"), &given).unwrap();
}

/// With tools, and this much autonomy.
fn calling(text: &str, autonomy: &str) -> String {
    let tools = format!("[tools]\nallow = [\"fs.*\"]\nautonomy = \"{autonomy}\"\n");
    format!("{text}{tools}")
}

#[test]
fn rules_3_and_4_nobody_is_more_autonomous_than_his_role_and_his_parent() {
    let levels = ["manual", "supervised", "full"];
    let tools = ROLE.replace("\"console\",", "\"console\", \"tool.call:fs.*\",");
    for (most, bound) in levels.iter().enumerate() {
        let role = format!("{tools}[tools]\nautonomy = \"{bound}\"\n");
        let parent = calling(PARENT, bound);
        let under_role = Given {
            role: &role,
            ..given()
        };
        let under_parent = Given {
            role: &tools,
            host: host(&[&parent]),
            ..given()
        };
        for (level, own) in levels.iter().enumerate() {
            let of_role = calling(MANIFEST, own);
            let of_parent = calling(&child(MANIFEST), own);
            for (text, given, rule) in [
                (of_role, &under_role, Rule::Ceiling),
                (of_parent, &under_parent, Rule::Parent),
            ] {
                match level <= most {
                    true => drop(judge(&text, given).unwrap()),
                    false => {
                        let found = refused(&text, given);
                        assert_eq!(
                            (found.0, found.1),
                            (rule, "tools.autonomy"),
                            "{bound} {own}"
                        );
                    }
                }
            }
        }
        // Who calls no tool asks nobody.
        judge(&child(MANIFEST), &under_parent).unwrap();
    }
    // One that says nothing is fully autonomous, and a role that says nothing bounds nobody.
    let silent = format!("{MANIFEST}[tools]\nallow = [\"fs.*\"]\n");
    let role = format!("{tools}[tools]\nautonomy = \"supervised\"\n");
    let bounded = Given {
        role: &role,
        ..given()
    };
    assert_eq!(refused(&silent, &bounded).1, "tools.autonomy");
    let free = Given {
        role: &tools,
        ..given()
    };
    judge(&silent, &free).unwrap();
}

#[test]
fn rule_4_a_child_has_the_limits_of_its_parents_tools() {
    let tools = ROLE.replace("\"console\",", "\"console\", \"tool.call:fs.*\",");
    let limited = |text: &str, file: &str| {
        let text = calling(text, "full");
        text + &format!("limits = \"{file}\"\n")
    };
    let given = |parent: &str| Given {
        role: &tools,
        host: host(&[parent]),
        ..given()
    };
    let parent = limited(PARENT, "/etc/tools.toml");
    let under = given(&parent);
    // By whatever name.
    for same in ["/etc/tools.toml", "/link/tools.toml"] {
        judge(&limited(&child(MANIFEST), same), &under).unwrap();
    }
    let other = limited(&child(MANIFEST), "/srv/tools.toml");
    let found = refused(&other, &under);
    let line = other.lines().position(|line| line.starts_with("limits"));
    assert_eq!(found, (Rule::Parent, "tools.limits", line.unwrap() + 1));
    let none = calling(&child(MANIFEST), "full");
    assert_eq!(refused(&none, &under).1, "tools.limits");
    // Who calls no tools needs no limits, and who has a parent without may have any.
    judge(&child(MANIFEST), &under).unwrap();
    judge(&other, &given(&calling(PARENT, "full"))).unwrap();
}

#[test]
fn rules_3_and_4_nobody_learns_whose_role_or_parent_is_held_to_conditions() {
    let with = |text: &str, word: &str| format!("conditions = \"{word}\"\n{text}");
    for (bound, own, allowed) in [
        ("learn", "learn", true),
        ("learn", "enforce", true),
        ("enforce", "enforce", true),
        ("enforce", "learn", false),
    ] {
        let learns = with(ROLE, "learn");
        let role = with(ROLE, bound);
        let under_role = Given {
            role: &role,
            ..given()
        };
        let parent = with(PARENT, bound);
        let under_parent = Given {
            role: &learns,
            host: host(&[&parent]),
            ..given()
        };
        let own = |text: &str| with(text, own);
        for (text, given, rule) in [
            (own(MANIFEST), &under_role, Rule::Ceiling),
            (own(&child(MANIFEST)), &under_parent, Rule::Parent),
        ] {
            match allowed {
                true => drop(judge(&text, given).unwrap()),
                false => {
                    let found = refused(&text, given);
                    assert_eq!((found.0, found.1, found.2), (rule, "conditions", 1));
                }
            }
        }
    }
    // A role that says nothing lets nobody learn.
    let found = refused(&with(MANIFEST, "learn"), &given());
    assert_eq!((found.0, found.1), (Rule::Ceiling, "conditions"));
}

#[test]
fn rule_4_what_the_parent_denies_and_limits_itself() {
    let parent = |more: &str, limits: &str| {
        PARENT
            .replace("[identity]", &format!("{more}\n[identity]"))
            .replace("vcpus = 4", &format!("vcpus = 4\n{limits}"))
    };
    let judged = |text: &str, parent: &str| {
        let given = Given {
            host: host(&[parent]),
            ..given()
        };
        judge(&child(text), &given)
            .map(drop)
            .map_err(|r| (r.rule, r.field))
    };
    let denying = parent("deny = [\"net.connect:api.example.org:443\"]", "");
    assert_eq!(judged(MANIFEST, &denying), Err((Rule::Parent, "grants")));
    let other = with("api.example.org", "git.example.org");
    assert_eq!(judged(&other, &denying), Ok(()));
    let limited = parent("", "limits = { pids = 20 }");
    assert_eq!(
        judged(MANIFEST, &limited),
        Err((Rule::Parent, "resources.limits"))
    );
    let within = with("vcpus = 2", "vcpus = 2\nlimits = { pids = 20 }");
    assert_eq!(judged(&within, &limited), Ok(()));
}

#[test]
fn rule_5_the_budget_of_the_parent() {
    let sibling = |name: &str, role: &str| {
        let text = MANIFEST
            .replace("\"agent\"", &format!("\"{name}\""))
            .replace("coder", role);
        text.replace("[boot]", "parent = \"boss\"\n[boot]")
    };
    let with_running = |running: &[&str]| Given {
        host: host(running),
        ..given()
    };
    let text = child(MANIFEST);
    let one = sibling("one", "coder");
    judge(&text, &with_running(&[PARENT, &one])).unwrap();
    // Two of the role is what the parent may have; a child of another role counts for the whole.
    let two = sibling("two", "coder");
    let found = refused(&text, &with_running(&[PARENT, &one, &two]));
    assert_eq!(found, (Rule::Spawn, "identity.parent", 9));
    let worker = sibling("two", "worker");
    let found = refused(&text, &with_running(&[PARENT, &one, &worker]));
    assert_eq!(found, (Rule::Spawn, "identity.parent", 9));
    // Others' children do not count.
    let stranger = one.replace("\"boss\"", "\"other\"");
    judge(&text, &with_running(&[PARENT, &stranger, &worker])).unwrap();
    let barren = PARENT.replace("\"coder=2\", ", "");
    let found = refused(&text, &with_running(&[&barren]));
    assert_eq!(found, (Rule::Spawn, "identity.role", 8));
}

#[test]
fn rule_5_generations() {
    let grandparent = |depth: u32| {
        let text = PARENT.replace("\"boss\"", "\"chief\"");
        text.replace("depth = 2", &format!("depth = {depth}"))
    };
    let parent = PARENT.replace("[boot]", "parent = \"chief\"\n[boot]");
    let parent = parent.replace("depth = 2", "depth = 1");
    let judged = |depth| {
        let given = Given {
            host: host(&[&grandparent(depth), &parent]),
            ..given()
        };
        judge(&child(MANIFEST), &given)
            .map(drop)
            .map_err(|r| (r.rule, r.field))
    };
    assert_eq!(judged(2), Ok(()));
    assert_eq!(judged(1), Err((Rule::Spawn, "identity.parent")));
    // A circle, which no start could have made, ends as well.
    let circle = PARENT
        .replace("[boot]", "parent = \"boss\"\n[boot]")
        .replace("depth = 2", "depth = 8");
    let given = Given {
        host: host(&[&circle]),
        ..given()
    };
    assert_eq!(refused(&child(MANIFEST), &given).0, Rule::Spawn);
}

#[test]
fn rule_6_the_host() {
    let with_capacity = |memory_mib, promised_mib, cpus| {
        let mut given = given();
        given.host.capacity = Capacity {
            memory_mib,
            promised_mib,
            cpus,
        };
        given
    };
    judge(MANIFEST, &with_capacity(1024, 512, 2)).unwrap();
    let found = refused(MANIFEST, &with_capacity(1024, 513, 2));
    assert_eq!(found, (Rule::Capacity, "resources.memory", 14));
    let found = refused(MANIFEST, &with_capacity(100, 513, 2));
    assert_eq!(found, (Rule::Capacity, "resources.memory", 14));
    let found = refused(MANIFEST, &with_capacity(1024, 512, 1));
    assert_eq!(found, (Rule::Capacity, "resources.vcpus", 15));
}

#[test]
fn rule_8_one_of_each_identity() {
    let other = MANIFEST.replace("\"agent\"", "\"agent-2\"");
    let with_running = |running: &[&str]| Given {
        host: host(running),
        ..given()
    };
    judge(MANIFEST, &with_running(&[&other, PARENT])).unwrap();
    let found = refused(MANIFEST, &with_running(&[&other, MANIFEST]));
    assert_eq!(found, (Rule::Identity, "identity.name", 7));
}

#[test]
fn rule_9_a_lifetime_without_end_is_approved_of() {
    let role = ROLE.replace("max = \"8h\"", "unlimited = true");
    let text = with("max = \"8h\"", "unlimited = true");
    let by = |text: &str, seeds: &[u8]| {
        let given = Given {
            role: &role,
            seeds,
            ..given()
        };
        judge(text, &given)
            .map(drop)
            .map_err(|r| (r.rule, r.field, r.place.map(|p| p.line)))
    };
    let refused = Err((Rule::Approval, "lifetime.unlimited", Some(17)));
    assert_eq!(by(&text, &[1]), refused);
    // An approver alone is one person; a stranger is none.
    assert_eq!(by(&text, &[2]), refused);
    assert_eq!(by(&text, &[2, 9]), refused);
    assert_eq!(by(&text, &[1, 2]), Ok(()));
    assert_eq!(by(&text, &[2, 1]), Ok(()));
    // With an end, however far, one signature will do.
    assert_eq!(by(&with("8h", "104249991374d"), &[1]), Ok(()));
    // Nobody who vouches at the command line is two.
    let manifest = manifest(&text);
    let (trusted, given) = (trusted(), given());
    let role = parse_role(role.as_bytes(), Path::new("/r.toml")).unwrap();
    let policy = Policy {
        trusted: &trusted,
        role: Some(&role),
        deny: &given.deny,
    };
    let rejection = admit(&manifest, Proof::Vouched, policy, &given.host).unwrap_err();
    assert_eq!(rejection.rule, Rule::Approval);
}

#[test]
fn rules_are_kept_in_their_order() {
    // It breaks every rule but the first; what is repaired, from the first on, moves the refusal on.
    let role = ROLE.replace("max = \"8h\"", "unlimited = true");
    let text = child(&with("max = \"8h\"", "unlimited = true"));
    let manifest = manifest(&text);
    let (alice, nobody) = (trusted(), Vec::new());
    let role = parse_role(role.as_bytes(), Path::new("/r.toml")).unwrap();
    let deny = parse_deny_list(b"deny = [\"console\"]", Path::new("/d.toml")).unwrap();
    let envelope = signed(&manifest, &[1]);
    let eternal = PARENT.replace("max = \"8h\"", "unlimited = true");
    let barren = eternal.replace("\"coder=2\", ", "");
    let full = |running: &[&str]| {
        let mut host = host(running);
        host.capacity.promised_mib = 2048;
        host
    };
    let rule = |trusted: &[Trusted], role, host: &Fake, deny: &DenyList| {
        let policy = Policy {
            trusted,
            role,
            deny,
        };
        admit(&manifest, Proof::Signed(&envelope), policy, host)
            .map(drop)
            .map_err(|r| r.rule)
    };
    let none = DenyList::default();
    let twice = [eternal.as_str(), MANIFEST];
    let found = [
        rule(&nobody, None, &full(&[]), &deny),
        rule(&alice, None, &full(&[]), &deny),
        rule(&alice, Some(&role), &full(&[]), &deny),
        rule(&alice, Some(&role), &full(&[&barren]), &deny),
        rule(&alice, Some(&role), &full(&twice), &deny),
        rule(&alice, Some(&role), &host(&twice), &deny),
        rule(&alice, Some(&role), &host(&twice), &none),
        rule(&alice, Some(&role), &host(&[&eternal]), &none),
    ];
    let expected: Vec<Result<(), Rule>> = Rule::ALL[1..].iter().map(|rule| Err(*rule)).collect();
    assert_eq!(found.to_vec(), expected);
}

#[test]
fn codes_are_distinct_and_in_the_book() {
    let book = include_str!("../../../../docs/partition-manifest.md");
    let rows = book
        .lines()
        .filter_map(|line| line.split("| `rule-").nth(1));
    let documented: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let codes = Rule::ALL.map(|rule| rule.as_str().trim_start_matches("rule-"));
    assert_eq!(documented, codes);
}

#[test]
fn a_role_says_everything_or_is_none() {
    for (from, to, codes) in [
        ("memory = \"512MiB\"", "", &["manifest-missing-key"][..]),
        ("vcpus = 2", "", &["manifest-missing-key"]),
        ("[lifetime]\nmax = \"8h\"", "", &["manifest-missing-key"]),
        ("files = [", "files = [\"bin\", ", &["manifest-path"]),
        ("\"console\",", "\"consol\",", &["manifest-grant"]),
        ("vcpus = 2", "vcpus = 33", &["manifest-vcpus"]),
        (
            "vcpus = 2",
            "cpus = 2",
            &["manifest-missing-key", "manifest-unknown-key"],
        ),
    ] {
        assert!(ROLE.contains(from), "{from}");
        let role = ROLE.replace(from, to);
        let rejected = parse_role(role.as_bytes(), Path::new("/r.toml")).unwrap_err();
        let found: Vec<&str> = rejected
            .diagnostics
            .iter()
            .map(|d| d.code.as_str())
            .collect();
        assert_eq!(found, codes, "{to}");
    }
}

//! Every section of a manifest through the front door, and the way into a document and back.

use super::*;
use crate::document::PAYLOAD_TYPE;
use crate::{DeviceKind, Lifetime};
use bulkhead_capability::{Adherence, Autonomy};
use bulkhead_signature::PrivateKey;
use proptest::prelude::*;

/// The least that is a manifest.
pub(crate) const MINIMAL: &str = r#"
grants = ["console"]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "linux"
command = ["/bin/true"]
[lifetime]
max = "8h"
"#;

/// One of everything.
pub(crate) const EVERYTHING: &str = r#"
conditions = "learn"
grants = [
    "console",
    "time",
    { capability = "block.write:disk.img", name = "data", overlay = "top.img", format = "qcow2", backing = [{ path = "base.img" }], rate = { bytes = "1MiB/s" }, queues = 1, direct = true },
    { capability = "block.read", path = "ro.img" },
    { capability = "fs.write:work", tag = "work", owner = "1000:1000" },
    { capability = "net.connect:api.example.org:443", methods = ["GET", "POST"], paths = ["/v1/**"], calls = "60/min", bytes = "1GiB", lifetime = "1h", expires = "2030-01-01T00:00:00Z" },
    "net.connect:git.example.org:443",
    "vsock",
]
deny = ["net.connect:10.0.0.0/8:*", "fs.read:/etc"]

[identity]
name = "agent"
role = "coder"
owner = "alice"
parent = "boss"

[boot]
kernel = "linux"
command = ["/bin/agent", "--fast"]
env = { LANG = "C" }
root = "rootfs"
mounts = [{ source = "bin", target = "/opt/bin" }, { source = "@linux/vmlinuz", target = "/boot/k" }]
transport = "pci"
watchdog = true

[resources]
memory = { size = "256MiB", max = "512MiB", balloon = true }
vcpus = 2
cpu = "v2"
limits = { cpu = "150%", memory_overhead = "64MiB", pids = 100 }

[lifetime]
max = "90s"
on_reboot = "end"

[network]
max_connections = 10
hosts = ["db.example.org"]
trust = ["ca.pem"]

[[secrets]]
name = "github"
host = "git.example.org"
header = "X-Token"
path = "/repos/**"
env = "GITHUB_TOKEN"

[[secrets]]
name = "session"
host = "api.example.org"
ephemeral = true

[tools]
allow = ["fs.*", "git.status"]
limits = "tools.toml"
autonomy = "supervised"

[spawn]
roles = ["worker=4", "reader"]
count = 4
depth = 2

[budget]
bytes = "1GiB"
calls = 1000
tokens = 100000
money = "5.00"
"#;

pub(crate) fn manifest(text: &str) -> Manifest {
    parse_manifest(text.as_bytes(), Path::new("/srv/agent/partition.toml")).unwrap()
}

fn refused(text: &str) -> Vec<(Code, usize, String)> {
    let rejected = parse_manifest(text.as_bytes(), Path::new("partition.toml")).unwrap_err();
    let line = |d: &Diagnostic| d.place.as_ref().map_or(0, |place| place.line);
    let list = rejected.diagnostics.iter();
    list.map(|d| (d.code, line(d), d.message.clone())).collect()
}

#[test]
fn every_section_is_read() {
    let manifest = manifest(EVERYTHING);
    let partition = manifest.partition();
    assert_eq!(manifest.identity(), "agent");
    assert_eq!((partition.memory.mib, partition.vcpus), (256, 2));
    assert!(!partition.restart && partition.watchdog);
    assert_eq!(partition.autonomy, Autonomy::Supervised);
    assert_eq!(self::manifest(MINIMAL).partition().autonomy, Autonomy::Full);
    assert_eq!(partition.conditions, Adherence::Learn);
    let minimal = self::manifest(MINIMAL);
    assert_eq!(minimal.partition().conditions, Adherence::Enforce);
    let mandate = manifest.mandate();
    assert_eq!(partition.mandate.as_ref(), Some(mandate));
    assert_eq!(mandate.role, "coder");
    assert_eq!(mandate.parent.as_deref(), Some("boss"));
    assert_eq!(mandate.lifetime, Lifetime::Seconds(90));
    let [github, session] = mandate.secrets.as_slice() else {
        panic!("two secrets")
    };
    assert_eq!((github.header.as_str(), github.port), ("x-token", 443));
    assert_eq!(session.header, "authorization");
    assert!(session.ephemeral && session.path.is_none() && session.env.is_none());
    assert_eq!(
        mandate.tool_limits.as_deref(),
        Some(Path::new("/srv/agent/tools.toml"))
    );
    assert_eq!((mandate.spawn.count, mandate.spawn.depth), (4, 2));
    assert_eq!(mandate.budget.money, Some(500_000_000));
    let grants: Vec<String> = (partition.grants.capabilities())
        .map(ToString::to_string)
        .collect();
    for implied in [
        "secret.use:github",
        "secret.use:session",
        "tool.call:fs.*",
        "tool.call:git.status",
        "partition.spawn:worker=4",
        "partition.spawn:reader=1",
    ] {
        assert!(grants.iter().any(|grant| grant == implied), "{implied}");
    }
    assert_eq!(manifest.grants().len(), grants.len());
    let disk = partition
        .devices
        .iter()
        .find_map(|device| match &device.kind {
            DeviceKind::Disk(disk) => Some(disk),
            _ => None,
        });
    assert_eq!(disk.unwrap().path, Path::new("/srv/agent/disk.img"));
}

#[test]
fn refusals_name_code_and_line() {
    let at = |from: &str, to: &str| {
        assert!(MINIMAL.contains(from), "{from}");
        refused(&MINIMAL.replace(from, to))
    };
    let one = |found: Vec<(Code, usize, String)>| -> (Code, usize) {
        let [(code, line, _)] = found.as_slice() else {
            panic!("{found:?}")
        };
        (*code, *line)
    };
    for (from, to, code, line) in [
        ("role = \"coder\"", "", Code::MissingKey, 1),
        ("role = \"coder\"", "role = \"../x\"", Code::Identity, 5),
        (
            "role = \"coder\"",
            "role = \"coder\"\nowner = \"\"",
            Code::Identity,
            6,
        ),
        (
            "role = \"coder\"",
            "role = \"coder\"\nparent = \"X\"",
            Code::Name,
            6,
        ),
        ("name = \"agent\"", "", Code::MissingKey, 1),
        ("max = \"8h\"", "", Code::MissingKey, 9),
        ("max = \"8h\"", "unlimited = false", Code::MissingKey, 9),
        ("max = \"8h\"", "max = \"0s\"", Code::Lifetime, 10),
        ("max = \"8h\"", "max = \"8\"", Code::Lifetime, 10),
        (
            "max = \"8h\"",
            "max = \"8h\"\nunlimited = true",
            Code::Lifetime,
            10,
        ),
        ("[lifetime]", "[budget]\n[lifetime]", Code::Budget, 9),
        (
            "[lifetime]",
            "[budget]\ncalls = 0\n[lifetime]",
            Code::Budget,
            10,
        ),
        (
            "[lifetime]",
            "[budget]\nmoney = \"1e9\"\n[lifetime]",
            Code::Budget,
            10,
        ),
        (
            "[lifetime]",
            "[spawn]\nroles = [\"w\"]\n[lifetime]",
            Code::MissingKey,
            9,
        ),
        (
            "[lifetime]",
            "[spawn]\nroles = [\"w\"]\ncount = 257\n[lifetime]",
            Code::Spawn,
            11,
        ),
        (
            "[lifetime]",
            "[spawn]\nroles = [\"w=0\"]\ncount = 1\n[lifetime]",
            Code::Grant,
            10,
        ),
        (
            "[lifetime]",
            "[tools]\nlimits = \"\"\n[lifetime]",
            Code::Path,
            10,
        ),
        (
            "[lifetime]",
            "[tools]\nallow = [\"a b\"]\n[lifetime]",
            Code::Grant,
            10,
        ),
        (
            "[lifetime]",
            "[[secrets]]\nhost = \"a.org\"\n[lifetime]",
            Code::MissingKey,
            9,
        ),
        (
            "[lifetime]",
            "[[secrets]]\nname = \"x\"\n[lifetime]",
            Code::MissingKey,
            9,
        ),
        (
            "[lifetime]",
            "[[secrets]]\nname = \"x\"\nhost = \"*.a.org\"\n[lifetime]",
            Code::Secret,
            11,
        ),
        (
            "[lifetime]",
            "[[secrets]]\nname = \"x\"\nhost = \"10.0.0.1\"\n[lifetime]",
            Code::Secret,
            11,
        ),
        (
            "[lifetime]",
            "[[secrets]]\nname = \"x\"\nhost = \"a.org\"\n[lifetime]",
            Code::Secret,
            11,
        ),
        (
            "kernel = \"linux\"",
            "kernel = \"linux\"\nmemory = \"1GiB\"",
            Code::UnknownKey,
            8,
        ),
        ("[lifetime]", "[limits]\n[lifetime]", Code::UnknownKey, 9),
        (
            "[lifetime]",
            "[resources.limits]\npids = 9007199254740992\n[lifetime]",
            Code::Form,
            0,
        ),
    ] {
        assert_eq!(one(at(from, to)), (code, line), "{to}");
    }
}

#[test]
fn secrets_go_where_the_partition_may_connect() {
    let with = |lines: &str| {
        let grants = "grants = [\"net.connect:*.a.org:443\", \"net.loopback:8443\"]\ndeny = [\"net.connect:b.a.org:443\"]";
        let secret = format!("[[secrets]]\nname = \"x\"\n{lines}\n[lifetime]");
        let text = MINIMAL.replace("grants = [\"console\"]", grants);
        let text = text.replace("[lifetime]", &secret);
        parse_manifest(text.as_bytes(), Path::new("p.toml")).map_err(|rejected| {
            let codes: Vec<Code> = rejected.diagnostics.iter().map(|d| d.code).collect();
            codes
        })
    };
    for lines in [
        "host = \"api.a.org\"",
        "host = \"api.a.org\"\nheader = \"x-api-key\"\npath = \"/v1/*\"\nenv = \"KEY\"",
        // The host's own services have the router's address, and whatever name the guest gives it.
        "host = \"local.test\"\nport = 8443",
    ] {
        assert!(with(lines).is_ok(), "{lines}");
    }
    for lines in [
        "host = \"a.org\"",
        "host = \"api.a.org\"\nport = 80",
        "host = \"b.a.org\"",
        "host = \"api.a.org\"\nheader = \"Host\"",
        "host = \"api.a.org\"\nheader = \"content-length\"",
        "host = \"api.a.org\"\nheader = \"a:b\"",
        "host = \"api.a.org\"\npath = \"v1\"",
        "host = \"api.a.org\"\nenv = \"1X\"",
        "host = \"api.a.org\"\nenv = \"A=B\"",
        "host = \"api.a.org\"\nport = 0",
        "host = \"api.a.org\"\n[[secrets]]\nname = \"x\"\nhost = \"api.a.org\"",
        "host = \"api.a.org\"\nenv = \"K\"\n[[secrets]]\nname = \"y\"\nhost = \"c.a.org\"\nenv = \"K\"",
    ] {
        assert_eq!(with(lines).unwrap_err(), [Code::Secret], "{lines}");
    }
}

#[test]
fn the_document_does_not_depend_on_the_order_or_the_place() {
    let manifest = manifest(EVERYTHING);
    // As text it is the same manifest, from wherever it is read.
    let again = document::to_text(manifest.document()).unwrap();
    let elsewhere = parse_manifest(again.as_bytes(), Path::new("/elsewhere/p.toml")).unwrap();
    assert_eq!(elsewhere.document(), manifest.document());
    assert_eq!(elsewhere.partition(), manifest.partition());
    // Tables in another order, other spaces and comments.
    let (head, tables) = EVERYTHING.split_at(EVERYTHING.find("[identity]").unwrap());
    let mut tables: Vec<&str> = tables.split("\n\n").collect();
    let secrets: Vec<&str> = tables
        .extract_if(.., |t| t.contains("[[secrets]]"))
        .collect();
    tables.reverse();
    tables.extend(secrets);
    let other = format!("# x\n{head}\n{}", tables.join("\n\n# y\n\n"));
    assert_eq!(self::manifest(&other).document(), manifest.document());
    // Another place means other files.
    let moved = parse_manifest(EVERYTHING.as_bytes(), Path::new("/home/p.toml")).unwrap();
    assert_ne!(moved.document(), manifest.document());
}

#[test]
fn no_path_in_a_document_is_relative() {
    let document = String::from_utf8(manifest(EVERYTHING).document().to_vec()).unwrap();
    for path in [
        "disk.img",
        "top.img",
        "base.img",
        "ro.img",
        "work",
        "rootfs",
        "bin",
        "tools.toml",
    ] {
        let absolute = format!("/srv/agent/{path}\"");
        assert!(document.contains(&absolute), "{path} in {document}");
    }
    assert!(document.contains("\"@linux/vmlinuz\""));
    assert!(document.contains("fs.read:/etc"));
}

#[test]
fn an_envelope_holds_a_document_and_nothing_else() {
    let key = PrivateKey::from_seed(&[1; 32]);
    let sealed = |payload: &[u8]| {
        let envelope = Envelope::sign(PAYLOAD_TYPE, payload.to_vec(), &key).unwrap();
        envelope.to_json()
    };
    let read = |payload: &[u8]| {
        let submission = parse_submission(sealed(payload).as_bytes(), Path::new("a.json"))?;
        assert!(submission.envelope.is_some());
        Ok::<Manifest, Rejected>(submission.manifest)
    };
    assert!(parse_submission(b"{}", Path::new("a.json")).is_err());
    let manifest = manifest(EVERYTHING);
    let signed = read(manifest.document()).unwrap();
    assert_eq!(signed.partition(), manifest.partition());
    let document = str::from_utf8(manifest.document()).unwrap();
    let codes = |payload: &str| -> Vec<Code> {
        let rejected = read(payload.as_bytes()).unwrap_err();
        rejected.diagnostics.iter().map(|d| d.code).collect()
    };
    assert_eq!(
        codes(&document.replace("/srv/agent/rootfs", "rootfs")),
        [Code::Path]
    );
    assert_eq!(codes(&document.replace(":[", ": [")), [Code::Form]);
    assert_eq!(codes("{}\n"), [Code::Form]);
    assert_eq!(codes("[]"), [Code::Form]);
    assert_eq!(codes("{\"boot\":null}"), [Code::Form]);
    assert!(codes(&document.replace("\"role\"", "\"rule\"")).contains(&Code::UnknownKey));
}

#[test]
fn a_partition_may_name_a_manifest_and_nothing_beside_it() {
    let text = "name = \"s\"\n[[partition]]\nmanifest = \"a.json\"\n";
    let refused = |text: &str| -> Vec<(Code, usize)> {
        let rejected = crate::parse(text.as_bytes(), Path::new("s.toml")).unwrap_err();
        let all = rejected.diagnostics.iter();
        all.map(|d| (d.code, d.place.as_ref().map_or(0, |place| place.line)))
            .collect()
    };
    assert_eq!(refused(text), [(Code::Reference, 3)]);
    assert_eq!(
        refused(&format!("{text}vcpus = 2\n")),
        [(Code::Reference, 3), (Code::Reference, 4)]
    );
    let odd = text.replace("manifest = \"a.json\"", "unsigned = true");
    assert_eq!(refused(&odd).last(), Some(&(Code::Reference, 3)));
    let mut asked = Vec::new();
    let file = Path::new("dir/system.toml");
    let unsigned = format!("{text}[[partition]]\nmanifest = \"/b.toml\"\nunsigned = true\n");
    let _ = crate::parse_with(unsigned.as_bytes(), file, |path, unsigned| {
        asked.push((path.to_owned(), unsigned));
        Ok::<_, ()>(None)
    });
    let expected = [("dir/a.json", false), ("/b.toml", true)];
    assert_eq!(
        asked,
        expected.map(|(path, unsigned)| (path.into(), unsigned))
    );
    let failed = crate::parse_with(text.as_bytes(), file, |_, _| Err("no"));
    assert_eq!(failed.unwrap_err(), "no");
}

proptest! {
    /// Whatever the text says: refused with a report, or a document that is its own.
    #[test]
    fn any_edit_is_refused_or_means_the_same_everywhere(
        at in 0..EVERYTHING.len(),
        length in 0_usize..12,
        with in "[ -~\n]{0,6}",
    ) {
        let end = (at + length).min(EVERYTHING.len());
        let text = format!("{}{with}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        if let Ok(manifest) = parse_manifest(text.as_bytes(), Path::new("/srv/p.toml")) {
            let again = document::to_text(manifest.document()).unwrap();
            let again = parse_manifest(again.as_bytes(), Path::new("/x/p.toml")).unwrap();
            prop_assert_eq!(again.document(), manifest.document());
            prop_assert_eq!(again.partition(), manifest.partition());
        }
    }
}

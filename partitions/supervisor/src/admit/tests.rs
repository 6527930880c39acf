//! Judgements of files, and that each is recorded.

use super::*;
use crate::compile::{Descriptors, Want};
use crate::open::Opened;
use crate::{HeldConditions, Library, PartitionConditions};
use bulkhead_capability::Adherence;
use bulkhead_machine::Jail;
use bulkhead_manifest::{At, DeviceKind, SystemDraft, Validated, validate};
use bulkhead_signature::{Envelope, Trust};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::sync::Mutex;
use tempfile::{TempDir, tempdir};

const MANIFEST: &str = r#"
grants = ["console"]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "linux-abi"
command = ["/bin/true"]
mounts = [{ source = "/bin/true", target = "/bin/true" }]
[resources]
memory = "64MiB"
[lifetime]
max = "8h"
"#;

const ROLE: &str = r#"
grants = ["console"]
files = ["/**"]
[resources]
memory = "64MiB"
vcpus = 1
[lifetime]
max = "8h"
"#;

/// Remembers entries, or takes none.
#[derive(Default)]
struct Fake {
    entries: Mutex<Vec<Entry>>,
    full: bool,
}

impl Recorder for Fake {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        if self.full {
            return Err(RecordError::WriterGone);
        }
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry.clone());
        Ok(entries.len() as u64)
    }
}

/// A host of its own, with a role and a key that is trusted.
struct Scene {
    dir: TempDir,
    config: Place,
    root: StateRoot,
    store: KeyStore,
}

fn scene() -> Scene {
    let dir = tempdir().unwrap();
    let config = Place::at(&dir.path().join("c")).unwrap();
    let roles = config.below("roles").make().unwrap().to_owned();
    fs::write(roles.join("coder.toml"), ROLE).unwrap();
    let store = KeyStore::new(&config);
    let public = store.create("alice", "").unwrap();
    store.trust("alice", &public, Trust::Sign).unwrap();
    Scene {
        root: StateRoot::at(&dir.path().join("s")).unwrap(),
        config,
        store,
        dir,
    }
}

impl Scene {
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn signed(&self, text: &str) -> PathBuf {
        let manifest = bulkhead_manifest::parse_manifest(text.as_bytes(), Path::new("/m.toml"));
        let document = manifest.unwrap().document().to_vec();
        let (key, _) = self.store.private("alice").unwrap();
        let envelope = Envelope::sign(bulkhead_manifest::PAYLOAD_TYPE, document, &key);
        self.file("agent.json", &envelope.unwrap().to_json())
    }

    fn admissions(&self, recorder: &Arc<Fake>) -> Admissions {
        let data = Place::at(&self.dir.path().join("d")).unwrap();
        let recorder: Arc<dyn Recorder> = recorder.clone();
        Admissions::new(&self.config, &[&data], &self.root, recorder).unwrap()
    }

    fn judge(&self, file: &Path, unsigned: bool) -> (Result<Admitted, AdmissionError>, Vec<Entry>) {
        let fake = Arc::new(Fake::default());
        let judged = self.admissions(&fake).admit(file, unsigned);
        let entries = fake.entries.lock().unwrap().clone();
        (judged, entries)
    }
}

fn system(name: &str, admitted: Admitted) -> Validated<System> {
    let draft = SystemDraft {
        name: Some(At::from(name.to_owned())),
        partitions: vec![At::from(admitted.into_draft())],
    };
    validate(&draft, Path::new("/")).unwrap()
}

#[test]
fn what_is_admitted_is_recorded_with_who_signed_it() {
    let scene = scene();
    let (judged, entries) = scene.judge(&scene.signed(MANIFEST), false);
    assert_eq!(judged.unwrap().signers(), ["alice"]);
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!(
        (entry.kind, entry.verdict),
        (Kind::Intent, Verdict::Allowed)
    );
    assert_eq!(
        (entry.object.as_str(), entry.reason.as_str()),
        ("agent", "signed by alice")
    );
}

#[test]
fn each_refusal_is_a_record_that_names_rule_field_and_line() {
    let scene = scene();
    let text = scene.file("agent.toml", MANIFEST);
    let big = scene.signed(&MANIFEST.replace("64MiB", "65MiB"));
    let odd = scene.file("odd.toml", &MANIFEST.replace("8h", "8"));
    let refused = |file: &Path, unsigned: bool| {
        let (judged, entries) = scene.judge(file, unsigned);
        let code = judged.unwrap_err().code();
        let [entry] = entries.as_slice() else {
            panic!("{entries:?}")
        };
        assert_eq!(
            (entry.kind, entry.verdict),
            (Kind::Refusal, Verdict::Denied)
        );
        assert_eq!(entry.detail["rule"], code);
        let detail = |key: &str| entry.detail.get(key).cloned().unwrap_or_default();
        (code, detail("field"), detail("line"))
    };
    let is = |code, field: &str, line: &str| (code, field.to_owned(), line.to_owned());
    assert_eq!(refused(&text, false), is("rule-signature", "identity", ""));
    assert_eq!(
        refused(&big, false),
        is("rule-ceiling", "resources.memory", "19")
    );
    assert_eq!(refused(&odd, true), is("rule-schema", "lifetime.max", "13"));
    assert!(scene.judge(&text, true).0.is_ok());
    scene.store.distrust("alice").unwrap();
    let signed = scene.signed(MANIFEST);
    assert_eq!(refused(&signed, false).0, "rule-signature");
}

#[test]
fn what_cannot_be_recorded_is_not_admitted() {
    let scene = scene();
    let fake = Arc::new(Fake {
        full: true,
        ..Fake::default()
    });
    let mut admissions = scene.admissions(&fake);
    let judged = admissions.admit(&scene.signed(MANIFEST), false);
    assert_eq!(judged.unwrap_err().code(), "not-recorded");
    let judged = admissions.admit(&scene.file("agent.toml", MANIFEST), false);
    assert_eq!(judged.unwrap_err().code(), "not-recorded");
}

#[test]
fn one_start_is_judged_as_a_whole() {
    let scene = scene();
    let fake = Arc::new(Fake::default());
    let mut admissions = scene.admissions(&fake);
    let file = scene.signed(MANIFEST);
    let before = admissions.host.capacity.promised_mib;
    admissions.admit(&file, false).unwrap();
    assert_eq!(admissions.host.capacity.promised_mib, before + 64);
    assert_eq!(
        admissions.admit(&file, false).unwrap_err().code(),
        "rule-identity"
    );
}

#[test]
fn an_identity_is_taken_while_its_partition_runs() {
    let scene = scene();
    let file = scene.signed(MANIFEST);
    let one = system("one", scene.judge(&file, false).0.unwrap());
    let directory = scene.root.create("one").unwrap();
    // Judged before the other was there, and started after it.
    let two = system("two", scene.judge(&file, false).0.unwrap());
    write_documents(&one, &scene.root, &directory).unwrap();
    assert_eq!(
        scene.judge(&file, false).0.unwrap_err().code(),
        "rule-identity"
    );
    let second = scene.root.create("two").unwrap();
    let late = write_documents(&two, &scene.root, &second).unwrap_err();
    assert_eq!(late.code(), "rule-identity");
    drop(second);
    let running = LiveHost::look(&scene.root, None).unwrap().running;
    let identities: Vec<&str> = running.iter().map(Manifest::identity).collect();
    assert_eq!(identities, ["agent"]);
    remove_document(directory.path(), "agent");
    scene.judge(&file, false).0.unwrap();
}

#[test]
fn two_that_start_at_once_do_not_both_take_the_last_place() {
    let scene = scene();
    let roles = scene.config.below("roles");
    let role = format!("{ROLE}[spawn]\ncount = 1\ndepth = 1\n");
    fs::write(roles.path().join("coder.toml"), &role).unwrap();
    let parent = MANIFEST.replace("name = \"agent\"", "name = \"parent\"");
    let spawn = "[spawn]\nroles = [\"coder=1\"]\ncount = 1\n";
    let file = scene.signed(&format!("{parent}{spawn}"));
    let role = role.replace("\"console\"", "\"console\", \"partition.spawn:coder=1\"");
    fs::write(roles.path().join("coder.toml"), role).unwrap();
    let parent = system("parent", scene.judge(&file, false).0.unwrap());
    let directory = scene.root.create("parent").unwrap();
    write_documents(&parent, &scene.root, &directory).unwrap();
    let child = |name: &str| {
        let named = format!("name = \"{name}\"\nparent = \"parent\"");
        let text = MANIFEST.replace("name = \"agent\"", &named);
        system(name, scene.judge(&scene.signed(&text), false).0.unwrap())
    };
    // Both are judged before either is there.
    let (one, two) = (child("one"), child("two"));
    let first = scene.root.create("one").unwrap();
    write_documents(&one, &scene.root, &first).unwrap();
    let second = scene.root.create("two").unwrap();
    let late = write_documents(&two, &scene.root, &second).unwrap_err();
    assert_eq!(late.code(), "rule-spawn");
    assert_eq!(
        late.to_string(),
        "parent `parent` has 1 children of role `coder` already"
    );
}

/// Answers for the conditions of partitions of the system in this directory, once for each text.
fn answering(directory: &SystemDir, texts: &[&str]) -> std::thread::JoinHandle<()> {
    let socket = std::os::unix::net::UnixListener::bind(directory.socket()).unwrap();
    let held = texts.iter().map(|text| HeldConditions {
        conditions: conditions(text, Vec::new()),
        answered: true,
    });
    let held: Vec<HeldConditions> = held.collect();
    std::thread::spawn(move || {
        for held in held {
            let (stream, _) = socket.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            crate::control::reply(&stream, &held);
        }
    })
}

fn conditions(text: &str, inherited: Vec<crate::Inherited>) -> PartitionConditions {
    PartitionConditions {
        text: text.to_owned(),
        world: Vec::new(),
        lineage: Vec::new(),
        adherence: Adherence::Enforce,
        inherited,
    }
}

#[test]
fn nobody_begins_with_conditions_of_a_parent_that_hold_no_more() {
    let scene = scene();
    let roles = scene.config.below("roles");
    let role = format!("{ROLE}[spawn]\ncount = 1\ndepth = 1\n");
    let role = role.replace("\"console\"", "\"console\", \"partition.spawn:coder=1\"");
    fs::write(roles.path().join("coder.toml"), role).unwrap();
    let parent = MANIFEST.replace("name = \"agent\"", "name = \"parent\"");
    let spawn = "[spawn]\nroles = [\"coder=1\"]\ncount = 1\n";
    let file = scene.signed(&format!("{parent}{spawn}"));
    let parent = system("parent", scene.judge(&file, false).0.unwrap());
    let of_parent = scene.root.create("parent").unwrap();
    write_documents(&parent, &scene.root, &of_parent).unwrap();
    let named = "name = \"child\"\nparent = \"parent\"";
    let text = MANIFEST.replace("name = \"agent\"", named);
    let child = system("child", scene.judge(&scene.signed(&text), false).0.unwrap());
    let own = scene.root.create("child").unwrap();
    let of = |ancestor: &str| descendants(&scene.root, ancestor).unwrap();
    assert!(of("parent").is_empty());
    write_documents(&child, &scene.root, &own).unwrap();
    // Whoever replaces conditions finds it from here on.
    assert!(of("other").is_empty());
    let found = of("parent");
    let found = found.iter().map(|(found, name)| (&*found.name, &**name));
    assert_eq!(found.collect::<Vec<_>>(), [("child", "child")]);

    let answers = answering(&of_parent, &["old", "new", "old"]);
    let of_parent = conditions("old", Vec::new()).for_children_of("parent");
    let check = |inherited: &[crate::Inherited]| {
        let held = Arc::new(conditions("own", inherited.to_owned()));
        let held = BTreeMap::from([("child".to_owned(), held)]);
        check_inherited(&child, &held, &scene.root, &own).map_err(|error| {
            let code = error.code();
            (code, error.to_string())
        })
    };
    assert_eq!(check(&of_parent), Ok(()));
    let (code, said) = check(&of_parent).unwrap_err();
    assert_eq!(code, "conditions-changed");
    assert!(said.ends_with("of `parent` that hold no more"), "{said}");
    // What its parent has inherited counts by itself: the parent may not have been told yet.
    let chief = conditions("old", Vec::new()).for_children_of("chief");
    let (code, said) = check(&[of_parent.clone(), chief].concat()).unwrap_err();
    assert_eq!(code, "conditions-changed");
    assert!(said.ends_with("of `chief` that hold no more"), "{said}");
    answers.join().unwrap();
    assert_eq!(check(&of_parent).unwrap_err().0, "no-answer");
    // Who inherits nothing is held to nothing.
    assert_eq!(check(&[]), Ok(()));
}

#[test]
fn memory_is_promised_as_soon_as_a_document_is_there() {
    let scene = scene();
    let directory = scene.root.create("one").unwrap();
    let before = LiveHost::look(&scene.root, None)
        .unwrap()
        .capacity
        .promised_mib;
    let one = system(
        "one",
        scene.judge(&scene.signed(MANIFEST), false).0.unwrap(),
    );
    write_documents(&one, &scene.root, &directory).unwrap();
    let after = LiveHost::look(&scene.root, None)
        .unwrap()
        .capacity
        .promised_mib;
    assert_eq!(after - before, one.partitions[0].memory.mib);
}

#[test]
fn what_is_attached_keeps_the_rules_about_grants() {
    let scene = scene();
    let place = scene.dir.path().canonicalize().unwrap();
    let fs = |name: &str| format!("fs.read:{}", place.join(name).display());
    let role = ROLE.replace(
        "\"console\"",
        &format!("\"console\", \"{}\", \"{}\"", fs("w"), fs("c")),
    );
    let roles = scene.config.below("roles");
    fs::write(roles.path().join("coder.toml"), role).unwrap();
    let admitted = scene.judge(&scene.signed(MANIFEST), false).0.unwrap();
    let system = system("one", admitted);
    let document = &system.partitions[0].mandate.as_ref().unwrap().document;
    let admissions = scene.admissions(&Arc::new(Fake::default()));
    let attach = |grant: &str| {
        let drafts = [GrantDraft::from(grant.to_owned())];
        let judged = admissions.admit_grants("agent", document, &drafts, Path::new("/"));
        judged.map_err(|error| error.code())
    };
    assert_eq!(attach(&fs("w")), Ok(()));
    assert_eq!(attach(&fs("x")), Err("rule-ceiling"));
    // The role has it, and nobody may.
    assert_eq!(attach(&fs("c")), Err("rule-deny"));
    // Through a link that leads there.
    symlink(scene.config.path(), place.join("w")).unwrap();
    assert_eq!(attach(&fs("w")), Err("rule-deny"));
}

#[test]
fn a_link_that_was_changed_since_is_not_followed() {
    let scene = scene();
    let place = scene.dir.path().canonicalize().unwrap();
    for name in ["good", "bad"] {
        fs::create_dir(place.join(name)).unwrap();
        fs::write(place.join(name).join("file"), [0; 512]).unwrap();
    }
    let link = place.join("link");
    let lead = |to: &str| {
        let _ = fs::remove_file(&link);
        symlink(place.join(to), &link).unwrap();
    };
    lead("good");
    let at = link.display();
    let grants = format!("grants = [\"console\", \"block.read:{at}/file\"]");
    let role = ROLE.replace("grants = [\"console\"]", &grants);
    let roles = scene.config.below("roles");
    fs::write(roles.path().join("coder.toml"), role).unwrap();
    let text = MANIFEST.replace("grants = [\"console\"]", &grants);
    let text = text.replace("source = \"/bin/true\"", &format!("source = \"{at}/file\""));
    let system = system("one", scene.judge(&scene.signed(&text), false).0.unwrap());
    let partition = &system.partitions[0];
    for (to, code) in [
        ("good", Ok(())),
        ("bad", Err("leads-elsewhere")),
        ("good", Ok(())),
    ] {
        lead(to);
        let mount = crate::files::hold(partition, &link.join("file")).map(drop);
        assert_eq!(mount.map_err(|error| error.code()), code, "{to}");
        let library = Library::at(&place).unwrap();
        let mut opened = Opened::for_packet(&library, &place, Jail::Full);
        let DeviceKind::Disk(disk) = &partition.devices[0].kind else {
            panic!("{:?}", partition.devices)
        };
        let disk = opened.open(partition, Want::Disk(disk)).map(drop);
        assert_eq!(disk.map_err(|error| error.code()), code, "{to}");
    }
}

#[test]
fn bulkheads_own_directories_are_nobodys() {
    let scene = scene();
    let role = ROLE.replace("\"console\"", "\"console\", \"fs.write:/etc\"");
    let roles = scene.config.below("roles");
    fs::write(roles.path().join("coder.toml"), role).unwrap();
    let real = scene.dir.path().canonicalize().unwrap();
    for (name, field) in [
        ("c/keys", "boot"),
        ("d/vault", "boot"),
        ("s/x/control.sock", "boot"),
    ] {
        let source = format!("source = \"{}\"", real.join(name).display());
        let text = MANIFEST.replace("source = \"/bin/true\"", &source);
        let (judged, entries) = scene.judge(&scene.signed(&text), false);
        assert_eq!(judged.unwrap_err().code(), "rule-deny", "{name}");
        assert_eq!(entries[0].detail["field"], field);
    }
    // Through a link that leads there.
    let link = scene.dir.path().join("innocent");
    symlink(scene.config.path(), &link).unwrap();
    let source = format!("source = \"{}\"", link.join("keys/alice").display());
    let text = MANIFEST.replace("source = \"/bin/true\"", &source);
    assert_eq!(
        scene
            .judge(&scene.signed(&text), false)
            .0
            .unwrap_err()
            .code(),
        "rule-deny"
    );
}

#[test]
fn what_operators_got_wrong_stands_in_the_way() {
    let scene = scene();
    let file = scene.signed(MANIFEST);
    let roles = scene.config.below("roles").path().to_owned();
    fs::write(roles.join("coder.toml"), "grants = []").unwrap();
    assert_eq!(
        scene.judge(&file, false).0.unwrap_err().code(),
        "policy-invalid"
    );
    fs::remove_file(roles.join("coder.toml")).unwrap();
    assert_eq!(
        scene.judge(&file, false).0.unwrap_err().code(),
        "rule-ceiling"
    );
    fs::write(roles.join("coder.toml"), ROLE).unwrap();
    let deny = scene.config.path().join("deny.toml");
    fs::write(&deny, "deny = [\"console\"]").unwrap();
    assert_eq!(scene.judge(&file, false).0.unwrap_err().code(), "rule-deny");
    fs::write(&deny, "deny = 1").unwrap();
    let data = Place::at(&scene.dir.path().join("d")).unwrap();
    let fake = Arc::new(Fake::default());
    let opened = Admissions::new(&scene.config, &[&data], &scene.root, fake);
    assert_eq!(opened.map(drop).unwrap_err().code(), "policy-invalid");
}

#[test]
fn real_paths_of_what_is_not_there() {
    let dir = tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(real.join("a"))
        .unwrap();
    symlink(real.join("a"), real.join("link")).unwrap();
    for (path, expected) in [
        ("link", "a"),
        ("link/new/file", "a/new/file"),
        ("link/../a/./x", "a/x"),
        ("gone/../a", "a"),
        ("gone/../../x", "../x"),
    ] {
        let expected: PathBuf = match expected.strip_prefix("../") {
            Some(rest) => real.parent().unwrap().join(rest),
            None => real.join(expected),
        };
        assert_eq!(real_path(&real.join(path)), expected, "{path}");
    }
    assert_eq!(
        real_path(Path::new("/../../etc/../etc/nobody")),
        Path::new("/etc/nobody")
    );
}

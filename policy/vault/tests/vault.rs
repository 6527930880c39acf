//! The vault through its public face: what is kept comes back, what was tampered with does not, and
//! each change is recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bulkhead_record::{Kind, Verdict};
use bulkhead_vault::{Editor, Vault, VaultError};
use common::{Ledger, Scratch, key, name, value_of};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

/// Where the sealed index begins, and its length: src/format.rs.
fn index_of(file: &[u8]) -> (usize, usize) {
    let length = u32::from_le_bytes(file[48..52].try_into().unwrap());
    (52, length as usize)
}

/// With the checksum that belongs to it, as a forger would write it.
fn with_checksum(mut body: Vec<u8>) -> Vec<u8> {
    let sum = Sha256::digest(&body);
    body.extend(sum);
    body
}

fn body(file: &[u8]) -> Vec<u8> {
    file[..file.len() - 32].to_vec()
}

#[test]
fn what_is_kept_comes_back() {
    let vault = Scratch::new();
    assert_eq!(vault.open().unwrap_err().code(), "vault-absent");
    vault.set("b", "value of b");
    vault.set("a", "value of a");
    let open = vault.open().unwrap();
    assert_eq!(open.get(&name("a")).unwrap().expose(), b"value of a");
    assert_eq!(open.get(&name("c")).unwrap_err().code(), "no-such-secret");
    let listed: Vec<_> = open
        .list()
        .into_iter()
        .map(|one| (one.name.to_string(), one.version))
        .collect();
    assert_eq!(listed, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    let code = |result: Result<(), VaultError>| result.unwrap_err().code();
    assert_eq!(
        code(vault.editor().unwrap().set(&name("a"), value_of("x"))),
        "secret-exists"
    );
    assert_eq!(
        code(vault.editor().unwrap().rotate(&name("c"), value_of("x"))),
        "no-such-secret"
    );
    assert_eq!(
        code(vault.editor().unwrap().remove(&name("c"))),
        "no-such-secret"
    );
    assert_eq!(
        code(vault.editor().unwrap().set(&name("c"), value_of(""))),
        "secret-value"
    );
    vault
        .editor()
        .unwrap()
        .rotate(&name("a"), value_of("another"))
        .unwrap();
    vault.editor().unwrap().remove(&name("b")).unwrap();
    let open = vault.open().unwrap();
    assert_eq!(open.get(&name("a")).unwrap().expose(), b"another");
    assert_eq!(
        (open.list().len(), open.list()[0].version, open.generation()),
        (1, 2, 4)
    );
}

#[test]
fn another_key_opens_nothing_and_rekey_changes_it() {
    let vault = Scratch::new();
    vault.set("a", "value");
    let code = |seed| {
        Vault::open(&vault.place, &key(seed))
            .map(drop)
            .unwrap_err()
            .code()
    };
    assert_eq!(code(2), "vault-key");
    assert!(Editor::open(&vault.place, &key(2), &vault.ledger).is_err());
    let before = fs::read(vault.file()).unwrap();
    vault.editor().unwrap().rekey(&key(2)).unwrap();
    assert_eq!(code(1), "vault-key");
    let open = Vault::open(&vault.place, &key(2)).unwrap();
    assert_eq!(open.get(&name("a")).unwrap().expose(), b"value");
    assert_ne!(
        fs::read(vault.file()).unwrap()[20..36],
        before[20..36],
        "the salt is new"
    );
}

#[test]
fn nothing_of_names_and_values_is_in_the_files() {
    let vault = Scratch::new();
    vault.set("telltale-name", "telltale-value");
    vault
        .editor()
        .unwrap()
        .rotate(&name("telltale-name"), value_of("telltale-again"))
        .unwrap();
    let mut files = 0;
    for entry in fs::read_dir(vault.place.path()).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        assert!(
            !bytes.windows(8).any(|window| window == b"telltale"),
            "{entry:?}"
        );
        assert_eq!(
            entry.metadata().unwrap().mode() & 0o7777,
            0o600,
            "{entry:?}"
        );
        files += 1;
    }
    assert_eq!(files, 2, "the vault and its lock");
}

/// With and without a checksum that fits: the first is what a bad disk does, the second an enemy.
#[test]
fn every_byte_that_is_changed_is_noticed() {
    let vault = Scratch::new();
    vault.set("a", "value of a");
    vault.set("b", "value of b");
    let file = fs::read(vault.file()).unwrap();
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 8);
        vault.write(&changed);
        assert_eq!(
            vault.open().unwrap_err().code(),
            "vault-damaged",
            "byte {at}"
        );
        if at >= file.len() - 32 {
            continue;
        }
        vault.write(&with_checksum(body(&changed)));
        let code = vault.open().unwrap_err().code();
        assert!(
            ["vault-damaged", "vault-key"].contains(&code),
            "byte {at}: {code}"
        );
    }
    vault.write(&file);
    vault.open().unwrap();
}

#[test]
fn a_file_that_is_cut_or_longer_is_noticed() {
    let vault = Scratch::new();
    vault.set("a", "value of a");
    vault.set("b", "value of b");
    let file = fs::read(vault.file()).unwrap();
    let whole = body(&file);
    for length in 0..file.len() {
        vault.write(&file[..length]);
        assert!(vault.open().is_err(), "{length}");
    }
    for length in 0..whole.len() {
        vault.write(&with_checksum(whole[..length].to_vec()));
        assert!(vault.open().is_err(), "{length} with a checksum");
    }
    vault.write(&with_checksum([&whole[..], b"x"].concat()));
    assert_eq!(vault.open().unwrap_err().code(), "vault-damaged");
}

#[test]
fn values_do_not_change_places() {
    let vault = Scratch::new();
    vault.set("a", "value of a");
    vault.set("b", "value of b");
    let file = fs::read(vault.file()).unwrap();
    let mut swapped = body(&file);
    let (start, length) = index_of(&swapped);
    let values = start + length;
    let half = (swapped.len() - values) / 2;
    swapped[values..].rotate_left(half);
    vault.write(&with_checksum(swapped));
    assert_eq!(vault.open().unwrap_err().code(), "vault-damaged");
}

/// Every mixture of two states of one vault: the old index with the new values, the new one with
/// the old. The value was rotated, or removed and set anew, so that name, version and length agree.
#[test]
fn an_old_part_does_not_fit_a_new_one() {
    for anew in [false, true] {
        let vault = Scratch::new();
        vault.set("a", "value 1");
        let old = fs::read(vault.file()).unwrap();
        if anew {
            vault.editor().unwrap().remove(&name("a")).unwrap();
            vault.set("a", "value 2");
        } else {
            vault
                .editor()
                .unwrap()
                .rotate(&name("a"), value_of("value 2"))
                .unwrap();
        }
        let new = fs::read(vault.file()).unwrap();
        for (index, values) in [(&old, &new), (&new, &old)] {
            let (start, length) = index_of(index);
            let (from, skipped) = index_of(values);
            let mixed = [&index[..start + length], &body(values)[from + skipped..]].concat();
            vault.write(&with_checksum(mixed));
            assert_eq!(vault.open().unwrap_err().code(), "vault-damaged", "{anew}");
        }
    }
}

/// The vault alone cannot know of a state after the one it is in. The ledger does: each change is
/// recorded with its generation.
#[test]
fn a_whole_old_file_opens_and_is_older_than_the_ledger_says() {
    let vault = Scratch::new();
    vault.set("a", "value 1");
    let old = fs::read(vault.file()).unwrap();
    vault
        .editor()
        .unwrap()
        .rotate(&name("a"), value_of("value 2"))
        .unwrap();
    vault.write(&old);
    let open = vault.open().unwrap();
    assert_eq!(open.get(&name("a")).unwrap().expose(), b"value 1");
    let entries = vault.ledger.entries.lock().unwrap();
    assert_eq!(entries.last().unwrap().detail["generation"], "2");
    assert_eq!(open.generation(), 1);
}

#[test]
fn a_change_is_recorded_before_and_after_or_not_made() {
    let vault = Scratch::new();
    vault.set("a", "value");
    vault
        .editor()
        .unwrap()
        .rotate(&name("a"), value_of("more"))
        .unwrap();
    let seen: Vec<_> = (vault.ledger.entries.lock().unwrap().iter())
        .map(|entry| {
            assert_eq!(
                (entry.kind, entry.actor.as_str()),
                (Kind::Policy, "operator")
            );
            assert_eq!(entry.object, "a");
            (
                entry.action.clone(),
                entry.verdict,
                entry.intent,
                entry.detail["version"].clone(),
            )
        })
        .collect();
    let step = |action: &str, verdict, intent, version: &str| {
        (action.to_owned(), verdict, intent, version.to_owned())
    };
    assert_eq!(
        seen,
        [
            step("secret.set", Verdict::Allowed, None, "1"),
            step("secret.set", Verdict::Done, Some(0), "1"),
            step("secret.rotate", Verdict::Allowed, None, "2"),
            step("secret.rotate", Verdict::Done, Some(2), "2"),
        ]
    );
    let file = fs::read(vault.file()).unwrap();
    let full = Ledger {
        full_at: Some(0),
        ..Ledger::default()
    };
    let editor = || Editor::open(&vault.place, &key(1), &full).unwrap();
    for refused in [
        editor().set(&name("b"), value_of("x")),
        editor().rotate(&name("a"), value_of("x")),
        editor().remove(&name("a")),
        editor().rekey(&key(2)),
    ] {
        assert_eq!(refused.unwrap_err().code(), "ledger");
    }
    assert_eq!(fs::read(vault.file()).unwrap(), file);
    // A change that cannot be written is a failure in the ledger, and none in the vault.
    fs::create_dir_all(vault.place.path().join("secrets.new/x")).unwrap();
    assert_eq!(
        vault
            .editor()
            .unwrap()
            .remove(&name("a"))
            .unwrap_err()
            .code(),
        "vault-unusable"
    );
    let entries = vault.ledger.entries.lock().unwrap();
    assert_eq!(entries.last().unwrap().verdict, Verdict::Failed);
    assert_eq!(fs::read(vault.file()).unwrap(), file);
}

#[test]
fn many_at_once_take_turns() {
    let vault = Scratch::new();
    thread::scope(|scope| {
        for one in 0..8 {
            let vault = &vault;
            scope.spawn(move || (0..5).for_each(|two| vault.set(&format!("s{one}{two}"), "value")));
        }
    });
    let open = vault.open().unwrap();
    assert_eq!((open.list().len(), open.generation()), (40, 40));
}

#[test]
fn a_new_vault_is_not_locked_with_a_short_passphrase() {
    let vault = Scratch::new();
    let material = |text: &str| bulkhead_vault::KeyMaterial::new(value_of(text), "a test").unwrap();
    let open = |text| Editor::open_or_new(&vault.place, &material(text), &vault.ledger).map(drop);
    assert_eq!(open("short").unwrap_err().code(), "passphrase-short");
    let editor = Editor::open_or_new(
        &vault.place,
        &material("correct horse battery"),
        &vault.ledger,
    );
    editor.unwrap().set(&name("a"), value_of("value")).unwrap();
    // Against an existing one, it is simply wrong.
    assert_eq!(open("short").unwrap_err().code(), "vault-key");
    assert!(open("correct horse battery").is_ok());
    assert!(open("correct horse batterz").is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<u8>),
    Rotate(u8, Vec<u8>),
    Remove(u8),
    Rekey(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    let value = || prop::collection::vec(any::<u8>(), 1..100);
    prop_oneof![
        (0..4u8, value()).prop_map(|(name, value)| Step::Set(name, value)),
        (0..4u8, value()).prop_map(|(name, value)| Step::Rotate(name, value)),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8).prop_map(Step::Rekey),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is done to it, a vault holds what a map would.
    #[test]
    fn a_vault_is_a_map(steps in prop::collection::vec(any_step(), 1..12)) {
        let vault = Scratch::new();
        let mut model = BTreeMap::<String, (u32, Vec<u8>)>::new();
        let (mut seed, mut generation) = (0, 0);
        for step in steps {
            let editor = Editor::open_or_new(&vault.place, &key(seed), &vault.ledger).unwrap();
            let secret = |n: u8| name(&format!("s{n}"));
            let value = |bytes: &[u8]| bulkhead_vault::Secret::new(bytes.to_vec());
            let (done, legal) = match &step {
                Step::Set(n, bytes) => {
                    let free = !model.contains_key(secret(*n).as_str());
                    if free { model.insert(secret(*n).to_string(), (1, bytes.clone())); }
                    (editor.set(&secret(*n), value(bytes)), free)
                }
                Step::Rotate(n, bytes) => {
                    let entry = model.get_mut(secret(*n).as_str());
                    let there = entry.map(|(version, old)| { *version += 1; *old = bytes.clone(); });
                    (editor.rotate(&secret(*n), value(bytes)), there.is_some())
                }
                Step::Remove(n) => {
                    let there = model.remove(secret(*n).as_str());
                    (editor.remove(&secret(*n)), there.is_some())
                }
                Step::Rekey(n) => { seed = *n; (editor.rekey(&key(*n)), true) }
            };
            prop_assert_eq!(done.is_ok(), legal, "{:?}", step);
            generation += u64::from(legal);
            if generation == 0 { continue; }
            let open = Vault::open(&vault.place, &key(seed)).unwrap();
            prop_assert_eq!(open.generation(), generation);
            let held: BTreeMap<_, _> = open.list().into_iter()
                .map(|one| (one.name.to_string(), (one.version, open.get(&one.name).unwrap().expose().to_vec())))
                .collect();
            prop_assert_eq!(&held, &model);
        }
    }
}

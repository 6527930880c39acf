//! What a partition gets of the vault: placeholders, and nothing it was not granted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bulkhead_vault::{Binding, Bound, Issued, Vault, VaultError};
use common::{Scratch, name};

fn binding(secret: &str, ephemeral: bool) -> Binding<&'static str> {
    Binding {
        name: name(secret),
        ephemeral,
        target: "api.example.com",
    }
}

fn resolve(
    vault: Option<&Vault>,
    issued: &mut Issued,
    granted: &[&str],
    bindings: Vec<Binding<&'static str>>,
) -> Result<Vec<Bound<&'static str>>, VaultError> {
    let granted = |secret: &bulkhead_vault::SecretName| granted.contains(&secret.as_str());
    Vault::resolve(vault, issued, "web/agent", granted, bindings)
}

#[test]
fn a_granted_secret_is_a_placeholder_and_a_value() {
    let scratch = Scratch::new();
    scratch.set("token", "value");
    let vault = scratch.open().unwrap();
    let mut issued = Issued::default();
    let mut start = || {
        resolve(
            Some(&vault),
            &mut issued,
            &["token"],
            vec![binding("token", false)],
        )
        .unwrap()
    };
    let (first, second) = (start(), start());
    assert_eq!(
        (first.len(), first[0].value.expose(), first[0].target),
        (1, &b"value"[..], "api.example.com")
    );
    assert!(
        first[0].placeholder.starts_with("bulkhead-secret-") && first[0].placeholder.len() == 48
    );
    assert_ne!(
        first[0].placeholder, second[0].placeholder,
        "another one at every start"
    );
    assert!(
        !format!("{first:?}").contains("value\""),
        "values do not print"
    );
}

#[test]
fn an_ungranted_name_looks_as_one_that_does_not_exist() {
    let scratch = Scratch::new();
    scratch.set("theirs", "value");
    let vault = scratch.open().unwrap();
    let mut issued = Issued::default();
    let mut refused = |vault, granted: &[&str], secret| {
        let error = resolve(vault, &mut issued, granted, vec![binding(secret, false)]).unwrap_err();
        let told = (error.code(), error.to_string(), error.help());
        (
            told.0,
            told.1.replace(secret, "NAME"),
            told.2.map(|help| help.replace(secret, "NAME")),
        )
    };
    let ungranted = refused(Some(&vault), &[], "theirs");
    assert_eq!(ungranted.0, "secret-unavailable");
    assert_eq!(refused(Some(&vault), &[], "absent"), ungranted);
    assert_eq!(refused(Some(&vault), &["absent"], "absent"), ungranted);
    assert_eq!(refused(None, &["theirs"], "theirs"), ungranted);
}

#[test]
fn an_ephemeral_secret_needs_a_grant_and_no_vault_and_ends() {
    let mut issued = Issued::default();
    assert!(resolve(None, &mut issued, &[], vec![binding("peer", true)]).is_err());
    let bound = resolve(None, &mut issued, &["peer"], vec![binding("peer", true)]).unwrap();
    let token = bound[0].value.expose();
    assert_eq!(issued.find(token).unwrap().0, "web/agent");
    issued.end("web/agent");
    assert!(issued.find(token).is_none());
}

#[test]
fn one_that_is_refused_refuses_all_and_mints_nothing() {
    let mut issued = Issued::default();
    let bindings = vec![binding("peer", true), binding("absent", false)];
    assert!(resolve(None, &mut issued, &["peer", "absent"], bindings).is_err());
    assert_eq!(format!("{issued:?}"), format!("{:?}", Issued::default()));
}

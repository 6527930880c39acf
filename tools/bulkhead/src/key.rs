//! `bulkhead key`: an operator's own keys, and those of the operators that are trusted.

use crate::cli::{KeyCommand, KeyListArgs, KeyNewArgs, KeyTrustArgs, ListFormat};
use crate::failure::Failure;
use crate::{input, table};
use bulkhead_places::Place;
use bulkhead_signature::{KeyError, KeyStore, Listed, PublicKeyFile, Trust};
use serde::Serialize;
use std::path::Path;

/// Longest text of a key that is read.
const MAX_TEXT: usize = 4096;

pub(crate) fn run(command: &KeyCommand) -> Result<(), Failure> {
    let store = store()?;
    match command {
        KeyCommand::New(args) => create(&store, args),
        KeyCommand::Ls(args) => list(&store, args),
        KeyCommand::Trust(args) => trust(&store, args),
        KeyCommand::Distrust { name } => Ok(store.distrust(name)?),
        KeyCommand::Export { name } => crate::print(store.export(name)?.to_string().as_bytes()),
    }
}

/// The keys of whoever types.
pub(crate) fn store() -> Result<KeyStore, Failure> {
    Ok(KeyStore::new(&Place::config()?))
}

fn create(store: &KeyStore, args: &KeyNewArgs) -> Result<(), Failure> {
    let key = store.create(&args.name, &args.comment)?;
    crate::print(format!("{}\n", key.key.id()).as_bytes())
}

/// A key as JSON.
#[derive(Serialize)]
struct Row {
    name: String,
    id: String,
    private: bool,
    signs: bool,
    approves: bool,
    comment: String,
}

impl From<Listed> for Row {
    fn from(key: Listed) -> Self {
        Self {
            name: key.name,
            id: key.key.id().to_string(),
            private: key.own,
            signs: key.trust.is_some(),
            approves: key.trust == Some(Trust::SignAndApprove),
            comment: key.comment,
        }
    }
}

fn list(store: &KeyStore, args: &KeyListArgs) -> Result<(), Failure> {
    let keys: Vec<Row> = store.list()?.into_iter().map(Row::from).collect();
    let text = match args.format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&keys);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
        ListFormat::Table => {
            let row = |key: Row| {
                let private = if key.private { "here" } else { "-" };
                let trusted = match (key.signs, key.approves) {
                    (true, true) => "sign, approve",
                    (true, false) => "sign",
                    (false, _) => "-",
                };
                [
                    key.name,
                    key.id,
                    private.to_owned(),
                    trusted.to_owned(),
                    key.comment,
                ]
            };
            let header = ["NAME", "ID", "PRIVATE", "TRUSTED", "COMMENT"];
            table::lines(header, keys.into_iter().map(row))
        }
    };
    crate::print(text.as_bytes())
}

fn trust(store: &KeyStore, args: &KeyTrustArgs) -> Result<(), Failure> {
    let name = match (&args.name, args.file.file_stem().and_then(|n| n.to_str())) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) if args.file != Path::new("-") => name.to_owned(),
        _ => {
            return Err(Failure::new("key-name", "the key has no name")
                .help("say what it is called here: --name alice"));
        }
    };
    let no_key = |error: &str| {
        let message = format!("`{}` is no public key: {error}", args.file.display());
        Failure::new("key-invalid", message).help("make one with `bulkhead key export NAME`")
    };
    let text = input::read(&args.file, MAX_TEXT, "key", "key-unusable")?;
    let text = String::from_utf8(text).map_err(|_| no_key("it is not UTF-8"))?;
    let file: PublicKeyFile = (text.parse()).map_err(|e: KeyError| no_key(&e.to_string()))?;
    if file.trust.is_some() {
        let message = format!("`{}` says itself what it may do", args.file.display());
        return Err(Failure::new("key-invalid", message)
            .help("its last line is for who trusts it: leave it out, or use --approver"));
    }
    let trust = match args.approver {
        true => Trust::SignAndApprove,
        false => Trust::Sign,
    };
    store.trust(&name, &file, trust)?;
    crate::print(format!("{}\n", file.key.id()).as_bytes())
}

//! `bulkhead secret`: keeps secrets in the vault. Values come from standard input or a prompt,
//! never from an argument, which every process of the host could read.

use crate::cli::ListFormat;
use crate::failure::Failure;
use crate::{prompt, ps, recorder, table};
use bulkhead_capability::Capability;
use bulkhead_manifest::{Mandate, System};
use bulkhead_models::file::ModelsFile;
use bulkhead_places::Place;
use bulkhead_supervisor::{Secrets, StateRoot};
use bulkhead_vault::{
    Editor, KeyMaterial, Listed, MAX_VALUE_BYTES, Secret, SecretName, Vault, VaultError,
};
use clap::{Args, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::Serialize;
use std::env;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names the file that holds the vault's key.
const KEY_FILE_VARIABLE: &str = "BULKHEAD_VAULT_KEY_FILE";
/// Longest passphrase that is asked for.
const MAX_PASSPHRASE: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
    /// Where the vault's key is: file:PATH, keyring, stdin or prompt
    #[arg(long, value_name = "SOURCE", global = true)]
    key: Option<KeySource>,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Keep a new secret; its value comes from standard input, or is asked for
    Set {
        /// What it is called
        name: String,
    },
    /// List the secrets: names, versions and times, never values
    Ls {
        /// How to print
        #[arg(long, value_enum, default_value = "table")]
        format: ListFormat,
    },
    /// Give a secret another value
    Rotate {
        /// What it is called
        name: String,
    },
    /// Remove a secret
    Rm {
        /// What it is called
        name: String,
    },
    /// Say which partition holds a token that was made for it; the token comes from standard input
    Whose,
    /// Seal the vault anew, for another key
    Rekey {
        /// Where the new key is: file:PATH, keyring or prompt
        #[arg(long, value_name = "SOURCE", default_value = "prompt")]
        to: KeySource,
    },
}

/// Where a key is read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeySource {
    File(PathBuf),
    Keyring,
    Stdin,
    Prompt,
}

impl FromStr for KeySource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            None if text == "keyring" => Ok(Self::Keyring),
            None if text == "stdin" => Ok(Self::Stdin),
            None if text == "prompt" => Ok(Self::Prompt),
            _ => Err("a key is at file:PATH, keyring, stdin or prompt"),
        }
    }
}

pub(crate) fn run(args: &SecretArgs) -> Result<(), Failure> {
    keep_to_ourselves();
    let place = Vault::place(&Place::data()?);
    let source = args.key.as_ref();
    match &args.command {
        SecretCommand::Ls { format } => list(&place, source, *format),
        SecretCommand::Set { name } => {
            let name = name.parse()?;
            let key = key(source, !Vault::exists(&place)?)?;
            let value = value(&name)?;
            let ledger = recorder::open()?;
            Ok(Editor::open_or_new(&place, &key, &ledger)?.set(&name, value)?)
        }
        SecretCommand::Rotate { name } => {
            let name = name.parse()?;
            let key = existing_key(&place, source)?;
            let value = value(&name)?;
            let ledger = recorder::open()?;
            Ok(Editor::open(&place, &key, &ledger)?.rotate(&name, value)?)
        }
        SecretCommand::Rm { name } => {
            let name = name.parse()?;
            let key = existing_key(&place, source)?;
            let ledger = recorder::open()?;
            Ok(Editor::open(&place, &key, &ledger)?.remove(&name)?)
        }
        SecretCommand::Whose => whose(),
        SecretCommand::Rekey { to } => {
            let old = existing_key(&place, source)?;
            let new = read_key(to, "new passphrase of the vault", true)?;
            let ledger = recorder::open()?;
            Ok(Editor::open(&place, &old, &ledger)?.rekey(&new)?)
        }
    }
}

/// Whether a partition may call models whose providers have keys.
fn models_take_keys(system: &System) -> Result<bool, Failure> {
    let chats = |held: &Capability| matches!(held, Capability::ModelChat(_));
    let mut held = system
        .partitions
        .iter()
        .flat_map(|one| one.grants.capabilities());
    if !held.any(chats) {
        return Ok(false);
    }
    let file = ModelsFile::load(&Place::config()?)?;
    Ok(file.providers.iter().any(|(_, keys)| !keys.is_empty()))
}

/// For whatever accepts such tokens: which partition has it, as long as that runs.
fn whose() -> Result<(), Failure> {
    let token = prompt::read_line(MAX_PASSPHRASE)?;
    let token = String::from_utf8_lossy(token.expose());
    for system in StateRoot::locate()?.list()? {
        // One that ends just now has no tokens any more.
        if let Ok(Some(owner)) = bulkhead_supervisor::whose(&system, &token) {
            return crate::print(format!("{} {}\n", owner.partition, owner.secret).as_bytes());
        }
    }
    let failure = Failure::new("no-such-token", "no partition that runs holds this token");
    Err(failure.status(1))
}

/// Where the secrets of a system come from: the vault, if one of its partitions asks for something
/// in there. Nobody is asked for a key that nothing needs.
pub(crate) fn of(system: &System) -> Result<Arc<Secrets>, Failure> {
    let mandates = system
        .partitions
        .iter()
        .filter_map(|one| one.mandate.as_ref());
    let kept = |mandate: &Mandate| mandate.secrets.iter().any(|secret| !secret.ephemeral);
    if !mandates.into_iter().any(kept) && !models_take_keys(system)? {
        return Ok(Arc::default());
    }
    let place = Vault::place(&Place::data()?);
    let vault = match Vault::exists(&place)? {
        true => Some(Vault::open(&place, &key(None, false)?)?),
        // As good as one that lacks what they ask for.
        false => None,
    };
    Ok(Arc::new(Secrets::new(vault)))
}

/// No core file of this process, and no other process of this user that reads its memory.
fn keep_to_ourselves() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Both only take away; where they fail the secret is as safe as the user's other processes.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// The key of a vault that is there: nobody is asked for one that opens nothing.
fn existing_key(place: &Place, source: Option<&KeySource>) -> Result<KeyMaterial, Failure> {
    match Vault::exists(place)? {
        true => key(source, false),
        false => Err(VaultError::Absent(place.path().to_owned()).into()),
    }
}

/// The vault's key: from where it was said to be, else from where there is one.
fn key(source: Option<&KeySource>, new: bool) -> Result<KeyMaterial, Failure> {
    let question = match new {
        true => "passphrase for a new vault",
        false => "passphrase of the vault",
    };
    if let Some(source) = source {
        return read_key(source, question, new);
    }
    if let Some(path) = env::var_os(KEY_FILE_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(KeyMaterial::from_file(Path::new(&path))?);
    }
    if let Some(key) = KeyMaterial::from_keyring()? {
        return Ok(key);
    }
    read_key(&KeySource::Prompt, question, new)
}

fn read_key(source: &KeySource, question: &str, new: bool) -> Result<KeyMaterial, Failure> {
    let absent = || {
        let message = "neither the session's keyring nor the user's has an entry for the vault";
        let entry = bulkhead_vault::KEYRING_ENTRY;
        Failure::new("vault-no-key", message).help(format!("keyctl padd user {entry} @u < FILE"))
    };
    match source {
        KeySource::File(path) => Ok(KeyMaterial::from_file(path)?),
        KeySource::Keyring => KeyMaterial::from_keyring()?.ok_or_else(absent),
        KeySource::Stdin => {
            let line = prompt::read_line(MAX_PASSPHRASE)?;
            Ok(KeyMaterial::new(line, "standard input")?)
        }
        KeySource::Prompt => {
            let ask = if new { prompt::ask_twice } else { prompt::ask };
            Ok(KeyMaterial::new(
                ask(question, MAX_PASSPHRASE)?,
                "what was entered",
            )?)
        }
    }
}

/// The value: what standard input has, without the end of its last line; a person is asked.
fn value(name: &SecretName) -> Result<Secret, Failure> {
    if io::stdin().is_terminal() {
        return prompt::ask(&format!("value of {name}"), MAX_VALUE_BYTES + 1);
    }
    // One more, so that one too long is told from one that fits with the end of its line.
    let mut value = prompt::read_all(MAX_VALUE_BYTES + 1)?;
    if value.expose().ends_with(b"\n") {
        value.truncate(value.expose().len() - 1);
    }
    Ok(value)
}

/// The list as JSON.
#[derive(Serialize)]
struct Listing {
    generation: u64,
    secrets: Vec<Listed>,
}

fn list(place: &Place, source: Option<&KeySource>, format: ListFormat) -> Result<(), Failure> {
    let listing = match Vault::exists(place)? {
        // Nothing to list, and nobody to ask for a key.
        false => Listing {
            generation: 0,
            secrets: Vec::new(),
        },
        true => {
            let vault = Vault::open(place, &key(source, false)?)?;
            Listing {
                generation: vault.generation(),
                secrets: vault.list(),
            }
        }
    };
    let text = match format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&listing);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
        ListFormat::Table => rows(&listing.secrets),
    };
    crate::print(text.as_bytes())
}

fn rows(secrets: &[Listed]) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let ago = |then: u64| {
        let age = now.saturating_sub(Duration::from_secs(then));
        format!("{} ago", ps::short(age))
    };
    let row = |secret: &Listed| {
        [
            secret.name.to_string(),
            secret.version.to_string(),
            ago(secret.created),
            ago(secret.changed),
        ]
    };
    table::lines(
        ["NAME", "VERSION", "CREATED", "CHANGED"],
        secrets.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_where_it_is_said_to_be() {
        for (text, source) in [
            ("prompt", Some(KeySource::Prompt)),
            ("stdin", Some(KeySource::Stdin)),
            ("keyring", Some(KeySource::Keyring)),
            ("file:/a:b", Some(KeySource::File("/a:b".into()))),
            ("file:", None),
            ("file", None),
            ("hunter2", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), source, "{text}");
        }
    }
}

//! What can be wrong with a vault, its key, or what is asked of it.

use crate::secret::{MAX_VALUE_BYTES, SecretName};
use bulkhead_places::PlaceError;
use bulkhead_record::RecordError;
use std::io;
use std::path::PathBuf;

/// Why something with the vault is not done. But for [`VaultError::Unrecorded`], nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The vault's directory.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file cannot be read or written.
    #[error("cannot {act} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that others may read or write, or that is no file.
    #[error("`{}` {problem}", path.display())]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong, as a clause.
        problem: &'static str,
    },
    /// Nobody has made a vault here.
    #[error("there is no vault at `{}`", .0.display())]
    Absent(PathBuf),
    /// The file is not what was written.
    #[error("the vault `{}` is damaged: {problem}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong, as a clause.
        problem: &'static str,
    },
    /// The key is another one. A forged vault looks the same.
    #[error("this key does not open the vault `{}`", .0.display())]
    WrongKey(PathBuf),
    /// A key file, a keyring's entry or standard input that holds no key.
    #[error("{from} holds no key: {problem}")]
    NoKey {
        /// Where the key was looked for.
        from: String,
        /// What is wrong, as a clause.
        problem: String,
    },
    /// A new vault would be locked with a passphrase that is soon guessed.
    #[error("a passphrase of {bytes} bytes is too short for a vault")]
    ShortPassphrase {
        /// How long it is.
        bytes: usize,
    },
    /// There is not enough memory to derive the key.
    #[error("cannot derive the vault's key: {0}")]
    Derivation(String),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes: {0}")]
    Random(io::Error),
    /// What is no name of a secret.
    #[error("`{}` is no name of a secret", .0.escape_debug())]
    Name(String),
    /// A value that is empty or too long.
    #[error("a value of {bytes} bytes cannot be kept; 1 to {MAX_VALUE_BYTES} can")]
    Value {
        /// How long it is.
        bytes: usize,
    },
    /// A secret that is there already.
    #[error("there is a secret `{0}` already")]
    Exists(SecretName),
    /// A secret that is not there.
    #[error("there is no secret `{0}`")]
    NoSuchSecret(SecretName),
    /// A partition may not use a secret, or there is none: it is not told which.
    #[error("the partition has no secret `{0}`")]
    Unavailable(SecretName),
    /// The vault holds as many secrets as it can.
    #[error("the vault is full: it holds {0} secrets")]
    Full(usize),
    /// The change cannot be recorded, so it is not made.
    #[error("the change is not made: {0}")]
    Record(#[from] RecordError),
    /// The change is made, but the ledger does not say how it went.
    #[error("the change is made, but its outcome is not recorded: {0}")]
    Unrecorded(RecordError),
}

impl VaultError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::Io { .. } => "vault-unusable",
            Self::Unsafe { .. } => "vault-unsafe",
            Self::Absent(_) => "vault-absent",
            Self::Damaged { .. } => "vault-damaged",
            Self::WrongKey(_) => "vault-key",
            Self::NoKey { .. } => "vault-no-key",
            Self::ShortPassphrase { .. } => "passphrase-short",
            Self::Derivation(_) => "vault-derivation",
            Self::Random(_) => "random",
            Self::Name(_) => "secret-name",
            Self::Value { .. } => "secret-value",
            Self::Exists(_) => "secret-exists",
            Self::NoSuchSecret(_) => "no-such-secret",
            Self::Unavailable(_) => "secret-unavailable",
            Self::Full(_) => "vault-full",
            Self::Record(_) | Self::Unrecorded(_) => "ledger",
        }
    }

    /// What to do about it, where there is something.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Unsafe { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Absent(_) => "the first `bulkhead secret set NAME` makes it".to_owned(),
            Self::Damaged { .. } => {
                "put a copy of the file back; docs/secrets.md says what that means".to_owned()
            }
            Self::NoKey { .. } => {
                "a key is a passphrase, or 32 random bytes: head -c 32 /dev/urandom > FILE"
                    .to_owned()
            }
            Self::ShortPassphrase { .. } => {
                "take 12 bytes or more, or a key file: head -c 32 /dev/urandom > FILE".to_owned()
            }
            Self::Name(_) => {
                "write 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first"
                    .to_owned()
            }
            Self::Exists(name) => format!("replace its value: bulkhead secret rotate {name}"),
            Self::NoSuchSecret(_) => "list them with `bulkhead secret ls`".to_owned(),
            Self::Unavailable(name) => format!(
                "grant `secret.use:{name}`, and see with `bulkhead secret ls` that there is one"
            ),
            _ => return None,
        })
    }
}

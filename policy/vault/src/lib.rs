//! Secrets sealed at rest, and what a partition gets in their place.
//!
//! The vault is one file ([`Vault`]). It is opened with key material ([`KeyMaterial`]) that the
//! operator brings, changed through an [`Editor`] that holds its lock and has every change
//! recorded, and read by the supervisor, which resolves a partition's bindings ([`Vault::resolve`])
//! when it starts one. A guest holds placeholders; values go to the gateway alone. Neither gateway
//! nor VMM links this crate.
//!
//! The crate has no unsafe code of its own. The kernel's keyrings are reached through
//! `linux-keyutils`, which keeps the three system calls that neither rustix nor the standard
//! library has.
#![forbid(unsafe_code)]

mod binding;
mod cipher;
mod editor;
mod error;
mod format;
mod issued;
mod key;
mod secret;
mod store;
mod vault;

pub use binding::{Binding, Bound};
pub use editor::Editor;
pub use error::VaultError;
pub use format::{Cost, Sealed};
pub use issued::Issued;
pub use key::{KEYRING_ENTRY, KeyMaterial};
pub use secret::{MAX_VALUE_BYTES, Secret, SecretName};
pub use vault::{Listed, Vault};

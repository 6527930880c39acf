//! One grant: a capability and what narrows its use.

use crate::capability::Capability;
use crate::constraints::{Constraints, is_plain_directory};
use crate::name::CapabilityName;
use bulkhead_network::Protocol;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A capability under constraints. Its constraints all mean something to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Grant {
    capability: Capability,
    #[serde(skip_serializing_if = "Constraints::is_none")]
    constraints: Constraints,
}

/// A grant as it was written, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    capability: Capability,
    #[serde(default)]
    constraints: Constraints,
}

/// Why a capability cannot be narrowed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The constraint means nothing to it.
    #[error("`{key}` means nothing to {name}")]
    Unfitting {
        /// The constraint's key in a manifest.
        key: &'static str,
        /// The capability.
        name: CapabilityName,
    },
    /// UDP carries no web requests.
    #[error("`{0}` is no TCP, which web requests take")]
    NotTcp(Capability),
    /// A directory of `below` is not absolute and plain.
    #[error("`{}` is no absolute path without . and ..", .0.escape_debug())]
    Directory(String),
}

impl From<Capability> for Grant {
    fn from(capability: Capability) -> Self {
        Self {
            capability,
            constraints: Constraints::default(),
        }
    }
}

impl TryFrom<Written> for Grant {
    type Error = GrantError;

    fn try_from(written: Written) -> Result<Self, GrantError> {
        Self::new(written.capability, written.constraints)
    }
}

impl Grant {
    /// A capability under `constraints`.
    ///
    /// # Errors
    /// A constraint that means nothing to it.
    pub fn new(capability: Capability, constraints: Constraints) -> Result<Self, GrantError> {
        let name = capability.name();
        if let Some(key) = constraints.unfitting(name) {
            return Err(GrantError::Unfitting { key, name });
        }
        let is_tcp =
            !matches!(&capability, Capability::NetConnect(rule) if rule.protocol != Protocol::Tcp);
        if constraints.http.is_some() && !is_tcp {
            return Err(GrantError::NotTcp(capability));
        }
        let mut below = constraints.below.iter().flatten();
        if let Some(odd) = below.find(|path| !is_plain_directory(path)) {
            return Err(GrantError::Directory(odd.to_string_lossy().into_owned()));
        }
        Ok(Self {
            capability,
            constraints,
        })
    }

    /// What it is a grant of.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// What narrows its use.
    pub fn constraints(&self) -> &Constraints {
        &self.constraints
    }

    /// True when every use that `self` allows `other` allows too.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        self.capability.is_narrower_or_equal(&other.capability)
            && self.constraints.is_narrower_or_equal(&other.constraints)
    }

    /// What both allow; never more than either.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        Some(Self {
            capability: self.capability.intersect(&other.capability)?,
            constraints: self.constraints.intersect(&other.constraints)?,
        })
    }
}

impl fmt::Display for Grant {
    /// The capability as it is written, then its constraints in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.capability)?;
        let Constraints {
            http,
            below,
            expires,
            lifetime,
            approval,
            ..
        } = &self.constraints;
        if let Some(http) = http {
            let methods: Vec<&str> = http.methods.iter().map(|method| method.as_str()).collect();
            let paths: Vec<String> = http.paths.iter().map(ToString::to_string).collect();
            let or_all = |list: String| {
                if list.is_empty() {
                    "all".to_owned()
                } else {
                    list
                }
            };
            write!(
                f,
                ", methods {}, paths {}",
                or_all(methods.join(" ")),
                or_all(paths.join(" "))
            )?;
        }
        if let Some(below) = below {
            let below: Vec<String> = below
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            match below.is_empty() {
                true => f.write_str(", without a path")?,
                false => write!(f, ", below {}", below.join(" "))?,
            }
        }
        if let Some(expires) = expires {
            write!(f, ", until {expires} seconds after 1970")?;
        }
        if let Some(lifetime) = lifetime {
            write!(f, ", for {lifetime} s")?;
        }
        let quota = self.constraints.quota();
        if let Some(calls) = quota.calls_per_minute {
            write!(f, ", {calls} calls/min")?;
        }
        if let Some(bytes) = quota.bytes {
            write!(f, ", {bytes} bytes")?;
        }
        f.write_str(if *approval { ", with approval" } else { "" })
    }
}

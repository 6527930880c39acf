//! A system as written, before it is checked: every field may be absent or absurd.
//!
//! Made by [`crate::parse()`] from a file, or field by field by `bulkhead run` from its options;
//! read by [`crate::validate()`] alone.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value and where it was written, if it was written in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Bytes of the file.
    pub span: Option<Range<usize>>,
}

impl<T> From<T> for At<T> {
    fn from(value: T) -> Self {
        Self { value, span: None }
    }
}

/// A whole system.
#[derive(Clone, Debug, Default)]
pub struct SystemDraft {
    /// Name of the system.
    pub name: Option<At<String>>,
    /// Its partitions.
    pub partitions: Vec<At<PartitionDraft>>,
}

/// One partition. The fields carry the names of the keys; docs/manifest.md says what they mean.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct PartitionDraft {
    pub name: Option<At<String>>,
    pub kernel: Option<At<String>>,
    pub memory: Option<At<String>>,
    pub vcpus: Option<At<i64>>,
    /// Each grant as name and path.
    pub grants: Vec<At<(String, Option<String>)>>,
    pub program: Option<At<String>>,
    pub args: Option<At<Vec<String>>>,
    pub command: Option<At<Vec<String>>>,
    pub env: Option<At<BTreeMap<String, String>>>,
    pub root: Option<At<String>>,
    pub mounts: Vec<At<MountDraft>>,
    pub image: Option<At<String>>,
    pub initrd: Option<At<String>>,
    pub cmdline: Option<At<String>>,
    pub trace_syscalls: Option<At<bool>>,
}

/// One mount.
#[derive(Clone, Debug, Default)]
pub struct MountDraft {
    /// File or directory of the host, or `@name`.
    pub source: Option<At<String>>,
    /// Where the guest finds it.
    pub target: Option<At<String>>,
}

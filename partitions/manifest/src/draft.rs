//! A system as written, before it is checked: every field may be absent or absurd.
//!
//! Made by [`crate::parse()`] from a file, or field by field by `bulkhead run` from its options;
//! read by [`crate::validate()`] alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

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
    pub memory: Option<At<MemoryDraft>>,
    pub vcpus: Option<At<i64>>,
    pub cpu: Option<At<String>>,
    pub transport: Option<At<String>>,
    pub watchdog: Option<At<bool>>,
    pub on_reboot: Option<At<String>>,
    pub autonomy: Option<At<String>>,
    pub conditions: Option<At<String>>,
    pub grants: Vec<At<GrantDraft>>,
    pub deny: Vec<At<String>>,
    pub network: Option<At<NetworkDraft>>,
    pub limits: Option<At<LimitsDraft>>,
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
    pub mandate: Option<At<MandateDraft>>,
    pub manifest: Option<At<ReferenceDraft>>,
}

/// A manifest that says what the partition is, in place of everything else.
#[derive(Clone, Debug, Default)]
pub struct ReferenceDraft {
    /// Its file.
    pub path: String,
    /// Whoever wrote the system says that it needs no signature.
    pub unsigned: bool,
}

/// One mount.
#[derive(Clone, Debug, Default)]
pub struct MountDraft {
    /// File or directory of the host, or `@name`.
    pub source: Option<At<String>>,
    /// Where the guest finds it.
    pub target: Option<At<String>>,
}

/// One grant and its options.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct GrantDraft {
    /// `name`, or `name:object`.
    pub capability: String,
    pub path: Option<At<String>>,
    pub name: Option<At<String>>,
    pub format: Option<At<String>>,
    pub backing: Vec<At<BackingDraft>>,
    pub overlay: Option<At<String>>,
    pub direct: Option<At<bool>>,
    pub queues: Option<At<i64>>,
    pub rate: Option<At<RateDraft>>,
    pub mac: Option<At<String>>,
    pub mtu: Option<At<i64>>,
    pub receive_rate: Option<At<RateDraft>>,
    pub transmit_rate: Option<At<RateDraft>>,
    pub tag: Option<At<String>>,
    pub owner: Option<At<String>>,
    pub cid: Option<At<i64>>,
    pub methods: Option<At<Vec<String>>>,
    pub paths: Option<At<Vec<String>>>,
    pub below: Option<At<Vec<String>>>,
    pub expires: Option<At<String>>,
    pub lifetime: Option<At<String>>,
    pub calls: Option<At<String>>,
    pub bytes: Option<At<String>>,
    pub approval: Option<At<bool>>,
}

impl From<String> for GrantDraft {
    /// A grant without options.
    fn from(capability: String) -> Self {
        Self {
            capability,
            ..Self::default()
        }
    }
}

/// An image that another is based on.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct BackingDraft {
    pub path: Option<At<String>>,
    pub format: Option<At<String>>,
}

/// How fast something may go.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct RateDraft {
    pub bytes: Option<At<String>>,
    pub bytes_burst: Option<At<String>>,
    pub operations: Option<At<String>>,
    pub operations_burst: Option<At<String>>,
}

/// Memory: a size, or a table.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct MemoryDraft {
    pub size: Option<At<String>>,
    pub max: Option<At<String>>,
    pub hugepages: Option<At<bool>>,
    pub prefault: Option<At<bool>>,
    pub shared: Option<At<bool>>,
    pub balloon: Option<At<BalloonDraft>>,
}

impl From<At<String>> for MemoryDraft {
    /// A size alone.
    fn from(size: At<String>) -> Self {
        Self {
            size: Some(size),
            ..Self::default()
        }
    }
}

/// A balloon.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct BalloonDraft {
    pub size: Option<At<String>>,
    pub deflate_on_oom: Option<At<bool>>,
    pub free_page_reporting: Option<At<bool>>,
}

/// Options of the user-mode network.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct NetworkDraft {
    pub mac: Option<At<String>>,
    pub mtu: Option<At<i64>>,
    pub max_connections: Option<At<i64>>,
    pub hosts: Option<At<Vec<String>>>,
    pub trust: Option<At<Vec<String>>>,
    pub receive_rate: Option<At<RateDraft>>,
    pub transmit_rate: Option<At<RateDraft>>,
}

/// What all processes of a partition may use of the host, together.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/manifest.md, key by key"
)]
pub struct LimitsDraft {
    pub cpu: Option<At<String>>,
    pub memory_overhead: Option<At<String>>,
    pub pids: Option<At<i64>>,
}

/// What a `partition.toml` says beside machine and grants.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct MandateDraft {
    pub role: Option<At<String>>,
    pub owner: Option<At<String>>,
    pub parent: Option<At<String>>,
    pub lifetime: Option<At<LifetimeDraft>>,
    pub secrets: Vec<At<SecretDraft>>,
    pub tools: Option<At<ToolsDraft>>,
    pub spawn: Option<At<SpawnDraft>>,
    pub budget: Option<At<BudgetDraft>>,
    /// The manifest in canonical JSON.
    pub document: Vec<u8>,
    /// Those that it descended from when it was judged.
    pub lineage: Vec<String>,
    /// What was left of the lifetimes of its ancestors when it was judged, in seconds, if they end.
    pub left: Option<u64>,
    /// Where the names of its files led when it was judged.
    pub leads: BTreeMap<PathBuf, PathBuf>,
}

/// How long a partition may run.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct LifetimeDraft {
    pub max: Option<At<String>>,
    pub unlimited: Option<At<bool>>,
}

/// Where a secret may go.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct SecretDraft {
    pub name: Option<At<String>>,
    pub host: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub header: Option<At<String>>,
    pub path: Option<At<String>>,
    pub env: Option<At<String>>,
    pub ephemeral: Option<At<bool>>,
}

/// Which tools may be called.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct ToolsDraft {
    pub allow: Vec<At<String>>,
    pub limits: Option<At<String>>,
}

/// What a partition may start.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct SpawnDraft {
    pub roles: Vec<At<String>>,
    pub count: Option<At<i64>>,
    pub depth: Option<At<i64>>,
}

/// What a partition may use while it lives.
#[derive(Clone, Debug, Default)]
#[allow(
    missing_docs,
    reason = "named and described in docs/partition-manifest.md, key by key"
)]
pub struct BudgetDraft {
    pub bytes: Option<At<String>>,
    pub calls: Option<At<i64>>,
    pub tokens: Option<At<i64>>,
    pub money: Option<At<String>>,
}

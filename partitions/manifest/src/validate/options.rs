//! The rules of a grant's options: which grant takes which, and what each may say.

use super::Sink;
use crate::device::{Backing, Owner};
use crate::diagnostic::Code;
use crate::draft::{At, BackingDraft, GrantDraft, RateDraft};
use crate::size::{parse_byte_rate, parse_bytes, parse_count, parse_operation_rate};
use bulkhead_capability::CapabilityName;
use bulkhead_machine::device::{ImageFormat, MAX_DEVICE_NAME, MAX_QUEUES, RateLimit, TokenBucket};
use bulkhead_network::{Host, MAX_HOSTS, MAX_TRUST};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

/// Most images below another.
const MAX_BACKING: usize = 31;

/// The options that a grant of this name takes.
pub(super) fn of(name: CapabilityName) -> Vec<&'static str> {
    [of_device(name), name.constraints()].concat()
}

fn of_device(name: CapabilityName) -> &'static [&'static str] {
    use CapabilityName as N;
    match name {
        N::BlockRead => &["name", "format", "backing", "direct", "queues", "rate"],
        N::BlockWrite => &[
            "name", "format", "backing", "overlay", "direct", "queues", "rate",
        ],
        N::FsRead | N::FsWrite => &["name", "tag", "owner"],
        N::NetTap => &[
            "name",
            "mac",
            "mtu",
            "queues",
            "receive_rate",
            "transmit_rate",
        ],
        N::PmemRead | N::PmemWrite => &["name"],
        N::VhostUserBlock => &["name", "queues"],
        N::VhostUserNet => &["name", "mac", "queues"],
        N::Vsock => &["cid"],
        N::Console
        | N::DevicePci
        | N::DnsResolve
        | N::Entropy
        | N::Exec
        | N::ModelChat
        | N::NetConnect
        | N::NetListen
        | N::NetLoopback
        | N::PartitionSpawn
        | N::RingReceive
        | N::RingSend
        | N::SecretUse
        | N::Time
        | N::ToolCall => &[],
    }
}

/// The first option that was written and that a grant of `name` does not take, and where.
pub(super) fn unfitting(
    name: CapabilityName,
    grant: &GrantDraft,
) -> Option<(&'static str, Option<Range<usize>>)> {
    fn span<T>(option: &Option<At<T>>) -> Option<Option<Range<usize>>> {
        option.as_ref().map(|at| at.span.clone())
    }
    let written = [
        ("name", span(&grant.name)),
        ("format", span(&grant.format)),
        ("backing", grant.backing.first().map(|at| at.span.clone())),
        ("overlay", span(&grant.overlay)),
        ("direct", span(&grant.direct)),
        ("queues", span(&grant.queues)),
        ("rate", span(&grant.rate)),
        ("mac", span(&grant.mac)),
        ("mtu", span(&grant.mtu)),
        ("receive_rate", span(&grant.receive_rate)),
        ("transmit_rate", span(&grant.transmit_rate)),
        ("tag", span(&grant.tag)),
        ("owner", span(&grant.owner)),
        ("cid", span(&grant.cid)),
        ("methods", span(&grant.methods)),
        ("paths", span(&grant.paths)),
        ("below", span(&grant.below)),
        ("expires", span(&grant.expires)),
        ("lifetime", span(&grant.lifetime)),
        ("calls", span(&grant.calls)),
        ("bytes", span(&grant.bytes)),
        ("approval", span(&grant.approval)),
    ];
    let fitting = of(name);
    written.into_iter().find_map(|(key, span)| match span {
        Some(span) if !fitting.contains(&key) => Some((key, span)),
        _ => None,
    })
}

/// Checks options, each by its own rule. Outer `None`: it was refused.
pub(super) struct Options<'o> {
    pub(super) refuse: &'o mut Sink<'o>,
    /// The grant as a whole.
    pub(super) grant: &'o Option<Range<usize>>,
}

impl Options<'_> {
    pub(super) fn refuse(
        &mut self,
        code: Code,
        span: Option<Range<usize>>,
        message: String,
        help: String,
    ) {
        (self.refuse)(code, span.or_else(|| self.grant.clone()), message, help);
    }

    /// One of the words a key takes.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        word: &At<String>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let found = choices.iter().find(|(known, _)| *known == word.value);
        if found.is_none() {
            let known: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
            let message = format!("`{key}` cannot be `{}`", word.value.escape_debug());
            let help = format!("choose one of {}", known.join(", "));
            self.refuse(Code::Choice, word.span.clone(), message, help);
        }
        found.map(|(_, value)| *value)
    }

    /// A whole number within bounds, if it was written.
    pub(super) fn integer(
        &mut self,
        key: &str,
        number: Option<&At<i64>>,
        bounds: RangeInclusive<i64>,
    ) -> Option<Option<i64>> {
        let Some(number) = number else {
            return Some(None);
        };
        if bounds.contains(&number.value) {
            return Some(Some(number.value));
        }
        let message = format!("`{key}` cannot be {}", number.value);
        let help = format!("choose {} to {}", bounds.start(), bounds.end());
        self.refuse(Code::Device, number.span.clone(), message, help);
        None
    }

    pub(super) fn name(&mut self, name: &At<String>) -> Option<()> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let text = &name.value;
        if (1..=MAX_DEVICE_NAME).contains(&text.len()) && text.bytes().all(plain) {
            return Some(());
        }
        let message = format!("`{}` is no name of a device", text.escape_debug());
        let help = format!("a name is 1 to {MAX_DEVICE_NAME} of letters, digits, ., _ and -");
        self.refuse(Code::Device, name.span.clone(), message, help);
        None
    }

    pub(super) fn format(&mut self, format: Option<&At<String>>) -> Option<ImageFormat> {
        let choices = [("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)];
        match format {
            None => Some(ImageFormat::Raw),
            Some(format) => self.choice("format", format, &choices),
        }
    }

    /// The images below one of this format, each with its own: only the last may be raw.
    pub(super) fn backing(
        &mut self,
        format: ImageFormat,
        backing: &[At<BackingDraft>],
        base: &Path,
    ) -> Option<Vec<Backing>> {
        let mut images: Vec<Backing> = Vec::new();
        for At { value: draft, span } in backing {
            let above = images.last().map_or(format, |image| image.format);
            if above == ImageFormat::Raw || images.len() == MAX_BACKING {
                let message = "a raw image is based on no other".to_owned();
                let help = format!("name at most {MAX_BACKING}, each below one that is qcow2");
                self.refuse(Code::Device, span.clone(), message, help);
                return None;
            }
            let Some(path) = &draft.path else {
                let message = "a backing image has no `path`".to_owned();
                let help = "add one: path = \"base.img\"".to_owned();
                self.refuse(Code::MissingKey, span.clone(), message, help);
                return None;
            };
            images.push(Backing {
                path: self.file("path", path, base)?,
                format: self.format(draft.format.as_ref())?,
            });
        }
        Some(images)
    }

    /// A file of the host.
    pub(super) fn file(&mut self, key: &str, file: &At<String>, base: &Path) -> Option<PathBuf> {
        if !file.value.is_empty() && !file.value.contains('\0') {
            return Some(base.join(&file.value));
        }
        let message = format!("`{key}` is no path of a file");
        let help = "write a path without NUL bytes".to_owned();
        self.refuse(Code::Path, file.span.clone(), message, help);
        None
    }

    /// Queues, or pairs of queues: one unless it says otherwise, at most one for each vCPU.
    pub(super) fn queues(&mut self, queues: Option<&At<i64>>, vcpus: u32) -> Option<u16> {
        let most = i64::from(vcpus).min(i64::from(MAX_QUEUES));
        let queues = self.integer("queues", queues, 1..=most)?;
        u16::try_from(queues.unwrap_or(1)).ok()
    }

    /// Files of certificates.
    pub(super) fn trust(&mut self, files: &At<Vec<String>>, base: &Path) -> Option<Vec<PathBuf>> {
        if files.value.len() > MAX_TRUST {
            let message = format!("`trust` has {} files", files.value.len());
            let help = format!("name at most {MAX_TRUST}");
            self.refuse(Code::Device, files.span.clone(), message, help);
            return None;
        }
        let file = |text: &String| {
            let at = At {
                value: text.clone(),
                span: files.span.clone(),
            };
            self.file("trust", &at, base)
        };
        files.value.iter().map(file).collect()
    }

    /// Names of services of the host's loopback, each once.
    pub(super) fn hosts(&mut self, hosts: &At<Vec<String>>) -> Option<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for text in &hosts.value {
            match text.parse() {
                Ok(Host::Name(name)) if names.contains(&name) => {}
                Ok(Host::Name(name)) => names.push(name),
                _ => {
                    let message = format!("`{}` is no name of a host", text.escape_debug());
                    let help = "write a DNS name, as in hosts = [\"api.example.org\"]".to_owned();
                    self.refuse(Code::Device, hosts.span.clone(), message, help);
                    return None;
                }
            }
        }
        if names.len() > MAX_HOSTS {
            let message = format!("`hosts` has {} names", names.len());
            let help = format!("name at most {MAX_HOSTS}");
            self.refuse(Code::Device, hosts.span.clone(), message, help);
            return None;
        }
        Some(names)
    }

    pub(super) fn mtu(
        &mut self,
        mtu: Option<&At<i64>>,
        bounds: RangeInclusive<u16>,
    ) -> Option<Option<u16>> {
        let bounds = i64::from(*bounds.start())..=i64::from(*bounds.end());
        let mtu = self.integer("mtu", mtu, bounds)?;
        Some(mtu.and_then(|mtu| u16::try_from(mtu).ok()))
    }

    /// Six bytes as `02:00:00:00:00:01`; neither zero nor multicast.
    pub(super) fn mac(&mut self, mac: Option<&At<String>>) -> Option<Option<[u8; 6]>> {
        let Some(mac) = mac else {
            return Some(None);
        };
        let byte = |text: &str| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u8::from_str_radix(text, 16).ok().filter(|_| digits)
        };
        let bytes: Option<Vec<u8>> = mac.value.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        if let Some(bytes @ [first, ..]) = bytes
            && bytes != [0; 6]
            && first & 1 == 0
        {
            return Some(Some(bytes));
        }
        let message = format!(
            "`{}` is no address of an interface",
            mac.value.escape_debug()
        );
        let help = "write six bytes, the first of them even: 02:00:00:00:00:01".to_owned();
        self.refuse(Code::Device, mac.span.clone(), message, help);
        None
    }

    /// `guest`, or the `UID:GID` that the guest sees; 0:0 when nobody says.
    pub(super) fn owner(&mut self, owner: Option<&At<String>>) -> Option<Owner> {
        let Some(owner) = owner else {
            return Some(Owner::Exporter { uid: 0, gid: 0 });
        };
        if owner.value == "guest" {
            return Some(Owner::Guest);
        }
        let id = |text: &str| {
            let id = parse_count(text).ok().and_then(|id| u32::try_from(id).ok());
            id.filter(|id| *id != u32::MAX)
        };
        if let Some((uid, gid)) = owner.value.split_once(':')
            && let (Some(uid), Some(gid)) = (id(uid), id(gid))
        {
            return Some(Owner::Exporter { uid, gid });
        }
        let message = format!(
            "`{}` is no owner of shared files",
            owner.value.escape_debug()
        );
        let help = "write the ids that the guest sees, as in 1000:1000, or guest".to_owned();
        self.refuse(Code::Choice, owner.span.clone(), message, help);
        None
    }

    /// A rate limit; without one nothing is limited.
    pub(super) fn rate(&mut self, rate: Option<&At<RateDraft>>) -> Option<RateLimit> {
        let Some(At { value: rate, span }) = rate else {
            return Some(RateLimit::default());
        };
        if rate.bytes.is_none() && rate.operations.is_none() {
            self.refuse(
                Code::Rate,
                span.clone(),
                "a rate limits nothing".to_owned(),
                "write bytes = \"100MiB/s\", operations = \"1000/s\", or both".to_owned(),
            );
            return None;
        }
        let bytes = self.bucket(
            ("bytes", &rate.bytes, parse_byte_rate, "100MiB/s"),
            ("bytes_burst", &rate.bytes_burst, parse_bytes, "200MiB"),
        );
        let operations = self.bucket(
            (
                "operations",
                &rate.operations,
                parse_operation_rate,
                "1000/s",
            ),
            (
                "operations_burst",
                &rate.operations_burst,
                parse_count,
                "2000",
            ),
        );
        Some(RateLimit {
            bytes: bytes?,
            operations: operations?,
        })
    }

    /// A rate and its burst, which is what a second brings when nobody says.
    fn bucket(&mut self, rate: Amount<'_>, burst: Amount<'_>) -> Option<Option<TokenBucket>> {
        let per_second = self.amount(rate)?;
        let burst_size = self.amount(burst)?;
        match (per_second, burst_size) {
            (Some(per_second), size) => Some(Some(TokenBucket {
                per_second,
                burst: size.unwrap_or(per_second),
            })),
            (None, None) => Some(None),
            (None, Some(_)) => {
                let at = burst.1.as_ref().and_then(|at| at.span.clone());
                let message = format!("`{}` means nothing without `{}`", burst.0, rate.0);
                self.refuse(
                    Code::Rate,
                    at,
                    message,
                    format!("add {} = \"{}\"", rate.0, rate.3),
                );
                None
            }
        }
    }

    pub(super) fn amount(
        &mut self,
        (key, text, parse, example): Amount<'_>,
    ) -> Option<Option<u64>> {
        let Some(text) = text else {
            return Some(None);
        };
        let why = match parse(&text.value) {
            Ok(1..) => return Some(parse(&text.value).ok()),
            Ok(0) => "it is zero",
            Err(why) => why,
        };
        let message = format!("`{}` is no `{key}`: {why}", text.value.escape_debug());
        self.refuse(
            Code::Rate,
            text.span.clone(),
            message,
            format!("write {key} = \"{example}\""),
        );
        None
    }
}

/// A key, what was written, how it is read, and an example.
type Amount<'a> = (
    &'static str,
    &'a Option<At<String>>,
    fn(&str) -> Result<u64, &'static str>,
    &'static str,
);

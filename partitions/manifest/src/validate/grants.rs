//! The rules of grants: which capabilities there are, which options each takes, and the devices
//! that they become.

use super::Sink;
use super::options::{self, Options};
use crate::device::{
    Connect, Denial, Device, DeviceKind, Disk, Inbound, Network, Resolve, Share, Tap, stable_mac,
};
use crate::diagnostic::Code;
use crate::draft::{At, GrantDraft, NetworkDraft};
use crate::system::KernelKind;
use bulkhead_abi::machine::MAX_DEVICES;
use bulkhead_capability::{Capability, CapabilityName, Enforcer, Grant, Grants, ObjectKind};
use bulkhead_machine::device::{ImageFormat, MAX_TAG};
use bulkhead_network::{MAX_FORWARDS, MAX_MTU, MAX_RULES, MIN_MTU};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Component, Path};

/// Most devices of grants: all windows but those of console, entropy, balloon and memory.
const MAX_GRANTED: usize = MAX_DEVICES - 4;
/// Names of devices that no grant names.
const RESERVED_NAMES: [&str; 4] = ["balloon", "console", "entropy", "memory"];
/// Lowest address of a guest on vsock (virtio 1.2, section 5.10.4).
const MIN_CID: i64 = 3;
/// TCP connections that a user-mode network has at a time when nobody says.
const DEFAULT_CONNECTIONS: u16 = 1024;
/// Smallest MTU of a tap interface (RFC 791, section 3.2).
const MIN_TAP_MTU: u16 = 68;

/// What the rules need to know of the partition.
pub(super) struct Whose<'w> {
    pub(super) system: &'w str,
    pub(super) partition: &'w str,
    /// Its place in the system, from 0.
    pub(super) number: usize,
    pub(super) kernel: Option<KernelKind>,
    pub(super) vcpus: u32,
    /// Where relative paths start.
    pub(super) base: &'w Path,
}

impl<'w> Whose<'w> {
    /// A partition that there is not.
    fn nobody(base: &'w Path) -> Self {
        Self {
            system: "",
            partition: "",
            number: 0,
            kernel: None,
            vcpus: 1,
            base,
        }
    }
}

/// Checks every grant and denial; `Some` only if nothing was wrong. `taken` are names of devices
/// that exist.
pub(super) fn check(
    drafts: &[At<GrantDraft>],
    deny: &[At<String>],
    network: Option<&At<NetworkDraft>>,
    whose: &Whose<'_>,
    taken: &[String],
    refuse: &mut Sink<'_>,
) -> Option<(Grants, Vec<Device>)> {
    let mut builder = Builder::new(whose, taken, refuse);
    for denied in deny {
        let capability = builder.capability(&denied.value.clone().into(), &denied.span);
        builder.complete &= capability.is_some();
        builder.deny.extend(capability);
    }
    for draft in drafts {
        if builder.grant(draft).is_none() {
            builder.complete = false;
        }
    }
    builder.mean_something();
    builder.network(network);
    if builder.devices.len() > MAX_GRANTED {
        builder.refuse(
            Code::Grant,
            drafts.last().and_then(|grant| grant.span.clone()),
            format!("a partition has more than {MAX_GRANTED} devices"),
            format!("grant at most {MAX_GRANTED}"),
        );
    }
    let Builder {
        grants,
        deny,
        devices,
        complete,
        ..
    } = builder;
    let grants: Grants = grants.into_iter().map(|grant| grant.value).collect();
    complete.then(|| (grants.denying(deny), devices))
}

/// What drafts deny.
pub(crate) fn denials(
    drafts: &[At<String>],
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Vec<Capability>> {
    let whose = Whose::nobody(base);
    let mut builder = Builder::new(&whose, &[], refuse);
    let denied: Vec<Option<Capability>> = (drafts.iter())
        .map(|denied| builder.capability(&denied.value.clone().into(), &denied.span))
        .collect();
    denied.into_iter().collect()
}

/// What a draft grants, without the device that it becomes.
pub(crate) fn granted(
    draft: &At<GrantDraft>,
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<At<Grant>> {
    let whose = Whose::nobody(base);
    let mut builder = Builder::new(&whose, &[], refuse);
    let At { value: grant, span } = draft;
    let capability = builder.capability(grant, span)?;
    builder.options_fit(capability.name(), grant)?;
    let value = builder.options(span).constrained(capability, grant)?;
    let span = span.clone();
    Some(At { value, span })
}

/// True when nobody shares this directory: the root of the host, and file systems that are the
/// kernel's own.
pub fn is_reserved_directory(path: &Path) -> bool {
    let normal = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let is_root = path.is_absolute() && !path.components().any(|part| normal(&part));
    is_root
        || ["/dev", "/proc", "/sys"]
            .iter()
            .any(|own| path.starts_with(own))
}

struct Builder<'b, 's> {
    whose: &'b Whose<'b>,
    refuse: &'b mut Sink<'s>,
    grants: Vec<At<Grant>>,
    deny: Vec<Capability>,
    devices: Vec<Device>,
    names: BTreeSet<String>,
    /// Where the user-mode network stands among the devices, when a grant asks for one.
    network_at: Option<usize>,
    complete: bool,
}

impl<'b, 's> Builder<'b, 's> {
    fn new(whose: &'b Whose<'b>, taken: &[String], refuse: &'b mut Sink<'s>) -> Self {
        let reserved = RESERVED_NAMES.iter().map(|name| (*name).to_owned());
        Self {
            whose,
            refuse,
            grants: Vec::new(),
            deny: Vec::new(),
            devices: Vec::new(),
            names: reserved.chain(taken.iter().cloned()).collect(),
            network_at: None,
            complete: true,
        }
    }
}

impl Builder<'_, '_> {
    fn refuse(&mut self, code: Code, span: Option<Range<usize>>, message: String, help: String) {
        (self.refuse)(code, span, message, help);
        self.complete = false;
    }

    /// What is granted so far.
    fn granted(&self) -> impl Iterator<Item = &Capability> {
        self.grants.iter().map(|grant| grant.value.capability())
    }

    fn options<'o>(&'o mut self, span: &'o Option<Range<usize>>) -> Options<'o> {
        Options {
            refuse: &mut *self.refuse,
            grant: span,
        }
    }

    /// One grant and its device.
    fn grant(&mut self, draft: &At<GrantDraft>) -> Option<()> {
        let At { value: grant, span } = draft;
        let capability = self.capability(grant, span)?;
        let name = capability.name();
        if name.enforcer() == Enforcer::Nobody {
            self.refuse(
                Code::Grant,
                span.clone(),
                format!("`{name}` cannot be granted yet: nothing would enforce it"),
                "leave it out".to_owned(),
            );
            return None;
        }
        self.options_fit(name, grant)?;
        self.fits_kernel(name, span)?;
        self.is_new(&capability, span)?;
        self.is_not_denied(&capability, span)?;
        let device = self.device(&capability, grant, span);
        let constrained = self.options(span).constrained(capability, grant);
        self.grants.push(At {
            value: constrained?,
            span: span.clone(),
        });
        let (prefix, kind) = match device? {
            Some(device) => device,
            None => return Some(()),
        };
        let name = self.name(prefix, grant, span)?;
        let kind = self.named(kind, &name, grant);
        self.devices.push(Device { name, kind });
        Some(())
    }

    fn options_fit(&mut self, name: CapabilityName, grant: &GrantDraft) -> Option<()> {
        let Some((key, at)) = options::unfitting(name, grant) else {
            return Some(());
        };
        let fitting = match options::of(name).as_slice() {
            [] => "leave it out: this grant has no options".to_owned(),
            keys => format!("options of {name}: {}", keys.join(", ")),
        };
        self.refuse(
            Code::KeyNotForGrant,
            at,
            format!("`{key}` means nothing to {name}"),
            fitting,
        );
        None
    }

    fn capability(
        &mut self,
        grant: &GrantDraft,
        span: &Option<Range<usize>>,
    ) -> Option<Capability> {
        let (name, object) = match grant.capability.split_once(':') {
            Some((name, object)) => (name, Some(object)),
            None => (grant.capability.as_str(), None),
        };
        let name: CapabilityName = match name.parse() {
            Ok(name) => name,
            Err(error) => {
                self.refuse(Code::Grant, span.clone(), error.to_string(), error.help());
                return None;
            }
        };
        let is_path = matches!(name.object(), ObjectKind::Path(_));
        if let (Some(path), true) = (&grant.path, object.is_some() || !is_path) {
            self.refuse(
                Code::Grant,
                path.span.clone(),
                format!("capability `{name}` has no use for `path`"),
                "name its object once".to_owned(),
            );
            return None;
        }
        let object = object.or(grant.path.as_ref().map(|path| path.value.as_str()));
        let joined = object
            .filter(|object| is_path && !object.is_empty())
            .map(|object| self.whose.base.join(object));
        let joined = joined.as_ref().map(|path| path.to_string_lossy());
        if joined.as_ref().is_some_and(|path| path.contains('\0')) {
            self.refuse(
                Code::Path,
                span.clone(),
                format!("the path of a grant of {name} contains a NUL byte"),
                "name the file without it".to_owned(),
            );
            return None;
        }
        match Capability::new(name, joined.as_deref().or(object)) {
            Ok(capability) => Some(capability),
            Err(error) => {
                self.refuse(Code::Grant, span.clone(), error.to_string(), error.help());
                None
            }
        }
    }

    /// The Linux personality has drivers for nothing but what its kernel serves.
    fn fits_kernel(&mut self, name: CapabilityName, span: &Option<Range<usize>>) -> Option<()> {
        use CapabilityName::{BlockRead, BlockWrite, Console, Entropy, Time};
        let everywhere = matches!(name, BlockRead | BlockWrite | Console | Entropy | Time);
        // What the supervisor does takes no driver.
        let everywhere = everywhere || name.enforcer() == Enforcer::Supervisor;
        if everywhere || self.whose.kernel != Some(KernelKind::LinuxAbi) {
            return Some(());
        }
        self.refuse(
            Code::KeyNotForKernel,
            span.clone(),
            format!("{name} means nothing to kernel `linux-abi`"),
            "kernel = \"linux\" has a driver for it".to_owned(),
        );
        None
    }

    /// Refuses a second grant of one object, and directories that overlap.
    fn is_new(&mut self, capability: &Capability, span: &Option<Range<usize>>) -> Option<()> {
        let name = capability.name();
        let same = |other: &Capability| match (capability.path(), other.path()) {
            (Some(path), Some(taken)) => path == taken && name.object() == other.name().object(),
            _ => matches!(capability, Capability::NetTap(_)) && other == capability,
        };
        if self.granted().any(same) {
            let object = match (capability, capability.path(), name.object()) {
                (_, Some(path), ObjectKind::Path(what)) => {
                    format!("{what} `{}`", path.display())
                }
                _ => format!("`{capability}`"),
            };
            let family = name.as_str().split('.').next().unwrap_or_default();
            let help = match name.as_str().ends_with("read") || name.as_str().ends_with("write") {
                true => format!("{family}.write includes {family}.read: keep one of the two"),
                false => "grant it once".to_owned(),
            };
            self.refuse(
                Code::DuplicateGrant,
                span.clone(),
                format!("{object} is granted twice"),
                help,
            );
            return None;
        }
        let (Capability::FsRead(path) | Capability::FsWrite(path)) = capability else {
            return Some(());
        };
        if is_reserved_directory(path) {
            self.refuse(
                Code::Share,
                span.clone(),
                format!("directory `{}` is not to be shared", path.display()),
                "share a directory of its own, not the host's root, /dev, /proc or /sys".to_owned(),
            );
            return None;
        }
        let overlap = self.granted().find_map(|other| match other {
            Capability::FsRead(other) | Capability::FsWrite(other)
                if path.starts_with(other) || other.starts_with(path) =>
            {
                Some(other.clone())
            }
            _ => None,
        });
        let Some(other) = overlap else {
            return Some(());
        };
        let message = format!(
            "shared directories `{}` and `{}` overlap",
            other.display(),
            path.display()
        );
        self.refuse(
            Code::Share,
            span.clone(),
            message,
            "share the outer one alone, or two side by side".to_owned(),
        );
        None
    }

    /// Refuses a grant of which the denials leave nothing, or less than a whole device.
    fn is_not_denied(
        &mut self,
        capability: &Capability,
        span: &Option<Range<usize>>,
    ) -> Option<()> {
        // What passes the gateway, the tools or the supervisor is denied there, one by one.
        let in_part = match capability.name().enforcer() {
            Enforcer::Machine | Enforcer::Nobody => true,
            Enforcer::Gateway | Enforcer::Tools | Enforcer::Supervisor => matches!(
                capability,
                Capability::NetListen(_) | Capability::NetLoopback(_)
            ),
        };
        let denies = |denied: &&Capability| match in_part {
            true => capability.is_denied_by(denied),
            false => capability.is_narrower_or_equal(denied),
        };
        let Some(denied) = self.deny.iter().find(denies) else {
            return Some(());
        };
        let message = format!("`{capability}` is granted, and denied by `{denied}`");
        let help = "leave one of the two out, or make the grant narrower".to_owned();
        self.refuse(Code::Grant, span.clone(), message, help);
        None
    }

    /// Refuses constraints of a grant that another grant does without: grants add up.
    fn mean_something(&mut self) {
        let wider = |grant: &Grant| {
            let is_wider = |other: &&At<Grant>| {
                let other = &other.value;
                grant.is_narrower_or_equal(other) && !other.is_narrower_or_equal(grant)
            };
            let constrained = !grant.constraints().is_none();
            constrained
                .then(|| self.grants.iter().find(is_wider))
                .flatten()
        };
        let mut grants = self.grants.iter();
        let Some((narrow, wide)) = grants.find_map(|grant| Some((grant, wider(&grant.value)?)))
        else {
            return;
        };
        let message = format!(
            "`{}` narrows nothing: `{}` is granted too",
            narrow.value, wide.value
        );
        let help = "grants add up: leave out one of the two, or narrow the other".to_owned();
        self.refuse(Code::DuplicateGrant, narrow.span.clone(), message, help);
    }

    /// The device of a grant and the prefix of its default name; `Some(None)` for a grant without
    /// one of its own.
    fn device(
        &mut self,
        capability: &Capability,
        grant: &GrantDraft,
        span: &Option<Range<usize>>,
    ) -> Option<Option<(&'static str, DeviceKind)>> {
        let &Whose {
            vcpus,
            number,
            base,
            ..
        } = self.whose;
        let mut options = self.options(span);
        let device = match capability {
            // What passes the gateway, the tools or the supervisor needs no device of its own.
            Capability::Console
            | Capability::DevicePci(_)
            | Capability::Entropy
            | Capability::Exec(_)
            | Capability::PartitionSpawn(_)
            | Capability::RingReceive(_)
            | Capability::RingSend(_)
            | Capability::SecretUse(_)
            | Capability::Time
            | Capability::ToolCall(_) => return Some(None),
            // Models are at a name of the user-mode network.
            Capability::DnsResolve(_)
            | Capability::ModelChat(_)
            | Capability::NetConnect(_)
            | Capability::NetListen(_)
            | Capability::NetLoopback(_) => {
                if self.network_at.is_none() {
                    let name = self.numbered("net");
                    self.names.insert(name.clone());
                    self.network_at = Some(self.devices.len());
                    let kind = DeviceKind::Network(self.empty_network(&name));
                    self.devices.push(Device { name, kind });
                }
                return Some(None);
            }
            Capability::BlockRead(path) | Capability::BlockWrite(path) => {
                let write = matches!(capability, Capability::BlockWrite(_));
                let format = options.format(grant.format.as_ref())?;
                let backing = options.backing(format, &grant.backing, base)?;
                let overlay = match &grant.overlay {
                    Some(overlay) => Some(options.file("overlay", overlay, base)?),
                    None => None,
                };
                let mut options = self.options(span);
                if write && format != ImageFormat::Raw && overlay.is_none() {
                    options.refuse(
                        Code::Device,
                        grant.format.as_ref().and_then(|format| format.span.clone()),
                        "a qcow2 image is only read".to_owned(),
                        "add a file for what the guest writes: overlay = \"top.img\"".to_owned(),
                    );
                    return None;
                }
                let disk = Disk {
                    path: path.clone(),
                    write,
                    format,
                    backing,
                    overlay,
                    direct: grant.direct.as_ref().is_some_and(|direct| direct.value),
                    queues: options.queues(grant.queues.as_ref(), vcpus)?,
                    rate: options.rate(grant.rate.as_ref())?,
                };
                ("disk", DeviceKind::Disk(disk))
            }
            Capability::FsRead(path) | Capability::FsWrite(path) => {
                let share = Share {
                    path: path.clone(),
                    write: matches!(capability, Capability::FsWrite(_)),
                    tag: String::new(),
                    owner: options.owner(grant.owner.as_ref())?,
                };
                ("fs", DeviceKind::Share(share))
            }
            Capability::NetTap(interface) => {
                let tap = Tap {
                    interface: interface.clone(),
                    mac: options.mac(grant.mac.as_ref())?.unwrap_or_default(),
                    mtu: options.mtu(grant.mtu.as_ref(), MIN_TAP_MTU..=MAX_MTU)?,
                    queues: options.queues(grant.queues.as_ref(), vcpus)?,
                    receive_rate: options.rate(grant.receive_rate.as_ref())?,
                    transmit_rate: options.rate(grant.transmit_rate.as_ref())?,
                };
                ("net", DeviceKind::Tap(tap))
            }
            Capability::PmemRead(path) | Capability::PmemWrite(path) => {
                let write = matches!(capability, Capability::PmemWrite(_));
                let path = path.clone();
                ("pmem", DeviceKind::Pmem { path, write })
            }
            Capability::VhostUserBlock(path) => {
                let queues = options.queues(grant.queues.as_ref(), vcpus)?;
                let path = path.clone();
                ("disk", DeviceKind::VhostUserBlock { path, queues })
            }
            Capability::VhostUserNet(path) => {
                let kind = DeviceKind::VhostUserNet {
                    path: path.clone(),
                    mac: options.mac(grant.mac.as_ref())?.unwrap_or_default(),
                    queues: options.queues(grant.queues.as_ref(), vcpus)?,
                };
                ("net", kind)
            }
            Capability::Vsock => {
                // Guests of one system can be told apart.
                let default = MIN_CID + i64::try_from(number).unwrap_or(0);
                let highest = i64::from(u32::MAX - 1);
                let cid = options.integer("cid", grant.cid.as_ref(), MIN_CID..=highest)?;
                let cid = u32::try_from(cid.unwrap_or(default)).ok()?;
                ("vsock", DeviceKind::Vsock { cid })
            }
        };
        Some(Some(device))
    }

    /// The device's name: as written, or the next free one of its prefix.
    fn name(
        &mut self,
        prefix: &str,
        grant: &GrantDraft,
        span: &Option<Range<usize>>,
    ) -> Option<String> {
        let name = match &grant.name {
            None => self.numbered(prefix),
            Some(name) => {
                self.options(span).name(name)?;
                name.value.clone()
            }
        };
        if self.names.insert(name.clone()) {
            return Some(name);
        }
        let at = grant.name.as_ref().map_or(span, |name| &name.span);
        self.refuse(
            Code::Device,
            at.clone(),
            format!("a second device is named `{name}`"),
            "give each device a name of its own: name = \"...\"".to_owned(),
        );
        None
    }

    /// `prefix` and the number of devices that have it already.
    fn numbered(&self, prefix: &str) -> String {
        let has = |kind: &DeviceKind| prefix_of(kind) == prefix;
        let number = self
            .devices
            .iter()
            .filter(|device| has(&device.kind))
            .count();
        match prefix {
            "vsock" => prefix.to_owned(),
            // Devices that were there before have names of their own.
            _ => (number..)
                .map(|number| format!("{prefix}{number}"))
                .find(|name| !self.names.contains(name) || self.is_granted(name))
                .unwrap_or_default(),
        }
    }

    fn is_granted(&self, name: &str) -> bool {
        self.devices.iter().any(|device| device.name == name)
    }

    /// Fills in what defaults to something made of the name.
    fn named(&mut self, mut kind: DeviceKind, name: &str, grant: &GrantDraft) -> DeviceKind {
        let derived = stable_mac([self.whose.system, self.whose.partition, name]);
        match &mut kind {
            DeviceKind::Tap(Tap { mac, .. }) | DeviceKind::VhostUserNet { mac, .. }
                if *mac == [0; 6] =>
            {
                *mac = derived;
            }
            DeviceKind::Share(share) => {
                let tag = grant.tag.as_ref();
                let at = tag.and_then(|tag| tag.span.clone());
                share.tag = tag.map_or(name, |tag| tag.value.as_str()).to_owned();
                let plain = share.tag.bytes().all(|byte| byte.is_ascii_graphic());
                let twice = self.devices.iter().any(|device| {
                    matches!(&device.kind, DeviceKind::Share(other) if other.tag == share.tag)
                });
                let problem = if share.tag.is_empty() || share.tag.len() > MAX_TAG || !plain {
                    format!("`{}` is no tag", share.tag.escape_debug())
                } else if twice {
                    format!("two directories have the tag `{}`", share.tag)
                } else {
                    return kind;
                };
                let help =
                    format!("a tag is 1 to {MAX_TAG} bytes without spaces, one for each directory");
                self.refuse(Code::Device, at, problem, help);
            }
            _ => {}
        }
        kind
    }

    fn empty_network(&self, name: &str) -> Network {
        Network {
            connect: Vec::new(),
            resolve: Vec::new(),
            deny: Vec::new(),
            loopback: Vec::new(),
            hosts: Vec::new(),
            trust: Vec::new(),
            listen: Vec::new(),
            mac: stable_mac([self.whose.system, self.whose.partition, name]),
            mtu: MAX_MTU,
            max_connections: DEFAULT_CONNECTIONS,
            receive_rate: Default::default(),
            transmit_rate: Default::default(),
        }
    }

    /// Gathers the rules of the user-mode network, and its options.
    fn network(&mut self, draft: Option<&At<NetworkDraft>>) -> Option<()> {
        let place = self.network_at;
        let Some(place) = place else {
            if let Some(draft) = draft {
                self.refuse(
                    Code::KeyNotForGrant,
                    draft.span.clone(),
                    "`network` means nothing without a grant of the user-mode network".to_owned(),
                    "grant net.connect, net.listen, net.loopback, dns.resolve or model.chat"
                        .to_owned(),
                );
            }
            return None;
        };
        let mut network = match self.devices.get(place).map(|device| &device.kind) {
            Some(DeviceKind::Network(network)) => network.clone(),
            _ => return None,
        };
        for grant in &self.grants {
            let constraints = || grant.value.constraints().clone();
            match grant.value.capability() {
                Capability::NetConnect(rule) => network.connect.push(Connect {
                    rule: rule.clone(),
                    constraints: constraints(),
                }),
                Capability::DnsResolve(name) => network.resolve.push(Resolve {
                    name: name.clone(),
                    constraints: constraints(),
                }),
                Capability::NetLoopback(loopback) => network.loopback.push(*loopback),
                Capability::NetListen(listen) => network.listen.push(Inbound {
                    listen: *listen,
                    constraints: constraints(),
                }),
                _ => {}
            }
        }
        network.deny = self.deny.iter().filter_map(denial).collect();
        let many = network.connect.len().max(network.loopback.len()) > MAX_RULES;
        if many || network.listen.len() > MAX_FORWARDS {
            let help =
                format!("grant at most {MAX_RULES} of a kind, and {MAX_FORWARDS} net.listen");
            self.refuse(
                Code::Grant,
                None,
                "a partition has too many grants of the network".to_owned(),
                help,
            );
        }
        let ports: BTreeSet<_> = network
            .listen
            .iter()
            .map(|own| own.listen.address)
            .collect();
        if ports.len() != network.listen.len() {
            self.refuse(
                Code::DuplicateGrant,
                None,
                "two grants of net.listen share one socket of the host".to_owned(),
                "give each an address or port of its own".to_owned(),
            );
        }
        if let Some(draft) = draft {
            let applied = self.network_options(&mut network, draft);
            self.complete &= applied.is_some();
        }
        if let Some(device) = self.devices.get_mut(place) {
            device.kind = DeviceKind::Network(network);
        }
        Some(())
    }

    fn network_options(&mut self, network: &mut Network, draft: &At<NetworkDraft>) -> Option<()> {
        let base = self.whose.base;
        let mut options = self.options(&draft.span);
        let draft = &draft.value;
        if let Some(mac) = options.mac(draft.mac.as_ref())? {
            network.mac = mac;
        }
        if let Some(mtu) = options.mtu(draft.mtu.as_ref(), MIN_MTU..=MAX_MTU)? {
            network.mtu = mtu;
        }
        let most = draft.max_connections.as_ref();
        if let Some(most) = options.integer("max_connections", most, 1..=4096)? {
            network.max_connections = u16::try_from(most).ok()?;
        }
        if let Some(hosts) = &draft.hosts {
            network.hosts = options.hosts(hosts)?;
        }
        if let Some(trust) = &draft.trust {
            network.trust = options.trust(trust, base)?;
        }
        network.receive_rate = options.rate(draft.receive_rate.as_ref())?;
        network.transmit_rate = options.rate(draft.transmit_rate.as_ref())?;
        Some(())
    }
}

/// A denial that is the network's.
fn denial(denied: &Capability) -> Option<Denial> {
    match denied {
        Capability::NetConnect(rule) => Some(Denial::Connect(rule.clone())),
        Capability::DnsResolve(name) => Some(Denial::Resolve(name.clone())),
        _ => None,
    }
}

/// What the default name of a device starts with.
fn prefix_of(kind: &DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Disk(_) | DeviceKind::VhostUserBlock { .. } => "disk",
        DeviceKind::Network(_) | DeviceKind::Tap(_) | DeviceKind::VhostUserNet { .. } => "net",
        DeviceKind::Share(_) => "fs",
        DeviceKind::Pmem { .. } => "pmem",
        DeviceKind::Vsock { .. } => "vsock",
    }
}

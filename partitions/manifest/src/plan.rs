//! What will be enforced of a manifest, by whom and where: what people read before they sign, and
//! before they start. It depends on the manifest alone.

use crate::device::{Device, DeviceKind, Disk, Network, Share};
use crate::mandate::Lifetime;
use crate::manifest::Manifest;
use crate::system::{Kernel, KernelKind, LinuxBoot, Partition, Program};
use bulkhead_abi::machine::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE};
use bulkhead_abi::syscall::slot;
use bulkhead_capability::{Adherence, Autonomy, Capability, CapabilityName, Enforcer, Grant};
use bulkhead_machine::Transport;
use bulkhead_machine::device::{ImageFormat, RateLimit};
use serde_json::{Value, json};

/// One thing that is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// What the manifest says: a grant, a denial, a bound.
    pub what: String,
    /// Who enforces it.
    pub by: &'static str,
    /// Where: a device, a slot, a rule.
    pub at: String,
}

/// Everything that is enforced of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Identity of the partition.
    pub identity: String,
    /// Its role.
    pub role: String,
    /// Identity of its parent.
    pub parent: Option<String>,
    /// In the order of the document's grants, then its bounds.
    pub rows: Vec<PlanRow>,
}

const VMM: &str = "bulkhead-vmm";
const GATEWAY: &str = "bulkhead-gateway";
const TOOLS: &str = "bulkhead-tools";
const DECISION: &str = "bulkhead-decision";
const SUPERVISOR: &str = "supervisor";
const CONTROL_GROUP: &str = "control group";

impl Plan {
    /// What will be enforced of `manifest`.
    pub fn of(manifest: &Manifest) -> Self {
        let partition = manifest.partition();
        let mut plan = Self {
            identity: manifest.identity().to_owned(),
            role: manifest.mandate().role.clone(),
            parent: manifest.mandate().parent.clone(),
            rows: Vec::new(),
        };
        let machine = Machine::new(partition);
        plan.grants(partition, &machine);
        plan.denials(partition);
        plan.secrets(manifest);
        plan.machine(partition, &machine);
        plan.files(partition);
        plan.bounds(manifest);
        plan
    }

    /// The plan as JSON.
    pub fn to_json(&self) -> Value {
        let row = |row: &PlanRow| json!({ "what": row.what, "by": row.by, "at": row.at });
        json!({
            "identity": self.identity,
            "role": self.role,
            "parent": self.parent,
            "enforced": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn add(&mut self, what: impl Into<String>, by: &'static str, at: impl Into<String>) {
        self.rows.push(PlanRow {
            what: what.into(),
            by,
            at: at.into(),
        });
    }

    fn grants(&mut self, partition: &Partition, machine: &Machine<'_>) {
        for grant in partition.grants.iter() {
            let capability = grant.capability();
            let (by, at) = match capability.name().enforcer() {
                Enforcer::Machine => (VMM, machine.at(capability)),
                Enforcer::Gateway => (GATEWAY, gateway(grant)),
                Enforcer::Tools => (TOOLS, tools(grant)),
                Enforcer::Supervisor => (SUPERVISOR, "fifth rule, when a child starts".to_owned()),
                Enforcer::Nobody => ("nobody", "refused".to_owned()),
            };
            self.add(grant.to_string(), by, at);
        }
    }

    fn denials(&mut self, partition: &Partition) {
        for denied in partition.grants.denied() {
            let (by, at) = match denied.name().enforcer() {
                Enforcer::Gateway => (GATEWAY, "filter rule, before all that allow"),
                Enforcer::Tools => (TOOLS, "permission, before all that allow"),
                // There is no grant of it, or the manifest would have been refused.
                _ => (SUPERVISOR, "no grant of it"),
            };
            self.add(format!("deny {denied}"), by, at);
        }
    }

    fn secrets(&mut self, manifest: &Manifest) {
        for secret in &manifest.mandate().secrets {
            let path = match &secret.path {
                Some(path) => format!("{path} of "),
                None => String::new(),
            };
            let at = format!(
                "placeholder in header {}, replaced on the way to {path}https://{}:{}",
                secret.header, secret.host, secret.port
            );
            let kept = if secret.ephemeral {
                "ephemeral"
            } else {
                "vault"
            };
            self.add(format!("secret {} ({kept})", secret.name), GATEWAY, at);
            if let Some(env) = &secret.env {
                let what = format!("placeholder of {}", secret.name);
                self.add(what, SUPERVISOR, format!("environment variable {env}"));
            }
        }
    }

    /// What of a network is no grant, and holds all the same.
    fn network(&mut self, network: &Network) {
        for host in &network.hosts {
            let what = format!("name {host}");
            self.add(what, GATEWAY, "resolves to the router's address");
        }
        for authority in &network.trust {
            let what = format!("authority {}", authority.display());
            self.add(what, GATEWAY, "trusted by it, where it looks into requests");
        }
        let most = format!("{} connections", network.max_connections);
        self.add(most, GATEWAY, "at a time");
    }

    fn machine(&mut self, partition: &Partition, machine: &Machine<'_>) {
        let memory = &partition.memory;
        self.add(format!("memory {} MiB", memory.mib), VMM, "guest memory");
        let mut devices = partition.devices.iter();
        let network = devices.find(|device| matches!(device.kind, DeviceKind::Network(_)));
        if let Some(Device { name, kind }) = network {
            let at = format!("{}, {}", describe(kind), machine.place(name));
            self.add("user-mode network", VMM, at);
            if let DeviceKind::Network(network) = kind {
                self.network(network);
            }
        }
        if memory.pluggable_mib > 0 {
            let what = format!("memory {} MiB more", memory.pluggable_mib);
            self.add(what, VMM, machine.place("memory"));
        }
        if let Some(balloon) = memory.balloon {
            let what = format!("balloon of {} MiB", balloon.mib);
            self.add(what, VMM, machine.place("balloon"));
        }
        let cpus = format!("{} vCPUs, {:?}", partition.vcpus, partition.cpu);
        self.add(
            cpus.to_lowercase().replace("vcpus", "vCPUs"),
            VMM,
            "threads of the VMM",
        );
        if partition.watchdog {
            self.add("watchdog", VMM, "i6300ESB at its ports");
        }
        let limits = &partition.limits;
        let amounts = [
            ("cpu", limits.cpu_percent, "%"),
            (
                "memory beyond the guest's",
                limits.memory_overhead_mib,
                " MiB",
            ),
            ("processes and threads", limits.pids, ""),
        ];
        for (what, amount, unit) in amounts {
            if let Some(amount) = amount {
                self.add(
                    format!("{what} {amount}{unit}"),
                    CONTROL_GROUP,
                    "of the partition",
                );
            }
        }
    }

    fn files(&mut self, partition: &Partition) {
        let copied = "copied into guest memory at the start";
        match &partition.kernel {
            Kernel::Native { program, .. } => {
                self.add(format!("program {program}"), SUPERVISOR, copied);
            }
            Kernel::LinuxAbi { program, .. } => self.program(program),
            Kernel::Linux { image, boot, .. } => {
                self.add(format!("image {image}"), SUPERVISOR, copied);
                match boot {
                    LinuxBoot::Command(program) => self.program(program),
                    LinuxBoot::Initrd(Some(initrd)) => {
                        self.add(format!("initrd {initrd}"), SUPERVISOR, copied);
                    }
                    LinuxBoot::Initrd(None) => {}
                }
            }
        }
    }

    fn program(&mut self, program: &Program) {
        if let Some(root) = &program.root {
            self.add(
                format!("root {root}"),
                SUPERVISOR,
                "copied to / at the start",
            );
        }
        for mount in &program.mounts {
            let at = format!("copied to {} at the start", mount.target);
            self.add(format!("mount {}", mount.source), SUPERVISOR, at);
        }
    }

    fn bounds(&mut self, manifest: &Manifest) {
        let mandate = manifest.mandate();
        match mandate.lifetime {
            Lifetime::Seconds(seconds) => {
                let what = format!("lifetime {seconds} s");
                self.add(what, SUPERVISOR, "timer, from the first start");
            }
            Lifetime::Unlimited => {
                let at = "ninth rule: two signatures, one of an approver";
                self.add("lifetime unlimited", SUPERVISOR, at);
            }
        }
        if manifest.partition().conditions == Adherence::Learn {
            let at = "learnt from, not enforced: what they would deny is done, and on record";
            self.add("conditions learn".to_owned(), DECISION, at);
        }
        let autonomy = manifest.partition().autonomy;
        if manifest.partition().calls_tools() {
            let what = format!("autonomy {}", autonomy.as_str());
            self.add(what, TOOLS, waits(autonomy));
        }
        if let Some(limits) = &mandate.tool_limits {
            let at = "each call, where they are narrower than tools.toml";
            self.add(format!("limits {}", limits.display()), TOOLS, at);
        }
        let spawn = mandate.spawn;
        if spawn.count > 0 {
            let what = format!("spawn {}, {} generations", spawn.count, spawn.depth);
            self.add(what, SUPERVISOR, "fifth rule, when a child starts");
        }
        for (key, amount) in mandate.budget.amounts() {
            let Some(amount) = amount else { continue };
            let (what, by) = match key {
                "money" => (format!("budget money {}", dollars(amount)), GATEWAY),
                "calls" => (format!("budget calls {amount}"), TOOLS),
                _ => (format!("budget {key} {amount}"), GATEWAY),
            };
            self.add(what, by, "counter, while the partition lives");
        }
    }
}

/// Which calls of tools wait for a person.
fn waits(autonomy: Autonomy) -> &'static str {
    match autonomy {
        Autonomy::Full => "no call waits for a person but where a grant or tools.toml says so",
        Autonomy::Supervised => "calls that destroy or use the network wait for a person",
        Autonomy::Manual => "all calls but those that only read wait for a person",
    }
}

/// Millionths of a cent as dollars, with no digit more than it takes.
fn dollars(amount: u64) -> String {
    let text = format!("{}.{:08}", amount / 100_000_000, amount % 100_000_000);
    let short = text.trim_end_matches('0');
    match short.split_once('.') {
        Some((_, part)) if part.len() >= 2 => short.to_owned(),
        Some((whole, part)) => format!("{whole}.{part:0<2}"),
        None => text,
    }
}

/// The rule of a grant that the gateway enforces.
fn gateway(grant: &Grant) -> String {
    let of = match grant.capability() {
        Capability::NetConnect(rule) => format!("filter rule {rule}"),
        Capability::NetListen(listen) => {
            format!(
                "listening socket {}, to port {}",
                listen.address, listen.guest_port
            )
        }
        Capability::NetLoopback(loopback) => format!("router's address, {loopback}"),
        Capability::DnsResolve(host) => format!("resolver, {host}"),
        Capability::ModelChat(models) => format!("router of models, {models}"),
        other => other.to_string(),
    };
    match grant.constraints().http {
        Some(_) => format!("{of}; proxy rule, each request"),
        None => of,
    }
}

fn tools(grant: &Grant) -> String {
    match grant.capability() {
        Capability::ToolCall(tools) => format!("tools/list and each call of {tools}"),
        Capability::Exec(programs) => format!("programs of tools, {programs}"),
        other => other.to_string(),
    }
}

/// Where the devices of a partition stand.
struct Machine<'m> {
    partition: &'m Partition,
    /// Names of the virtio devices, in the order of their windows.
    devices: Vec<&'m str>,
}

impl<'m> Machine<'m> {
    fn new(partition: &'m Partition) -> Self {
        let has = |name| {
            let mut held = partition.grants.capabilities();
            held.any(|held| held.name() == name)
        };
        let linux = partition.kernel.kind() == KernelKind::Linux;
        let own = [
            ("console", linux && has(CapabilityName::Console)),
            ("entropy", has(CapabilityName::Entropy)),
            ("memory", partition.memory.pluggable_mib > 0),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name));
        let granted = partition.devices.iter().map(|device| device.name.as_str());
        let balloon = partition.memory.balloon.map(|_| "balloon");
        Self {
            partition,
            devices: own.chain(granted).chain(balloon).collect(),
        }
    }

    /// Where a grant's device stands, and what it is.
    fn at(&self, capability: &Capability) -> String {
        match capability.name() {
            CapabilityName::Console if self.partition.kernel.kind() != KernelKind::Linux => {
                format!("console mailbox, CNode slot {}", slot::CONSOLE)
            }
            CapabilityName::Console => format!("serial port and {}", self.place("console")),
            CapabilityName::Entropy => format!("virtio-rng, {}", self.place("entropy")),
            CapabilityName::Time => "clock".to_owned(),
            _ => {
                let mut devices = self.partition.devices.iter();
                match devices.find(|device| is_of(device, capability)) {
                    Some(device) => {
                        format!("{}, {}", describe(&device.kind), self.place(&device.name))
                    }
                    None => "no device".to_owned(),
                }
            }
        }
    }

    /// Where the device of this name stands: on the bus, in a window of its own, in slots.
    fn place(&self, name: &str) -> String {
        let number = self.devices.iter().position(|device| *device == name);
        let Some(number) = number.and_then(|number| u64::try_from(number).ok()) else {
            return format!("`{name}`");
        };
        if self.partition.transport == Transport::Pci {
            return format!("`{name}`, function {number} of the PCI bus's virtio devices");
        }
        let window = VIRTIO_MMIO_BASE + number * VIRTIO_MMIO_STRIDE;
        let place = format!("`{name}`, registers at {window:#x}");
        match self.partition.kernel.kind() {
            KernelKind::Linux => place,
            KernelKind::Native | KernelKind::LinuxAbi => format!(
                "{place}, CNode slots {} and {}",
                slot::DEVICES + number,
                slot::INTERRUPTS + number
            ),
        }
    }
}

/// Whether the device is what the capability becomes.
fn is_of(device: &Device, capability: &Capability) -> bool {
    match (&device.kind, capability) {
        (DeviceKind::Disk(disk), Capability::BlockRead(path)) => disk.path == *path && !disk.write,
        (DeviceKind::Disk(disk), Capability::BlockWrite(path)) => disk.path == *path && disk.write,
        (DeviceKind::Share(share), Capability::FsRead(path)) => share.path == *path && !share.write,
        (DeviceKind::Share(share), Capability::FsWrite(path)) => share.path == *path && share.write,
        (DeviceKind::Pmem { path, .. }, Capability::PmemRead(of) | Capability::PmemWrite(of)) => {
            path == of
        }
        (DeviceKind::Tap(tap), Capability::NetTap(interface)) => tap.interface == *interface,
        (DeviceKind::Vsock { .. }, Capability::Vsock) => true,
        (DeviceKind::VhostUserBlock { path, .. }, Capability::VhostUserBlock(of))
        | (DeviceKind::VhostUserNet { path, .. }, Capability::VhostUserNet(of)) => path == of,
        _ => false,
    }
}

/// What a device is, with every option that bounds it.
fn describe(kind: &DeviceKind) -> String {
    let access = |write: bool| {
        if write {
            "read and written"
        } else {
            "read-only"
        }
    };
    match kind {
        DeviceKind::Disk(disk) => describe_disk(disk),
        DeviceKind::Share(Share { write, tag, .. }) => {
            format!("virtiofs `{tag}` by bulkhead-fs, {}", access(*write))
        }
        DeviceKind::Network(Network { mtu, .. }) => format!("virtio-net, MTU {mtu}"),
        DeviceKind::Tap(tap) => format!("virtio-net on tap {}", tap.interface),
        DeviceKind::Pmem { write, .. } => format!("virtio-pmem, {}", access(*write)),
        DeviceKind::Vsock { cid } => format!("virtio-vsock, CID {cid}"),
        DeviceKind::VhostUserBlock { path, .. } => {
            format!("virtio-blk of the process at {}", path.display())
        }
        DeviceKind::VhostUserNet { path, .. } => {
            format!("virtio-net of the process at {}", path.display())
        }
    }
}

fn describe_disk(disk: &Disk) -> String {
    let mut text = "virtio-blk".to_owned();
    if disk.format == ImageFormat::Qcow2 {
        text += " of qcow2";
    }
    text += match (disk.write, &disk.overlay) {
        (true, None) => ", read and written",
        (true, Some(_)) => ", image read-only",
        (false, _) => ", read-only",
    };
    if let Some(overlay) = &disk.overlay {
        text += &format!(", writes to {}", overlay.display());
    }
    for image in &disk.backing {
        text += &format!(", based on {}", image.path.display());
    }
    if disk.rate != RateLimit::default() {
        let per_second = |bucket: Option<bulkhead_machine::device::TokenBucket>| {
            bucket.map(|bucket| bucket.per_second)
        };
        if let Some(bytes) = per_second(disk.rate.bytes) {
            text += &format!(", {bytes} bytes/s");
        }
        if let Some(operations) = per_second(disk.rate.operations) {
            text += &format!(", {operations} operations/s");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::{EVERYTHING, MINIMAL, manifest};

    fn lines(text: &str) -> Vec<String> {
        let plan = Plan::of(&manifest(text));
        let line = |row: &PlanRow| format!("{} | {} | {}", row.what, row.by, row.at);
        plan.rows.iter().map(line).collect()
    }

    #[test]
    fn everything_has_its_place() {
        let lines = lines(EVERYTHING);
        for expected in [
            "console | bulkhead-vmm | serial port and `console`, function 0 of the PCI bus's virtio devices",
            "block.write:/srv/agent/disk.img | bulkhead-vmm | virtio-blk of qcow2, image read-only, writes to /srv/agent/top.img, based on /srv/agent/base.img, 1048576 bytes/s, `data`, function 2 of the PCI bus's virtio devices",
            "fs.write:/srv/agent/work | bulkhead-vmm | virtiofs `work` by bulkhead-fs, read and written, `fs0`, function 4 of the PCI bus's virtio devices",
            "net.connect:tcp:git.example.org:443 | bulkhead-gateway | filter rule tcp:git.example.org:443",
            "deny net.connect:tcp:10.0.0.0/8:* | bulkhead-gateway | filter rule, before all that allow",
            "secret github (vault) | bulkhead-gateway | placeholder in header x-token, replaced on the way to /repos/** of https://git.example.org:443",
            "placeholder of github | supervisor | environment variable GITHUB_TOKEN",
            "tool.call:fs.* | bulkhead-tools | tools/list and each call of fs.*",
            "partition.spawn:worker=4 | supervisor | fifth rule, when a child starts",
            "memory 256 MiB more | bulkhead-vmm | `memory`, function 1 of the PCI bus's virtio devices",
            "user-mode network | bulkhead-vmm | virtio-net, MTU 65520, `net0`, function 5 of the PCI bus's virtio devices",
            "name db.example.org | bulkhead-gateway | resolves to the router's address",
            "authority /srv/agent/ca.pem | bulkhead-gateway | trusted by it, where it looks into requests",
            "10 connections | bulkhead-gateway | at a time",
            "cpu 150% | control group | of the partition",
            "root /srv/agent/rootfs | supervisor | copied to / at the start",
            "mount /srv/agent/bin | supervisor | copied to /opt/bin at the start",
            "lifetime 90 s | supervisor | timer, from the first start",
            "conditions learn | bulkhead-decision | learnt from, not enforced: what they would deny is done, and on record",
            "autonomy supervised | bulkhead-tools | calls that destroy or use the network wait for a person",
            "budget money 5.00 | bulkhead-gateway | counter, while the partition lives",
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}\n{lines:#?}"
            );
        }
        let web = lines
            .iter()
            .find(|line| line.starts_with("net.connect:tcp:api.example.org:443"));
        let web = web.unwrap();
        assert!(
            web.contains("methods GET POST, paths /v1/**") && web.ends_with("each request"),
            "{web}"
        );
    }

    #[test]
    fn a_native_partition_has_its_capabilities_in_slots() {
        let text = r#"
            grants = ["console", "entropy", "block.read:a.img", "block.read:b.img"]
            [identity]
            name = "n"
            role = "r"
            [boot]
            kernel = "native"
            program = "@examples/hello-native"
            [lifetime]
            unlimited = true
        "#;
        let lines = lines(text);
        for expected in [
            "console | bulkhead-vmm | console mailbox, CNode slot 1",
            "entropy | bulkhead-vmm | virtio-rng, `entropy`, registers at 0xd0000000, CNode slots 32 and 128",
            "block.read:/srv/agent/b.img | bulkhead-vmm | virtio-blk, read-only, `disk1`, registers at 0xd0002000, CNode slots 34 and 130",
            "program @examples/hello-native | supervisor | copied into guest memory at the start",
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}\n{lines:#?}"
            );
        }
    }

    #[test]
    fn each_grant_and_each_section_has_a_row() {
        let manifest = manifest(EVERYTHING);
        let plan = Plan::of(&manifest);
        for grant in manifest.partition().grants.iter() {
            let rows = plan.rows.iter().filter(|row| row.what == grant.to_string());
            assert_eq!(rows.count(), 1, "{grant}");
        }
        assert!(
            plan.rows
                .iter()
                .all(|row| row.at != "no device" && row.by != "nobody")
        );
        for of in [
            "budget bytes",
            "budget calls",
            "budget tokens",
            "budget money",
            "limits ",
        ] {
            assert!(plan.rows.iter().any(|row| row.what.starts_with(of)), "{of}");
        }
    }

    #[test]
    fn it_is_the_same_for_the_same_manifest() {
        for text in [EVERYTHING, MINIMAL] {
            let one = manifest(text);
            let json = Plan::of(&one).to_json().to_string();
            assert_eq!(Plan::of(&manifest(text)).to_json().to_string(), json);
            // From its document, in which keys have another order and paths are absolute.
            let other = crate::parse_document(one.document(), std::path::Path::new("/x.json"));
            assert_eq!(Plan::of(&other.unwrap()).to_json().to_string(), json);
        }
    }

    #[test]
    fn money_is_printed_as_it_is_written() {
        for (amount, text) in [
            (500_000_000, "5.00"),
            (7_500_000, "0.075"),
            (1, "0.00000001"),
            (1_250_000_000, "12.50"),
        ] {
            assert_eq!(dollars(amount), text);
            assert_eq!(crate::size::parse_money(text), Ok(amount));
        }
    }
}

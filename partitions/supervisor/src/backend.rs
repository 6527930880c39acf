//! The processes behind a partition's devices: the gateway of its user-mode network, and a server
//! for each of its shared directories. Made ready here, started before the VMM, watched with it; so
//! is the process of its tools, which [`crate::tools`] makes ready.

use crate::cgroup::Group;
use crate::error::Error;
use crate::files::is_as_judged;
use crate::library::{Library, LibraryFile};
use crate::models::Models;
use crate::open::{Amounts, Records};
use crate::process::{Process, packet_pair};
use crate::secrets::{self, PartitionSecret};
use crate::web::{self, Authority};
use bulkhead_conditions::control::{self as decision, Reloaded};
use bulkhead_machine::{Fd, Jail};
use bulkhead_manifest::{
    Inbound, Network, Owner, Partition, SecretBinding, Share, is_reserved_directory,
};
use bulkhead_network::control::{Command, Event, MAX_MESSAGE_BYTES, Stats};
use bulkhead_network::{Forward, ModelAccess, NetworkDescription, Web};
use bulkhead_share::{FsDescription, Ownership};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where DNS queries go: where this host's go.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A process that is described and has its descriptors open, before it exists.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The device that it serves.
    pub(crate) device: String,
    pub(crate) kind: Kind,
    pub(crate) description: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) control: Option<OwnedFd>,
    pub(crate) questions: Option<OwnedFd>,
}

/// What a back end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway,
    Share,
    Tools,
    Decision,
}

impl Kind {
    /// For messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Share => "shared directory",
            Self::Tools => "tools",
            Self::Decision => "conditions",
        }
    }

    fn program(self) -> LibraryFile {
        match self {
            Self::Gateway => LibraryFile::Gateway,
            Self::Share => LibraryFile::Fs,
            Self::Tools => LibraryFile::Tools,
            Self::Decision => LibraryFile::Decision,
        }
    }
}

/// A running back end. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Backend {
    /// The device that it serves.
    pub(crate) device: String,
    pub(crate) kind: Kind,
    pub(crate) process: Process,
    /// Our end of its control socket, where it has one: a gateway, or what answers for conditions.
    pub(crate) control: Option<OwnedFd>,
    /// Our end of the socket on which it asks for a person's consent.
    pub(crate) questions: Option<Arc<OwnedFd>>,
    /// A gateway's counters, when they have come.
    pub(crate) stats: Option<Stats>,
    /// Jail layers that it found the host not to offer, where it tells.
    pub(crate) jail_gaps: Vec<String>,
}

/// A list of descriptors that keep, in the process they are for, the numbers they have here.
#[derive(Default)]
pub(crate) struct Descriptors(pub(crate) Vec<OwnedFd>);

impl Descriptors {
    pub(crate) fn keep(&mut self, descriptor: impl Into<OwnedFd>) -> Fd {
        let descriptor = descriptor.into();
        let fd = Fd(descriptor.as_raw_fd());
        self.0.push(descriptor);
        fd
    }
}

/// What a gateway has beside its rules.
#[derive(Default)]
pub(crate) struct Own<'a> {
    /// For web requests that are looked into.
    pub(crate) authority: Option<Authority>,
    pub(crate) secrets: &'a [PartitionSecret],
    pub(crate) models: Option<Models>,
    /// Most bytes of all its flows together.
    pub(crate) budget: Option<u64>,
    /// Absent: amounts begin with this gateway.
    pub(crate) amounts: Option<Amounts>,
    /// Where the partition's tools ask for connections, if they may.
    pub(crate) tools: Option<OwnedFd>,
    /// Absent: nothing is recorded, which is for tests.
    pub(crate) records: Option<Records>,
    /// Where it asks about conditions, if there are any.
    pub(crate) conditions: Option<OwnedFd>,
}

/// Makes a gateway ready; with it comes the VMM's end of the network.
pub(crate) fn network(
    partition: &str,
    device: &str,
    network: &Network,
    own: Own<'_>,
    jail: Jail,
) -> Result<(OwnedFd, Ready), Error> {
    let (theirs, link) = packet_pair()?;
    let (control, gateway_control) = packet_pair()?;
    let mut descriptors = Descriptors::default();
    let link = descriptors.keep(link);
    let mut description = NetworkDescription::new(partition, link, network.mac, jail);
    description.control = Some(descriptors.keep(gateway_control));
    description.mtu = network.mtu;
    description.hostname = Some(partition.to_owned());
    description.resolvers = resolvers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    let age = own.amounts.as_ref().map_or(0, |amounts| amounts.age);
    for Inbound { listen, .. } in &network.listen {
        let listener = TcpListener::bind(listen.address).map_err(|source| Error::Listen {
            address: listen.address,
            source,
        })?;
        description.forwards.push(Forward {
            listener: descriptors.keep(listener),
            address: listen.address,
            guest_port: listen.guest_port,
            quotas: Vec::new(),
            lifetime: None,
        });
    }
    web::rules(&mut description, network, own.budget, age)?;
    if let Some(amounts) = own.amounts {
        description.used = Some(descriptors.keep(amounts.used));
    }
    if let Some(authority) = own.authority {
        let trust = web::trusted(network)?.into_iter();
        description.web = Some(Web {
            authority: descriptors.keep(authority.into_descriptor()),
            trust: trust.map(|file| descriptors.keep(file)).collect(),
        });
    }
    let mut questions = None;
    let asks = own.models.as_ref().is_some_and(|models| models.approval);
    if asks || description.allow.iter().any(|connect| connect.approval) {
        let (ours, theirs) = packet_pair()?;
        description.approvals = Some(descriptors.keep(theirs));
        questions = Some(ours);
    }
    for secret in own.secrets {
        let SecretBinding {
            host,
            port,
            header,
            path,
            ..
        } = &secret.target;
        description.secrets.push(bulkhead_network::Secret {
            name: secret.name.to_string(),
            placeholder: secret.placeholder.clone(),
            value: descriptors.keep(secrets::file(secret)?),
            host: host.clone(),
            port: *port,
            header: header.clone(),
            paths: path.iter().cloned().collect(),
        });
    }
    description.tools = own.tools.map(|tools| descriptors.keep(tools));
    if let Some(models) = own.models {
        description.models = Some(ModelAccess {
            file: descriptors.keep(models.file),
            ports: models.ports,
            spent: descriptors.keep(models.spent),
        });
    }
    if let Some(records) = own.records {
        description.ledger = Some(descriptors.keep(records.way));
        description.actor = Some(records.actor);
    }
    description.conditions = own.conditions.map(|way| descriptors.keep(way));
    description.loopback.clone_from(&network.loopback);
    description.hosts.clone_from(&network.hosts);
    description.max_connections = network.max_connections;
    let description = serde_json::to_vec(&description);
    let ready = Ready {
        device: device.to_owned(),
        kind: Kind::Gateway,
        description: description.map_err(Error::system("describe a network"))?,
        descriptors: descriptors.0,
        control: Some(control),
        questions,
    };
    Ok((theirs, ready))
}

/// The first resolvers of a `resolv.conf` (resolv.conf(5)).
fn resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace();
        let address = words.nth(1).filter(|_| line.starts_with("nameserver"))?;
        let address: IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines()
        .filter_map(address)
        .take(bulkhead_network::MAX_RESOLVERS)
        .collect()
}

/// Makes the server of a shared directory ready; with it comes the VMM's connection to it.
/// `private` is a directory of ours in which sockets may be made.
pub(crate) fn share(
    partition: &Partition,
    device: &str,
    share: &Share,
    jail: Jail,
    private: &Path,
) -> Result<(OwnedFd, Ready), Error> {
    let failed = |source| Error::Open {
        what: "directory",
        path: share.path.clone(),
        source,
    };
    // A link may lead where no manifest may.
    let path = share.path.canonicalize().map_err(failed)?;
    if is_reserved_directory(&path) {
        return Err(Error::Share(path));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, &path, flags, Mode::empty());
    let directory = directory.map_err(|errno| failed(errno.into()))?;
    is_as_judged(partition, &share.path, &directory)?;
    let (listener, connected) = connection(private)?;
    let mut descriptors = Descriptors::default();
    let description = FsDescription {
        version: bulkhead_share::VERSION,
        name: device.to_owned(),
        socket: descriptors.keep(listener),
        control: None,
        directory: descriptors.keep(directory),
        read_only: !share.write,
        ownership: match share.owner {
            Owner::Guest => Ownership::Guest,
            Owner::Exporter { uid, gid } => Ownership::Exporter { uid, gid },
        },
        jail,
    };
    let description = serde_json::to_vec(&description);
    let ready = Ready {
        device: device.to_owned(),
        kind: Kind::Share,
        description: description.map_err(Error::system("describe a directory"))?,
        descriptors: descriptors.0,
        control: None,
        questions: None,
    };
    Ok((connected.into(), ready))
}

/// A listening socket without a name, and a connection that waits in its queue.
fn connection(private: &Path) -> Result<(UnixListener, UnixStream), Error> {
    let failed = |source| Error::System {
        doing: "make a socket",
        source,
    };
    // By way of a descriptor, a name may be as long as it likes.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, private, flags, Mode::empty());
    let directory = directory.map_err(|errno| failed(errno.into()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/fs.sock", directory.as_raw_fd()));
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let connected = UnixStream::connect(&path).map_err(failed);
    fs::remove_file(&path).map_err(failed)?;
    Ok((listener, connected?))
}

impl Ready {
    /// Starts the process.
    pub(crate) fn start(self, library: &Library, group: Option<&Group>) -> Result<Backend, Error> {
        let program = library.file(self.kind.program())?;
        Ok(Backend {
            process: Process::spawn(&program, &self.description, self.descriptors, group)?,
            device: self.device,
            kind: self.kind,
            control: self.control,
            questions: self.questions.map(Arc::new),
            stats: None,
            jail_gaps: Vec::new(),
        })
    }
}

impl Backend {
    /// Waits, not beyond `deadline`, until a gateway has ended by itself: that it does when its VMM is
    /// gone, after it has had recorded what it did.
    pub(crate) fn take_leave(&self, deadline: Instant) {
        if self.kind != Kind::Gateway {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else {
            return;
        };
        let mut ended = [PollFd::new(&self.process.pidfd, PollFlags::IN)];
        // One that does not end in time is killed.
        let _ = poll(&mut ended, Some(&left));
    }

    /// Asks a gateway for its counters; whether it could be asked.
    pub(crate) fn ask_for_stats(&mut self) -> bool {
        self.stats = None;
        let Some(control) = self.control.as_ref().filter(|_| self.kind == Kind::Gateway) else {
            return false;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        serde_json::to_vec(&Command::Stats)
            .is_ok_and(|packet| send(control, &packet, flags).is_ok())
    }

    /// Takes in one message on the control socket: how a reload of conditions went, if it is that. What it
    /// says about its failure it says on standard error too; after nonsense nothing more is heard.
    pub(crate) fn hear(&mut self) -> Option<(u64, Reloaded)> {
        let control = self.control.as_ref()?;
        let most = MAX_MESSAGE_BYTES.max(decision::MAX_MESSAGE_BYTES);
        let mut buffer = vec![0; most];
        let understood = match recv(control, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => {
                let packet = buffer.get(..count).unwrap_or_default();
                match self.kind {
                    Kind::Decision => {
                        let understood = self.hear_decision(packet);
                        if understood.is_none() {
                            // Nobody knows any more by which conditions it would answer.
                            self.process.kill();
                        }
                        understood
                    }
                    _ => self.hear_gateway(packet).map(|()| None),
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Some(None),
            Ok(_) | Err(_) => None,
        };
        if understood.is_none() {
            self.control = None;
        }
        understood.flatten()
    }
}

impl Backend {
    /// Takes in what a gateway says, if it is something that gateways say.
    fn hear_gateway(&mut self, packet: &[u8]) -> Option<()> {
        match serde_json::from_slice(packet).ok()? {
            Event::Stats(stats) => self.stats = Some(stats),
            Event::Running { jail_gaps } => self.jail_gaps = jail_gaps,
            Event::Refused { .. } | Event::Failed { .. } => {}
        }
        Some(())
    }

    /// The same for what answers for conditions; how a reload went, if it is that.
    fn hear_decision(&mut self, packet: &[u8]) -> Option<Option<(u64, Reloaded)>> {
        match serde_json::from_slice(packet).ok()? {
            decision::Event::Running { jail_gaps } => self.jail_gaps = jail_gaps,
            decision::Event::Failed { .. } => {}
            decision::Event::Reloaded { id, outcome } => return Some(Some((id, outcome))),
        }
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn resolvers_are_the_hosts() {
        let text = "# x\nnameserver 192.0.2.1\nsearch a.org\nnameserver ::1\nnameserver x\n";
        let addresses: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1:53", "[::1]:53"]);
        assert_eq!(
            resolvers(&text.repeat(10)).len(),
            bulkhead_network::MAX_RESOLVERS
        );
    }

    #[test]
    fn a_gateway_has_secrets_that_its_description_does_not_say() {
        let agent = secrets::tests::agent(
            "\"net.connect:api.example.com:443\", \"secret.use:peer\"",
            vec![secrets::tests::binding("peer", true)],
        );
        let bound = crate::Secrets::default().resolve("web", &agent).unwrap();
        let bulkhead_manifest::DeviceKind::Network(plan) = &agent.devices[0].kind else {
            panic!("a network")
        };
        let own = Own {
            secrets: &bound,
            ..Own::default()
        };
        let (_link, ready) = network("agent", "net0", plan, own, Jail::Full).unwrap();
        let text = String::from_utf8(ready.description).unwrap();
        assert!(!text.contains(str::from_utf8(bound[0].value.expose()).unwrap()));
        let description: NetworkDescription = serde_json::from_str(&text).unwrap();
        let [secret] = &description.secrets[..] else {
            panic!("{text}")
        };
        assert_eq!(secret.placeholder, bound[0].placeholder);
        assert_eq!(
            (secret.host.as_str(), secret.header.as_str()),
            ("api.example.com", "authorization")
        );
        let mut descriptors = ready.descriptors.into_iter();
        let file = descriptors.find(|descriptor| descriptor.as_raw_fd() == secret.value.0);
        let value = std::io::read_to_string(fs::File::from(file.unwrap())).unwrap();
        assert_eq!(value.as_bytes(), bound[0].value.expose());
    }

    #[test]
    fn a_gateway_knows_what_may_come_in_and_how_often() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let grant = format!(
            "{{ capability = \"net.listen:{address}=22\", calls = \"60/min\", lifetime = \"1h\" }}"
        );
        let agent = secrets::tests::agent(&grant, Vec::new());
        let bulkhead_manifest::DeviceKind::Network(plan) = &agent.devices[0].kind else {
            panic!("a network")
        };
        let (_link, ready) = network("agent", "net0", plan, Own::default(), Jail::Full).unwrap();
        let description: NetworkDescription = serde_json::from_slice(&ready.description).unwrap();
        let [forward] = &description.forwards[..] else {
            panic!("{description:?}")
        };
        assert_eq!((forward.address, forward.guest_port), (address, 22));
        assert_eq!(
            (&forward.quotas[..], forward.lifetime),
            (&[0][..], Some(3600))
        );
        assert_eq!(description.quotas[0].calls_per_minute, Some(60));
    }

    #[test]
    fn a_gateway_can_ask_a_person_where_a_grant_demands_it() {
        for (grant, asks) in [
            (r#""net.connect:api.example.com:443""#, false),
            (
                r#"{ capability = "net.connect:api.example.com:443", approval = true }"#,
                true,
            ),
        ] {
            let agent = secrets::tests::agent(grant, Vec::new());
            let bulkhead_manifest::DeviceKind::Network(plan) = &agent.devices[0].kind else {
                panic!("a network")
            };
            let (_link, ready) =
                network("agent", "net0", plan, Own::default(), Jail::Full).unwrap();
            let description: NetworkDescription =
                serde_json::from_slice(&ready.description).unwrap();
            let (ours, theirs) = (ready.questions, description.approvals);
            assert_eq!((ours.is_some(), theirs.is_some()), (asks, asks), "{grant}");
        }
    }

    #[test]
    fn a_gateway_that_ends_by_itself_is_waited_for_and_no_other() {
        use std::os::unix::fs::OpenOptionsExt;
        use std::time::Duration;
        let dir = tempdir().unwrap();
        let path = dir.path().join("gateway");
        let start = |script: &str| {
            let text = format!("#!/bin/sh\n{script}\n");
            let mut options = fs::File::options();
            let options = options.write(true).create(true).truncate(true).mode(0o755);
            let mut file = options.open(&path).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            drop(file);
            Backend {
                device: "net0".to_owned(),
                kind: Kind::Gateway,
                process: Process::spawn(&path, b"{}", Vec::new(), None).unwrap(),
                control: None,
                questions: None,
                stats: None,
                jail_gaps: Vec::new(),
            }
        };
        let mut ends = start("sleep 0.1");
        ends.take_leave(Instant::now() + Duration::from_secs(60));
        ends.process.kill();
        assert_eq!(ends.process.reap(), "exited with status 0");
        fs::remove_file(&path).unwrap();
        let mut stays = start("exec sleep 600");
        stays.take_leave(Instant::now() + Duration::from_millis(10));
        stays.process.kill();
        assert_eq!(stays.process.reap(), "was killed by signal 9");
    }

    #[test]
    fn a_share_is_the_directory_that_links_lead_to() {
        let dir = tempdir().unwrap();
        let link = dir.path().join("link");
        let of = |path: &Path| {
            let described = Share {
                path: path.to_owned(),
                write: false,
                tag: "t".to_owned(),
                owner: Owner::Exporter { uid: 0, gid: 0 },
            };
            let partition =
                crate::compile::tests::partition("kernel = \"native\"\nprogram = \"/p\"");
            share(&partition, "fs0", &described, Jail::Full, dir.path())
        };
        for (target, code) in [
            ("/proc/sys", "share-refused"),
            ("/", "share-refused"),
            ("/absent", "file-not-found"),
        ] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(of(&link).unwrap_err().code(), code, "{target}");
            fs::remove_file(&link).unwrap();
        }
        let (_connected, ready) = of(dir.path()).unwrap();
        let description: FsDescription = serde_json::from_slice(&ready.description).unwrap();
        assert!(description.read_only);
        assert_eq!(ready.descriptors.len(), 2);
        assert!(
            fs::read_dir(dir.path()).unwrap().next().is_none(),
            "no name is left"
        );
    }
}

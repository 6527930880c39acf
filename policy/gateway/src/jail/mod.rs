//! The jail: how the process gives up everything but its sockets, before it reads the first frame.
//! It stays in the host's network, which is its job, and can open no file there is. Called by
//! [`crate::run`] alone. What each layer is for: docs/network.md.

mod seccomp;

use std::io;

use bulkhead_jail::privileges;
use bulkhead_network::{Jail, NetworkDescription, Protocol};
use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::CapabilitySet;

use crate::{dns, models, udp};

/// Newest Landlock ABI whose rights are denied. A host that knows fewer enforces those.
const LANDLOCK_ABI: ABI = ABI::V6;
/// Most ports that Landlock is told one by one; with more, rules are checked here alone.
const MAX_PORTS: usize = 1024;
/// Descriptors besides those of flows: standard streams, link, control, event queue, some to spare.
const OTHER_DESCRIPTORS: u64 = 32;

/// Descriptors of a connection that the proxy has: the guest's, and some to the server.
const PER_WEB_CONNECTION: usize = 16;

/// Descriptors of a connection that the router of models has: the guest's, and one to a provider.
const PER_MODEL_CONNECTION: usize = 2;

/// The jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host does not offer a layer, and the description demands all of them.
    #[error(
        "the host refuses the jail layer {layer}: {source}; allow it, or run with a best-effort jail"
    )]
    Layer {
        /// Which.
        layer: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The supervisor ended meanwhile.
    #[error("the supervisor is gone")]
    Orphaned,
    /// The seccomp filter does not compile.
    #[error("cannot compile the seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

impl JailError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Layer { .. } => "jail-layer",
            Self::Orphaned => "supervisor-gone",
            Self::Filter(_) => "jail-seccomp",
        }
    }
}

/// A process that is locked in except for its system calls: it may still start threads, which are
/// locked in as it is.
#[must_use = "seal it"]
#[derive(Debug)]
pub struct Entered {
    jail: Jail,
    gaps: Vec<String>,
}

/// Locks the process in, up to its last layer. With [`Jail::None`] nothing happens.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(description: &NetworkDescription) -> Result<Entered, JailError> {
    let mut entered = Entered {
        jail: description.jail,
        gaps: Vec::new(),
    };
    if description.jail == Jail::None {
        return Ok(entered);
    }
    let supervisor = getppid();
    entered.note("no-new-privileges", privileges::no_new_privileges())?;
    entered.note("landlock", restrict(description))?;
    entered.note("limits", limit(description))?;
    privileges::drop_bounding_set();
    entered.note("user", privileges::leave_root())?;
    let none = CapabilitySet::empty();
    entered.note("capabilities", privileges::drop_capabilities(none))?;
    // A change of credentials clears the signal that ends the process with its supervisor.
    let signal = set_parent_process_death_signal(Some(Signal::KILL));
    entered.note("user", signal.map_err(io::Error::from))?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned);
    }
    // Nobody of the same user reads its memory: the authority's key is in it, traffic, and secrets.
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    entered.note("user", hidden.map_err(io::Error::from))?;
    Ok(entered)
}

impl Entered {
    fn note(&mut self, layer: &'static str, outcome: io::Result<()>) -> Result<(), JailError> {
        match outcome {
            Ok(()) => Ok(()),
            Err(source) if self.jail == Jail::Full => Err(JailError::Layer { layer, source }),
            Err(_) => {
                self.gaps.push(layer.to_owned());
                Ok(())
            }
        }
    }

    /// Takes away all system calls but those of the event loop and the proxy, from all threads that
    /// there are. Returns the layers that the host does not offer, by name; with [`Jail::Full`] a
    /// missing layer is an error instead.
    ///
    /// # Errors
    /// See [`JailError`]. The process has to end then.
    pub fn seal(mut self) -> Result<Vec<String>, JailError> {
        if self.jail != Jail::None {
            let filter = seccomp::compile()?;
            let applied = seccompiler::apply_filter_all_threads(&filter);
            self.note("seccomp", applied.map_err(io::Error::other))?;
        }
        Ok(self.gaps)
    }
}

/// No file, no abstract socket or foreign process, no port to listen on, and connections to the
/// ports of the rules alone. Landlock knows no addresses and no UDP.
fn restrict(description: &NetworkDescription) -> io::Result<()> {
    let ports = ports(description);
    let net = match ports {
        Some(_) => AccessNet::from_all(LANDLOCK_ABI),
        None => AccessNet::BindTcp.into(),
    };
    let status = || -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(net)?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        let allowed = ports.into_iter().flatten();
        let allowed =
            allowed.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp)));
        let ruleset = ruleset.add_rules(allowed)?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// The ports that a TCP connection may go to; nothing when they are too many.
fn ports(description: &NetworkDescription) -> Option<Vec<u16>> {
    let rules = description.allow.iter().map(|grant| &grant.rule);
    let rules = rules.filter(|rule| rule.protocol == Protocol::Tcp);
    let mut ports: Vec<u16> = Vec::new();
    for rule in rules {
        let range = rule.ports.first..=rule.ports.last;
        if ports.len() + range.len() > MAX_PORTS {
            return None;
        }
        ports.extend(range);
    }
    let services = description.loopback.iter().map(|service| service.host_port);
    ports.extend(services);
    ports.extend(description.models.iter().flat_map(|models| &models.ports));
    ports.extend(description.resolvers.iter().map(|resolver| resolver.port()));
    Some(ports)
}

/// No core dump, which would hold the guest's traffic, and no more descriptors than the tables
/// have places.
fn limit(description: &NetworkDescription) -> io::Result<()> {
    let flows = udp::MAX_FLOWS + dns::MAX_PENDING + usize::from(description.max_connections);
    let web = match description.web {
        Some(_) => bulkhead_proxy::MAX_CONNECTIONS * PER_WEB_CONNECTION,
        None => 0,
    };
    let models = match description.models {
        Some(_) => models::MAX_CONNECTIONS * PER_MODEL_CONNECTION,
        None => 0,
    };
    let needed =
        (flows + web + models) as u64 + description.forwards.len() as u64 + OTHER_DESCRIPTORS;
    let possible = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    for (resource, value) in [
        (Resource::Core, 0),
        (Resource::Nofile, needed.min(possible)),
    ] {
        let value = Some(value);
        setrlimit(
            resource,
            Rlimit {
                current: value,
                maximum: value,
            },
        )?;
    }
    Ok(())
}

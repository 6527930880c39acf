//! Capabilities by what a request names first, so that a decision looks at few of them.

use super::request::Request;
use crate::capability::Capability;
use crate::object::pattern::NamePattern;
use bulkhead_network::http::PathPattern;
use bulkhead_network::range::{self, Range};
use bulkhead_network::{Host, Rule};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// What an entry is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It allows what it means, and leaves out addresses that are set apart.
    Grant,
    /// It forbids all that it says: all addresses, everything below a path, every number of a role.
    Denial,
}

/// Capabilities, each known by its number.
#[derive(Clone, Debug)]
pub(super) struct Index {
    purpose: Purpose,
    /// Rules by host name; those for all names below one; by subnet; for every host.
    names: HashMap<String, Vec<(usize, Rule)>>,
    below: HashMap<String, Vec<(usize, Rule)>>,
    subnets: HashMap<(u8, u32), Vec<(usize, Rule)>>,
    prefixes: BTreeSet<u8>,
    any: Vec<(usize, Rule)>,
    resolve: HashMap<String, Vec<usize>>,
    resolve_below: HashMap<String, Vec<usize>>,
    tools: Patterns,
    models: Patterns,
    secrets: HashMap<String, Vec<usize>>,
    roles: HashMap<String, Vec<(usize, u32)>>,
    programs: Vec<(usize, PathPattern)>,
    /// Directories, and whether they may be changed.
    directories: HashMap<PathBuf, Vec<(usize, bool)>>,
}

/// Patterns of names: whole names, and starts by their lengths.
#[derive(Clone, Debug, Default)]
struct Patterns {
    whole: HashMap<String, Vec<usize>>,
    starts: HashMap<String, Vec<usize>>,
    lengths: BTreeSet<usize>,
}

impl Patterns {
    fn add(&mut self, number: usize, pattern: &NamePattern) {
        let start = pattern.start().to_owned();
        if pattern.exact().is_some() {
            self.whole.entry(start).or_default().push(number);
        } else {
            self.lengths.insert(start.len());
            self.starts.entry(start).or_default().push(number);
        }
    }

    fn each(&self, name: &str, visit: &mut dyn FnMut(usize)) {
        let starts = self.lengths.iter().filter_map(|length| name.get(..*length));
        let starts = starts.filter_map(|start| self.starts.get(start));
        let all = self.whole.get(name).into_iter().chain(starts);
        all.flatten().for_each(|number| visit(*number));
    }
}

impl Index {
    pub(super) fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            names: HashMap::new(),
            below: HashMap::new(),
            subnets: HashMap::new(),
            prefixes: BTreeSet::new(),
            any: Vec::new(),
            resolve: HashMap::new(),
            resolve_below: HashMap::new(),
            tools: Patterns::default(),
            models: Patterns::default(),
            secrets: HashMap::new(),
            roles: HashMap::new(),
            programs: Vec::new(),
            directories: HashMap::new(),
        }
    }

    /// Adds a capability; one that no request is about is left out.
    pub(super) fn add(&mut self, number: usize, capability: &Capability) {
        match capability {
            Capability::NetConnect(rule) => {
                let list = match &rule.host {
                    Host::Any => &mut self.any,
                    Host::Name(name) => self.names.entry(name.clone()).or_default(),
                    Host::Below(parent) => self.below.entry(parent.clone()).or_default(),
                    Host::Subnet { address, prefix } => {
                        self.prefixes.insert(*prefix);
                        let key = (*prefix, address.to_bits());
                        self.subnets.entry(key).or_default()
                    }
                };
                list.push((number, rule.clone()));
            }
            Capability::DnsResolve(Host::Name(name)) => {
                self.resolve.entry(name.clone()).or_default().push(number);
            }
            Capability::DnsResolve(Host::Below(parent)) => {
                let list = self.resolve_below.entry(parent.clone()).or_default();
                list.push(number);
            }
            Capability::ToolCall(pattern) => self.tools.add(number, pattern),
            Capability::ModelChat(pattern) => self.models.add(number, pattern),
            Capability::SecretUse(name) => {
                self.secrets.entry(name.clone()).or_default().push(number);
            }
            Capability::PartitionSpawn(spawn) => {
                let list = self.roles.entry(spawn.role().to_owned()).or_default();
                list.push((number, spawn.count()));
            }
            Capability::Exec(pattern) => self.programs.push((number, pattern.clone())),
            Capability::FsRead(path) | Capability::FsWrite(path) => {
                let write = matches!(capability, Capability::FsWrite(_));
                let list = self.directories.entry(path.clone()).or_default();
                list.push((number, write));
            }
            _ => {}
        }
    }

    /// Visits the numbers of all capabilities that speak of the request, in no order.
    pub(super) fn each(&self, request: &Request<'_>, visit: &mut dyn FnMut(usize)) {
        let is_denial = self.purpose == Purpose::Denial;
        match *request {
            Request::Connect {
                protocol,
                name,
                address,
                port,
                ..
            } => {
                let mut of = |list: &[(usize, Rule)]| {
                    let speaks =
                        |rule: &Rule| rule.protocol == protocol && rule.ports.contains(port);
                    let numbers = list.iter().filter(|(_, rule)| speaks(rule));
                    numbers.for_each(|(number, _)| visit(*number));
                };
                // Names never stand for the host itself or what is set apart, whoever answers for them.
                let stands = address.is_none_or(|address| {
                    range::is_reachable(address) && !range::is_set_apart(address)
                });
                if let Some(name) = name.filter(|_| is_denial || stands) {
                    let name = plain_name(name);
                    of(self.names.get(name.as_ref()).map_or(&[], Vec::as_slice));
                    for parent in parents(&name) {
                        of(self.below.get(parent).map_or(&[], Vec::as_slice));
                    }
                    of(&self.any);
                } else if let Some(address) = address
                    && (is_denial || Host::Any.allows(address))
                {
                    of(&self.any);
                }
                if let Some(address) = address {
                    for list in self.subnets(address) {
                        of(list);
                    }
                }
            }
            Request::Resolve(name) => {
                let name = plain_name(name);
                let below = parents(&name).filter_map(|parent| self.resolve_below.get(parent));
                let all = self.resolve.get(name.as_ref()).into_iter().chain(below);
                all.flatten().for_each(|number| visit(*number));
            }
            Request::Secret(name) => {
                let all = self.secrets.get(name).into_iter().flatten();
                all.for_each(|number| visit(*number));
            }
            Request::Model(name) => self.models.each(name, visit),
            Request::Tool(name, _) => self.tools.each(name, visit),
            Request::Exec(program) => {
                let all = self.programs.iter();
                let meant = all.filter(|(_, pattern)| pattern.matches(program));
                meant.for_each(|(number, _)| visit(*number));
            }
            Request::Spawn(role, count) => {
                let all = self.roles.get(role).into_iter().flatten();
                let meant = all.filter(|(_, most)| is_denial || count <= *most);
                meant.for_each(|(number, _)| visit(*number));
            }
            Request::File { path, write } => self.files(path, write, visit),
        }
    }

    /// Rules of subnets that hold the address; those that grant it say so where it is set apart.
    fn subnets(&self, address: Ipv4Addr) -> impl Iterator<Item = &[(usize, Rule)]> {
        self.prefixes.iter().filter_map(move |prefix| {
            let bits = u32::from(*prefix);
            let first = address.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let own = Range {
                first: Ipv4Addr::from_bits(first),
                prefix: *prefix,
            };
            let granted = range::is_reachable(address)
                && (!range::is_set_apart(address) || range::set_apart(own).is_some());
            let found = self.subnets.get(&(*prefix, first))?;
            (self.purpose == Purpose::Denial || granted).then_some(found.as_slice())
        })
    }

    fn files(&self, path: &Path, write: bool, visit: &mut dyn FnMut(usize)) {
        for directory in path.ancestors() {
            for (number, may_write) in self.directories.get(directory).into_iter().flatten() {
                // A denied `.read` forbids both, a denied `.write` the one.
                let speaks = match self.purpose {
                    Purpose::Grant => *may_write || !write,
                    Purpose::Denial => !*may_write || write,
                };
                if speaks {
                    visit(*number);
                }
            }
        }
    }
}

/// A host name as rules have it: in lower case, without the final dot.
fn plain_name(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    }
}

/// The names that `name` is below: `b.c` and `c` of `a.b.c`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    let first = name.split_once('.').map(|(_, parent)| parent);
    std::iter::successors(first, |name| name.split_once('.').map(|(_, parent)| parent))
}

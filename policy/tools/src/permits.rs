//! What the partition was granted, and whether a call is covered by it. Asked by the pipeline, and
//! when tools are listed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_capability::{Capability, CapabilityName, Constraints, Grant, Grants};

use crate::host::Host;
use crate::registry::Need;

/// The grants of a partition, of which those of `tool.call` and `exec` count here.
#[derive(Clone, Debug, Default)]
pub struct Permits {
    grants: Grants,
    /// When the partition started, since 1970.
    started: Duration,
}

/// What covers a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover<'p> {
    /// The grant of `tool.call`.
    pub grant: &'p Grant,
    /// A person has to allow it.
    pub approval: bool,
    /// What it counts against: a name, and how many calls a minute.
    pub quotas: Vec<(&'p str, u64)>,
}

impl Permits {
    /// These, of a partition that started then.
    pub fn new(grants: Grants, started: Duration) -> Self {
        Self { grants, started }
    }

    /// True when a tool may run programs at all.
    pub fn runs_programs(&self) -> bool {
        self.grants
            .capabilities()
            .any(|held| matches!(held, Capability::Exec(_)))
    }

    /// The programs that are granted by their whole paths.
    pub fn programs(&self) -> Vec<PathBuf> {
        let exact = |held: &Capability| match held {
            Capability::Exec(pattern) => {
                let text = pattern.to_string();
                (!text.contains('*')).then(|| PathBuf::from(text))
            }
            _ => None,
        };
        self.grants.capabilities().filter_map(exact).collect()
    }

    /// The grants in force at `date` that mean something for `wanted`, which is not denied.
    fn holding<'p>(
        &'p self,
        date: Duration,
        means: impl Fn(&Capability) -> bool + 'p,
    ) -> impl Iterator<Item = &'p Grant> {
        let age = date.saturating_sub(self.started);
        let denied = self.grants.denied().any(&means);
        let grants = self.grants.iter().filter(move |_| !denied);
        grants
            .filter(move |held| means(held.capability()) && !held.constraints().is_over(date, age))
    }

    fn of_tool(&self, name: &str, date: Duration) -> impl Iterator<Item = &Grant> {
        let name = name.to_owned();
        self.holding(
            date,
            move |held| matches!(held, Capability::ToolCall(names) if names.matches(&name)),
        )
    }

    fn of_program(&self, program: &Path, date: Duration) -> impl Iterator<Item = &Grant> {
        let program = program.to_str().unwrap_or_default().to_owned();
        self.holding(
            date,
            move |held| matches!(held, Capability::Exec(paths) if paths.matches(&program)),
        )
    }

    /// True when the tool of this name may be called, and is not hidden.
    pub fn tool(&self, name: &str, date: Duration) -> bool {
        self.of_tool(name, date).next().is_some()
    }

    /// True when this program may run.
    pub fn program(&self, program: &Path, date: Duration) -> bool {
        self.of_program(program, date).next().is_some()
    }

    /// True when a request to there may be tried. Whether it is let through, counted, or asked about, the
    /// gateway decides.
    fn request(&self, (host, port): (&str, u16), asked: (&str, &str), date: Duration) -> bool {
        let rule = format!("tcp:{host}:{port}");
        let Ok(wanted) = Capability::new(CapabilityName::NetConnect, Some(&rule)) else {
            return false;
        };
        let means = move |held: &Capability| wanted.is_narrower_or_equal(held);
        let mut grants = self.holding(date, means);
        grants.any(|grant| match &grant.constraints().http {
            Some(http) => http.allows(asked.0, asked.1),
            None => true,
        })
    }

    /// What covers a call that needs this, those first that ask nobody.
    ///
    /// # Errors
    /// What no grant covers.
    pub fn cover(
        &self,
        host: &Host,
        tool: &str,
        needs: &[Need],
        date: Duration,
    ) -> Result<Vec<Cover<'_>>, String> {
        let mut asks = false;
        for need in needs {
            let covered = match need {
                Need::Read(path) => host.directories.allow(path, false),
                Need::Write(path) => host.directories.allow(path, true),
                Need::Exec(path) => {
                    let approval = |held: &Grant| held.constraints().approval;
                    let mut grants = self.of_program(path, date).peekable();
                    let any = grants.peek().is_some();
                    asks |= any && grants.all(approval);
                    any
                }
                Need::Request {
                    host,
                    port,
                    method,
                    path,
                } => self.request((host, *port), (method, path), date),
            };
            if !covered {
                return Err(need.to_string());
            }
        }
        let fits = |held: &&Grant| {
            needs
                .iter()
                .all(|need| lies_below(held.constraints(), need))
        };
        let cover = |grant| Cover::of(grant, asks);
        let mut covers: Vec<_> = self.of_tool(tool, date).filter(fits).map(cover).collect();
        covers.sort_by_key(|cover| cover.approval);
        match covers.is_empty() {
            true => Err(format!("tool.call:{tool} with these paths")),
            false => Ok(covers),
        }
    }
}

impl<'p> Cover<'p> {
    fn of(grant: &'p Grant, asks: bool) -> Self {
        let Constraints {
            quotas, approval, ..
        } = grant.constraints();
        let quotas = quotas.iter();
        let quotas =
            quotas.filter_map(|(name, quota)| Some((name.as_str(), quota.calls_per_minute?)));
        Self {
            grant,
            approval: asks || *approval,
            quotas: quotas.collect(),
        }
    }
}

/// What `below` says of a path. Programs are no paths of a call: `exec` says which may run.
fn lies_below(constraints: &Constraints, need: &Need) -> bool {
    match (need, &constraints.below) {
        (Need::Exec(_) | Need::Request { .. }, _) | (_, None) => true,
        (Need::Read(path) | Need::Write(path), Some(below)) => {
            below.iter().any(|directory| path.starts_with(directory))
        }
    }
}

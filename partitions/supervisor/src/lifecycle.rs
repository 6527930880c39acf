//! The states of a partition and the legal steps between them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a partition stands. Archived comes with what enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Written down, not yet looked at.
    Provisioned,
    /// Its manifest is right and every file it names is open.
    Validated,
    /// Its VMM process exists with exactly the descriptors it was granted.
    Isolated,
    /// Locked down, and guest code runs.
    Running,
    /// It runs, and stands still because somebody asked for it.
    Suspended,
    /// It ran, and has ended.
    Terminated,
    /// It was refused, or its VMM failed, before any guest code ran.
    Rejected,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Provisioned,
        Self::Validated,
        Self::Isolated,
        Self::Running,
        Self::Suspended,
        Self::Terminated,
        Self::Rejected,
    ];

    /// True when a partition in this state may go to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use State::{Isolated, Provisioned, Rejected, Running, Suspended, Terminated, Validated};
        matches!(
            (self, next),
            (Provisioned, Validated | Rejected)
                | (Validated, Isolated | Rejected)
                | (Isolated, Running | Rejected)
                | (Running, Suspended | Terminated)
                | (Suspended, Running | Terminated)
        )
    }

    /// True when nothing follows.
    pub fn is_final(self) -> bool {
        Self::ALL.into_iter().all(|next| !self.may_become(next))
    }

    /// The state as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
            Self::Validated => "validated",
            Self::Isolated => "isolated",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Terminated => "terminated",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A partition's state over time: takes legal steps only.
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle(State);

impl Lifecycle {
    /// Starts at [`State::Provisioned`].
    pub fn new() -> Self {
        Self(State::Provisioned)
    }

    /// Where it stands.
    pub fn state(self) -> State {
        self.0
    }

    /// Takes a step. An illegal one is not taken, and `false` says so.
    #[must_use]
    pub fn step(&mut self, next: State) -> bool {
        let legal = self.0.may_become(next);
        if legal {
            self.0 = next;
        }
        legal
    }

    /// Ends it: [`State::Terminated`] if it ran, [`State::Rejected`] if it did not.
    pub fn end(&mut self) {
        let _ = self.step(State::Terminated) || self.step(State::Rejected);
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_legal_edges() {
        let edges = State::ALL
            .into_iter()
            .flat_map(|a| State::ALL.map(|b| (a, b)));
        let legal: Vec<String> = edges
            .filter(|(a, b)| a.may_become(*b))
            .map(|(a, b)| format!("{a} {b}"))
            .collect();
        assert_eq!(
            legal,
            [
                "provisioned validated",
                "provisioned rejected",
                "validated isolated",
                "validated rejected",
                "isolated running",
                "isolated rejected",
                "running suspended",
                "running terminated",
                "suspended running",
                "suspended terminated",
            ]
        );
        assert!(State::Terminated.is_final() && State::Rejected.is_final());
        assert!(!State::Running.is_final());
    }

    #[test]
    fn an_illegal_step_changes_nothing() {
        let mut life = Lifecycle::new();
        assert!(!life.step(State::Running));
        assert_eq!(life.state(), State::Provisioned);
        life.end();
        assert_eq!(life.state(), State::Rejected);
        assert!(!life.step(State::Running));
    }

    #[test]
    fn what_ran_is_terminated() {
        let mut life = Lifecycle::new();
        for state in [State::Validated, State::Isolated, State::Running] {
            assert!(life.step(state));
        }
        life.end();
        assert_eq!(life.state(), State::Terminated);
    }
}

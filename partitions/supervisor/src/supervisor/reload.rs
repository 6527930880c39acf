//! Other conditions for a partition that runs: on record, passed on to the process that answers for them,
//! and answered when that has put them into the place of those that hold, or has not.

use super::acts::Refusal;
use super::member::Member;
use crate::backend::Kind;
use crate::conditions::{self, PartitionConditions, digest};
use crate::control::{Answer, HeldConditions, NewConditions, RELOAD, reply};
use bulkhead_conditions::control::Reloaded;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

/// As records name it.
const ACTION: &str = "policy.reload";
/// What an error says of the conditions that were to go.
const STAY: &str = "those that held still hold";

/// Conditions that the process has been asked to hold to, and has not answered about.
#[derive(Debug)]
pub(super) struct Reload {
    /// The record that it is about to be done; the number of the request too.
    intent: u64,
    /// Digests of the texts.
    old: String,
    new: String,
    /// All that holds then.
    conditions: Arc<PartitionConditions>,
    /// Who waits, and for how long yet.
    client: Option<(UnixStream, Instant)>,
}

impl Member {
    /// Has other conditions hold, or tells `client` why not. Most answers come later.
    pub(super) fn reload(&mut self, new: NewConditions, client: UnixStream) {
        let deadline = Instant::now() + RELOAD;
        match self.begin_reload(new) {
            Ok(reload) => {
                self.reload = Some(Reload {
                    client: Some((client, deadline)),
                    ..reload
                });
            }
            Err(refusal) => reply(&client, &refusal.answer()),
        }
    }

    fn begin_reload(&self, new: NewConditions) -> Result<Reload, Refusal> {
        self.runs()?;
        let name = self.name();
        let Some(held) = &self.conditions else {
            let message = format!("partition `{name}` was started without conditions");
            let help = "put policy.cedar beside its manifest, and start it again";
            return Err(Refusal::new("no-conditions", message, help));
        };
        if self.reload.is_some() {
            let message = format!("partition `{name}` is being given other conditions already");
            let help = "wait until they hold, or do not: bulkhead ledger tail";
            return Err(Refusal::new("conditions-busy", message, help));
        }
        let NewConditions {
            file,
            text,
            widen,
            of,
        } = new;
        let mut conditions = PartitionConditions::clone(held);
        let Some(place) = conditions.text_of(of.as_deref()) else {
            let ancestor = of.unwrap_or_default();
            let ancestor = ancestor.escape_debug();
            let message =
                format!("partition `{name}` is not held to the conditions of `{ancestor}`");
            let help = "a child is held to those of its ancestors";
            return Err(Refusal::new("no-conditions", message, help));
        };
        let (old, new) = (digest(place), digest(&text));
        place.clone_from(&text);
        let may_widen = if widen { "may" } else { "may not" };
        let details = [
            ("old", &*old),
            ("new", &*new),
            ("widen", may_widen),
            ("of", of.as_deref().unwrap_or_default()),
        ];
        let intent = self.life.intend(ACTION, &file, details)?;
        let reload = Reload {
            intent,
            old,
            new,
            conditions: Arc::new(conditions),
            client: None,
        };
        let sent = (self.decision()).map(|to| conditions::reload(to, intent, &text, widen, of));
        let refusal = match sent {
            Some(Ok(true)) => return Ok(reload),
            Some(Err(error)) => Refusal::from(error),
            Some(Ok(false)) | None => {
                let message = format!("nothing answers for the conditions of `{name}` any more");
                let help = "nothing is permitted; start it again";
                Refusal::new("conditions-gone", message, help)
            }
        };
        self.conclude_reload(&reload, Err(&refusal.message));
        Err(refusal)
    }

    /// The control socket of the process that answers for the conditions.
    fn decision(&self) -> Option<&OwnedFd> {
        let mut backends = self.backends.iter();
        let decision = backends.find(|backend| backend.kind == Kind::Decision)?;
        decision.control.as_ref()
    }

    /// Which conditions hold.
    pub(super) fn held_conditions(&self) -> Option<HeldConditions> {
        Some(HeldConditions {
            conditions: PartitionConditions::clone(self.conditions.as_ref()?),
            answered: self.decision().is_some(),
        })
    }

    /// Has it recorded how it went: why they permit more, if they do, or why they do not hold.
    fn conclude_reload(&self, reload: &Reload, outcome: Result<Option<&str>, &str>) {
        let widened = match outcome {
            Ok(widened) => widened.unwrap_or("no"),
            Err(_) => "",
        };
        let details = [
            ("old", &*reload.old),
            ("new", &*reload.new),
            ("widened", widened),
        ];
        let outcome = outcome.map(|_| ());
        (self.life).conclude(reload.intent, ACTION, outcome, details);
    }

    /// The process that answers for the conditions has answered.
    pub(super) fn reloaded(&mut self, id: u64, outcome: Reloaded) {
        let asked = |reload: &mut Reload| reload.intent == id;
        let Some(reload) = self.reload.take_if(asked) else {
            return;
        };
        let answer = match outcome {
            Reloaded::Done { widened } => {
                let widened = widened.map(|why| why.escape_debug().to_string());
                self.conclude_reload(&reload, Ok(widened.as_deref()));
                self.conditions = Some(reload.conditions.clone());
                Answer::Reloaded {
                    conditions: reload.new.clone(),
                    widened,
                }
            }
            Reloaded::Refused { code, message } => {
                let message = format!("{}; {STAY}", message.escape_debug());
                self.conclude_reload(&reload, Err(&message));
                let wider = code == "conditions-wider";
                let help = match wider {
                    true => "say --widen if that is meant",
                    false => "docs/policy.md has what conditions can speak of",
                };
                Refusal::new(&code.escape_debug().to_string(), message, help).answer()
            }
        };
        if let Some((client, _)) = &reload.client {
            reply(client, &answer);
        }
    }

    /// They will not hold any more, because of `why`.
    pub(super) fn give_up_reload(&mut self, why: &str) {
        let Some(reload) = self.reload.take() else {
            return;
        };
        let message = format!("the new conditions of `{}` do not hold: {why}", self.name());
        self.conclude_reload(&reload, Err(&message));
        if let Some((client, _)) = &reload.client {
            let help = "see bulkhead ps";
            let refusal = Refusal::new("conditions-gone", message, help);
            reply(client, &refusal.answer());
        }
    }

    /// When whoever waits for the answer waits no more.
    pub(super) fn reload_deadline(&self) -> Option<Instant> {
        let waits = self.reload.as_ref()?.client.as_ref();
        waits.map(|(_, deadline)| *deadline)
    }

    /// Lets go of whoever has waited for too long. What is known later is on record then.
    pub(super) fn time_out_reload(&mut self, now: Instant) {
        if self.reload_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let name = self.name();
        let message = format!("the conditions of `{name}` are still being checked");
        let client = self.reload.as_mut().and_then(|reload| reload.client.take());
        if let Some((client, _)) = client {
            let help = "the ledger will say whether the new ones hold: bulkhead ledger tail";
            let refusal = Refusal::new("conditions-busy", message, help);
            reply(&client, &refusal.answer());
        }
    }
}

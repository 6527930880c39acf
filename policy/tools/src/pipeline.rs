//! What happens to a call, in this order: validate, permit, ask the conditions, confirm, look again where that
//! took time, back up, record the intent, execute with a time-out, validate the output, record the outcome. Each step can end it; none is
//! passed over. Called by the MCP server alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use bulkhead_capability::Autonomy;
use bulkhead_conditions::{Act, Asker, Notes};
use bulkhead_record::{Entry, Kind, Recorder, Verdict};
use bulkhead_toolbox::Risk;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::backups::Draft;
use crate::error::{CallError, ToolError};
use crate::host::Host;
use crate::limiter::{ALERT_PERCENT, Limiter};
use crate::permits::{Cover, Permits};
use crate::registry::{Deadline, Need, Registry, Tool};

/// Longest object of a record in bytes.
pub(crate) const MAX_OBJECT: usize = 1024;
/// Longest arguments that a person is shown; of longer ones it is their digest.
const MAX_SHOWN: usize = 512;
/// Longest reason of a record in bytes.
const MAX_REASON: usize = 2048;

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question<'q> {
    /// Who wants it.
    pub actor: &'q str,
    /// Which tool.
    pub tool: &'q str,
    /// What harm it can do.
    pub risk: Risk,
    /// What it touches.
    pub objects: &'q str,
    /// What is to be done with it, or its digest: what is let is this and nothing else.
    pub arguments: &'q str,
    /// The piece of work that the call belongs to, where it does to one.
    pub task: Option<&'q str>,
}

/// Who asks a person, and waits for the answer.
pub trait Approver: Send + Sync {
    /// Returns who allowed it.
    ///
    /// # Errors
    /// Nobody allowed it, or nobody answered in time; the text says which.
    fn ask(&self, question: &Question<'_>) -> Result<String, String>;
}

/// Nobody can be asked, so nobody allows anything.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Approver for Nobody {
    fn ask(&self, _: &Question<'_>) -> Result<String, String> {
        Err("nobody can be asked".to_owned())
    }
}

/// A call that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Its number, by which it can be rolled back.
    pub call: u64,
    /// It can be rolled back.
    pub reversible: bool,
    /// What the tool says.
    pub result: Value,
}

/// Most calls that are done at a time.
pub const MAX_CALLS: usize = 4;

/// The tools of one partition.
pub struct Pipeline {
    actor: String,
    registry: Registry,
    permits: Permits,
    host: Host,
    limiter: Limiter,
    autonomy: Autonomy,
    conditions: Option<Asker>,
    approver: Arc<dyn Approver>,
    recorder: Arc<dyn Recorder>,
    /// Places of calls that are being done; those that wait for a person have none.
    places: Places,
    /// Held by a call that changes something, from its back-up to its outcome: what was backed up
    /// is what it changes.
    changing: Mutex<()>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}

/// What a pipeline is made of.
pub struct Parts {
    /// Who calls, as records have it.
    pub actor: String,
    /// The tools there are.
    pub registry: Registry,
    /// The grants.
    pub permits: Permits,
    /// What the tools work on.
    pub host: Host,
    /// The limits.
    pub limiter: Limiter,
    /// Which calls wait for a person, beside those that a grant or the limits name.
    pub autonomy: Autonomy,
    /// What answers for the conditions; without, there are none.
    pub conditions: Option<Asker>,
    /// Who asks people.
    pub approver: Arc<dyn Approver>,
    /// The ledger.
    pub recorder: Arc<dyn Recorder>,
}

/// A call that has passed the first two steps.
struct Permitted<'p> {
    tool: &'p Tool,
    arguments: &'p Value,
    /// What covers it.
    cover: Cover<'p>,
    /// What it takes beside the tool.
    needs: Vec<Need>,
    /// The same, for records and people.
    objects: String,
    /// The call and its needs, for conditions.
    acts: Vec<Act>,
}

/// How many calls are being done.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// A place, until it is dropped.
struct Place<'p>(&'p Places);

impl Places {
    /// Waits for one, and says whether that was necessary.
    fn take(&self) -> (Place<'_>, bool) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = *taken >= MAX_CALLS;
        let freed = self.freed.wait_while(taken, |taken| *taken >= MAX_CALLS);
        *freed.unwrap_or_else(PoisonError::into_inner) += 1;
        (Place(self), full)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Places { taken, freed } = self.0;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}

impl Pipeline {
    /// Of these parts.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            actor,
            registry,
            permits,
            host,
            limiter,
            autonomy,
            conditions,
            approver,
            recorder,
        } = parts;
        Self {
            actor,
            registry,
            permits,
            host,
            limiter,
            autonomy,
            conditions,
            approver,
            recorder,
            places: Places::default(),
            changing: Mutex::new(()),
        }
    }

    /// What the tools work on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The tools that may be called. What is not among them looks as if it did not exist.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        let date = self.limiter.date();
        let tools = self.registry.iter();
        tools.filter(move |tool| self.permits.tool(tool.facts.name, date))
    }

    /// Calls the tool `name`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(&self, name: &str, arguments: &Value) -> Result<Done, CallError> {
        self.call_in(None, name, arguments)
    }

    /// The same as part of the piece of work that is called `task`, which no other is called.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call_in(
        &self,
        task: Option<&str>,
        name: &str,
        arguments: &Value,
    ) -> Result<Done, CallError> {
        self.count(name)?;
        let tool = self.find(name)?;
        self.validate(tool, arguments)?;
        let permitted = self.permit(tool, arguments)?;
        let mut notes = self.ask_conditions(&permitted)?;
        let allowed_by = self.confirm(&permitted, task)?;
        let (_place, full) = self.places.take();
        let changes = tool.facts.risk != Risk::Read;
        let (_changing, busy) = changes.then(|| self.change()).unzip();
        if allowed_by.is_some() || full || busy == Some(true) {
            notes = self.ask_conditions(&permitted)?;
            self.still_permit(&permitted, allowed_by.is_some())?;
        }
        let draft = self.back_up(&permitted)?;
        let call = self.record_intent(&permitted, allowed_by, notes)?;
        if self.limiter.take_alert() {
            self.alert(call);
        }
        let done = self.execute(&permitted, draft, call);
        let done = done.and_then(|result| self.validate_output(&permitted, call, result));
        self.record_outcome(&permitted, call, &done)?;
        done
    }

    /// Waits until no other call changes anything, and says whether that was necessary.
    fn change(&self) -> (MutexGuard<'_, ()>, bool) {
        match self.changing.try_lock() {
            Ok(guard) => (guard, false),
            Err(TryLockError::Poisoned(left)) => (left.into_inner(), false),
            Err(TryLockError::WouldBlock) => {
                let guard = self.changing.lock();
                (guard.unwrap_or_else(PoisonError::into_inner), true)
            }
        }
    }

    /// The grant that covered a call still does, and takes no person now that nobody was asked.
    fn still_permit(&self, call: &Permitted<'_>, allowed: bool) -> Result<(), CallError> {
        let (name, date) = (call.tool.facts.name, self.limiter.date());
        let covers = self.permits.cover(&self.host, name, &call.needs, date);
        let same =
            |cover: &Cover<'_>| cover.grant == call.cover.grant && (allowed || !cover.approval);
        if covers.is_ok_and(|covers| covers.iter().any(same)) {
            return Ok(());
        }
        let grant = call.cover.grant.to_string();
        let why = "the grant that covered it ended before it was done";
        self.refuse(name, &call.objects, why);
        Err(CallError::NotPermitted(grant))
    }

    /// Every call counts, so that one that is refused cannot be tried without end.
    fn count(&self, name: &str) -> Result<(), CallError> {
        self.limiter.begin().map_err(|refusal| {
            if refusal.first {
                self.refuse(name, "", &refusal.reason);
            }
            CallError::TooOften(refusal.reason)
        })
    }

    /// The tool, if it exists and is not hidden: one answer for both.
    fn find(&self, name: &str) -> Result<&Tool, CallError> {
        let visible = self.permits.tool(name, self.limiter.date());
        let tool = self.registry.get(name).filter(|_| visible);
        tool.ok_or_else(|| {
            let name = shortened(name, 64);
            self.refuse(
                &name,
                "",
                "no grant of tool.call covers it, or there is no such tool",
            );
            CallError::Unknown(name)
        })
    }

    fn validate(&self, tool: &Tool, arguments: &Value) -> Result<(), CallError> {
        tool.check_arguments(arguments).map_err(|error| {
            let error = shortened(&error, MAX_REASON);
            self.refuse(
                tool.facts.name,
                "",
                &format!("the arguments do not fit: {error}"),
            );
            CallError::Arguments(error)
        })
    }

    /// The capabilities that this call needs are granted, and there were not too many calls.
    fn permit<'p>(
        &'p self,
        tool: &'p Tool,
        arguments: &'p Value,
    ) -> Result<Permitted<'p>, CallError> {
        let name = tool.facts.name;
        let needs = tool.needs(&self.host, arguments).map_err(|error| {
            self.refuse(name, "", &error.to_string());
            CallError::Failed(error)
        })?;
        let objects: Vec<String> = needs.iter().map(Need::to_string).collect();
        let objects = shortened(&objects.join(", "), MAX_OBJECT);
        let acts = acts(name, &needs);
        let date = self.limiter.date();
        let covers = self.permits.cover(&self.host, name, &needs, date);
        let covers = covers.map_err(|missing| {
            let missing = shortened(&missing, MAX_OBJECT);
            self.refuse(name, &objects, &format!("no grant covers {missing}"));
            CallError::NotPermitted(missing)
        })?;
        let mut refusal = None;
        for cover in covers {
            match self.limiter.permit(&tool.facts, &cover.quotas) {
                Ok(()) => {
                    return Ok(Permitted {
                        tool,
                        arguments,
                        cover,
                        needs,
                        objects,
                        acts,
                    });
                }
                Err(too_often) => {
                    refusal.get_or_insert(too_often);
                }
            }
        }
        let reason = refusal.map_or_else(String::new, |refusal| {
            if refusal.first {
                self.refuse(name, &objects, &refusal.reason);
            }
            refusal.reason
        });
        Err(CallError::TooOften(reason))
    }

    /// What the conditions say, for the intent's record: of the call, and of all that it needs.
    fn ask_conditions(&self, call: &Permitted<'_>) -> Result<Notes, CallError> {
        let Some(asker) = &self.conditions else {
            return Ok(Notes::default());
        };
        let mut notes = Notes::default();
        for act in &call.acts {
            let said = asker.ask(act, None);
            if !said.allows() {
                let why = said.ruling.to_string();
                self.refuse(call.tool.facts.name, &call.objects, &why);
                return Err(CallError::Condition(why));
            }
            notes.add(act, said);
        }
        Ok(notes)
    }

    /// Who allowed it, where somebody has to.
    fn confirm(
        &self,
        call: &Permitted<'_>,
        task: Option<&str>,
    ) -> Result<Option<String>, CallError> {
        let facts = &call.tool.facts;
        let asks = self.limiter.asks(facts.risk) || facts.risk.asks_under(self.autonomy);
        if !call.cover.approval && !asks {
            return Ok(None);
        }
        let question = Question {
            actor: &self.actor,
            tool: facts.name,
            risk: facts.risk,
            objects: &call.objects,
            arguments: &told(call.arguments),
            task,
        };
        match self.approver.ask(&question) {
            Ok(who) => Ok(Some(who)),
            Err(why) => {
                self.refuse(facts.name, &call.objects, &why);
                Err(CallError::NotConfirmed(why))
            }
        }
    }

    fn back_up(&self, call: &Permitted<'_>) -> Result<Draft<'_>, CallError> {
        let mut draft = self.host.backups.draft();
        let taken = call.tool.back_up(&self.host, call.arguments, &mut draft);
        taken.map_err(|error| {
            let why = error.to_string();
            self.refuse(call.tool.facts.name, &call.objects, &why);
            CallError::NotBackedUp(why)
        })?;
        Ok(draft)
    }

    /// After this nothing but the end of the host keeps the act out of the ledger.
    fn record_intent(
        &self,
        call: &Permitted<'_>,
        allowed_by: Option<String>,
        notes: Notes,
    ) -> Result<u64, CallError> {
        let facts = &call.tool.facts;
        let grant = call.cover.grant;
        let reason = match &allowed_by {
            Some(who) => format!("granted by {grant}, and allowed by {who}"),
            None => format!("granted by {grant}"),
        };
        let mut entry = self.entry(Kind::Intent, facts.name, Verdict::Allowed, &reason);
        entry
            .detail
            .insert("version".to_owned(), facts.version.to_owned());
        entry
            .detail
            .insert("risk".to_owned(), facts.risk.as_str().to_owned());
        if !call.objects.is_empty() {
            entry
                .detail
                .insert("objects".to_owned(), call.objects.clone());
        }
        let arguments = canonical(call.arguments);
        (entry.detail).insert("arguments".to_owned(), digest(arguments.as_bytes()));
        entry.detail.extend(notes.into_detail());
        self.recorder.record(&entry).map_err(CallError::NotRecorded)
    }

    /// Does it. One that fails on its way and can be taken back is.
    fn execute(
        &self,
        call: &Permitted<'_>,
        draft: Draft<'_>,
        number: u64,
    ) -> Result<Value, CallError> {
        let facts = &call.tool.facts;
        draft.keep(number, facts.name).map_err(CallError::Failed)?;
        let deadline = Deadline::after(facts.timeout);
        let done = call.tool.run(&self.host, call.arguments, &deadline);
        let (backups, directories) = (&self.host.backups, &self.host.directories);
        let done = done.and_then(|result| {
            let settled = backups.settle(directories, number);
            settled.map_err(ToolError::halfway)?;
            Ok(result)
        });
        done.map_err(|error| {
            let put_back = match &error {
                ToolError::Halfway(_) => backups.abandon(directories, number),
                _ => {
                    backups.forget(number);
                    Ok(())
                }
            };
            CallError::Failed(match put_back {
                Ok(()) => error,
                Err(left) => ToolError::refused(format!(
                    "{error}; what it changed could not be put back: {left}"
                )),
            })
        })
    }

    fn validate_output(
        &self,
        call: &Permitted<'_>,
        number: u64,
        result: Value,
    ) -> Result<Done, CallError> {
        let fits = call.tool.check_result(&result);
        fits.map_err(|_| CallError::Result)?;
        Ok(Done {
            call: number,
            reversible: self.host.backups.find(number).is_some(),
            result,
        })
    }

    fn record_outcome(
        &self,
        call: &Permitted<'_>,
        number: u64,
        done: &Result<Done, CallError>,
    ) -> Result<(), CallError> {
        let (verdict, reason) = match done {
            Ok(_) => (Verdict::Done, String::new()),
            Err(error) => (Verdict::Failed, error.to_string()),
        };
        let mut entry = self.entry(Kind::Outcome, call.tool.facts.name, verdict, &reason);
        entry.intent = Some(number);
        let recorded = self.recorder.record(&entry);
        recorded.map(|_| ()).map_err(CallError::OutcomeNotRecorded)
    }

    /// Records that with this call most of the budget is spent.
    fn alert(&self, call: u64) {
        let reason = format!("{ALERT_PERCENT} percent of the budget for calls of tools is spent");
        let entry = Entry {
            action: "tool.budget".to_owned(),
            intent: Some(call),
            ..self.entry(Kind::Outcome, "budget", Verdict::Done, &reason)
        };
        let _ = self.recorder.record(&entry);
    }

    /// Records a refusal. It had no effect, so one that cannot be recorded has none either.
    fn refuse(&self, tool: &str, objects: &str, reason: &str) {
        let mut entry = self.entry(Kind::Refusal, tool, Verdict::Denied, reason);
        if !objects.is_empty() {
            entry
                .detail
                .insert("objects".to_owned(), objects.to_owned());
        }
        let _ = self.recorder.record(&entry);
    }

    fn entry(&self, kind: Kind, tool: &str, verdict: Verdict, reason: &str) -> Entry {
        Entry {
            kind,
            actor: self.actor.clone(),
            action: "tool.call".to_owned(),
            object: shortened(tool, MAX_OBJECT),
            verdict,
            reason: shortened(reason, MAX_REASON),
            intent: None,
            detail: BTreeMap::new(),
        }
    }
}

/// Arguments for a person: as JSON, its keys in order, on one line.
fn told(arguments: &Value) -> String {
    let text = canonical(arguments);
    match text.len() <= MAX_SHOWN {
        true => text,
        false => {
            let (length, digest) = (text.len(), digest(text.as_bytes()));
            format!("with {length} bytes of arguments, SHA-256 {digest}")
        }
    }
}

/// JSON that is the same in whatever order its keys came.
fn canonical(arguments: &Value) -> String {
    let mut sorted = arguments.clone();
    sorted.sort_all_objects();
    sorted.to_string()
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What conditions are asked about a call.
fn acts(tool: &str, needs: &[Need]) -> Vec<Act> {
    let paths = needs.iter().filter_map(|need| match need {
        Need::Read(path) | Need::Write(path) => Some(path.clone()),
        Need::Exec(_) | Need::Request { .. } => None,
    });
    let mut acts = vec![Act::Tool(tool.to_owned(), paths.collect())];
    acts.extend(needs.iter().filter_map(|need| match need {
        Need::Read(path) => Some(Act::File {
            path: path.clone(),
            write: false,
        }),
        Need::Write(path) => Some(Act::File {
            path: path.clone(),
            write: true,
        }),
        // A path that is no text matches no grant, and so does what stands for it.
        Need::Exec(path) => Some(Act::Exec(path.to_string_lossy().into_owned())),
        // The gateway asks, which knows the address.
        Need::Request { .. } => None,
    }));
    acts
}

/// The beginning of a text, at most so many bytes.
fn shortened(text: &str, most: usize) -> String {
    match text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= most)
        .last()
    {
        Some(end) if end < text.len() => format!("{}...", text.get(..end).unwrap_or_default()),
        Some(_) => text.to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_told_whole_or_by_their_digest() {
        let whole = told(&json!({ "program": "git", "arguments": ["push", "\u{1b}[2J"] }));
        assert_eq!(
            whole,
            r#"{"arguments":["push","\u001b[2J"],"program":"git"}"#
        );
        let long = |last: &str| told(&json!({ "content": "x".repeat(MAX_SHOWN) + last }));
        assert!(long("a").len() < MAX_SHOWN && long("a").starts_with("with 527 bytes"));
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a"), long("a"));
    }
}

//! The process `bulkhead-decision`: reads its description, locks itself in, and says what the conditions
//! of one partition say to whoever asks, until the supervisor is gone. Called by `main` alone.
//! Other conditions take their place in `reload`.

mod askers;
pub mod jail;
mod reload;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_capability::table::Moment;
use bulkhead_conditions::control::{Event, MAX_MESSAGE_BYTES};
use bulkhead_conditions::wire::{Answer, Request};
use bulkhead_conditions::{DecisionDescription, MAX_DESCRIPTION_BYTES, Member, Ruling, VERSION};
use bulkhead_inherited::{Inherited, NotOpen};
use bulkhead_machine::Fd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendFlags, send};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::conditions::{Conditions, ConditionsError, with_stack};
use crate::entities::Circumstances;
use crate::family::{Family, Kin};
use crate::world::World;
use askers::{Askers, Control};
use jail::JailError;

/// Exit status when the process gave up.
pub const FAILED: u8 = 125;
/// Most conditions that an answer names, and most characters of a name or a reason.
const MAX_NAMES: usize = 8;
const MAX_CHARS: usize = 128;
/// Conditions of no partition.
const ANY: &str = "permit(principal, action, resource);";

/// Why the process gives up.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    /// A descriptor was not open.
    #[error(transparent)]
    Descriptor(#[from] NotOpen),
    /// The description cannot be used.
    #[error("cannot read the description: {0}")]
    Description(String),
    /// The host does not give the process what it needs.
    #[error("cannot {doing}: {source}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The conditions are refused.
    #[error(transparent)]
    Conditions(#[from] ConditionsError),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
}

impl DecisionError {
    fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            doing,
            source: source.into(),
        }
    }

    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Descriptor(_) => NotOpen::CODE,
            Self::Description(_) => "decision-description",
            Self::Host { .. } => "decision-setup",
            Self::Conditions(_) => "conditions",
            Self::Jail(error) => error.code(),
        }
    }
}

/// Answers by the conditions whose description is on this descriptor until the process is ended.
pub fn run(description: Fd) -> ExitCode {
    // The supervisor's death is the end; refused nowhere.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // One stack for all questions: on the first, each would be given one.
    match with_stack(|| read(description).and_then(serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

/// Tells people. `eprintln!` would panic where standard error cannot be written to.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "bulkhead-decision: {text}");
}

fn read(fd: Fd) -> Result<DecisionDescription, DecisionError> {
    let file = File::from(Inherited::only(fd).take("the description", fd)?);
    let mut json = Vec::new();
    (file.take(MAX_DESCRIPTION_BYTES + 1))
        .read_to_end(&mut json)
        .map_err(DecisionError::host("read the description"))?;
    if json.len() as u64 > MAX_DESCRIPTION_BYTES {
        return Err(DecisionError::Description("it is too long".to_owned()));
    }
    let description: DecisionDescription = serde_json::from_slice(&json)
        .map_err(|error| DecisionError::Description(error.to_string()))?;
    match description.version {
        VERSION => Ok(description),
        other => Err(DecisionError::Description(format!(
            "version {other} is not {VERSION}"
        ))),
    }
}

fn serve(description: DecisionDescription) -> Result<(), DecisionError> {
    let own = Inherited::named([description.control]);
    let mut own = own.map_err(DecisionError::host("close descriptors"))?;
    let control = own.take("the control socket", description.control)?;
    let (judge, jail_gaps) = match prepare(description) {
        Ok(prepared) => prepared,
        Err(error) => {
            let message = sentence(&error);
            let code = error.code().to_owned();
            tell(&control, &Event::Failed { code, message });
            return Err(error);
        }
    };
    tell(&control, &Event::Running { jail_gaps });
    answer_all(judge, &Control::new(control))
}

/// What is told of an error, which may repeat a part of the conditions.
fn sentence(error: &impl ToString) -> String {
    let message = error.to_string();
    message.chars().take(MAX_MESSAGE_BYTES / 8).collect()
}

fn prepare(description: DecisionDescription) -> Result<(Judge, Vec<String>), DecisionError> {
    // Cedar looks at how much stack there is, once, by calls that nothing else needs.
    drop(Conditions::parse(ANY, &World::default())?);
    let gaps = jail::enter(description.jail)?;
    Ok((Judge::new(description)?, gaps))
}

/// Tells the supervisor; one that is gone or does not read is not waited for.
fn tell(control: impl AsFd, event: &Event) {
    // Events are plain data: they always serialise.
    if let Ok(message) = serde_json::to_vec(event) {
        let _ = send(control, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// The conditions of one partition.
#[derive(Debug)]
pub struct Judge {
    family: Family,
    world: Vec<Member>,
    /// What the conditions of each ancestor may speak of.
    worlds: BTreeMap<String, Vec<Member>>,
    system: String,
    partition: String,
    lineage: Vec<String>,
    started: Duration,
}

impl Judge {
    /// Those of the description.
    ///
    /// # Errors
    /// They are refused.
    pub fn new(description: DecisionDescription) -> Result<Self, ConditionsError> {
        let DecisionDescription {
            system,
            partition,
            lineage,
            started,
            text,
            learn,
            world,
            inherited,
            ..
        } = description;
        let own = Kin {
            ancestor: None,
            conditions: Conditions::parse_to_hold(&text, &World::of(&world))?,
            learn,
        };
        let held = of_one(&world, &partition);
        let ancestors = inherited.iter().map(|inherited| {
            let world = World::of(&inherited.world);
            let conditions = Conditions::parse_inherited(&inherited.text, &world, &held)?;
            Ok(Kin {
                ancestor: Some(inherited.ancestor.clone()),
                conditions,
                learn: inherited.learn,
            })
        });
        let ancestors: Vec<Kin> = ancestors.collect::<Result<_, ConditionsError>>()?;
        let worlds = inherited.into_iter();
        Ok(Self {
            family: Family::new(own, ancestors),
            worlds: worlds
                .map(|inherited| (inherited.ancestor, inherited.world))
                .collect(),
            world,
            system,
            partition,
            lineage,
            started: Duration::from_secs(started),
        })
    }

    /// What the partition itself is granted.
    fn held(&self) -> World<'_> {
        of_one(&self.world, &self.partition)
    }

    /// Answers a packet at this time since 1970; nothing where it is no question.
    pub fn answer(&self, packet: &[u8], now: Duration) -> Option<Answer> {
        let Request { id, act, bytes } = serde_json::from_slice(packet).ok()?;
        let who = Circumstances {
            system: self.system.clone(),
            partition: self.partition.clone(),
            lineage: self.lineage.clone(),
            moment: Moment {
                now,
                age: now.saturating_sub(self.started),
            },
            bytes,
        };
        let said = self.family.ask(&act, &who);
        Some(Answer {
            id,
            ruling: shortened(said.ruling),
            enforced: said.enforced,
        })
    }
}

/// What one of these partitions is granted.
fn of_one<'w>(world: &'w [Member], partition: &str) -> World<'w> {
    let mut held = World::of(world);
    held.partitions.retain(|(name, _)| *name == partition);
    held
}

/// A ruling that fits into an answer, whatever the conditions are called.
fn shortened(ruling: Ruling) -> Ruling {
    let short = |text: String| text.chars().take(MAX_CHARS).collect::<String>();
    let names = |names: Vec<String>| names.into_iter().take(MAX_NAMES).map(short).collect();
    match ruling {
        Ruling::Permitted(by) => Ruling::Permitted(names(by)),
        Ruling::Forbidden(by) => Ruling::Forbidden(names(by)),
        Ruling::NotPermittedBy(ancestor) => Ruling::NotPermittedBy(short(ancestor)),
        Ruling::Failed(why) => Ruling::Failed(short(why)),
        other => other,
    }
}

/// Answers what comes until the supervisor closes the control socket.
fn answer_all(mut judge: Judge, control: &Control) -> Result<(), DecisionError> {
    let mut askers = Askers::default();
    loop {
        let (control_ready, ready) = wait(control, &askers)?;
        if control_ready && !control.obey(&mut askers, &mut judge) {
            return Ok(());
        }
        // A clock before 1970 permits nothing that asks for the time.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        askers.answer(&ready, |packet| judge.answer(packet, now));
    }
}

/// Waits until somebody has something to say: the supervisor, or these askers.
fn wait(control: &Control, askers: &Askers) -> Result<(bool, Vec<usize>), DecisionError> {
    let sources = [control.as_fd()].into_iter().chain(askers.sockets());
    let mut watched: Vec<PollFd<'_>> = sources
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    match poll(&mut watched, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok((false, Vec::new())),
        Err(errno) => return Err(DecisionError::host("wait for questions")(errno)),
    }
    let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
    let control = ready.next().unwrap_or(false);
    let askers = ready.enumerate().filter(|(_, ready)| *ready);
    Ok((control, askers.map(|(at, _)| at).collect()))
}

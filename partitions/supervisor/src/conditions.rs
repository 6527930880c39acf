//! The conditions of a partition: the process `bulkhead-decision`, which answers for them, made ready
//! before those that ask it, and the sockets on which these ask. Started and watched as a back end; one
//! lives as long as its partition, over reboots of the guest, so that what was reloaded stays.

use crate::backend::{Descriptors, Kind, Ready};
use crate::error::Error;
use crate::initramfs::memory_file;
use crate::process::packet_pair;
use crate::vmm::send_with;
use bulkhead_capability::Adherence;
use bulkhead_conditions::control::Command;
use bulkhead_conditions::{DecisionDescription, Inherited, Member, VERSION};
use bulkhead_machine::Jail;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the process where devices have theirs.
const NAME: &str = "conditions";

/// The conditions that a partition is held to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionConditions {
    /// In Cedar, checked.
    pub text: String,
    /// What they may speak of: the partitions of their manifest, and what those were granted.
    pub world: Vec<Member>,
    /// Ancestors of the partition, the nearest first.
    pub lineage: Vec<String>,
    /// Whether they are enforced. What they would deny is done where they are not, and on record.
    pub adherence: Adherence,
    /// The conditions of those ancestors that have some: what it does has to be permitted by them too.
    pub inherited: Vec<Inherited>,
}

impl PartitionConditions {
    /// What the record of the start says about them: the same of those of ancestors as well.
    pub(crate) fn digests(&self) -> String {
        let mut digests = digest(&self.text);
        for Inherited { ancestor, text, .. } in &self.inherited {
            let _ = write!(digests, ", of {ancestor} {}", digest(text));
        }
        digests
    }

    /// The text that the partition is held to: its own, or that of an ancestor, if it is one.
    pub(crate) fn text_of(&mut self, ancestor: Option<&str>) -> Option<&mut String> {
        let Some(ancestor) = ancestor else {
            return Some(&mut self.text);
        };
        let mut inherited = self.inherited.iter_mut();
        let of = inherited.find(|inherited| inherited.ancestor == ancestor);
        of.map(|inherited| &mut inherited.text)
    }

    /// What children of the partition, which is `name`, inherit.
    pub fn for_children_of(&self, name: &str) -> Vec<Inherited> {
        let own = Inherited {
            ancestor: name.to_owned(),
            text: self.text.clone(),
            learn: self.adherence == Adherence::Learn,
            world: self.world.clone(),
        };
        std::iter::once(own)
            .chain(self.inherited.iter().cloned())
            .collect()
    }
}

/// SHA-256 of a text that a partition is held to, in hexadecimal.
pub(crate) fn digest(text: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Makes the process that answers for the conditions of a partition ready.
pub(crate) fn ready(
    system: &str,
    partition: &str,
    conditions: &PartitionConditions,
    started: SystemTime,
    jail: Jail,
) -> Result<Ready, Error> {
    let (control, theirs) = packet_pair()?;
    let mut descriptors = Descriptors::default();
    let description = DecisionDescription {
        version: VERSION,
        system: system.to_owned(),
        partition: partition.to_owned(),
        lineage: conditions.lineage.clone(),
        started: started
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        text: conditions.text.clone(),
        learn: conditions.adherence == Adherence::Learn,
        world: conditions.world.clone(),
        inherited: conditions.inherited.clone(),
        control: descriptors.keep(theirs),
        jail,
    };
    let description = serde_json::to_vec(&description);
    Ok(Ready {
        device: NAME.to_owned(),
        kind: Kind::Decision,
        description: description.map_err(Error::system("describe the conditions"))?,
        descriptors: descriptors.0,
        control: Some(control),
        questions: None,
    })
}

/// Asks the process behind `control` to put `text` into the place of the conditions that hold, the
/// partition's own or those of an ancestor, under this number. They may permit more only where `widen` says so.
/// False where the process is gone.
pub(crate) fn reload(
    control: &OwnedFd,
    id: u64,
    text: &str,
    widen: bool,
    of: Option<String>,
) -> Result<bool, Error> {
    let mut file = memory_file(c"conditions")?;
    let written = file.write_all(text.as_bytes());
    written.map_err(Error::system("write conditions"))?;
    let packet = serde_json::to_vec(&Command::Reload { id, widen, of });
    let packet = packet.map_err(Error::system("describe a request"))?;
    match send_with(control.as_fd(), &packet, &[file.into()]) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::system("pass conditions on")(error)),
    }
}

/// Who answers for a partition's conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answerer<'a> {
    /// There are none.
    NoConditions,
    /// The process behind this control socket, which may not exist yet.
    At(&'a OwnedFd),
    /// Nobody any more, and so nothing is permitted.
    Gone,
}

impl Answerer<'_> {
    /// A socket on which one process asks; nothing where there is nothing to ask.
    pub(crate) fn client(self) -> Result<Option<OwnedFd>, Error> {
        let control = match self {
            Self::NoConditions => return Ok(None),
            Self::At(control) => Some(control),
            Self::Gone => None,
        };
        let (ours, theirs) = packet_pair()?;
        if let Some(control) = control {
            let packet = serde_json::to_vec(&Command::Client);
            let packet = packet.map_err(Error::system("describe a request"))?;
            match send_with(control.as_fd(), &packet, &[theirs]) {
                // Whoever asks sees that nobody answers.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                sent => sent.map_err(Error::system("let a process ask about conditions"))?,
            }
        }
        Ok(Some(ours))
    }
}

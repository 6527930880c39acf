//! Where the streams of a partition lead, and what its processes say beside it.

use super::Consoles;
use crate::console::{Gate, Input, Log, Output, PREFIX_COLOURS, Prefixed, Raw};
use crate::error::Error;
use bulkhead_manifest::{Kernel, LinuxBoot, Partition};
use std::io;
use std::path::Path;

type BoxedOutput = Box<dyn Output>;

/// The output and the error stream of a partition, and what is said about it.
pub(super) struct Outputs {
    pub(super) output: BoxedOutput,
    pub(super) error: BoxedOutput,
    pub(super) messages: Messages,
}

/// Lines about a partition, for people.
pub(super) struct Messages {
    to: BoxedOutput,
    /// The partition's name, where nothing else says it.
    partition: Option<String>,
    /// How a gateway begins, behind its own name.
    own: String,
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

impl Messages {
    /// Says each line of `text`, as from `who`. Guests choose some of the words: nothing in them is
    /// obeyed by a terminal. A reader that is gone is no reason to end.
    pub(super) fn say(&mut self, who: &str, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let about = match &self.partition {
                Some(partition) => format!("bulkhead: {partition}: {who}"),
                None => format!("bulkhead: {who}"),
            };
            // A process of ours says who it is and whose.
            let own = self.own.as_str();
            let line = [
                "bulkhead-gateway: ",
                "bulkhead-fs: ",
                "bulkhead-tools: ",
                "bulkhead-ledger: ",
                own,
            ]
            .iter()
            .fold(line, |line, prefix| {
                line.strip_prefix(prefix).unwrap_or(line)
            });
            let line = format!("{about}: {}\n", line.escape_debug());
            let _ = self.to.write(line.as_bytes());
        }
    }
}

/// Where everything goes; the partition is the `number`-th of those whose names have `width`.
pub(super) fn outputs(
    partition: &Partition,
    number: usize,
    width: usize,
    consoles: Consoles,
    directory: &Path,
) -> Result<Outputs, Error> {
    let log = || {
        let log = Log::open(directory, &partition.name);
        log.map_err(|source| Error::StateDir {
            path: directory.to_owned(),
            source,
        })
    };
    let name = &partition.name;
    let (output, error, to): (BoxedOutput, BoxedOutput, BoxedOutput) = match consoles {
        Consoles::Attached { .. } => (
            Box::new(Raw(io::stdout())),
            Box::new(Raw(io::stderr())),
            Box::new(Raw(io::stderr())),
        ),
        Consoles::Logged => (Box::new(log()?), Box::new(log()?), Box::new(log()?)),
        Consoles::Prefixed { terminal } => {
            let colour = PREFIX_COLOURS.iter().cycle().nth(number).copied();
            let colour = colour.filter(|_| terminal);
            let error = || -> Result<BoxedOutput, Error> {
                let log = Some(log()?);
                let error = Prefixed::new(io::stderr(), name, width, colour, terminal, log);
                Ok(Box::new(error))
            };
            let output = Prefixed::new(io::stdout(), name, width, colour, terminal, Some(log()?));
            (Box::new(output), error()?, error()?)
        }
    };
    let alone = matches!(consoles, Consoles::Attached { .. });
    Ok(Outputs {
        output,
        error,
        messages: Messages {
            to,
            partition: alone.then(|| name.clone()),
            own: format!("{name}: "),
        },
    })
}

/// How our standard input becomes the partition's, if it does.
pub(super) fn input(consoles: Consoles) -> Option<Input> {
    let Consoles::Attached { raw, .. } = consoles else {
        return None;
    };
    Some(Input {
        escape: raw,
        end: b"",
        gate: None,
    })
}

/// A guest agent's console is a terminal, whatever ours is. So input waits until the agent has set
/// it up, and ends with Ctrl-D: twice, for a last line that is not whole.
pub(super) fn through_agent(
    partition: &Partition,
    output: BoxedOutput,
    input: Option<Input>,
) -> (BoxedOutput, Option<Input>) {
    let has_agent = matches!(
        &partition.kernel,
        Kernel::Linux {
            boot: LinuxBoot::Command(_),
            ..
        }
    );
    match input {
        Some(Input { escape, .. }) if has_agent => {
            let (gate, opened) = Gate::new(output);
            let end: &[u8] = if escape { b"" } else { b"\x04\x04" };
            (
                Box::new(gate),
                Some(Input {
                    escape,
                    end,
                    gate: Some(opened),
                }),
            )
        }
        input => (output, input),
    }
}

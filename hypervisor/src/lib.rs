//! The VMM: one process, one partition.
//!
//! [`run`] is the whole program. Rooms: [`machine`] (KVM: memory, vCPUs, buses, interrupts),
//! [`boot`] (from kernel files to guest memory), [`devices`] (what a guest can reach), `jail` (how
//! the process locks itself in), [`control`] (the supervisor's socket). Nothing here opens a file by
//! name, resolves a name or decides what a partition may do: the description has decided.

pub mod boot;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod error;
pub mod jail;
pub mod machine;
mod random;
pub mod trace;

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use bulkhead_machine::control::{Ended, Event};
use bulkhead_machine::{Boot, Fd, MAX_DESCRIPTION_BYTES, MachineDescription, trace as phase};

use control::tell;
use descriptors::Descriptors;
use error::Error;
use machine::Machine;
use machine::ending::Ending;
use trace::{Trace, now_ns};

/// Exit status when the VMM itself failed; the partition's own status goes over the control socket.
pub const FAILED: u8 = 125;

/// Runs the partition that descriptor `description` describes; returns the process's exit status.
pub fn run(description: Fd) -> ExitCode {
    let start = now_ns();
    let (description, control, mut descriptors) = match read(description) {
        Ok(all) => all,
        Err(error) => {
            report(&error);
            return ExitCode::from(FAILED);
        }
    };
    let trace = match description.trace {
        Some(_) => Trace::new(),
        None => Trace::default(),
    };
    trace.mark_at(phase::START, start);
    trace.mark(phase::DESCRIPTION);
    let trace_file = description
        .trace
        .map(|fd| descriptors.take("the trace", fd));
    let outcome = run_described(&description, descriptors, &control, &trace);
    if let Some(file) = trace_file
        && let Err(error) = file.and_then(|file| write_trace(&trace, file))
    {
        report(&error);
    }
    match outcome {
        Ok(how) => {
            tell(&control, &Event::Ended { how });
            ExitCode::SUCCESS
        }
        Err((code, message)) => {
            // The supervisor first: nobody may be reading standard error.
            let event = Event::Failed {
                code: code.to_owned(),
                message: message.clone(),
            };
            tell(&control, &event);
            report(&message);
            ExitCode::from(FAILED)
        }
    }
}

fn run_described(
    description: &MachineDescription,
    mut descriptors: Descriptors,
    control: &File,
    trace: &Trace,
) -> Result<Ended, (&'static str, String)> {
    let said = |error: &Error| (error.code(), error.to_string());
    let ending = Ending::new().map_err(|e| said(&e))?;
    let machine = Machine::build(description, &mut descriptors, &ending, trace);
    // A running partition holds what its devices use, and nothing beside.
    drop(descriptors);
    machine
        .and_then(|machine| machine.run(control, trace))
        .map_err(|e| said(&e))?;
    match ending.outcome() {
        Some(Ok(how)) => Ok(*how),
        Some(Err(error)) => Err(said(error)),
        None => Ok(Ended::Stopped),
    }
}

/// Ties this process's life to its parent's, and reads the description.
fn read(fd: Fd) -> Result<(MachineDescription, File, Descriptors), Error> {
    jail::outlive_file_size_limit()?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Error::io("cannot follow the supervisor's end"))?;
    // Owned apart from the others, and closed before they are taken.
    let file = Descriptors::among(&[fd.0]).take("the machine description", fd)?;
    // A pipe has no length.
    let len = file.metadata().map_or(0, |file| file.len());
    let mut text = Vec::with_capacity(len.min(MAX_DESCRIPTION_BYTES) as usize + 1);
    file.take(MAX_DESCRIPTION_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(Error::io("cannot read the machine description"))?;
    let description = parse(&text)?;
    let named = named(&description);
    jail::close_inherited(&named)?;
    let mut descriptors = Descriptors::among(&named);
    let control = descriptors.take("the control socket", description.control)?;
    Ok((description, control, descriptors))
}

/// Every descriptor that `description` names.
fn named(description: &MachineDescription) -> Vec<i32> {
    let boot = &description.boot;
    let mut fds = vec![description.kvm, description.control, boot.kernel()];
    match boot {
        Boot::Bulkhead { modules, .. } => fds.extend(modules.iter().map(|module| module.file)),
        Boot::Linux { initrd, acpi, .. } => {
            fds.push(*acpi);
            fds.extend(initrd);
        }
        Boot::Pvh { initrd, .. } => fds.extend(initrd),
    }
    if let Some(console) = &description.console {
        fds.push(console.output);
        fds.extend(console.input);
        fds.extend(console.error);
        for port in &console.ports {
            fds.push(port.output);
            fds.extend(port.input);
        }
    }
    for device in &description.devices {
        fds.extend(device.kind.descriptors());
    }
    fds.extend(description.gdb);
    fds.extend(description.network_namespace);
    fds.extend(description.trace);
    fds.into_iter().map(|fd| fd.0).collect()
}

/// Parses a description; its rules are checked when the machine is built.
///
/// # Errors
/// [`Error::Description`].
pub fn parse(text: &[u8]) -> Result<MachineDescription, Error> {
    if text.len() as u64 > MAX_DESCRIPTION_BYTES {
        return Err(Error::Description(format!(
            "it is longer than {MAX_DESCRIPTION_BYTES} bytes"
        )));
    }
    serde_json::from_slice(text).map_err(|e| Error::Description(e.to_string()))
}

fn write_trace(trace: &Trace, mut file: File) -> Result<(), Error> {
    trace
        .write_to(&mut file)
        .map_err(Error::io("cannot write the trace"))
}

/// Says `what` on standard error, where that can be written to: `eprintln!` would panic.
fn report(what: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "bulkhead-vmm: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_bounded_and_strict() {
        for text in [
            &b""[..],
            b"{}",
            b"[]",
            b"\xff",
            br#"{"version":1,"surprise":true}"#,
            &vec![b' '; MAX_DESCRIPTION_BYTES as usize + 1],
        ] {
            assert_eq!(parse(text).unwrap_err().code(), "description-invalid");
        }
    }
}

//! The process that serves one shared directory to one partition, as a vhost-user back end.
//!
//! [`run`] is the whole program. Rooms: [`server`] (the FUSE requests), [`fuse`] (their format),
//! [`credentials`] (acting as the guest's users), [`device`] (queues and the vhost-user
//! connection), [`jail`] (how the process locks itself in). The description comes from the
//! supervisor and is trusted; the VMM on the other end of the socket, and the guest behind it, are
//! not.

pub mod credentials;
pub mod device;
pub mod error;
pub mod fuse;
mod inodes;
pub mod jail;
pub mod server;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use bulkhead_machine::control::Event;
use bulkhead_machine::{Fd, Jail, MAX_DESCRIPTION_BYTES};
use bulkhead_share::{FsDescription, VERSION};
use hypervisor::control::tell;
use hypervisor::descriptors::Descriptors;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use error::Error;
use server::{Options, Server};

/// Exit status of a process that could not serve, or not to the end.
pub const FAILED: u8 = 125;

/// Most nodes a guest may know, where the host lets the process have as many descriptors.
pub const MAX_NODES: u64 = 1_000_000;
/// Most files and directories a guest may have open.
pub const MAX_HANDLES: u64 = 16 * 1024;
/// Descriptors the process needs beside.
const OWN_DESCRIPTORS: u64 = 64;

/// Serves the directory that descriptor `description` describes; returns the process's status.
pub fn run(description: Fd) -> ExitCode {
    let outcome = read(description).and_then(|(description, mut descriptors)| {
        let control = description
            .control
            .map(|fd| descriptors.take("the control socket", fd))
            .transpose()?;
        let outcome = serve(&description, descriptors, control.as_ref());
        if let (Err(error), Some(control)) = (&outcome, &control) {
            let event = Event::Failed {
                code: error.code().to_owned(),
                message: error.to_string(),
            };
            tell(control, &event);
        }
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading it, which `eprintln!` would not outlive.
            let _ = writeln!(std::io::stderr(), "bulkhead-fs: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Ties this process's life to its parent's, and reads the description.
fn read(fd: Fd) -> Result<(FsDescription, Descriptors), Error> {
    hypervisor::jail::outlive_file_size_limit()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::host("cannot follow the supervisor's end"))?;
    let file = Descriptors::among(&[fd.0]).take("the description", fd)?;
    let mut text = Vec::new();
    file.take(MAX_DESCRIPTION_BYTES)
        .read_to_end(&mut text)
        .map_err(Error::host("cannot read the description"))?;
    let description: FsDescription =
        serde_json::from_slice(&text).map_err(|error| Error::Description(error.to_string()))?;
    if description.version != VERSION {
        return Err(Error::Description(format!(
            "version {} is not {VERSION}",
            description.version
        )));
    }
    let mut named = vec![description.socket.0, description.directory.0];
    named.extend(description.control.map(|fd| fd.0));
    hypervisor::jail::close_inherited(&named)?;
    Ok((description, Descriptors::among(&named)))
}

fn serve(
    description: &FsDescription,
    mut descriptors: Descriptors,
    control: Option<&File>,
) -> Result<(), Error> {
    let socket = OwnedFd::from(descriptors.take("the socket", description.socket)?);
    let directory = OwnedFd::from(descriptors.take("the directory", description.directory)?);
    drop(descriptors);
    let limit = raise_descriptor_limit()?;
    // Each file is created with exactly the bits that the guest asks for.
    rustix::process::umask(rustix::fs::Mode::empty());
    let jailed = jail::enter(description, &directory)?;
    drop(directory);
    let max_handles = MAX_HANDLES.min(limit / 4);
    let options = Options {
        read_only: description.read_only,
        ownership: description.ownership,
        max_handles: max_handles as usize,
        max_nodes: limit.saturating_sub(max_handles + OWN_DESCRIPTORS) as usize,
    };
    let server = Server::new(jailed.root, jailed.descriptors, options)
        .map_err(Error::host("cannot look at the directory"))?;
    if let Some(control) = control {
        let jail_gaps = jailed.gaps;
        tell(control, &Event::Running { jail_gaps });
    }
    device::serve(server, socket, description.jail != Jail::None)
}

/// As many descriptors as the host allows, and the guest may need: more than its parent's limit
/// where the process may have them.
fn raise_descriptor_limit() -> Result<u64, Error> {
    let wanted = MAX_NODES + MAX_HANDLES + OWN_DESCRIPTORS;
    let set = |limit| {
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(Resource::Nofile, both).map(|()| limit)
    };
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(wanted);
    set(wanted)
        .or_else(|_| set(hard.min(wanted)))
        .map_err(Error::host("cannot raise the descriptor limit"))
}

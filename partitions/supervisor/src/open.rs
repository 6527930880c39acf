//! Opens what a machine description asks for, and keeps it until the VMM has it.

use crate::compile::{Descriptors, Settings, Want};
use crate::console::Streams;
use crate::elf::open_program;
use crate::error::{Error, ProgramProblem};
use crate::files::{open_disk, open_regular};
use crate::initramfs::Initramfs;
use crate::library::Library;
use crate::linux;
use bulkhead_machine::Fd;
use bulkhead_manifest::{GuestPath, Partition, Program};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// The descriptors of one VMM. Each keeps, in the VMM, the number that it has here: no two can
/// collide, and none is overwritten on the way.
#[derive(Debug)]
pub(crate) struct Opened<'o> {
    library: &'o Library,
    kvm: &'o File,
    control: Option<OwnedFd>,
    streams: Streams,
    tty: bool,
    input: bool,
    descriptors: Vec<OwnedFd>,
}

/// Opens `/dev/kvm`.
pub(crate) fn open_kvm() -> Result<File, Error> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(Error::Kvm)
}

impl<'o> Opened<'o> {
    /// Starts with what is open already: the VMM's end of the control socket and of its streams.
    pub(crate) fn new(
        library: &'o Library,
        kvm: &'o File,
        control: OwnedFd,
        streams: Streams,
        settings: Settings,
    ) -> Self {
        Self {
            library,
            kvm,
            control: Some(control),
            streams,
            tty: settings.tty,
            input: settings.input,
            descriptors: Vec::new(),
        }
    }

    /// Adds a descriptor.
    pub(crate) fn keep(&mut self, descriptor: impl Into<OwnedFd>) -> Fd {
        let descriptor = descriptor.into();
        let fd = Fd(descriptor.as_raw_fd());
        self.descriptors.push(descriptor);
        fd
    }

    /// All of them, for the VMM.
    pub(crate) fn into_descriptors(self) -> Vec<OwnedFd> {
        self.descriptors
    }

    fn take(&mut self, stream: Option<OwnedFd>) -> Result<Fd, Error> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        let stream = stream.ok_or_else(missing);
        Ok(self.keep(stream.map_err(Error::system("find a console stream"))?))
    }
}

impl Descriptors for Opened<'_> {
    fn open(&mut self, partition: &Partition, want: Want<'_>) -> Result<Fd, Error> {
        let file: OwnedFd = match want {
            Want::Kvm => {
                let kvm = self.kvm.as_fd().try_clone_to_owned();
                kvm.map_err(Error::system("duplicate a descriptor"))?
            }
            Want::Control => {
                let control = self.control.take();
                return self.take(control);
            }
            Want::Input => {
                let input = self.streams.input.take();
                return self.take(input);
            }
            Want::Output => {
                let output = self.streams.output.take();
                return self.take(output);
            }
            Want::ErrorOutput => {
                let error = self.streams.error.take();
                return self.take(error);
            }
            Want::Library(file) => open_regular("library file", &self.library.file(file)?)?.into(),
            Want::Program(source) => {
                open_program(&source.resolve(self.library.path()), false)?.into()
            }
            Want::File(what, source) => {
                open_regular(what, &source.resolve(self.library.path()))?.into()
            }
            Want::Files(program) => {
                check_command(program, self.library)?;
                let mut archive = Initramfs::new(partition)?;
                archive.program(program, self.library)?;
                archive.finish()?.into()
            }
            Want::AgentFiles(program) => {
                check_command(program, self.library)?;
                linux::initramfs(partition, program, self.library, self.tty, self.input)?.into()
            }
            Want::Disk { path, write } => open_disk(path, write)?.into(),
        };
        Ok(self.keep(file))
    }
}

/// Looks at the program early when it is a mount of its own. In a directory only the guest knows
/// which file its search path finds.
fn check_command(program: &Program, library: &Library) -> Result<(), Error> {
    let Some(mount) = program
        .mounts
        .iter()
        .find(|mount| is_command(program, &mount.target))
    else {
        return Ok(());
    };
    let path = mount.source.resolve(library.path());
    // With a root or other mounts, a loader or an interpreter of a script may be there.
    let alone = program.root.is_none() && program.mounts.len() == 1;
    match open_program(&path, !alone) {
        Ok(_) => Ok(()),
        Err(Error::Program {
            problem: ProgramProblem::NotElf,
            ..
        }) if !alone => Ok(()),
        Err(error) => Err(error),
    }
}

/// True when `target` is what the guest runs, as far as that can be told from outside.
fn is_command(program: &Program, target: &GuestPath) -> bool {
    let Some(name) = program.command.first().map(Path::new) else {
        return false;
    };
    if name.components().count() > 1 || name.is_absolute() {
        return GuestPath::from_root(name).is_ok_and(|path| path == *target);
    }
    Path::new(target.as_str()) == Path::new("/bin").join(name)
}

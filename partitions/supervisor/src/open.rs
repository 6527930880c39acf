//! Opens what a machine description asks for, and keeps it until the VMM has it.

use crate::backend::{self, Ready};
use crate::compile::{Descriptors, Settings, Want};
use crate::console::Streams;
use crate::disk::{open_backing, open_base, open_disk, open_overlay, open_pmem};
use crate::elf::open_program;
use crate::error::{Error, ProgramProblem};
use crate::files::{hold, is_as_judged, open_regular};
use crate::initramfs::Initramfs;
use crate::library::Library;
use crate::linux;
use crate::models::Models;
use crate::secrets::PartitionSecret;
use crate::tap::open_tap;
use crate::vsock::Vsock;
use crate::web::{self, Authority};
use bulkhead_machine::{Boot, Fd, Image, Jail};
use bulkhead_manifest::{GuestPath, Partition, Program, Source};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What is open already before a partition is looked at.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) kvm: Option<OwnedFd>,
    /// The VMM's end of its control socket.
    pub(crate) control: Option<OwnedFd>,
    pub(crate) streams: Streams,
    pub(crate) gdb: Option<OwnedFd>,
    /// The way to the models that it may call.
    pub(crate) models: Option<Models>,
    /// What it has used of its amounts before.
    pub(crate) amounts: Option<Amounts>,
    /// Where its tools ask its gateway for connections.
    pub(crate) tools: Option<OwnedFd>,
    /// Where its gateway records what it does.
    pub(crate) records: Option<Records>,
    /// Where its gateway asks about conditions, if there are any.
    pub(crate) conditions: Option<OwnedFd>,
}

/// What a partition has used before this start.
#[derive(Debug)]
pub(crate) struct Amounts {
    /// Where its gateways keep it.
    pub(crate) used: File,
    /// Seconds since it started for the first time.
    pub(crate) age: u64,
}

/// A partition's way into the ledger.
#[derive(Debug)]
pub(crate) struct Records {
    /// Its socket to the ledger's writer.
    pub(crate) way: OwnedFd,
    /// Whose acts they are: `system/partition`.
    pub(crate) actor: String,
}

/// The descriptors of one VMM, and the processes behind its devices.
#[derive(Debug)]
pub(crate) struct Opened<'o> {
    library: &'o Library,
    /// The system's directory.
    directory: &'o Path,
    given: Given,
    tty: bool,
    input: bool,
    jail: Jail,
    /// Numbers are places in the list, instead of our own.
    by_place: bool,
    descriptors: Vec<OwnedFd>,
    /// The map of the overlay whose top was handed out last.
    map: Option<File>,
    tap_queues: VecDeque<OwnedFd>,
    pub(crate) backends: Vec<Ready>,
    pub(crate) vsock: Option<Vsock>,
    vsock_connector: Option<OwnedFd>,
    /// Of the partition that is looked at, until its gateway has it.
    authority: Option<Authority>,
    /// Its secrets.
    pub(crate) secrets: Vec<PartitionSecret>,
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
    /// Starts with what is open already. Each descriptor keeps, in the VMM, the number that it has
    /// here: no two can collide, and none is overwritten on the way.
    pub(crate) fn new(
        library: &'o Library,
        directory: &'o Path,
        given: Given,
        settings: Settings,
    ) -> Self {
        Self {
            library,
            directory,
            given,
            tty: settings.tty,
            input: settings.input,
            jail: settings.jail,
            by_place: false,
            descriptors: Vec::new(),
            map: None,
            tap_queues: VecDeque::new(),
            backends: Vec::new(),
            vsock: None,
            vsock_connector: None,
            authority: None,
            secrets: Vec::new(),
        }
    }

    /// For a device of a partition that runs: descriptors are numbered by their place in the packet
    /// that takes them to the VMM.
    pub(crate) fn for_packet(library: &'o Library, directory: &'o Path, jail: Jail) -> Self {
        let settings = Settings {
            input: false,
            tty: false,
            gdb: false,
            jail,
        };
        let mut opened = Self::new(library, directory, Given::default(), settings);
        opened.by_place = true;
        opened
    }

    /// Where the gateway of a network that is opened next records what it does, and asks about
    /// conditions.
    pub(crate) fn let_gateway(&mut self, records: Option<Records>, conditions: Option<OwnedFd>) {
        self.given.records = records;
        self.given.conditions = conditions;
    }

    /// Adds a descriptor.
    pub(crate) fn keep(&mut self, descriptor: impl Into<OwnedFd>) -> Fd {
        let descriptor = descriptor.into();
        let place = i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX);
        let fd = Fd(match self.by_place {
            true => place,
            false => descriptor.as_raw_fd(),
        });
        self.descriptors.push(descriptor);
        fd
    }

    /// All of them, for the VMM.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// The partition's own authority, where one is needed: made when it is asked for first.
    fn authority(&mut self, partition: &Partition) -> Result<Option<Authority>, Error> {
        if self.authority.is_none() && web::is_needed(partition) {
            let made = Authority::create(self.library, &partition.name)?;
            made.publish(self.directory, &partition.name)?;
            self.authority = Some(made);
        }
        Ok(self.authority.take())
    }

    fn take(&mut self, stream: Option<OwnedFd>) -> Result<Fd, Error> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        let stream = stream.ok_or_else(missing);
        Ok(self.keep(stream.map_err(Error::system("find a descriptor"))?))
    }
}

impl Descriptors for Opened<'_> {
    fn open(&mut self, partition: &Partition, want: Want<'_>) -> Result<Fd, Error> {
        let name = want.name(self.library.path());
        let file: OwnedFd = match want {
            Want::Kvm => {
                let kvm = self.given.kvm.take();
                return self.take(kvm);
            }
            Want::Control => {
                let control = self.given.control.take();
                return self.take(control);
            }
            Want::Gdb => {
                let gdb = self.given.gdb.take();
                return self.take(gdb);
            }
            Want::Input => {
                let input = self.given.streams.input.take();
                return self.take(input);
            }
            Want::Output => {
                let output = self.given.streams.output.take();
                return self.take(output);
            }
            Want::ErrorOutput => {
                let error = self.given.streams.error.take();
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
                let held = Held::new(partition, program)?;
                let mut archive = Initramfs::new(partition)?;
                archive.program(&held.program, self.library)?;
                archive.finish()?.into()
            }
            Want::AgentFiles(program) => {
                check_command(program, self.library)?;
                let authority = self.authority(partition)?;
                let agent = linux::Agent {
                    tty: self.tty,
                    announce: self.input,
                    authority: authority.as_ref(),
                    secrets: &self.secrets,
                };
                let held = Held::new(partition, program)?;
                let archive =
                    linux::initramfs(partition, &held.program, self.library, agent)?.into();
                self.authority = authority;
                archive
            }
            Want::AcpiTables(pc) => bulkhead_acpi::file(pc)
                .map_err(Error::system("write the ACPI tables"))?
                .into(),
            Want::Disk(disk) => open_disk(&disk.path, disk.write, disk.direct)?.into(),
            Want::Base(disk) => open_base(disk)?.into(),
            Want::Backing(path) => open_backing(path)?.into(),
            Want::Top(disk) => {
                let (top, map) = open_overlay(disk)?;
                self.map = Some(map);
                top.into()
            }
            Want::Map => {
                let map = self.map.take().map(OwnedFd::from);
                return self.take(map);
            }
            Want::TapQueue {
                interface,
                queue,
                queues,
            } => {
                if queue == 0 {
                    self.tap_queues = open_tap(interface, queues)?.into();
                }
                let queue = self.tap_queues.pop_front();
                return self.take(queue);
            }
            Want::Network(device, network) => {
                let authority = self.authority(partition)?;
                let name = &partition.name;
                let own = backend::Own {
                    authority,
                    secrets: &self.secrets,
                    models: self.given.models.take(),
                    budget: partition.mandate.as_ref().and_then(|m| m.budget.bytes),
                    amounts: self.given.amounts.take(),
                    tools: self.given.tools.take(),
                    records: self.given.records.take(),
                    conditions: self.given.conditions.take(),
                };
                let (link, ready) = backend::network(name, device, network, own, self.jail)?;
                self.backends.push(ready);
                link
            }
            Want::Share(device, share) => {
                let (connected, ready) =
                    backend::share(partition, device, share, self.jail, self.directory)?;
                self.backends.push(ready);
                connected
            }
            Want::Pmem { path, write } => open_pmem(path, write)?.into(),
            Want::Connection(path) => {
                let connected = UnixStream::connect(path);
                let failed = |source| Error::Connect {
                    path: path.to_owned(),
                    source,
                };
                connected.map_err(failed)?.into()
            }
            Want::VsockListener => {
                let directory = self.directory.join(&partition.name);
                let (vsock, connector) = Vsock::new(&directory)?;
                let listener = vsock.listener()?;
                self.vsock = Some(vsock);
                self.vsock_connector = Some(connector);
                listener
            }
            Want::VsockConnector => {
                let connector = self.vsock_connector.take();
                return self.take(connector);
            }
        };
        if let Some(name) = name {
            is_as_judged(partition, &name, &file)?;
        }
        Ok(self.keep(file))
    }

    fn image(&self, partition: &Partition, boot: &Boot) -> Result<Option<Image>, Error> {
        let number = boot.kernel().0;
        let kernel = self.descriptors.iter().find(|fd| fd.as_raw_fd() == number);
        let closed = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let kernel = kernel.ok_or_else(closed).and_then(OwnedFd::try_clone);
        let kernel = File::from(kernel.map_err(Error::system("look at the kernel image"))?);
        bulkhead_image::image(&kernel, boot).map_err(|source| Error::KernelImage {
            partition: partition.name.clone(),
            source,
        })
    }
}

/// A program whose files are those that were judged, and stay those while they are packed.
struct Held {
    /// With files of the host by paths that lead to what is held.
    program: Program,
    _files: Vec<OwnedFd>,
}

impl Held {
    fn new(partition: &Partition, program: &Program) -> Result<Self, Error> {
        let mut held = Self {
            program: program.clone(),
            _files: Vec::new(),
        };
        if partition.mandate.is_none() {
            return Ok(held);
        }
        let mounts = held.program.mounts.iter_mut();
        let sources = mounts.map(|mount| &mut mount.source);
        for source in sources.chain(held.program.root.as_mut()) {
            if let Source::Host(name) = source {
                let (file, path) = hold(partition, name)?;
                held._files.push(file);
                *name = path;
            }
        }
        Ok(held)
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

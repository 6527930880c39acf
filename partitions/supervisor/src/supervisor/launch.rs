//! How one partition is made ready and started: the first time, and again when its guest reboots.

use super::{Consoles, Options};
use crate::admit::{AdmissionError, Admissions};
use crate::backend::{Backend, Kind, Ready};
use crate::cgroup::Group;
use crate::compile::{Settings, compile};
use crate::conditions::{self, Answerer};
use crate::console::Streams;
use crate::error::Error;
use crate::lasting::Lasting;
use crate::ledger::Ledger;
use crate::library::{Library, LibraryFile};
use crate::limits::PartitionLimits;
use crate::models::Models;
use crate::open::{Amounts, Given, Opened, Records};
use crate::process::packet_pair;
use crate::tools::{self, Ways};
use crate::vmm::Vmm;
use crate::vsock::Vsock;
use bulkhead_cpu::HostCpu;
use bulkhead_machine::MachineDescription;
use bulkhead_manifest::{Device, DeviceKind, Partition};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// What does not change between one start and the next.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) library: Library,
    vmm: PathBuf,
    kvm: File,
    /// What the partitions' CPUs are made from.
    cpu: HostCpu,
    /// An empty network namespace for the VMMs' jails, where one could be made.
    network: Option<File>,
    pub(super) options: Options,
    /// Where the processes behind its devices record what they do.
    ledger: Arc<Ledger>,
    /// When the system started: a partition that reboots has not started later.
    started: SystemTime,
    /// The system's directory.
    pub(super) directory: PathBuf,
    /// What its partitions have used up.
    lasting: Lasting,
    /// What limits their tools beside the host's own, by their names.
    pub(super) limits: BTreeMap<String, PartitionLimits>,
}

/// One partition with everything open, before its processes exist.
pub(super) struct Prepared {
    description: MachineDescription,
    descriptors: Vec<OwnedFd>,
    control: OwnedFd,
    backends: Vec<Ready>,
    vsock: Option<Vsock>,
}

/// The processes of a started partition.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) vmm: Vmm,
    pub(super) backends: Vec<Backend>,
    pub(super) vsock: Option<Vsock>,
}

fn duplicate(descriptor: impl AsFd) -> Result<OwnedFd, Error> {
    let clone = descriptor.as_fd().try_clone_to_owned();
    clone.map_err(Error::system("duplicate a descriptor"))
}

/// A device with a gateway behind it.
pub(super) fn has_gateway(device: &Device) -> bool {
    matches!(device.kind, DeviceKind::Network(_))
}

impl Launcher {
    /// # Errors
    /// The library has no VMM.
    pub(super) fn new(
        library: &Library,
        kvm: &File,
        cpu: HostCpu,
        network: Option<File>,
        options: &Options,
        ledger: &Arc<Ledger>,
        directory: &Path,
    ) -> Result<Self, Error> {
        Ok(Self {
            library: library.clone(),
            vmm: library.file(LibraryFile::Vmm)?,
            kvm: kvm
                .try_clone()
                .map_err(Error::system("duplicate a descriptor"))?,
            cpu,
            network,
            options: options.clone(),
            ledger: ledger.clone(),
            started: SystemTime::now(),
            lasting: Lasting::default(),
            limits: BTreeMap::new(),
            directory: directory.to_owned(),
        })
    }

    /// The system's name.
    pub(super) fn system(&self) -> Cow<'_, str> {
        self.directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
    }

    /// Opens everything that the partition's processes need; `streams` are the VMM's ends of its
    /// console, and `before` what has stayed since before its guest rebooted.
    pub(super) fn prepare(
        &self,
        partition: &Partition,
        streams: Streams,
        before: Option<&[Backend]>,
    ) -> Result<Prepared, Error> {
        let (system, name) = (self.system(), &partition.name);
        let conditions = self.options.conditions.get(name);
        // Before its guest rebooted, somebody answered already.
        let decision = match (conditions, before) {
            (Some(conditions), None) => {
                let jail = self.options.jail;
                let ready = conditions::ready(&system, name, conditions, self.started, jail)?;
                Some(ready)
            }
            _ => None,
        };
        let answerer = match (&decision, before) {
            (Some(ready), _) => ready.control.as_ref().map_or(Answerer::Gone, Answerer::At),
            (None, before) => self.answerer(name, before.unwrap_or_default()),
        };
        let cpuid = self.cpu.offer(partition.cpu);
        let cpuid = cpuid.map_err(|lacks| Error::CpuTemplate {
            partition: partition.name.clone(),
            lacks,
        })?;
        let (control, theirs) = packet_pair()?;
        let (input, tty) = match self.options.consoles {
            Consoles::Attached { tty, .. } => (true, tty),
            Consoles::Prefixed { .. } | Consoles::Logged => (false, false),
        };
        let settings = Settings {
            input,
            tty,
            gdb: self.options.gdb.is_some(),
            jail: self.options.jail,
        };
        let secrets = &self.options.secrets;
        let (to_gateway, to_tools) = match tools::ask_the_web(partition) {
            true => packet_pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            false => (None, None),
        };
        let age = self.started.elapsed().map_or(0, |age| age.as_secs());
        let has_network = partition.devices.iter().any(has_gateway);
        let given = Given {
            tools: to_tools,
            models: Models::ready(&self.system(), partition, secrets, &self.lasting, age)?,
            amounts: Some(Amounts {
                used: self.lasting.file(&partition.name, c"used", &[])?,
                age,
            }),
            records: match has_network {
                true => self.records(name)?,
                false => None,
            },
            conditions: match has_network {
                true => answerer.client()?,
                false => None,
            },
            kvm: Some(duplicate(&self.kvm)?),
            control: Some(theirs),
            streams,
            gdb: self.options.gdb.as_deref().map(duplicate).transpose()?,
        };
        let mut opened = Opened::new(&self.library, &self.directory, given, settings);
        opened.secrets = self.options.secrets.resolve(&self.system(), partition)?;
        let mut description = compile(partition, settings, cpuid, &mut opened)?;
        if let Some(network) = &self.network {
            description.network_namespace = Some(opened.keep(duplicate(network)?));
        }
        let whose = tools::Whose {
            system: &self.system(),
            partition,
            started: self.started,
            jail: self.options.jail,
            lasting: &self.lasting,
            limits: self.limits.get(name).map(|own| &own.limits),
        };
        let ways = || {
            Ok(Ways {
                ledger: self.ledger.client(name)?,
                conditions: answerer.client()?,
                gateway: to_gateway,
            })
        };
        let tools = tools::ready(&whose, opened.vsock.as_ref(), ways)?;
        let descriptors = opened.take_descriptors();
        let backends = opened.backends.into_iter().chain(tools);
        Ok(Prepared {
            description,
            descriptors,
            control,
            backends: decision.into_iter().chain(backends).collect(),
            vsock: opened.vsock,
        })
    }

    /// What judges grants that are added to what runs.
    pub(super) fn admissions(&self) -> Result<Admissions, AdmissionError> {
        Admissions::of_running(&self.directory, self.ledger.clone())
    }

    /// Who answers for the conditions of `partition`, which has these back ends.
    pub(super) fn answerer<'b>(&self, partition: &str, backends: &'b [Backend]) -> Answerer<'b> {
        if !self.options.conditions.contains_key(partition) {
            return Answerer::NoConditions;
        }
        let mut backends = backends.iter();
        let decision = backends.find(|backend| backend.kind == Kind::Decision);
        let control = decision.and_then(|backend| backend.control.as_ref());
        control.map_or(Answerer::Gone, Answerer::At)
    }

    /// Where a gateway of `partition` records what it does.
    pub(super) fn records(&self, partition: &str) -> Result<Option<Records>, Error> {
        self.ledger.records(partition)
    }

    /// Starts the back ends, then the VMM, all of them in `group`.
    pub(super) fn start(
        &self,
        prepared: Prepared,
        group: Option<&Group>,
    ) -> Result<Started, Error> {
        let start = |ready: Ready| ready.start(&self.library, group);
        let backends = prepared.backends.into_iter().map(start);
        let backends = backends.collect::<Result<_, _>>()?;
        let vmm = Vmm::spawn(
            &self.vmm,
            &prepared.description,
            prepared.control,
            prepared.descriptors,
            group,
        )?;
        Ok(Started {
            vmm,
            backends,
            vsock: prepared.vsock,
        })
    }
}

impl Streams {
    /// The same streams once more, for a VMM after this one.
    pub(super) fn duplicate(&self) -> Result<Self, Error> {
        let again = |stream: &Option<OwnedFd>| stream.as_ref().map(duplicate).transpose();
        Ok(Self {
            input: again(&self.input)?,
            output: again(&self.output)?,
            error: again(&self.error)?,
        })
    }
}

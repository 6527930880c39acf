//! `boot`: how long from `exec` of the VMM to a guest that does something.
//!
//! Subjects are measured in turn, one of each a round, so that a busy moment of the machine hits all
//! of them alike. The parent does as little as a supervisor can do: everything the VMM needs is open
//! before the clock starts, and the clock starts right before the process is created.

mod command;
mod floor;
mod launch;
mod qemu;

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_machine::trace;
use bulkhead_supervisor::host::{Installation, kvm_kind};

use crate::error::Error;
use crate::host::Host;
use crate::report::{Load, Phase, Report, Subject};
use crate::stats::Stats;

/// Rounds before the first that counts: they fill the page cache.
const WARM_UP: u32 = 3;

/// The phases of a VMM's life in their order: the mark that ends each, and what it is to a reader.
const PHASES: [(&str, &str); 10] = [
    (trace::START, "process: exec to main"),
    (trace::DESCRIPTION, "description: read, parse, check"),
    (trace::VM, "VM: open and create"),
    (trace::MEMORY, "memory: memfd and slots"),
    (trace::LOAD, "load: kernel, modules, tables"),
    (trace::DEVICES, "devices and interrupt routing"),
    (trace::VCPU, "vCPU: create, CPUID, registers"),
    (trace::JAIL, "jail: namespaces, Landlock, seccomp"),
    (trace::RUN, "run: threads, message"),
    (trace::FIRST_CONSOLE_BYTE, "guest: to its first byte"),
];

/// One boot under our VMM.
struct TracedBoot {
    /// Spawn to first byte as the parent saw it.
    total_ns: u64,
    /// When the clock started.
    spawned_ns: u64,
    /// The VMM's marks.
    marks: BTreeMap<String, u64>,
    /// Resident memory of the VMM at the first byte but for the guest's, where it was read.
    own_kib: Option<u64>,
}

/// A guest that our VMM boots.
struct Bulkhead<'a> {
    guest: launch::Guest,
    library: &'a Path,
    host: &'a Host,
    boots: Vec<TracedBoot>,
}

impl<'a> Bulkhead<'a> {
    fn new(library: &'a Path, host: &'a Host, guest: launch::Guest) -> Self {
        Self {
            guest,
            library,
            host,
            boots: vec![],
        }
    }

    fn measure(&mut self, counts: bool) -> Result<(), Error> {
        let boot = launch::boot(self.library, self.host, self.guest)?;
        if counts {
            self.boots.push(boot);
        }
        Ok(())
    }

    fn totals(&self) -> Vec<u64> {
        self.boots.iter().map(|boot| boot.total_ns).collect()
    }

    fn own_kib(&self) -> Option<Stats> {
        let samples = self.boots.iter().filter_map(|boot| boot.own_kib);
        Stats::of_values(&samples.map(|kib| kib as f64).collect::<Vec<_>>())
    }

    /// How long each phase took. Marks are taken in the order of time, whatever order the VMM works in.
    fn phases(&self) -> Vec<Phase> {
        let mut samples: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut order: Vec<(u64, &str)> = vec![];
        for boot in &self.boots {
            let mut marks: Vec<_> = (boot.marks.iter())
                .map(|(name, ns)| (*ns, name.as_str()))
                .filter(|(_, name)| PHASES.iter().any(|(phase, _)| phase == name))
                .collect();
            marks.sort_unstable();
            let mut before = boot.spawned_ns;
            for (ns, name) in &marks {
                samples
                    .entry(name)
                    .or_default()
                    .push(ns.saturating_sub(before));
                before = *ns;
            }
            let seen = (boot.spawned_ns + boot.total_ns).saturating_sub(before);
            samples.entry("seen").or_default().push(seen);
            order = marks;
        }
        let described = order
            .iter()
            .filter_map(|(_, name)| PHASES.iter().find(|(phase, _)| phase == name).copied());
        described
            .chain([("seen", "pipe: to the parent")])
            .filter_map(|(id, what)| {
                Some(Phase {
                    id: id.to_owned(),
                    what,
                    stats: Stats::of(samples.get(id)?)?,
                })
            })
            .collect()
    }
}

/// Measures everything `runs` times.
pub(crate) fn run(library: &Path, runs: u32) -> Result<Report, Error> {
    let load_before = Load::now();
    let kvm = kvm_kind(&Installation::new(library));
    let empty_process = floor::EmptyProcess::new()?;
    let empty_vm = floor::EmptyVm::new()?;
    let host = Host::new()?;
    let mut probe = Bulkhead::new(library, &host, launch::Guest::Probe);
    let mut native = Bulkhead::new(library, &host, launch::Guest::Native);
    let run = command::RunCommand::find(library);
    let qemu = qemu::Qemu::find(library);
    let (mut processes, mut vms, mut whole, mut peers) = (vec![], vec![], vec![], vec![]);
    for round in 0..WARM_UP + runs {
        let counts = round >= WARM_UP;
        let process = empty_process.measure()?;
        let vm = empty_vm.measure()?;
        probe.measure(counts)?;
        native.measure(counts)?;
        let way = run.as_ref().map(command::RunCommand::measure).transpose()?;
        let peer = qemu.as_ref().map(qemu::Qemu::measure).transpose()?;
        if counts {
            processes.push(process);
            vms.push(vm);
            whole.extend(way);
            peers.extend(peer);
        }
    }
    let subject = |id, what, samples: &[u64], phases| {
        Stats::of(samples).map(|stats| Subject {
            id,
            what,
            stats,
            phases,
        })
    };
    let subjects = [
        subject(
            "empty-process",
            "exec and exit of an empty static process",
            &processes,
            vec![],
        ),
        subject(
            "empty-vm",
            "KVM VM in process: create, one exit, destroy",
            &vms,
            vec![],
        ),
        subject(
            "probe",
            "bulkhead-vmm, probe: exec to first byte",
            &probe.totals(),
            probe.phases(),
        ),
        subject(
            "native",
            "bulkhead-vmm, native partition: exec to first byte",
            &native.totals(),
            native.phases(),
        ),
        subject(
            "run-linux-abi",
            "bulkhead run, Linux-ABI program: exec to first output",
            &whole,
            vec![],
        ),
        subject(
            "qemu-microvm",
            "QEMU microvm, the same probe: exec to first byte",
            &peers,
            vec![],
        ),
    ];
    let mut warnings = Load::warnings(&load_before, &Load::now());
    if run.is_none() {
        warnings.push("no bin/bulkhead beside the library: `bulkhead run` is not measured".into());
    }
    if qemu.is_none() {
        warnings.push("no qemu-system-x86_64 in PATH: no peer beside us".into());
    }
    Ok(Report {
        benchmark: "boot",
        kvm,
        runs,
        unit: "us",
        subjects: subjects.into_iter().flatten().collect(),
        own_kib: probe.own_kib(),
        warnings,
    })
}

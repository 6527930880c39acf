//! `linux`: a stock Linux kernel under our VMM and under QEMU's microvm, in turn. How long from exec
//! to its first process, what the VMM itself costs in memory, and how fast disks and networks are.
//!
//! Made for the lab (`cargo xtask bench linux`): what it says about time there holds as a ratio only.

mod disk;
mod exits;
mod guest;
mod net;
mod vmm;

use std::path::Path;

use serde::Serialize;

use crate::error::Error;
use crate::memory::own_kib;
use crate::stats::Stats;
use exits::{Counters, METRICS};
use guest::Guest;
use vmm::{QEMU, Vmm};

/// Where to find what is booted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Files {
    /// A stock kernel with its initial RAM filesystem (`vmlinuz`, `initrd.img`).
    #[arg(long, value_name = "DIR")]
    boot: std::path::PathBuf,
    /// Its root filesystem, with fio; only read.
    #[arg(long, value_name = "DISK")]
    root: std::path::PathBuf,
    /// Directory for the disk that is measured: the quicker what lies below it, the more is seen of
    /// the VMM.
    #[arg(long, value_name = "DIR")]
    scratch: std::path::PathBuf,
    /// A tap of the host that is up and has the address 10.9.0.1/24.
    #[arg(long, value_name = "INTERFACE")]
    tap: String,
    /// Only boots: neither disks nor networks.
    #[arg(long)]
    quick: bool,
}

/// One figure of one VMM.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    /// Stable name of what was measured.
    pub(crate) metric: &'static str,
    /// For people, with the unit.
    pub(crate) what: &'static str,
    /// Whose figure it is.
    pub(crate) vmm: &'static str,
    #[serde(flatten)]
    pub(crate) stats: Stats,
}

/// Measures everything `runs` times.
pub(crate) fn run(library: &Path, files: &Files, runs: u32) -> Result<Vec<Figure>, Error> {
    let vmms = Vmm::all(library)?;
    if !vmms.iter().any(|vmm| vmm.name() == QEMU) {
        eprintln!("bulkhead-bench: no qemu-system-x86_64 in PATH: no peer beside us");
    }
    let mut figures = Figures::default();
    let idle = Guest::until_first_process(files)?;
    for round in 0..=runs {
        eprintln!("bulkhead-bench: boot {round} of {runs}");
        for vmm in &vmms {
            let mut running = vmm.start(&idle)?;
            let boot_ns = running.line(guest::UP)?.0;
            let counters = Counters::of(running.pid())?;
            let counts = METRICS.map(|(.., names)| counters.sum(names));
            let own = own_kib(running.pid(), idle.memory_mib * 1024)?;
            let own = own.ok_or_else(|| Error::Answer(format!("{} has ended", vmm.name())))?;
            // The first round fills the page cache.
            if round > 0 {
                figures.add(
                    "boot",
                    "exec to first process, ms",
                    vmm,
                    boot_ns as f64 / 1e6,
                );
                for ((metric, what, _), count) in METRICS.into_iter().zip(counts) {
                    figures.add(metric, what, vmm, count? as f64);
                }
                figures.add("memory", "the VMM's own memory, KiB", vmm, own as f64);
            }
        }
    }
    if files.quick {
        return Ok(figures.finish());
    }
    let peer = net::Peer::new()?;
    for round in 1..=runs {
        for vmm in &vmms {
            eprintln!("bulkhead-bench: {} {round} of {runs}", vmm.name());
            let guest = Guest::that_measures(files)?;
            let mut running = vmm.start(&guest)?;
            for job in &disk::JOBS {
                let (_, line) = running.line(disk::RESULT)?;
                figures.add(job.metric, job.what, vmm, job.read(&line)?);
            }
            running.line(net::UP)?;
            for ((metric, what), value) in net::METRICS.into_iter().zip(peer.measure()?) {
                figures.add(metric, what, vmm, value);
            }
        }
    }
    Ok(figures.finish())
}

/// Samples by metric and VMM, in the order of their first appearance.
#[derive(Default)]
struct Figures(Vec<(&'static str, &'static str, &'static str, Vec<f64>)>);

impl Figures {
    fn add(&mut self, metric: &'static str, what: &'static str, vmm: &Vmm, value: f64) {
        eprintln!("bulkhead-bench: {} {metric} {value:.1}", vmm.name());
        let known = self
            .0
            .iter_mut()
            .find(|it| it.0 == metric && it.2 == vmm.name());
        match known {
            Some((.., samples)) => samples.push(value),
            None => self.0.push((metric, what, vmm.name(), vec![value])),
        }
    }

    fn finish(self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = (self.0.into_iter())
            .filter_map(|(metric, what, vmm, samples)| {
                let stats = Stats::of_values(&samples)?;
                Some(Figure {
                    metric,
                    what,
                    vmm,
                    stats,
                })
            })
            .collect();
        let order: Vec<&str> = figures.iter().map(|figure| figure.metric).collect();
        figures.sort_by_key(|figure| order.iter().position(|metric| *metric == figure.metric));
        figures
    }
}

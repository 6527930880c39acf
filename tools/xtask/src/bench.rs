//! `bench`: the built `bulkhead-bench`, here, or in the lab where a benchmark needs a host that can
//! run a Linux kernel.

use std::path::PathBuf;

use crate::failure::Result;
use crate::lab;
use crate::repo::Repo;

/// Data of QEMU's package, of which the lab has the program alone.
const QEMU_DATA: &str = "/usr/share/qemu";
/// Disks that are measured lie in memory: what is seen is the VMM, not the lab's disk.
/// KVM counts exits in debugfs. QEMU looks for its data beside the directory of the program, which is
/// `/sbin` there.
const SCRIPT: &str = "mount -t debugfs debugfs /sys/kernel/debug && \
                      mkdir -p /scratch /share/qemu && mount -t tmpfs scratch /scratch && \
                      mount --bind qemu /share/qemu && tunctl -t bench0 >/dev/null && \
                      ip address add 10.9.0.1/24 dev bench0 && ip link set bench0 up && \
                      exec bulkhead-bench linux --boot debian --root /dev/nvme1n1 \
                      --scratch /scratch --tap bench0 \"$@\"";
/// Bound on the whole, in seconds.
const LIMIT_S: u64 = 3 * 60 * 60;

/// True for the benchmarks that run in the lab.
pub(crate) fn in_lab(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|name| name == "linux")
}

/// Runs `arguments` there.
pub(crate) fn run(repo: &Repo, arguments: &[String]) -> Result<i32> {
    let options = lab::Options {
        timeout: LIMIT_S,
        memory: 3072,
        debian: true,
        with: vec![PathBuf::from(QEMU_DATA)],
        program: vec!["qemu-system-x86_64".into()],
        ..lab::Options::default()
    };
    let script = ["sh", "-c", SCRIPT, "sh"].map(str::to_owned).into_iter();
    let command: Vec<String> = script.chain(arguments.iter().skip(1).cloned()).collect();
    lab::run_here(repo, &options, &command)
}

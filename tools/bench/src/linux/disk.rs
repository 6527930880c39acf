//! What fio measures in the guest, and how its answer is read.

use crate::error::Error;

/// What stands before fio's line.
pub(super) const RESULT: &str = "bench: fio ";
/// Size of the disk in MiB.
pub(super) const DISK_MIB: u32 = 64;

/// One job, and the field of fio's terse output (version 3, fio(1) "TERSE OUTPUT") that answers it;
/// fields count from 0.
pub(super) struct Job {
    pub(super) metric: &'static str,
    pub(super) what: &'static str,
    options: &'static str,
    field: usize,
    scale: f64,
}

const READ_KIB_S: usize = 6;
const READ_IOPS: usize = 7;
/// Mean of the total latency of reads, in microseconds.
const READ_LATENCY: usize = 39;
/// Writes' fields come 41 after those of reads.
const WRITES: usize = 41;

pub(super) const JOBS: [Job; 5] = [
    Job {
        metric: "disk-read-latency",
        what: "4 KiB random read, one at a time, us",
        options: "--rw=randread --bs=4k",
        field: READ_LATENCY,
        scale: 1.0,
    },
    Job {
        metric: "disk-write-latency",
        what: "4 KiB random write, one at a time, us",
        options: "--rw=randwrite --bs=4k",
        field: READ_LATENCY + WRITES,
        scale: 1.0,
    },
    Job {
        metric: "disk-read-iops",
        what: "4 KiB random read, 32 at a time, 1/s",
        options: "--rw=randread --bs=4k --ioengine=libaio --iodepth=32",
        field: READ_IOPS,
        scale: 1.0,
    },
    Job {
        metric: "disk-read",
        what: "256 KiB sequential read, 4 at a time, MiB/s",
        options: "--rw=read --bs=256k --ioengine=libaio --iodepth=4",
        field: READ_KIB_S,
        scale: 1.0 / 1024.0,
    },
    Job {
        metric: "disk-write",
        what: "256 KiB sequential write, 4 at a time, MiB/s",
        options: "--rw=write --bs=256k --ioengine=libaio --iodepth=4",
        field: READ_KIB_S + WRITES,
        scale: 1.0 / 1024.0,
    },
];

/// What a shell runs as the first process: all jobs, a line each.
pub(super) fn script() -> String {
    let mut script = format!(
        "j(){{ echo {RESULT}$(fio --name=bench --filename=/dev/vdb --direct=1 --runtime=3 \
         --time_based --ramp_time=1 --disk_util=0 --output-format=terse --terse-version=3 $@ 2>&1 \
         | tail -n 1); }}"
    );
    for job in &JOBS {
        script += "; j ";
        script += job.options;
    }
    script
}

impl Job {
    /// The figure in fio's line.
    pub(super) fn read(&self, line: &str) -> Result<f64, Error> {
        let field = line.trim().split(';').nth(self.field);
        let value = field.and_then(|field| field.parse::<f64>().ok());
        value
            .filter(|value| *value > 0.0)
            .map(|value| value * self.scale)
            .ok_or_else(|| Error::Answer(format!("fio said {line:?}")))
    }
}

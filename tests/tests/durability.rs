//! Promise: what a guest has flushed to a disk survives the sudden death of its VMM.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::FileExt;
    use std::process::Stdio;

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use rustix::process::{Pid, Signal, kill_process};

    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 4096;

    /// Writes block after block from `$1` on, each full of its own number, and says so when the
    /// disk has confirmed it.
    const WRITER: &str = "i=$1; while :; do yes $i | head -c 4096 | \
        dd of=/dev/vda bs=4096 count=1 seek=$i conv=notrunc,fsync 2>/dev/null && \
        echo flushed $i; i=$((i + 1)); done";

    fn content(number: u64) -> Vec<u8> {
        let line = format!("{number}\n");
        line.bytes().cycle().take(BLOCK).collect()
    }

    #[test]
    fn flushed_blocks_survive_the_death_of_the_vmm() {
        let bulkhead = Bulkhead::built();
        let scratch = Scratch::new();
        let path = scratch.path().join("disk.img");
        let disk = File::create_new(&path).unwrap();
        disk.set_len(BLOCKS * BLOCK as u64).unwrap();
        let disk = File::open(&path).unwrap();
        let before = Census::take();
        let mut first = 0;
        for rounds in [3, 20, 50] {
            let start = first.to_string();
            let mut running = (bulkhead.command(["run", "--kernel", "linux", "--disk"]))
                .arg(&path)
                .args(["--", "busybox", "sh", "-c", WRITER, "sh", &start])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
            let mut flushed = None;
            while flushed.is_none_or(|last| last < first + rounds) {
                let line = lines.next().expect("it writes for ever").unwrap();
                flushed = line
                    .strip_prefix("flushed ")
                    .and_then(|n| n.trim().parse().ok())
                    .or(flushed);
            }
            kill_process(vmm(&bulkhead), Signal::KILL).unwrap();
            // What it had said before it died counts as well.
            for line in lines.map_while(Result::ok) {
                flushed = line
                    .strip_prefix("flushed ")
                    .and_then(|n| n.trim().parse().ok())
                    .or(flushed);
            }
            assert_eq!(running.wait().unwrap().code(), Some(125), "it died");
            let flushed = flushed.unwrap();
            for number in 0..=flushed {
                let mut block = vec![0; BLOCK];
                disk.read_exact_at(&mut block, number * BLOCK as u64)
                    .unwrap();
                assert!(block == content(number), "block {number} of {flushed}");
            }
            first = flushed + 1;
        }
        before.expect_nothing_new();
    }

    /// The one VMM that runs.
    fn vmm(bulkhead: &Bulkhead) -> Pid {
        let ps = bulkhead.run(["ps", "--format", "json"]);
        let systems: serde_json::Value = serde_json::from_str(&ps.stdout()).unwrap();
        let pid = systems
            .pointer("/0/partitions/0/vmm")
            .and_then(serde_json::Value::as_i64);
        Pid::from_raw(pid.unwrap_or_else(|| panic!("{systems}")) as i32).unwrap()
    }
}

//! Promise: a stock Linux kernel finds in a granted disk what good virtual disks have: several
//! queues, discard, read-only where it is only read, and an overlay that keeps its base as it was.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::PathBuf;
    use std::process::Command;

    use bulkhead_tests::bulkhead::{Bulkhead, Ended};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    const MIB: usize = 1 << 20;

    fn image(scratch: &Scratch, name: &str, byte: u8, mib: usize) -> PathBuf {
        let path = scratch.path().join(name);
        fs::write(&path, vec![byte; mib * MIB]).unwrap();
        path
    }

    /// Runs `script` in a stock kernel with two vCPUs and `grant`; its disk is `/dev/vda`.
    fn run(scratch: &Scratch, grant: &str, script: &str) -> Ended {
        let bulkhead = Bulkhead::built();
        let manifest = scratch.file(
            "system.toml",
            format!(
                r#"
                name = "blk"
                [[partition]]
                name = "blk"
                kernel = "linux"
                image = "@linux/vmlinuz"
                vcpus = 2
                command = ["/bin/busybox", "sh", "-ec", '''{script}''']
                grants = ["console", {grant}]
                [[partition.mounts]]
                source = "/bin/busybox"
                target = "/bin/busybox"
                "#
            ),
        );
        let before = Census::take();
        let ended = bulkhead.run(["up".as_ref(), manifest.as_os_str()]);
        before.expect_nothing_new();
        ended
    }

    fn sum(path: &std::path::Path) -> Vec<u8> {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn queues_and_discard() {
        let scratch = Scratch::new();
        let path = image(&scratch, "disk.img", 0xaa, 16);
        let room = || fs::metadata(&path).unwrap().blocks() * 512;
        let before = room();
        let script = "
            busybox ls -d /sys/block/vda/mq/*
            busybox cat /sys/block/vda/queue/write_cache
            busybox blkdiscard -o 1048576 -l 8388608 /dev/vda
            busybox dd if=/dev/vda bs=1M skip=1 count=8 2>/dev/null | busybox tr -d '\\0' | busybox wc -c
            busybox dd if=/dev/vda bs=1M count=1 2>/dev/null | busybox tr -d '\\252' | busybox wc -c
        ";
        let grant = r#"{ capability = "block.write", path = "disk.img", queues = 2 }"#;
        let ended = run(&scratch, grant, script);
        let ended = ended
            .expect_status(0)
            .expect_stdout("/sys/block/vda/mq/0")
            .expect_stdout("/sys/block/vda/mq/1")
            .expect_stdout("write back");
        let counts: Vec<_> = ended
            .stdout()
            .lines()
            .rev()
            .take(2)
            .map(str::to_owned)
            .collect();
        assert_eq!(
            counts.iter().map(|c| c.trim()).collect::<Vec<_>>(),
            ["blk | 0", "blk | 0"]
        );
        assert_eq!(
            room(),
            before - 8 * MIB as u64,
            "the host has the room back"
        );
        let file = File::open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 9 * MIB as u64).unwrap();
        assert_eq!(byte, [0xaa]);
    }

    #[test]
    fn a_disk_to_read_is_not_written() {
        let scratch = Scratch::new();
        let path = image(&scratch, "disk.img", 0x55, 1);
        let before = sum(&path);
        let script = "
            busybox cat /sys/block/vda/ro
            busybox dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync && exit 1
            busybox dd if=/dev/vda of=/dev/null bs=4096 && exit 7
        ";
        let ended = run(&scratch, r#""block.read:disk.img""#, script);
        ended.expect_status(7).expect_stdout("1");
        assert_eq!(sum(&path), before);
    }

    #[test]
    fn an_overlay_keeps_its_base_and_what_was_written() {
        let scratch = Scratch::new();
        let path = image(&scratch, "base.img", 0x55, 8);
        let before = sum(&path);
        let grant = r#"{ capability = "block.write", path = "base.img", overlay = "top.img" }"#;
        let write = "
            busybox echo 'written above' |
                busybox dd of=/dev/vda bs=1 seek=3000000 conv=fsync
            busybox blkdiscard -o 1048576 -l 1048576 /dev/vda
            busybox sync
        ";
        run(&scratch, grant, write).expect_status(0);
        let read = "
            busybox dd if=/dev/vda bs=1 skip=3000000 count=14 2>/dev/null
            busybox dd if=/dev/vda bs=1 skip=3000014 count=2 2>/dev/null
            busybox dd if=/dev/vda bs=1M skip=1 count=1 2>/dev/null | busybox tr -d '\\0' | busybox wc -c
        ";
        run(&scratch, grant, read)
            .expect_status(0)
            .expect_stdout("blk | written above\nblk | UU0\n");
        assert_eq!(sum(&path), before, "the base is as it was");
        let top = fs::metadata(scratch.path().join("top.img")).unwrap();
        assert_eq!(top.len(), 8 * MIB as u64);
        assert!(
            top.blocks() * 512 < MIB as u64,
            "the top holds what was written"
        );
    }
}

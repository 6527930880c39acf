//! Promise: an unmodified Debian kernel runs as a partition, with a disk it can write, entropy and
//! a console, and what it wrote is whole after a clean shutdown.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    /// Runs from the initial RAM disk: drivers, then the real root.
    const EARLY_INIT: &str = "#!/bin/busybox sh
busybox mkdir -p /proc /dev /root
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do busybox insmod \"/modules/$module\"; done </modules/load-order
busybox mount -t ext4 /dev/vda /root || busybox echo 'no root'
busybox mount --move /dev /root/dev
exec busybox switch_root /root /init
";

    /// Runs from the ext4 root.
    const INIT: &str = "#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox uname -a
busybox grep ' / ' /proc/mounts
busybox cat /before
busybox echo 'written by the guest' >/after
busybox dd if=/dev/hwrng of=/random bs=1 count=32
busybox echo 'through the virtio console' >/dev/hvc0
busybox sleep 1
busybox sync
busybox mount -o remount,ro /
busybox poweroff -f
";

    fn run(command: &mut Command) -> String {
        let output = command.output().expect("the lab has this tool");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {text}");
        text
    }

    fn busybox(tree: &Path) {
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    }

    fn script(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn disk(scratch: &Scratch) -> PathBuf {
        let tree = scratch.path().join("root");
        busybox(&tree);
        for dir in ["dev", "proc"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        fs::write(tree.join("before"), "written by the host\n").unwrap();
        script(&tree.join("init"), INIT);
        let image = scratch.path().join("disk.img");
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&tree)
            .arg(&image)
            .arg("32M"));
        image
    }

    fn initrd(scratch: &Scratch, bulkhead: &Bulkhead) -> PathBuf {
        let tree = scratch.path().join("early");
        busybox(&tree);
        script(&tree.join("init"), EARLY_INIT);
        fs::create_dir_all(tree.join("modules")).unwrap();
        for entry in fs::read_dir(bulkhead.library("linux/modules")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), tree.join("modules").join(entry.file_name())).unwrap();
        }
        let archive = scratch.path().join("initrd.cpio");
        run(Command::new("sh")
            .args(["-c", "find . | cpio -o -H newc >../initrd.cpio"])
            .current_dir(&tree));
        archive
    }

    #[test]
    fn the_stock_kernel_writes_an_ext4_root_that_stays_whole() {
        let bulkhead = Bulkhead::built();
        let scratch = Scratch::new();
        let disk = disk(&scratch);
        initrd(&scratch, &bulkhead);
        let manifest = scratch.file(
            "system.toml",
            r#"
                name = "debian"
                [[partition]]
                name = "debian"
                kernel = "linux"
                image = "@linux/vmlinuz"
                initrd = "initrd.cpio"
                cmdline = "console=ttyS0 quiet panic=-1 reboot=k"
                memory = "256MiB"
                grants = ["console", "entropy", "time", { capability = "block.write", path = "disk.img" }]
            "#,
        );
        let before = Census::take();
        let ended = bulkhead.run(["up".as_ref(), manifest.as_os_str()]);
        ended
            .expect_status(0)
            .expect_stdout("Linux")
            .expect_stdout("/dev/vda / ext4")
            .expect_stdout("written by the host")
            .expect_stdout("through the virtio console");
        before.expect_nothing_new();
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&disk));
        let cat = |file: &str| {
            let request = format!("cat {file}");
            run(Command::new("debugfs").args(["-R", &request]).arg(&disk))
        };
        assert!(cat("/after").contains("written by the guest"));
        let state = run(Command::new("debugfs").args(["-R", "stats"]).arg(&disk));
        assert!(
            state.lines().any(|line| {
                line.starts_with("Filesystem state:") && line.trim_end().ends_with("clean")
            }),
            "{state}"
        );
        run(Command::new("debugfs")
            .args(["-R", "dump /random random"])
            .arg(&disk)
            .current_dir(scratch.path()));
        let random = fs::read(scratch.path().join("random")).unwrap();
        assert_eq!(random.len(), 32);
        assert!(random.iter().any(|byte| *byte != random[0]), "{random:?}");
    }

    #[test]
    fn a_command_under_the_stock_kernel_returns_its_status() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let manifest = scratch.file(
            "system.toml",
            r#"
                name = "one"
                [[partition]]
                name = "one"
                kernel = "linux"
                image = "@linux/vmlinuz"
                command = ["/bin/busybox", "sh", "-c", "busybox uname -r; exit 9"]
                grants = ["console"]
                [[partition.mounts]]
                source = "/bin/busybox"
                target = "/bin/busybox"
            "#,
        );
        let ended = bulkhead.run(["up".as_ref(), manifest.as_os_str()]);
        ended.expect_status(9).expect_stdout("cloud-amd64");
        before.expect_nothing_new();
    }

    /// The kernel inside a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`,
    /// `payload_offset`, `payload_length`), which Debian's cloud kernel holds as a legacy LZ4 frame:
    /// a magic number, then blocks of 8 MiB, each behind its packed length.
    fn vmlinux(bulkhead: &Bulkhead) -> Vec<u8> {
        let image = fs::read(bulkhead.library("linux/vmlinuz")).unwrap();
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248);
        assert_eq!(
            word(start),
            0x184c_2102,
            "the kernel is packed in another way"
        );
        // Behind the frame stands its unpacked size.
        let end = start + word(0x24c) - 4;
        let mut at = start + 4;
        let mut vmlinux = Vec::new();
        while at < end {
            let block = &image[at + 4..at + 4 + word(at)];
            vmlinux.extend(lz4_flex::block::decompress(block, 8 << 20).unwrap());
            at += 4 + block.len();
        }
        assert_eq!(vmlinux.len(), word(end));
        vmlinux
    }

    /// The header of the note that names the PVH entry: sizes of name and value, type 18, `Xen`.
    fn pvh_note(vmlinux: &[u8]) -> usize {
        let is_note = |at: &usize| {
            let header = &vmlinux[*at..*at + 16];
            header[..4] == [4, 0, 0, 0]
                && matches!(header[4..8], [4 | 8, 0, 0, 0])
                && header[8..] == *b"\x12\0\0\0Xen\0"
        };
        (0..vmlinux.len() - 16)
            .step_by(4)
            .find(is_note)
            .expect("the stock kernel has a PVH entry")
    }

    fn loader_type(bulkhead: &Bulkhead, image: &Path) -> String {
        let before = Census::take();
        let ended = bulkhead.run([
            "run".as_ref(),
            "--kernel".as_ref(),
            "linux".as_ref(),
            "--image".as_ref(),
            image.as_os_str(),
            "--".as_ref(),
            "busybox".as_ref(),
            "cat".as_ref(),
            "/proc/sys/kernel/bootloader_type".as_ref(),
        ]);
        before.expect_nothing_new();
        let ended = ended.expect_status(0);
        ended.stdout().trim().to_owned()
    }

    #[test]
    fn a_vmlinux_is_entered_by_pvh_or_the_64_bit_protocol() {
        let bulkhead = Bulkhead::built();
        let scratch = Scratch::new();
        let mut kernel = vmlinux(&bulkhead);
        let image = scratch.file("with-note", &kernel);
        // What Linux itself notes when PVH starts it (arch/x86/platform/pvh/enlighten.c).
        assert_eq!(loader_type(&bulkhead, &image), "176");
        let note = pvh_note(&kernel);
        kernel[note + 8] = 0xff;
        let image = scratch.file("without-note", &kernel);
        assert_eq!(loader_type(&bulkhead, &image), "255");
    }
}

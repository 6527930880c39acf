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
}

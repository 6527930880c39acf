//! Promise: an unmodified Debian lives in a partition as in any virtual machine: it comes up whole, is
//! reached by ssh, installs packages, keeps its data, takes devices and memory as they come and go,
//! and reboots.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::{self, File};
    use std::io::{Write, stderr};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::debian::{self, Chroot};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    /// How often a disk is plugged and unplugged.
    const PLUGS: usize = 50;
    /// Until something in the guest has happened: it only keeps a hang from stopping the suite.
    const PATIENCE: Duration = Duration::from_secs(900);

    /// Kernel arguments: what Debian's own boot loader would pass, and memory that is used as it
    /// comes, in a way that lets it go again.
    const CMDLINE: &str =
        "console=ttyS0 quiet root=/dev/vda rw panic=-1 memhp_default_state=online_movable";

    /// A Debian that runs, and how to talk to it.
    struct Guest<'a> {
        bulkhead: &'a Bulkhead,
        chroot: &'a Chroot,
        scratch: &'a Scratch,
    }

    impl Guest<'_> {
        /// Runs `script` in the guest as root; its output, if it could be run and succeeded.
        fn try_run(&self, script: &str) -> Result<String, String> {
            let output = (self.chroot.command("ssh"))
                .args([
                    "-p",
                    "2222",
                    "-o",
                    "BatchMode=yes",
                    "-o",
                    "ConnectTimeout=20",
                ])
                .args([
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                ])
                .args(["-o", "LogLevel=ERROR", "root@127.0.0.1", script])
                .stdin(Stdio::null())
                .output()
                .expect("the root filesystem has ssh");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match output.status.success() {
                true => Ok(text),
                false => Err(text + &String::from_utf8_lossy(&output.stderr)),
            }
        }

        #[track_caller]
        fn run(&self, script: &str) -> String {
            let outcome = self.try_run(script);
            outcome.unwrap_or_else(|error| panic!("{script}\n{error}\n{}", self.logs()))
        }

        /// Runs `script` until it succeeds.
        #[track_caller]
        fn until(&self, script: &str) -> String {
            let end = Instant::now() + PATIENCE;
            loop {
                match self.try_run(script) {
                    Ok(text) => return text,
                    Err(error) => {
                        let logs = self.logs();
                        let alive = !logs.contains("Kernel panic") && Instant::now() < end;
                        assert!(alive, "never succeeded: {script}\n{error}\n{logs}");
                    }
                }
                thread::sleep(Duration::from_millis(200));
            }
        }

        fn logs(&self) -> String {
            self.bulkhead.run(["logs", "debian/debian"]).stdout()
        }

        #[track_caller]
        fn control(&self, words: &[&str]) -> String {
            self.bulkhead.run(words).expect_status(0).stdout()
        }
    }

    impl Drop for Guest<'_> {
        fn drop(&mut self) {
            // A test that fails leaves nothing running that the next would find.
            if thread::panicking() {
                let _ = self.bulkhead.command(["down", "--all"]).status();
            }
        }
    }

    /// A service of the host that ends with the test.
    struct Service(Child);

    impl Drop for Service {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A repository with one package, and a web server for it on the host's loopback.
    fn mirror(scratch: &Scratch, chroot: &Chroot) -> Service {
        let tree = chroot.shared().join("package");
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        fs::create_dir_all(tree.join("opt")).unwrap();
        fs::write(tree.join("opt/parcel"), "delivered\n").unwrap();
        let control = "Package: parcel\nVersion: 1\nArchitecture: all\n\
                       Maintainer: nobody <nobody@localhost>\nDescription: a file\n";
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let repository = scratch.path().join("repository");
        fs::create_dir_all(&repository).unwrap();
        chroot.run("dpkg-deb", &["--build", "/mnt/package", "/mnt/parcel.deb"]);
        let package = repository.join("parcel.deb");
        fs::copy(chroot.shared().join("parcel.deb"), &package).unwrap();
        let sum = chroot.run("sha256sum", &["/mnt/parcel.deb"]);
        let sum = sum.split(' ').next().unwrap();
        let size = fs::metadata(&package).unwrap().len();
        let entry = format!("{control}Filename: ./parcel.deb\nSize: {size}\nSHA256: {sum}\n\n");
        fs::write(repository.join("Packages"), entry).unwrap();
        let server = Command::new("busybox")
            .args(["httpd", "-f", "-p", "127.0.0.1:8080", "-h"])
            .arg(&repository)
            .spawn();
        Service(server.unwrap())
    }

    fn disk(path: &Path, mib: u64) {
        File::create_new(path).unwrap().set_len(mib << 20).unwrap();
    }

    fn manifest(scratch: &Scratch, transport: &str) -> std::path::PathBuf {
        let (kernel, initrd) = (
            debian::boot_file("vmlinuz"),
            debian::boot_file("initrd.img"),
        );
        let root = debian::ROOT;
        scratch.file(
            "system.toml",
            format!(
                r#"
                name = "debian"
                [[partition]]
                name = "debian"
                kernel = "linux"
                image = "{}"
                initrd = "{}"
                cmdline = "{CMDLINE}"
                transport = "{transport}"
                memory = {{ size = "512MiB", max = "1GiB" }}
                vcpus = 2
                grants = [
                    "console", "entropy", "time", "vsock",
                    {{ capability = "block.write:{root}", overlay = "top.img", name = "root" }},
                    {{ capability = "block.write:data.img", name = "data", queues = 2 }},
                    {{ capability = "fs.write:share", tag = "share" }},
                    "net.listen:127.0.0.1:2222=22", "net.loopback:tcp:8080", "net.loopback:tcp:5201",
                ]
                "#,
                kernel.display(),
                initrd.display(),
            ),
        )
    }

    #[test]
    fn a_distribution_lives_in_a_partition() {
        lives("pci", |guest, stage| {
            stage("comes up whole");
            comes_up_whole(guest);
            let devices = guest.run("lspci -n; cat /proc/interrupts");
            assert!(
                devices.contains("1af4:1042") && devices.contains("MSI"),
                "{devices}"
            );
            stage("installs a package");
            installs_a_package(guest);
            stage("verifies its disk");
            verifies_its_disk(guest);
            stage("measures its network");
            measures_its_network(guest);
            stage("shares a directory");
            shares_a_directory(guest);
            stage("takes disks as they come and go");
            takes_disks_as_they_come_and_go(guest);
            stage("takes memory as it comes and goes");
            takes_memory_as_it_comes_and_goes(guest);
            stage("reboots");
            reboots(guest);
        });
    }

    #[test]
    fn a_distribution_lives_without_pci_as_well() {
        lives("mmio", |guest, stage| {
            stage("comes up whole");
            comes_up_whole(guest);
            let devices = guest.run("lspci -n; ls /sys/bus/platform/drivers/virtio-mmio");
            assert!(
                devices.contains("LNRO0005") && !devices.contains("1af4:"),
                "{devices}"
            );
            stage("installs a package");
            installs_a_package(guest);
            stage("verifies its disk");
            verifies_its_disk(guest);
            stage("shares a directory");
            shares_a_directory(guest);
        });
    }

    /// Boots the distribution, has `life` happen to it, and lets it power off.
    fn lives(transport: &str, life: impl FnOnce(&Guest<'_>, &dyn Fn(&str))) {
        let bulkhead = Bulkhead::built();
        let scratch = Scratch::new();
        let chroot = Chroot::new(&scratch);
        let mirror = mirror(&scratch, &chroot);
        disk(&scratch.path().join("data.img"), 16);
        fs::create_dir(scratch.path().join("share")).unwrap();
        let before = Census::take();
        let manifest = manifest(&scratch, transport);
        bulkhead
            .run(["up".as_ref(), "--detach".as_ref(), manifest.as_os_str()])
            .expect_status(0);
        let guest = Guest {
            bulkhead: &bulkhead,
            chroot: &chroot,
            scratch: &scratch,
        };

        // Written past the harness, so that one sees how far it came when time is up.
        let since = Instant::now();
        let stage = |name: &str| {
            let seconds = since.elapsed().as_secs();
            let _ = writeln!(stderr(), "debian: {transport}: {name}, after {seconds} s");
        };
        stage("boots");
        guest.until("true");
        life(&guest, &stage);

        stage("powers off");
        // The connection may end before its command has.
        let _ = guest.try_run("systemctl poweroff");
        let end = Instant::now() + PATIENCE;
        while guest.control(&["ps"]).contains("running") {
            assert!(
                Instant::now() < end,
                "it does not power off\n{}",
                guest.logs()
            );
            thread::sleep(Duration::from_millis(200));
        }
        guest.control(&["down", "debian"]);
        drop(mirror);
        before.expect_nothing_new();
    }

    fn comes_up_whole(guest: &Guest<'_>) {
        let state = guest.try_run("systemctl is-system-running --wait");
        let failed = || guest.run("systemctl --failed --no-legend --no-pager");
        assert_eq!(
            state.as_deref().map(str::trim),
            Ok("running"),
            "{}",
            failed()
        );
        assert_eq!(guest.run("nproc").trim(), "2");
    }

    fn installs_a_package(guest: &Guest<'_>) {
        guest.run(
            "echo 'deb [trusted=yes allow-insecure=yes] http://10.0.2.2:8080/ ./' \
             >/etc/apt/sources.list && rm -f /etc/apt/sources.list.d/* && apt-get update && \
             apt-get install -y parcel",
        );
        assert_eq!(guest.run("cat /opt/parcel"), "delivered\n");
    }

    fn verifies_its_disk(guest: &Guest<'_>) {
        let output = guest.run(
            "fio --name=crc --filename=/dev/disk/by-id/virtio-data --rw=randwrite --bs=4k --size=8m \
             --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1",
        );
        assert!(output.contains("err= 0"), "{output}");
        assert_eq!(guest.run("ls /sys/block/vdb/mq | wc -l").trim(), "2");
    }

    fn measures_its_network(guest: &Guest<'_>) {
        let server = (guest.chroot)
            .command("iperf3")
            .args(["-s", "-B", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn();
        let server = Service(server.unwrap());
        for direction in ["", "--reverse"] {
            let figures = guest.until(&format!("iperf3 -c 10.0.2.2 -t 2 -f m {direction}"));
            let last = figures.lines().rfind(|line| line.contains("receiver"));
            println!("iperf3 {direction}: {}", last.unwrap_or(&figures));
        }
        drop(server);
    }

    fn shares_a_directory(guest: &Guest<'_>) {
        let share = (guest.scratch).path().join("share");
        fs::write(share.join("from-host"), "hello guest\n").unwrap();
        let read = guest.run(
            "mount -t virtiofs share /mnt && cat /mnt/from-host && echo 'hello host' >/mnt/from-guest && \
             umount /mnt",
        );
        assert_eq!(read, "hello guest\n");
        assert_eq!(
            fs::read_to_string(share.join("from-guest")).unwrap(),
            "hello host\n"
        );
    }

    fn takes_disks_as_they_come_and_go(guest: &Guest<'_>) {
        let path = (guest.scratch).path().join("plug.img");
        disk(&path, 4);
        // Its letter is another one while udev still has the device open that went before it.
        let disks = |count: usize| format!("test $(ls /sys/block | grep -c ^vd) -eq {count}");
        for round in 0..PLUGS {
            let disk = path.display().to_string();
            let name = guest.control(&["attach", "debian/debian", "--disk", &disk]);
            // Every tenth is waited for; the others may be gone before a driver has found them.
            if round % 10 == 0 {
                guest.until(&disks(3));
            }
            guest.control(&["detach", "debian/debian", name.trim()]);
        }
        guest.until(&disks(2));
    }

    fn takes_memory_as_it_comes_and_goes(guest: &Guest<'_>) {
        let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
        let first: u64 = guest.run(total).trim().parse().unwrap();
        guest.control(&["resize", "debian/debian", "--memory", "1GiB"]);
        guest.until(&format!("test $({total}) -gt {}", first + 400));
        guest.control(&["resize", "debian/debian", "--memory", "512MiB"]);
        guest.until(&format!("test $({total}) -lt {}", first + 100));
    }

    fn reboots(guest: &Guest<'_>) {
        let boot = guest.run("cat /proc/sys/kernel/random/boot_id");
        let _ = guest.try_run("systemctl reboot");
        guest.until(&format!(
            "test $(cat /proc/sys/kernel/random/boot_id) != {}",
            boot.trim()
        ));
        assert_eq!(guest.run("cat /opt/parcel"), "delivered\n");
    }
}

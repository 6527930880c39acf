//! Promise: what a Linux guest does not use of its memory, its host gets back, and what it is given
//! later, it can use; and a guest that crashed or hangs is known to have done so.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::{self, File};
    use std::process::Command as Process;

    use bulkhead_machine::Transport;
    use bulkhead_machine::control::{Command, Ended, Event, Reply, Resize};
    use bulkhead_machine::device::{Balloon, Device, DeviceKind, Pmem};
    use bulkhead_machine::{Boot, MachineDescription};
    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::initrd;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::vmm::{Inherited, Vmm};

    fn balloon(free_page_reporting: bool) -> Device {
        Device {
            name: "balloon".into(),
            kind: DeviceKind::Balloon(Balloon {
                target_mib: 0,
                deflate_on_oom: true,
                free_page_reporting,
            }),
        }
    }

    /// Fills 120 MiB and frees them.
    const USE: &str = "mount -t tmpfs none /mnt; \
        dd if=/dev/zero of=/mnt/x bs=1M count=120 2>/dev/null; echo filled; rm /mnt/x; echo freed";

    /// A PC whose PID 1 loads every driver and runs `script`.
    fn linux(script: &str, change: impl FnOnce(&mut MachineDescription, &mut Inherited)) -> Vmm {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let install = "/bin/busybox --install -s /bin; mkdir -p /mnt";
        let init = format!("{}{install}\n{script}\npoweroff -f\n", initrd::PROLOGUE);
        let initrd = initrd::pack(&bulkhead, &scratch, &init);
        Vmm::linux(&bulkhead, &initrd, |description, fds| {
            if let Boot::Linux { cmdline, .. } = &mut description.boot {
                *cmdline += " memhp_default_state=online_movable";
            }
            change(description, fds);
        })
    }

    fn start(script: &str, transport: Transport, device: Device) -> Vmm {
        linux(script, |d, _| {
            d.transport = transport;
            d.memory.shared = transport == Transport::Pci;
            d.devices.push(device);
        })
    }

    /// Private memory and a file of memory are given back in different ways.
    fn inflates_and_deflates(transport: Transport) {
        let script = format!("{USE}; while sleep 1; do grep MemFree /proc/meminfo; done");
        let mut vmm = start(&script, transport, balloon(false));
        vmm.wait_for("freed");
        let full = vmm.resident_mib();
        assert!(full > 120, "{full}");
        let target_mib = 256;
        let refused = vmm.request(Command::Resize(Resize::Balloon { target_mib }), &[]);
        assert!(matches!(refused, Reply::Refused { .. }), "{refused:?}");
        vmm.demand(Command::Resize(Resize::Balloon { target_mib: 140 }));
        vmm.wait_until("the balloon is inflated", |vmm| {
            vmm.counter("balloon", "actual-bytes") == 140 << 20
        });
        let lean = vmm.resident_mib();
        assert!(lean + 90 < full, "{full} MiB before, {lean} after");
        vmm.demand(Command::Resize(Resize::Balloon { target_mib: 0 }));
        vmm.wait_until("the balloon is deflated", |vmm| {
            vmm.counter("balloon", "actual-bytes") == 0
        });
        vmm.wait_until("the guest has told how it fares", |vmm| {
            vmm.counter("balloon", "guest-free-bytes") > 100 << 20
        });
        assert!(vmm.counter("balloon", "guest-total-bytes") > 150 << 20);
        assert_eq!(vmm.counter("balloon", "refused-ranges"), 0);
    }

    #[test]
    fn a_balloon_gives_private_memory_back() {
        inflates_and_deflates(Transport::Mmio);
    }

    #[test]
    fn a_balloon_gives_shared_memory_back() {
        inflates_and_deflates(Transport::Pci);
    }

    #[test]
    fn freed_memory_goes_back_by_itself() {
        let script = format!("{USE}; sleep 1000");
        let mut vmm = start(&script, Transport::Mmio, balloon(true));
        vmm.wait_for("filled");
        let full = vmm.resident_mib();
        assert!(full > 120, "{full}");
        vmm.wait_until("free pages are reported", |vmm| {
            vmm.resident_mib() + 60 < full
        });
        assert!(vmm.counter("balloon", "reported-bytes") > 60 << 20);
    }

    #[test]
    fn memory_grows_and_shrinks() {
        let script = "while sleep 1; do \
            awk '/MemTotal/ { print \"total\", int($2 / 1024) \"M\" }' /proc/meminfo; \
            test -e /full && continue; \
            if test $(awk '/MemFree/ { print $2 }' /proc/meminfo) -gt 400000; then \
                mount -t tmpfs -o size=90% none /mnt; \
                dd if=/dev/zero of=/mnt/x bs=1M count=350 2>/dev/null && echo used 350; \
                rm /mnt/x; touch /full; \
            fi; done";
        let mut vmm = linux(script, |d, _| {
            d.memory.pluggable_mib = 384;
        });
        vmm.wait_for("total");
        for (pluggable_mib, code) in [(385, "resize-out-of-range"), (512, "resize-out-of-range")] {
            match vmm.request(Command::Resize(Resize::Memory { pluggable_mib }), &[]) {
                Reply::Refused { code: got, .. } => assert_eq!(got, code),
                other => panic!("{other:?}"),
            }
        }
        let lean = vmm.resident_mib();
        vmm.demand(Command::Resize(Resize::Memory { pluggable_mib: 384 }));
        vmm.wait_until("memory has grown", |vmm| {
            vmm.counter("memory", "plugged-bytes") == 384 << 20
        });
        vmm.wait_for("used 350");
        let full = vmm.resident_mib();
        assert!(full > lean + 200, "{lean} MiB before, {full} after");
        vmm.demand(Command::Resize(Resize::Memory { pluggable_mib: 0 }));
        vmm.wait_until("memory has shrunk", |vmm| {
            vmm.counter("memory", "plugged-bytes") == 0
        });
        let lean = vmm.resident_mib();
        assert!(lean + 150 < full, "{full} MiB before, {lean} after");
        assert_eq!(vmm.counter("memory", "refused-requests"), 0);
    }

    #[test]
    fn a_file_is_a_disk_without_a_cache() {
        let scratch = Scratch::new();
        let tree = scratch.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("before"), "written by the host\n").unwrap();
        let image = scratch.path().join("pmem.img");
        let made = Process::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
            .arg(&tree)
            .arg(&image)
            .arg("64M")
            .status();
        assert!(made.unwrap().success());
        let script = "cat /proc/iomem | grep -i persistent; mkdir -p /mnt; \
            mount -t ext4 -o dax /dev/pmem0 /mnt && cat /mnt/before; \
            grep /mnt /proc/mounts; echo 'written by the guest' >/mnt/after; sync; \
            umount /mnt; head -c 4 /dev/pmem1; echo; \
            echo gone >/dev/pmem1; sync; echo 3 >/proc/sys/vm/drop_caches; \
            head -c 4 /dev/pmem1; echo ' is what it was'; ";
        let read_only = scratch.path().join("read-only.img");
        fs::write(&read_only, b"same").unwrap();
        let file = File::options().write(true).open(&read_only).unwrap();
        file.set_len(4 << 20).unwrap();
        drop(file);
        let mut vmm = linux(script, |d, fds| {
            for (path, read_only) in [(&image, false), (&read_only, true)] {
                let file = File::options().read(true).write(!read_only).open(path);
                d.devices.push(Device {
                    name: format!("pmem{}", d.devices.len()),
                    kind: DeviceKind::Pmem(Pmem {
                        file: fds.pass(file.unwrap()),
                        read_only,
                    }),
                });
            }
        });
        vmm.wait_for("written by the host");
        vmm.wait_for("dax");
        vmm.wait_for("same is what it was");
        assert_eq!(
            vmm.event(),
            Event::Ended {
                how: Ended::PowerOff,
            }
        );
        let check = Process::new("/sbin/e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .status();
        assert!(check.unwrap().success());
        let after = Process::new("/sbin/debugfs")
            .args(["-R", "cat /after"])
            .arg(&image)
            .output();
        assert_eq!(after.unwrap().stdout, b"written by the guest\n");
        assert_eq!(fs::read(&read_only).unwrap()[..5], *b"same\0");
    }

    #[test]
    fn a_crash_of_the_kernel_is_told() {
        let script = "echo c >/proc/sysrq-trigger; sleep 1000";
        let mut vmm = linux(script, |_, _| {});
        assert_eq!(vmm.event(), Event::GuestPanicked);
        assert_eq!(vmm.event(), Event::Ended { how: Ended::Reset });
    }

    #[test]
    fn a_guest_that_hangs_is_ended() {
        let script = "ls /sys/bus/acpi/devices; watchdog -T 5 -t 1 /dev/watchdog0; sleep 8; \
            echo fed; kill -STOP $(pidof watchdog); sleep 1000";
        let mut vmm = linux(script, |d, _| {
            d.watchdog = true;
        });
        vmm.wait_for("QEMUVGID:00");
        vmm.wait_for("fed");
        assert_eq!(vmm.event(), Event::WatchdogExpired);
        assert_eq!(
            vmm.event(),
            Event::Ended {
                how: Ended::Watchdog,
            }
        );
    }
}

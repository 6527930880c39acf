//! Promise: a stock kernel finds its devices on a PCI bus, is interrupted by messages, and has disks
//! plugged in and unplugged while it runs.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use bulkhead_machine::Transport;
    use bulkhead_machine::control::{Command, Ended, Event, Reply};
    use bulkhead_machine::device::{Block, Device, DeviceKind, RateLimit};
    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::initrd;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::vmm::Vmm;

    /// Times a disk comes and goes.
    const ROUNDS: usize = 50;

    /// Lists what is there as lspci does, uses it, then waits for disks.
    const INIT: &str = "
cd /sys/bus/pci/devices
for d in *; do echo \"$d $(busybox cat $d/vendor $d/device $d/class | busybox tr '\\n' ' ')\"; done
busybox ls /sys/bus/pci/slots | busybox tr '\\n' ' '; echo slots
busybox head -c 8 /dev/vda; echo
busybox head -c 16 /dev/hwrng | busybox wc -c
echo 'through hvc0' >/dev/hvc0
busybox grep virtio /proc/interrupts
echo ready
round=0
while [ $round -lt ROUNDS ]; do
    while ! [ -b /dev/vdb ]; do busybox usleep 10000; done
    echo \"seen $(busybox head -c 8 /dev/vdb)\"
    while [ -b /dev/vdb ]; do busybox usleep 10000; done
    echo gone
    round=$((round + 1))
done
while [ $(busybox ls /sys/bus/pci/devices | busybox wc -l) -ne 4 ]; do busybox usleep 10000; done
echo all gone
busybox poweroff -f
";

    fn disk(name: &str, scratch: &Scratch, content: &str) -> (File, Block) {
        let path = scratch.path().join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let mut file = options.open(path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_len(1 << 20).unwrap();
        let block = Block {
            file: bulkhead_machine::Fd(0),
            read_only: false,
            direct: false,
            overlay: None,
            queues: 1,
            rate: RateLimit::default(),
        };
        (file, block)
    }

    fn device(name: &str, block: Block) -> Device {
        Device {
            name: name.into(),
            kind: DeviceKind::Block(block),
        }
    }

    /// Interrupts that a line of `/proc/interrupts` counts, over all CPUs.
    fn count(line: &str) -> u64 {
        let counts = line.split_whitespace().skip(1);
        counts.map_while(|word| word.parse::<u64>().ok()).sum()
    }

    #[test]
    fn devices_are_found_interrupt_by_messages_and_come_and_go() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let init = initrd::PROLOGUE.to_owned() + &INIT.replace("ROUNDS", &ROUNDS.to_string());
        let archive = initrd::pack(&bulkhead, &scratch, &init);
        let (root, mut block) = disk("root", &scratch, "at boot\n");
        let mut vmm = Vmm::linux(&bulkhead, &archive, |description, fds| {
            description.transport = Transport::Pci;
            description.entropy = true;
            description.vcpus = 2;
            block.file = fds.pass(&root);
            description.devices.push(device("root", block));
        });
        for line in [
            "0000:00:00.0 0x1b36 0x0008 0x060000",
            "0000:00:01.0 0x1af4 0x1043 0x078000",
            "0000:00:02.0 0x1af4 0x1044 0xff0000",
            "0000:00:03.0 0x1af4 0x1042 0x018000",
        ] {
            vmm.wait_for(line);
        }
        assert_eq!(vmm.wait_for("slots").split_whitespace().count(), 31 + 1);
        vmm.wait_for("at boot");
        vmm.wait_for("16");
        vmm.wait_for("ready");
        assert!(vmm.said().contains("through hvc0"), "{}", vmm.said());
        let interrupts: Vec<_> = vmm.said().lines().filter(|l| l.contains("MSI")).collect();
        for name in ["req.0", "virtio1-input", "virtio0-output"] {
            let line = interrupts.iter().find(|line| line.contains(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in {interrupts:?}"));
            assert!(count(line) > 0 || name.ends_with("output"), "{line}");
        }
        for round in 0..ROUNDS {
            let content = format!("disk{round:03}\n");
            let (file, block) = disk("plugged", &scratch, &content);
            let attach = Command::Attach {
                device: device("plugged", block),
            };
            assert_eq!(vmm.request(attach, &[file.as_fd()]), Reply::Done);
            assert!(vmm.wait_for("seen").contains(content.trim()));
            let name = "plugged".into();
            assert_eq!(vmm.request(Command::Detach { name }, &[]), Reply::Done);
            vmm.wait_for("gone");
        }
        vmm.wait_for("all gone");
        let how = Ended::PowerOff;
        assert_eq!(vmm.event(), Event::Ended { how });
        drop(vmm);
        before.expect_nothing_new();
    }
}

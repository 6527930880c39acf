//! Every rule of the manifest, through the front door.

use crate::{Code, DeviceKind, Kernel, LinuxBoot, Owner, Source, parse};
use bulkhead_machine::device::TokenBucket;
use std::path::Path;

const MINIMAL: &str = r#"
name = "demo"
[[partition]]
name = "web"
kernel = "linux-abi"
command = ["/bin/hello", "x"]
"#;

fn refused(text: &str) -> Vec<(Code, usize, usize, String)> {
    let rejected = parse(text.as_bytes(), Path::new("dir/system.toml")).unwrap_err();
    let place = |d: &crate::Diagnostic| d.place.as_ref().map_or((0, 0), |p| (p.line, p.column));
    let list = rejected.diagnostics.iter();
    list.map(|d| (d.code, place(d).0, place(d).1, d.message.clone()))
        .collect()
}

fn codes(text: &str) -> Vec<Code> {
    refused(text).into_iter().map(|refusal| refusal.0).collect()
}

fn with(lines: &str) -> String {
    format!("{MINIMAL}{lines}\n")
}

#[test]
fn a_whole_system_of_three_kinds() {
    let text = r#"
        name = "hello"
        [[partition]]
        name = "native"
        kernel = "native"
        memory = "16MiB"
        vcpus = 2
        program = "@examples/hello-native"
        args = ["world"]
        grants = ["console", "time", { capability = "block.read", path = "disk.img" }]
        [[partition]]
        name = "linux-abi"
        kernel = "linux-abi"
        command = ["/bin/hello", "x"]
        env = { B = "2", A = "b" }
        trace_syscalls = true
        [[partition.mounts]]
        source = "@examples/hello-linux-abi"
        target = "/bin/hello"
        [[partition.mounts]]
        source = "data"
        target = "/srv/"
        [[partition]]
        name = "debian"
        kernel = "linux"
        command = ["/bin/busybox", "uname", "-a"]
        [[partition]]
        name = "own"
        kernel = "linux"
        image = "/boot/vmlinuz"
        initrd = "initrd.img"
        cmdline = "quiet"
    "#;
    let system = parse(text.as_bytes(), Path::new("/srv/demo/system.toml")).unwrap();
    assert_eq!(system.name, "hello");
    let [native, abi, debian, own] = system.partitions.as_slice() else {
        panic!("four")
    };
    assert_eq!((native.memory.mib, native.vcpus), (16, 2));
    let grants: Vec<String> = native.grants.iter().map(ToString::to_string).collect();
    assert_eq!(grants, ["console", "time", "block.read:/srv/demo/disk.img"]);
    let Kernel::LinuxAbi {
        program,
        trace_syscalls: true,
    } = &abi.kernel
    else {
        panic!("abi")
    };
    assert_eq!(program.env, ["A=b", "B=2"]);
    assert_eq!(
        program.mounts[1].source,
        Source::Host("/srv/demo/data".into())
    );
    assert_eq!(program.mounts[1].target.as_str(), "/srv");
    assert!(
        abi.grants.iter().next().is_none(),
        "nothing is granted by default"
    );
    let Kernel::Linux {
        image,
        boot: LinuxBoot::Command(_),
        cmdline: None,
    } = &debian.kernel
    else {
        panic!("linux")
    };
    assert_eq!(*image, Source::Library("linux/vmlinuz".into()));
    assert!(matches!(
        &own.kernel,
        Kernel::Linux {
            boot: LinuxBoot::Initrd(Some(_)),
            ..
        }
    ));
}

#[test]
fn refusals_name_code_line_and_column() {
    let found = refused(&with("memroy = \"16MiB\""));
    assert_eq!(
        found,
        [(
            Code::UnknownKey,
            7,
            1,
            "unknown key `memroy` in a partition".to_owned()
        )]
    );
    let found = refused(&with("memory = \"10TiB\""));
    assert_eq!((found[0].0, found[0].1, found[0].2), (Code::Memory, 7, 10));
}

#[test]
fn each_rule_has_its_code() {
    let cases: &[(&str, &[Code])] = &[
        ("nonsense = 1", &[Code::UnknownKey]),
        ("memory = 16", &[Code::WrongType]),
        ("memory = { size = 16 }", &[Code::WrongType]),
        ("memory = { siez = \"16MiB\" }", &[Code::UnknownKey]),
        ("memory = { size = \"0MiB\" }", &[Code::Memory]),
        (
            "memory = { size = \"3MiB\", hugepages = true }",
            &[Code::Memory],
        ),
        ("memory = { balloon = 1 }", &[Code::WrongType]),
        (
            "memory = { balloon = { size = \"128MiB\" } }",
            &[Code::Memory],
        ),
        ("memory = { max = \"256MiB\" }", &[Code::KeyNotForKernel]),
        ("cpu = \"v1\"", &[Code::Choice]),
        ("transport = \"pci\"", &[Code::KeyNotForKernel]),
        ("watchdog = true", &[Code::KeyNotForKernel]),
        ("on_reboot = \"end\"", &[Code::KeyNotForKernel]),
        ("autonomy = \"manual\"", &[Code::KeyNotForKernel]),
        ("limits = {}", &[Code::Limits]),
        ("limits = { cpu = \"1.5\" }", &[Code::Limits]),
        ("limits = { cpu = \"0%\" }", &[Code::Limits]),
        ("limits = { memory_overhead = \"1MiB\" }", &[Code::Limits]),
        ("limits = { pids = 2 }", &[Code::Limits]),
        ("limits = { cpus = 1 }", &[Code::Limits, Code::UnknownKey]),
        ("network = {}", &[Code::KeyNotForGrant]),
        ("memory = \"16\"", &[Code::Memory]),
        ("memory = \"1MiB\"", &[Code::Memory]),
        ("memory = \"99999999999999999999GiB\"", &[Code::Memory]),
        ("vcpus = 0", &[Code::Vcpus]),
        ("vcpus = -1", &[Code::Vcpus]),
        ("vcpus = 33", &[Code::Vcpus]),
        ("vcpus = 0x7fffffffffffffff", &[Code::Vcpus]),
        ("vcpus = \"1\"", &[Code::WrongType]),
        ("grants = [\"net.connect\"]", &[Code::Grant]),
        ("grants = [\"block.read\"]", &[Code::Grant]),
        ("grants = [\"console:x\"]", &[Code::Grant]),
        ("grants = [{ path = \"x\" }]", &[Code::MissingKey]),
        (
            "grants = [{ capability = \"block.read\", path = \"x\", y = 1 }]",
            &[Code::UnknownKey],
        ),
        (
            "grants = [\"block.read:x\", \"block.write:x\"]",
            &[Code::DuplicateGrant],
        ),
        ("grants = \"console\"", &[Code::WrongType]),
        ("grants = [1]", &[Code::WrongType]),
        ("program = \"x\"", &[Code::KeyNotForKernel]),
        ("image = \"x\"", &[Code::KeyNotForKernel]),
        ("env = { \"A=\" = \"\" }", &[Code::Command]),
        ("env = { A = 1 }", &[Code::WrongType]),
        ("env = { A = \"a\\u0000b\" }", &[Code::Command]),
        ("root = \"\"", &[Code::Path]),
        ("root = \"@../x\"", &[Code::Path]),
        ("mounts = [{ source = \"a\" }]", &[Code::MissingKey]),
        ("mounts = [{ target = \"/a\" }]", &[Code::MissingKey]),
        (
            "mounts = [{ source = \"a\", target = \"b\" }]",
            &[Code::MountTarget],
        ),
        (
            "mounts = [{ source = \"a\", target = \"/\" }]",
            &[Code::MountTarget],
        ),
        (
            "mounts = [{ source = \"a\", target = \"/proc/x\" }]",
            &[Code::MountTarget],
        ),
        (
            "mounts = [{ source = \"a\", target = \"/a/../b\" }]",
            &[Code::MountTarget],
        ),
        (
            "[[partition]]\nname = \"web\"\nkernel = \"native\"\nprogram = \"x\"",
            &[Code::DuplicateName],
        ),
        ("[[partition]]\nname = \"b\"", &[Code::MissingKey]),
        (
            "[[partition]]\nname = \"B!\"\nkernel = \"native\"\nprogram = \"x\"",
            &[Code::Name],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"windows\"",
            &[Code::Kernel],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"native\"",
            &[Code::MissingKey],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"linux-abi\"",
            &[Code::MissingKey],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"linux-abi\"\ncommand = []",
            &[Code::Command],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"linux\"",
            &[Code::MissingKey],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"linux\"\ncommand = [\"/x\"]\ninitrd = \"y\"",
            &[Code::Boot],
        ),
        (
            "[[partition]]\nname = \"b\"\nkernel = \"linux\"\ncmdline = \"a\\nb\"",
            &[Code::Command],
        ),
        ("= 1", &[Code::Syntax]),
        ("name = \"again", &[Code::Syntax]),
    ];
    for (lines, expected) in cases {
        assert_eq!(codes(&with(lines)), *expected, "{lines}");
    }
}

#[test]
fn a_system_needs_a_name_and_a_partition() {
    assert_eq!(codes(""), [Code::MissingKey, Code::NoPartition]);
    assert_eq!(codes("name = \"x\"\npartition = []"), [Code::NoPartition]);
    assert_eq!(codes("name = \"x\"\npartition = [1]"), [Code::WrongType]);
}

#[test]
fn what_has_the_wrong_type_is_not_said_to_be_absent() {
    assert_eq!(codes("name = 3\n[partition]"), [Code::WrongType; 2]);
    let text = MINIMAL.replace("[\"/bin/hello\", \"x\"]", "\"/bin/hello x\"");
    assert_eq!(codes(&text), [Code::WrongType]);
}

#[test]
fn overlapping_mounts_are_refused_in_either_order() {
    for (a, b) in [
        ("/srv", "/srv"),
        ("/srv", "/srv/data"),
        ("/srv/data", "/srv"),
        ("/a", "/a/"),
    ] {
        let lines = format!(
            "mounts = [{{ source = \"x\", target = \"{a}\" }}, {{ source = \"y\", target = \"{b}\" }}]"
        );
        assert_eq!(codes(&with(&lines)), [Code::OverlappingMount], "{a} {b}");
    }
    let lines =
        "mounts = [{ source = \"x\", target = \"/a\" }, { source = \"y\", target = \"/ab\" }]";
    assert!(parse(with(lines).as_bytes(), Path::new("system.toml")).is_ok());
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_text() {
    let text = with("vcpus = 0\nnonsense = 1\nmemory = \"0MiB\"");
    assert_eq!(codes(&text), [Code::Vcpus, Code::UnknownKey, Code::Memory]);
}

#[test]
fn bulkheads_kernel_has_fewer_cpus_than_the_machine() {
    for (kernel, most) in [
        ("kernel = \"native\"\nprogram = \"x\"", 8),
        ("kernel = \"linux-abi\"\ncommand = [\"/x\"]", 8),
        ("kernel = \"linux\"\ncommand = [\"/x\"]", 32),
    ] {
        let system = |vcpus| {
            let text =
                format!("name = \"s\"\n[[partition]]\nname = \"a\"\n{kernel}\nvcpus = {vcpus}");
            parse(text.as_bytes(), Path::new("system.toml"))
        };
        assert!(system(most).is_ok(), "{kernel}");
        let refused = system(most + 1).unwrap_err();
        assert_eq!(refused.diagnostics[0].code, Code::Vcpus, "{kernel}");
    }
}

#[test]
fn long_commands_and_long_files_are_refused() {
    let long = "x".repeat(40_000);
    assert_eq!(
        codes(&with(&format!("env = {{ A = \"{long}\" }}"))),
        [Code::Command]
    );
    let huge = with(&format!("#{}", "x".repeat(crate::MAX_BYTES)));
    assert_eq!(codes(&huge), [Code::File]);
    let rejected = parse(b"name = \"\xff\"", Path::new("system.toml")).unwrap_err();
    assert_eq!(rejected.diagnostics[0].code, Code::File);
}

#[test]
fn only_keeps_what_it_names() {
    let text = with("[[partition]]\nname = \"b\"\nkernel = \"native\"\nprogram = \"x\"");
    let system = parse(text.as_bytes(), Path::new("system.toml")).unwrap();
    assert_eq!(system.only(&[]).unwrap().partitions.len(), 2);
    assert_eq!(
        system.only(&["b".to_owned()]).unwrap().partitions[0].name,
        "b"
    );
    assert_eq!(
        system.only(&["c".to_owned()]).unwrap_err().known,
        ["web", "b"]
    );
}

/// The codes of a `linux` partition with these grants, two vCPUs and these further lines.
fn grant_codes(grants: &str, lines: &str) -> Vec<Code> {
    codes(&linux(grants, lines))
}

fn linux(grants: &str, lines: &str) -> String {
    format!(
        "name = \"s\"\n[[partition]]\nname = \"p\"\nkernel = \"linux\"\ncommand = [\"/x\"]\n\
         vcpus = 2\ngrants = [{grants}]\n{lines}\n"
    )
}

#[test]
fn each_rule_of_a_grant_has_its_code() {
    use Code::{
        Choice, Device, DuplicateGrant, Grant, KeyNotForGrant, Memory, Path, Rate, Share,
        UnknownKey, WrongType,
    };
    let cases: &[(&str, &[Code])] = &[
        ("\"net.connect:x\"", &[Grant]),
        ("\"net.connect:tcp:a.org:0\"", &[Grant]),
        ("\"net.listen:localhost:80\"", &[Grant]),
        ("\"net.loopback:sctp:1\"", &[Grant]),
        ("\"net.tap:a/b\"", &[Grant]),
        ("\"net.tap:t\", \"net.tap:t\"", &[DuplicateGrant]),
        (
            "\"net.listen:80\", \"net.listen:80=8080\"",
            &[DuplicateGrant],
        ),
        (
            "{ capability = \"net.connect:a.org:80\", path = \"x\" }",
            &[Grant],
        ),
        ("{ capability = \"block.read:x\", path = \"x\" }", &[Grant]),
        ("{ capability = \"console\", path = \"x\" }", &[Grant]),
        ("\"block.read:a\\u0000\"", &[Path]),
        (
            "{ capability = \"console\", name = \"x\" }",
            &[KeyNotForGrant],
        ),
        (
            "{ capability = \"net.connect:a.org:80\", mac = \"x\" }",
            &[KeyNotForGrant],
        ),
        (
            "{ capability = \"block.read:x\", overlay = \"y\" }",
            &[KeyNotForGrant],
        ),
        (
            "{ capability = \"block.read:x\", tag = \"y\" }",
            &[KeyNotForGrant],
        ),
        ("{ capability = \"vsock\", queues = 1 }", &[KeyNotForGrant]),
        (
            "{ capability = \"block.write:x\", format = \"vmdk\" }",
            &[Choice],
        ),
        (
            "{ capability = \"block.write:x\", format = \"qcow2\" }",
            &[Device],
        ),
        (
            "{ capability = \"block.read:x\", backing = [{ path = \"y\" }] }",
            &[Device],
        ),
        (
            "{ capability = \"block.read:x\", format = \"qcow2\", backing = [{ path = \"y\" }, { path = \"z\" }] }",
            &[Device],
        ),
        (
            "{ capability = \"block.read:x\", format = \"qcow2\", backing = [{ format = \"raw\" }] }",
            &[Code::MissingKey],
        ),
        (
            "{ capability = \"block.read:x\", format = \"qcow2\", backing = [{ path = \"y\", form = 1 }] }",
            &[UnknownKey],
        ),
        (
            "{ capability = \"block.write:x\", overlay = \"\" }",
            &[Path],
        ),
        (
            "{ capability = \"block.write:x\", direct = \"yes\" }",
            &[WrongType],
        ),
        ("{ capability = \"block.write:x\", queues = 0 }", &[Device]),
        ("{ capability = \"block.write:x\", queues = 3 }", &[Device]),
        ("{ capability = \"block.write:x\", name = \"\" }", &[Device]),
        (
            "{ capability = \"block.write:x\", name = \"a b\" }",
            &[Device],
        ),
        (
            "{ capability = \"block.write:x\", name = \"console\" }",
            &[Device],
        ),
        (
            "{ capability = \"block.write:x\", name = \"twenty-one-bytes-long\" }",
            &[Device],
        ),
        (
            "{ capability = \"block.write:x\", name = \"disk1\" }, \"block.read:y\"",
            &[Device],
        ),
        ("{ capability = \"block.write:x\", rate = {} }", &[Rate]),
        (
            "{ capability = \"block.write:x\", rate = { bytes = \"1MiB\" } }",
            &[Rate],
        ),
        (
            "{ capability = \"block.write:x\", rate = { bytes = \"0MiB/s\" } }",
            &[Rate],
        ),
        (
            "{ capability = \"block.write:x\", rate = { operations = \"1MiB/s\" } }",
            &[Rate],
        ),
        (
            "{ capability = \"block.write:x\", rate = { bytes = \"1MiB/s\", operations_burst = \"1\" } }",
            &[Rate],
        ),
        (
            "{ capability = \"block.write:x\", rate = { speed = \"1/s\" } }",
            &[Rate, UnknownKey],
        ),
        ("\"fs.read:/\"", &[Share]),
        ("\"fs.write:/proc/self\"", &[Share]),
        ("\"fs.read:/srv\", \"fs.write:/srv/x\"", &[Share]),
        ("\"fs.write:/srv/x\", \"fs.read:/srv\"", &[Share]),
        ("\"fs.read:/srv\", \"fs.write:/srv\"", &[DuplicateGrant]),
        ("{ capability = \"fs.read:/a\", tag = \"\" }", &[Device]),
        (
            "{ capability = \"fs.read:/a\", tag = \"t\" }, { capability = \"fs.read:/b\", tag = \"t\" }",
            &[Device],
        ),
        (
            "{ capability = \"fs.read:/a\", owner = \"root\" }",
            &[Choice],
        ),
        (
            "{ capability = \"fs.read:/a\", owner = \"1:4294967295\" }",
            &[Choice],
        ),
        (
            "{ capability = \"net.tap:t\", mac = \"03:00:00:00:00:01\" }",
            &[Device],
        ),
        (
            "{ capability = \"net.tap:t\", mac = \"02:00:00:00:00\" }",
            &[Device],
        ),
        (
            "{ capability = \"net.tap:t\", mac = \"+2:00:00:00:00:01\" }",
            &[Device],
        ),
        (
            "{ capability = \"net.tap:t\", mac = \"00:00:00:00:00:00\" }",
            &[Device],
        ),
        ("{ capability = \"net.tap:t\", mtu = 67 }", &[Device]),
        ("{ capability = \"vsock\", cid = 2 }", &[Device]),
        ("{ capability = \"vsock\", cid = 0xffffffff }", &[Device]),
        ("\"vsock\", { capability = \"vsock\", cid = 9 }", &[Device]),
    ];
    for (grants, expected) in cases {
        assert_eq!(grant_codes(grants, ""), *expected, "{grants}");
    }
    for (lines, expected) in [
        ("network = { mtu = 575 }", Device),
        ("network = { mac = \"x\" }", Device),
        ("network = { max_connections = 0 }", Device),
        ("network = { hosts = [\"192.0.2.1\"] }", Device),
        ("network = { trust = [\"\"] }", Code::Path),
        ("network = { hosts = [\"*.a.example\"] }", Device),
        ("network = { receive_rate = {} }", Rate),
    ] {
        assert_eq!(
            grant_codes("\"net.connect:*:*\"", lines),
            [expected],
            "{lines}"
        );
    }
    for (lines, expected) in [
        ("memory = { size = \"512MiB\", max = \"256MiB\" }", Memory),
        ("memory = { size = \"512MiB\", max = \"513MiB\" }", Memory),
        ("transport = \"isa\"", Choice),
        ("on_reboot = \"panic\"", Choice),
        ("autonomy = \"none\"", Choice),
    ] {
        assert_eq!(grant_codes("", lines), [expected], "{lines}");
    }
    let many: Vec<String> = (0..29).map(|n| format!("\"block.read:{n}\"")).collect();
    assert_eq!(grant_codes(&many.join(", "), ""), [Grant]);
}

#[test]
fn what_the_linux_personality_has_no_driver_for_is_refused() {
    for grant in [
        "net.connect:a.org:80",
        "fs.read:/srv",
        "vsock",
        "pmem.read:x",
        "net.tap:t",
    ] {
        let lines = format!("grants = [\"{grant}\"]");
        assert_eq!(codes(&with(&lines)), [Code::KeyNotForKernel], "{grant}");
    }
}

#[test]
fn grants_become_devices_with_every_option_decided() {
    let text = linux(
        r#"
        { capability = "block.write:base.qcow2", format = "qcow2", overlay = "top.img", queues = 2,
          backing = [{ path = "mid", format = "qcow2" }, { path = "/low" }],
          rate = { bytes = "1MiB/s", operations = "10/s", operations_burst = "20" } },
        "net.connect:deb.debian.org:80", "net.listen:8080=80",
        { capability = "fs.write:/srv/x", tag = "data", owner = "1000:100" },
        "fs.read:/srv/y",
        { capability = "net.tap:tap7", name = "lan", mac = "02:00:00:00:00:01", mtu = 9000 },
        "vsock", "pmem.write:m", "vhost_user.block:/run/b", "vhost_user.net:/run/n",
        "net.loopback:5432"
        "#,
        "[partition.network]\nmtu = 1500\nhosts = [\"A.example\", \"a.example.\"]\ntrust = [\"ca.pem\"]\n[partition.memory]\nsize = \"1GiB\"\nmax = \"4GiB\"\n\
         balloon = true\n[partition.limits]\ncpu = \"150%\"\npids = 64\n",
    );
    let system = parse(text.as_bytes(), Path::new("/m/system.toml")).unwrap();
    let partition = &system.partitions[0];
    let names: Vec<&str> = partition.devices.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "disk0", "net0", "fs0", "fs1", "lan", "vsock", "pmem0", "disk1", "net2"
        ]
    );
    let [disk, network, data, other, lan, vsock, ..] = partition.devices.as_slice() else {
        panic!("nine")
    };
    let DeviceKind::Disk(disk) = &disk.kind else {
        panic!("a disk")
    };
    assert_eq!(disk.path, Path::new("/m/base.qcow2"));
    let below: Vec<&Path> = disk
        .backing
        .iter()
        .map(|image| image.path.as_path())
        .collect();
    assert_eq!(below, [Path::new("/m/mid"), Path::new("/low")]);
    assert_eq!(disk.overlay.as_deref(), Some(Path::new("/m/top.img")));
    let bucket = |per_second, burst| Some(TokenBucket { per_second, burst });
    assert_eq!(disk.rate.bytes, bucket(1 << 20, 1 << 20));
    assert_eq!(disk.rate.operations, bucket(10, 20));
    let DeviceKind::Network(network) = &network.kind else {
        panic!("a network")
    };
    assert_eq!(network.connect[0].rule.to_string(), "tcp:deb.debian.org:80");
    assert_eq!((network.listen.len(), network.loopback.len()), (1, 1));
    assert_eq!((network.mtu, network.mac[0] & 3), (1500, 2));
    assert_eq!(network.hosts, ["a.example"]);
    assert_eq!(network.trust, [Path::new("/m/ca.pem")]);
    let (DeviceKind::Share(data), DeviceKind::Share(other)) = (&data.kind, &other.kind) else {
        panic!("shares")
    };
    assert_eq!((data.tag.as_str(), data.write), ("data", true));
    assert_eq!(
        data.owner,
        Owner::Exporter {
            uid: 1000,
            gid: 100
        }
    );
    assert_eq!((other.tag.as_str(), other.write), ("fs1", false));
    let DeviceKind::Tap(lan) = &lan.kind else {
        panic!("a tap")
    };
    assert_eq!((lan.mac, lan.mtu), ([2, 0, 0, 0, 0, 1], Some(9000)));
    assert_eq!(vsock.kind, DeviceKind::Vsock { cid: 3 });
    assert_eq!(
        (partition.memory.mib, partition.memory.pluggable_mib),
        (1024, 3072)
    );
    assert!(
        partition
            .memory
            .balloon
            .is_some_and(|balloon| balloon.free_page_reporting)
    );
    assert_eq!(partition.limits.cpu_percent, Some(150));
    assert!(
        !partition.restart,
        "a partition of one command ends with it"
    );
}

#[test]
fn the_seeds_of_the_fuzz_target_are_whole_systems() {
    for seed in [
        include_str!("../../../../tests/fuzz/seeds/manifest/devices"),
        include_str!("../../../../tests/fuzz/seeds/manifest/programs"),
    ] {
        let system = parse(seed.as_bytes(), Path::new("/m/system.toml"));
        assert!(system.is_ok(), "{}", system.unwrap_err());
    }
}

#[test]
fn a_device_for_a_running_partition_gets_a_free_name() {
    let devices = |grant: &str, taken: &[&str]| {
        let taken: Vec<String> = taken.iter().map(|name| (*name).to_owned()).collect();
        let grants = [grant.to_owned().into()];
        let kernel = (crate::KernelKind::Linux, 1);
        crate::validate_devices(&grants, ("s", "p"), kernel, &taken, Path::new("/w"))
    };
    let taken = ["disk0", "disk1"];
    assert_eq!(devices("block.read:x", &taken).unwrap()[0].name, "disk2");
    assert_eq!(devices("fs.read:y", &taken).unwrap()[0].name, "fs0");
    let refused = devices("fs.read:/", &taken).unwrap_err();
    assert_eq!(refused.diagnostics[0].code, Code::Share);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
        let _ = parse(text.as_bytes(), Path::new("system.toml"));
    }

    #[test]
    fn no_damage_to_a_manifest_makes_the_parser_panic(
        at in 0..MINIMAL.len(), byte in proptest::num::u8::ANY
    ) {
        let mut bytes = MINIMAL.as_bytes().to_vec();
        bytes[at] = byte;
        if let Err(rejected) = parse(&bytes, Path::new("system.toml")) {
            proptest::prop_assert!(!rejected.diagnostics.is_empty());
        }
    }
}

#[test]
fn each_constraint_of_a_grant_has_its_code() {
    use Code::{DuplicateGrant, Grant, KeyNotForGrant, Rate, WrongType};
    let web = |options: &str| format!("{{ capability = \"net.connect:a.org:443\", {options} }}");
    let tool = |options: &str| format!("{{ capability = \"tool.call:fs.*\", {options} }}");
    let cases: Vec<(String, &[Code])> = vec![
        (web("methods = [\"get\"]"), &[Grant]),
        (web("methods = []"), &[Grant]),
        (web("methods = \"GET\""), &[WrongType]),
        (web("paths = [\"v1\"]"), &[Grant]),
        (web("calls = \"60/s\""), &[Rate]),
        (web("calls = \"0/min\""), &[Rate]),
        (web("bytes = \"10\""), &[Rate]),
        (web("expires = \"tomorrow\""), &[Rate]),
        (web("lifetime = \"1w\""), &[Rate]),
        (web("approval = 1"), &[WrongType]),
        (web("below = [\"/srv\"]"), &[KeyNotForGrant]),
        (tool("methods = [\"GET\"]"), &[KeyNotForGrant]),
        (tool("below = [\"srv\"]"), &[Grant]),
        (tool("bytes = \"1MiB\""), &[KeyNotForGrant]),
        (
            "{ capability = \"net.connect:udp:a.org:53\", methods = [\"GET\"] }".to_owned(),
            &[Grant],
        ),
        (
            "{ capability = \"time\", lifetime = \"1h\" }".to_owned(),
            &[KeyNotForGrant],
        ),
        ("\"ring.send:db/queries\"".to_owned(), &[Grant]),
        ("\"ring.receive:db/queries\"".to_owned(), &[Grant]),
        ("\"device.pci:03:00.0\"".to_owned(), &[Grant]),
        ("\"device.block:x\"".to_owned(), &[Grant]),
        ("\"dns.resolve:*\"".to_owned(), &[Grant]),
        (
            format!("\"tool.call:*\", {}", tool("approval = true")),
            &[DuplicateGrant],
        ),
        (
            format!(
                "{}, \"net.connect:*.org:*\", \"net.connect:*:443\"",
                web("paths = [\"/\"]")
            ),
            &[DuplicateGrant],
        ),
        (
            format!("\"tool.call:fs.read\", {}", tool("approval = true")),
            &[],
        ),
    ];
    for (grants, expected) in cases {
        let text = linux(&grants, "");
        match parse(text.as_bytes(), Path::new("dir/system.toml")) {
            Ok(_) => assert_eq!(expected, [], "{grants}"),
            Err(rejected) => {
                let codes: Vec<Code> = rejected.diagnostics.iter().map(|d| d.code).collect();
                assert_eq!(codes, expected, "{grants}");
                assert!(rejected.diagnostics[0].place.is_some(), "{grants}");
            }
        }
    }
}

#[test]
fn a_denial_leaves_no_grant_that_it_takes_away() {
    for (grants, deny, codes) in [
        (
            "\"fs.write:/srv/a\"",
            "\"fs.write:/srv\"",
            &[Code::Grant][..],
        ),
        ("\"fs.read:/srv/a\"", "\"fs.write:/srv\"", &[]),
        ("\"fs.read:data\"", "\"fs.read:data\"", &[Code::Grant]),
        ("\"net.connect:*:443\"", "\"net.connect:10.0.0.0/8:*\"", &[]),
        (
            "\"net.connect:10.0.0.1:443\"",
            "\"net.connect:10.0.0.0/8:*\"",
            &[Code::Grant],
        ),
        ("\"tool.call:*\"", "\"tool.call:git.push\"", &[]),
        (
            "\"tool.call:git.push\"",
            "\"tool.call:git.*\"",
            &[Code::Grant],
        ),
        ("\"vsock\"", "\"vsock\"", &[Code::Grant]),
        ("\"time\"", "\"tmie\"", &[Code::Grant]),
        ("\"time\"", "1", &[Code::WrongType]),
    ] {
        let text = linux(grants, &format!("deny = [{deny}]"));
        let found = match parse(text.as_bytes(), Path::new("dir/system.toml")) {
            Ok(_) => Vec::new(),
            Err(rejected) => rejected.diagnostics.iter().map(|d| d.code).collect(),
        };
        assert_eq!(found, codes, "{grants} {deny}");
    }
}

#[test]
fn what_narrows_a_grant_reaches_the_network() {
    let text = linux(
        r#"{ capability = "net.connect:api.example.org:443", methods = ["POST", "GET"], paths = ["/v1/**", "/v1/x"], calls = "60/min", bytes = "10MiB", expires = "2030-01-01T00:00:00Z", lifetime = "8h", approval = true },
        { capability = "dns.resolve:*.example.org", calls = "10/min" },
        { capability = "tool.call:fs.*", below = ["/srv/repo"] },
        "secret.use:api-key", "model.chat:gpt-*", "partition.spawn:worker=2", "exec:/usr/bin/git""#,
        "deny = [\"net.connect:tcp:10.0.0.0/8:*\", \"tool.call:fs.delete\"]",
    );
    let system = parse(text.as_bytes(), Path::new("/m/system.toml")).unwrap();
    let partition = &system.partitions[0];
    let [network] = partition.devices.as_slice() else {
        panic!("one device")
    };
    let DeviceKind::Network(network) = &network.kind else {
        panic!("a network")
    };
    let [connect] = network.connect.as_slice() else {
        panic!("one rule")
    };
    let constraints = &connect.constraints;
    let http = constraints.http.as_ref().unwrap();
    let methods: Vec<&str> = http.methods.iter().map(|method| method.as_str()).collect();
    assert_eq!(methods, ["GET", "POST"]);
    assert_eq!(http.paths, ["/v1/**".parse().unwrap()]);
    let quota = constraints.quota();
    assert_eq!(
        (quota.calls_per_minute, quota.bytes),
        (Some(60), Some(10 << 20))
    );
    assert_eq!(constraints.expires, Some(1_893_456_000));
    assert_eq!(
        (constraints.lifetime, constraints.approval),
        (Some(28_800), true)
    );
    assert_eq!(network.resolve[0].name.to_string(), "*.example.org");
    assert_eq!(network.deny.len(), 1);
    assert_eq!(partition.grants.iter().count(), 7);
    assert_eq!(partition.grants.denied().count(), 2);
}

//! Every rule of the manifest, through the front door.

mod grants;

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

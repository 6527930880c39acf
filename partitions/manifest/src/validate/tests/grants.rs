//! The rules of single grants, and the devices that they become.

use super::*;

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
        ("conditions = \"ignore\"", Choice),
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
        (
            "{ capability = \"secret.use:key\", approval = true }".to_owned(),
            &[KeyNotForGrant],
        ),
        (
            "{ capability = \"partition.spawn:coder=1\", lifetime = \"1h\" }".to_owned(),
            &[KeyNotForGrant],
        ),
        (
            "{ capability = \"net.listen:80\", approval = true }".to_owned(),
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
        { capability = "net.listen:8080=80", calls = "30/min", lifetime = "1h" },
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
    let inbound = &network.listen[0];
    assert_eq!(inbound.listen.to_string(), "127.0.0.1:8080=80");
    assert_eq!(inbound.constraints.quota().calls_per_minute, Some(30));
    assert_eq!(inbound.constraints.lifetime, Some(3600));
    assert_eq!(network.deny.len(), 1);
    assert_eq!(partition.grants.iter().count(), 8);
    assert_eq!(partition.grants.denied().count(), 2);
}

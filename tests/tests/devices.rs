//! Promise: a Linux partition has the network, the directory and the disk it was granted, and
//! nothing beyond them; and it can reboot.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::ffi::OsString;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    /// What the guest does at its first boot and, after it has rebooted, at its second.
    const SCRIPT: &str = r#"
        busybox ip link set eth0 up
        busybox ip addr add 10.0.2.15/24 dev eth0
        busybox ip route add default via 10.0.2.2
        busybox wget -q -O - http://10.0.2.2:8080/
        busybox nc -w 5 192.0.2.1 80 </dev/null && echo 'reached what no rule allows'
        busybox mkdir /mnt
        busybox mount -t virtiofs data /mnt && busybox cat /mnt/from-host
        echo 'from the guest' >/mnt/from-guest
        if busybox grep -q marker /dev/vda; then echo 'second boot'; exit 7; fi
        echo 'first boot'
        echo marker | busybox dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
        busybox reboot -f
    "#;

    /// Answers every connection as a web server does.
    fn serve(listener: TcpListener) {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let page = "HTTP/1.0 200 OK\r\nContent-Length: 16\r\n\r\nfrom the network";
            let _ = stream.write_all(page.as_bytes());
        }
    }

    #[test]
    fn a_linux_partition_has_what_it_was_granted_and_reboots() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || serve(listener));
        let base = scratch.file("base.img", vec![0; 1 << 20]);
        fs::create_dir(scratch.path().join("shared")).unwrap();
        scratch.file("shared/from-host", "from the host\n");
        let manifest = scratch.file(
            "system.toml",
            format!(
                r#"
                name = "devices"
                [[partition]]
                name = "one"
                kernel = "linux"
                command = ["/bin/busybox", "sh", "-c", '''{SCRIPT}''']
                on_reboot = "restart"
                grants = [
                    "console", "net.loopback:tcp:8080={port}",
                    {{ capability = "fs.write:shared", tag = "data" }},
                    {{ capability = "block.write:base.img", overlay = "top.img" }},
                ]
                [[partition.mounts]]
                source = "/bin/busybox"
                target = "/bin/busybox"
                "#
            ),
        );
        let before = Census::take();
        let ended = bulkhead.run([OsString::from("up"), manifest.into()]);
        let stdout = ended.expect_status(7).stdout();
        for (text, times) in [
            ("from the network", 2),
            ("from the host", 2),
            ("first boot", 1),
            ("second boot", 1),
            ("reached what no rule allows", 0),
        ] {
            assert_eq!(stdout.matches(text).count(), times, "{text}: {ended:?}");
        }
        ended.expect_stderr("192.0.2.1");
        before.expect_nothing_new();
        assert!(
            fs::read(&base).unwrap().iter().all(|byte| *byte == 0),
            "the base is only read"
        );
        let written = fs::read(scratch.path().join("shared/from-guest")).unwrap();
        assert_eq!(written, b"from the guest\n");
    }
}

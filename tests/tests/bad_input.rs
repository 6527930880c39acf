//! Promise: bad input ends with one sentence, status 125, and nothing left behind.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;
    use std::fs;
    use std::net::TcpListener;
    use std::os::unix::process::CommandExt;

    use bulkhead_tests::bulkhead::{Bulkhead, Ended, Running};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::{library, skip};

    /// `bulkhead up` of this manifest has to be refused.
    #[track_caller]
    fn refused(bulkhead: &Bulkhead, scratch: &Scratch, manifest: &str) -> Ended {
        let file = scratch.file("system.toml", manifest);
        let before = Census::take();
        let ended = bulkhead.run([OsString::from("up"), file.into()]);
        ended.expect_refusal();
        before.expect_nothing_new();
        ended
    }

    fn native(program: &str, more: &str) -> String {
        format!(
            "name = \"bad\"\n[[partition]]\nname = \"bad\"\nkernel = \"native\"\n\
             program = \"{program}\"\n{more}\n"
        )
    }

    #[test]
    fn a_truncated_program() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let whole = fs::read(bulkhead.library("examples/hello-native")).unwrap();
        for length in [0, 3, 63, 100, whole.len() / 2] {
            scratch.file("program", &whole[..length]);
            refused(&bulkhead, &scratch, &native("program", ""));
        }
    }

    #[test]
    fn a_truncated_kernel() {
        let (built, scratch) = (Bulkhead::built(), Scratch::new());
        let whole = fs::read(built.library("kernel")).unwrap();
        let lib = library::with(&built, &scratch, "kernel", &whole);
        let bulkhead = built.env("BULKHEAD_LIB", &lib);
        for length in [0, 3, 63, 100, whole.len() / 2] {
            fs::write(lib.join("kernel"), &whole[..length]).unwrap();
            refused(&bulkhead, &scratch, &native("@examples/hello-native", ""));
        }
    }

    #[test]
    fn programs_and_kernels_of_another_architecture() {
        let (built, scratch) = (Bulkhead::built(), Scratch::new());
        let foreign = |name: &str| {
            let mut image = fs::read(built.library(name)).unwrap();
            image[18..20].copy_from_slice(&183u16.to_le_bytes()); // EM_AARCH64
            image
        };
        scratch.file("program", foreign("examples/hello-native"));
        refused(&built, &scratch, &native("program", ""));
        let lib = library::with(&built, &scratch, "kernel", &foreign("kernel"));
        let bulkhead = built.env("BULKHEAD_LIB", &lib);
        refused(&bulkhead, &scratch, &native("@examples/hello-native", ""));
    }

    #[test]
    fn an_empty_disk() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        scratch.file("disk.img", "");
        let grant = r#"grants = [{ capability = "block.read", path = "disk.img" }]"#;
        refused(
            &bulkhead,
            &scratch,
            &native("@examples/hello-native", grant),
        )
        .expect_stderr("disk.img");
    }

    #[test]
    fn a_disk_that_is_not_there() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let grant = r#"grants = [{ capability = "block.read", path = "absent.img" }]"#;
        refused(
            &bulkhead,
            &scratch,
            &native("@examples/hello-native", grant),
        )
        .expect_stderr("absent.img");
    }

    /// A native partition with this grant has to be refused with this code.
    #[track_caller]
    fn refused_grant(bulkhead: &Bulkhead, scratch: &Scratch, grant: &str, code: &str) {
        let manifest = native("@examples/hello-native", &format!("grants = [{grant}]"));
        let ended = refused(bulkhead, scratch, &manifest);
        ended.expect_stderr(&format!("error[{code}]"));
    }

    #[test]
    fn disks_with_options_that_do_not_fit_them() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        scratch.file("disk.img", vec![0; 1 << 16]);
        scratch.file("odd.img", vec![0; 700]);
        scratch.file("top.img", vec![0; 1 << 16]);
        for (grant, code) in [
            (
                r#"{ capability = "block.read:disk.img", format = "qcow2" }"#,
                "disk-format",
            ),
            (
                r#"{ capability = "block.write:disk.img", format = "vmdk" }"#,
                "manifest-choice",
            ),
            (
                r#"{ capability = "block.write:disk.img", format = "qcow2" }"#,
                "manifest-device",
            ),
            (
                r#"{ capability = "block.write:disk.img", overlay = "top.img" }"#,
                "overlay-incomplete",
            ),
            (
                r#"{ capability = "block.write:odd.img", overlay = "new.img" }"#,
                "disk-size",
            ),
            (
                r#"{ capability = "block.write:disk.img", overlay = "disk.img" }"#,
                "overlay-incomplete",
            ),
            (
                r#"{ capability = "block.write:disk.img", rate = { bytes = "fast" } }"#,
                "manifest-rate",
            ),
            (
                r#"{ capability = "block.write:disk.img", queues = 2 }"#,
                "manifest-device",
            ),
        ] {
            refused_grant(&bulkhead, &scratch, grant, code);
        }
    }

    #[test]
    fn networks_that_cannot_be() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        for (grant, code) in [
            (
                r#""net.connect:deb.debian.org""#.to_owned(),
                "manifest-grant",
            ),
            (r#""net.connect:127.0.0.1:80""#.to_owned(), "manifest-grant"),
            (r#""net.listen:localhost:80""#.to_owned(), "manifest-grant"),
            (format!(r#""net.listen:{port}=80""#), "address-in-use"),
            (r#""net.listen:192.0.2.1:8080=80""#.to_owned(), "listen"),
            (r#""net.tap:no-such-tap""#.to_owned(), "tap-not-found"),
            (
                r#""vhost_user.net:absent.sock""#.to_owned(),
                "backend-not-reached",
            ),
            (
                r#""vhost_user.block:absent.sock""#.to_owned(),
                "backend-not-reached",
            ),
        ] {
            refused_grant(&bulkhead, &scratch, &grant, code);
        }
    }

    #[test]
    fn directories_and_files_that_are_not_to_be_shared() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        std::os::unix::fs::symlink("/proc", scratch.path().join("link")).unwrap();
        scratch.file("file", vec![0; 4096]);
        for (grant, code) in [
            (r#""fs.read:/""#, "manifest-share"),
            (r#""fs.write:/proc/sys""#, "manifest-share"),
            (r#""fs.read:link""#, "share-refused"),
            (r#""fs.read:absent""#, "file-not-found"),
            (r#""fs.read:file""#, "file-unusable"),
            (r#""fs.read:a", "fs.write:a/b""#, "manifest-share"),
            (
                r#"{ capability = "fs.read:a", tag = "two words" }"#,
                "manifest-device",
            ),
            (r#""pmem.read:absent""#, "file-not-found"),
            (r#""pmem.read:file""#, "pmem-size"),
            (r#"{ capability = "vsock", cid = 2 }"#, "manifest-device"),
        ] {
            refused_grant(&bulkhead, &scratch, grant, code);
        }
    }

    #[test]
    fn limits_that_are_none() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        for limits in [
            "{}",
            "{ cpu = \"fast\" }",
            "{ pids = 1 }",
            "{ memory_overhead = \"1MiB\" }",
        ] {
            let manifest = native("@examples/hello-native", &format!("limits = {limits}"));
            let ended = refused(&bulkhead, &scratch, &manifest);
            ended.expect_stderr("error[manifest-limits]");
        }
    }

    #[test]
    fn an_unknown_key() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        refused(
            &bulkhead,
            &scratch,
            &native("@examples/hello-native", "colour = 1"),
        )
        .expect_stderr("colour");
    }

    #[test]
    fn overlapping_mounts() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let manifest = r#"
            name = "bad"
            [[partition]]
            name = "bad"
            kernel = "linux-abi"
            command = ["/bin/x"]
            [[partition.mounts]]
            source = "@examples/hello-linux-abi"
            target = "/bin/x"
            [[partition.mounts]]
            source = "@examples/hello-linux-abi"
            target = "/bin/x/y"
        "#;
        refused(&bulkhead, &scratch, manifest).expect_stderr("/bin/x");
    }

    #[test]
    fn ten_tebibytes_of_memory() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        refused(
            &bulkhead,
            &scratch,
            &native("@examples/hello-native", "memory = \"10TiB\""),
        );
    }

    #[test]
    fn a_manifest_that_is_not_there() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        let absent = scratch.path().join("absent.toml");
        bulkhead
            .run([OsString::from("up"), absent.into()])
            .expect_refusal();
        before.expect_nothing_new();
    }

    #[test]
    fn no_permission_on_dev_kvm() {
        if !rustix::process::geteuid().is_root() {
            skip("only root can start a command as somebody without permission");
            return;
        }
        let (built, scratch) = (Bulkhead::built(), Scratch::new());
        let bulkhead = Bulkhead::at(library::public_copy(&built, &scratch));
        let file = scratch.file("system.toml", native("@examples/hello-native", ""));
        let before = Census::take();
        let mut command = bulkhead.command([OsString::from("up"), file.into()]);
        command
            .uid(65534)
            .gid(65534)
            .env_remove("BULKHEAD_STATE_DIR")
            .env_remove("TMPDIR");
        Running::start(&mut command)
            .wait()
            .expect_refusal()
            .expect_stderr("/dev/kvm");
        before.expect_nothing_new();
    }
}

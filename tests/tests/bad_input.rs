//! Promise: bad input ends with one sentence, status 125, and nothing left behind.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;
    use std::fs;
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

//! Promise: no grant, no device. Seen from inside, by a guest kernel that looks for one.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::{guest, library};

    /// Low byte of virtio's magic number, `virt`.
    const MAGIC: i32 = b'v' as i32;

    /// How many of the first four virtio windows hold a device.
    fn devices(grants: &str) -> usize {
        let holds = |index: &u32| {
            let (built, scratch) = (Bulkhead::built(), Scratch::new());
            let lib = library::with(&built, &scratch, "kernel", &guest::looks_for_virtio(*index));
            scratch.file("a.img", vec![0; 1 << 16]);
            scratch.file("b.img", vec![0; 1 << 16]);
            let manifest = format!(
                "name = \"look\"\n[[partition]]\nname = \"look\"\nkernel = \"native\"\n\
                 program = \"@examples/hello-native\"\ngrants = [{grants}]\n"
            );
            let file = scratch.file("system.toml", manifest);
            let bulkhead = built.env("BULKHEAD_LIB", lib);
            let ended = bulkhead.run([OsString::from("up"), file.into()]);
            ended.status() == MAGIC
        };
        (0..4).filter(holds).count()
    }

    #[test]
    fn without_grants_there_is_no_device() {
        assert_eq!(devices(""), 0);
        assert_eq!(devices("\"time\""), 0);
    }

    #[test]
    fn each_disk_granted_is_one_device() {
        let a = r#"{ capability = "block.read", path = "a.img" }"#;
        let b = r#"{ capability = "block.write", path = "b.img" }"#;
        assert_eq!(devices(a), 1);
        assert_eq!(devices(&format!("{a}, {b}")), 2);
    }
}

//! Promise: a stock kernel under the VMM has as many vCPUs online as its manifest asks for.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    #[test]
    fn a_stock_kernel_brings_up_32_vcpus() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let manifest = scratch.file(
            "system.toml",
            r#"
                name = "many"
                [[partition]]
                name = "many"
                kernel = "linux"
                image = "@linux/vmlinuz"
                vcpus = 32
                memory = "512MiB"
                command = ["/bin/busybox", "sed", "s/.*/online: &;/", "/sys/devices/system/cpu/online"]
                grants = ["console"]
                [[partition.mounts]]
                source = "/bin/busybox"
                target = "/bin/busybox"
            "#,
        );
        let ended = bulkhead.run(["up".as_ref(), manifest.as_os_str()]);
        ended.expect_status(0).expect_stdout("online: 0-31;");
        before.expect_nothing_new();
    }
}

//! Promise: whatever a guest kernel does, its VMM neither panics nor hangs, and `bulkhead down`
//! ends it.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::{Bulkhead, Ended, Running};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::{guest, library};

    /// A partition whose kernel is `image`, with every kind of device.
    struct Hostile {
        bulkhead: Bulkhead,
        scratch: Scratch,
        before: Census,
    }

    impl Hostile {
        fn new(image: &[u8]) -> Self {
            let (built, scratch) = (Bulkhead::built(), Scratch::new());
            let lib = library::with(&built, &scratch, "kernel", image);
            scratch.file("disk.img", vec![0; 1 << 20]);
            scratch.file(
                "system.toml",
                r#"
                    name = "hostile"
                    [[partition]]
                    name = "guest"
                    kernel = "native"
                    program = "@examples/hello-native"
                    grants = [
                        "console", "entropy", "time",
                        { capability = "block.write", path = "disk.img" },
                    ]
                "#,
            );
            let before = Census::take();
            let bulkhead = built.env("BULKHEAD_LIB", lib);
            Self {
                bulkhead,
                scratch,
                before,
            }
        }

        fn start(&self) -> Running {
            let file = self.scratch.path().join("system.toml");
            let words = [OsString::from("up"), file.into()];
            Running::start(&mut self.bulkhead.command(words))
        }

        #[track_caller]
        fn ends(&self, running: Running) -> Ended {
            let ended = running.wait();
            assert!(!ended.stderr().contains("panicked"), "{}", ended.stderr());
            self.before.expect_nothing_new();
            ended
        }

        /// Runs it, lets it do its worst for a while, and takes it down.
        #[track_caller]
        fn goes_down(&self) {
            let running = self.start();
            let end = Instant::now() + Duration::from_secs(60);
            while !self.is_running() {
                assert!(Instant::now() < end, "it never ran");
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(Duration::from_millis(300));
            let since = Instant::now();
            self.bulkhead.run(["down", "hostile"]).expect_status(0);
            self.ends(running);
            let took = since.elapsed();
            println!("down took {} ms", took.as_millis());
            // The promise is a second on an idle machine; this tells a hang from a busy one.
            assert!(took < Duration::from_secs(20), "{took:?}");
        }

        fn is_running(&self) -> bool {
            self.bulkhead.run(["ps"]).stdout().contains("running")
        }
    }

    #[test]
    fn a_guest_of_ours_ends_with_its_status() {
        let guest = Hostile::new(&guest::exits(77));
        guest.ends(guest.start()).expect_status(77);
    }

    #[test]
    fn a_triple_fault_is_reported() {
        let guest = Hostile::new(&guest::triple_faults());
        let ended = guest.ends(guest.start());
        assert_ne!(ended.status(), 0);
        assert!(!ended.stderr().is_empty(), "nobody said why");
    }

    #[test]
    fn a_loop_with_interrupts_off_goes_down() {
        Hostile::new(&guest::spins_with_interrupts_off()).goes_down();
    }

    #[test]
    fn a_flood_of_the_serial_port_goes_down() {
        Hostile::new(&guest::floods_the_serial_port()).goes_down();
    }

    #[test]
    fn a_flood_of_console_doorbells_goes_down() {
        Hostile::new(&guest::floods_the_console()).goes_down();
    }

    #[test]
    fn garbage_on_every_port_is_survived() {
        let guest = Hostile::new(&guest::sweeps_every_port(42));
        guest.ends(guest.start()).expect_status(42);
    }

    #[test]
    fn garbage_in_every_virtio_register_is_survived() {
        let guest = Hostile::new(&guest::scribbles_on_virtio(43));
        guest.ends(guest.start()).expect_status(43);
    }
}

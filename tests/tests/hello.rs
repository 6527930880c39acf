//! Promise: `docs/examples/hello` boots a system of three kinds of partition.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

use bulkhead_tests::bulkhead::{Bulkhead, Ended};
use bulkhead_tests::leftovers::Census;
use bulkhead_tests::repository;

fn up(only: &[&str]) -> Ended {
    let bulkhead = Bulkhead::built();
    let before = Census::take();
    let mut words = vec![
        "up".into(),
        repository("docs/examples/hello/system.toml").into(),
    ];
    for name in only {
        words.extend(["--only".into(), std::ffi::OsString::from(name)]);
    }
    let ended = bulkhead.run(words);
    before.expect_nothing_new();
    ended
}

mod kvm {
    #[test]
    fn two_kinds_run_on_every_kvm() {
        let ended = super::up(&["native", "linux-abi"]);
        ended
            .expect_status(0)
            .expect_stdout("native")
            .expect_stdout("linux-abi");
    }
}

mod lab {
    #[test]
    fn all_three_kinds_run_side_by_side() {
        let ended = super::up(&[]);
        ended.expect_status(0);
        let output = ended.stdout();
        for name in ["native", "linux-abi", "linux"] {
            let says = output
                .lines()
                .filter_map(|line| line.split_once('|'))
                .any(|(who, what)| who.trim() == name && !what.trim().is_empty());
            assert!(says, "{name} said nothing:\n{output}");
        }
    }
}

use bulkhead_machine::device::Balloon as Described;

use super::super::testing::*;
use super::*;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const ALL: u64 = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_POISON | F_PAGE_REPORTING;

fn balloon() -> Balloon {
    let described = Described {
        target_mib: 1,
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    Balloon::new(&described, 64).unwrap()
}

fn active(rig: &mut Rig, features: u64) -> Balloon {
    let mut device = balloon();
    device.activate(rig.activation(features)).unwrap();
    device
}

fn serve(device: &mut Balloon, rig: &mut Rig, queue: usize) {
    let progress = device.process_queue(queue, &mut rig.io());
    assert_eq!(progress.unwrap(), Progress::Idle);
}

/// What the event loop does when statistics were asked for.
fn ask(device: &mut Balloon, rig: &mut Rig) {
    let fd = device.interests()[0].fd;
    let progress = device.process_backend(fd, &mut rig.io());
    assert_eq!(progress.unwrap(), Progress::Idle);
}

fn counter(device: &Balloon, name: &str) -> u64 {
    let counters = device.counters();
    counters.iter().find(|(n, _)| *n == name).unwrap().1
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn features_and_configuration() {
    let mut device = balloon();
    assert_eq!(device.features(), ALL);
    assert_eq!(device.queue_max_sizes().len(), 4);
    let plain = Described {
        target_mib: 0,
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    let plain = Balloon::new(&plain, 64).unwrap();
    assert_eq!(
        (plain.features(), plain.queue_max_sizes().len()),
        (F_STATS_VQ, 3)
    );

    for (offset, data) in [
        (4, &[5, 0, 0, 0][..]),
        (12, &[0xaa; 4]),
        (0, &[9; 4]),
        (8, &[9; 4]),
        (4, &[9; 8]),
        (5, &[9; 2]),
        (u64::MAX, &[9; 4]),
    ] {
        device.write_config(offset, data);
    }
    let mut config = [0; 20];
    device.read_config(0, &mut config);
    let want = words(&[256, 5, 0, 0xaaaa_aaaa, 0]);
    assert_eq!(config[..], want);
}

#[test]
fn targets_are_less_than_memory() {
    let mut rig = Rig::new(4);
    let mut device = balloon();
    for (target_mib, fine) in [(0, true), (63, true), (64, false), (u64::MAX, false)] {
        rig.config_changed = false;
        let outcome = device.resize(&Resize::Balloon { target_mib }, &mut rig.io());
        assert_eq!(outcome.is_ok(), fine, "{target_mib}");
        assert_eq!(rig.config_changed, fine, "{target_mib}");
    }
    assert_eq!(counter(&device, "target-bytes"), 63 << 20);
    let other = Resize::Memory { pluggable_mib: 0 };
    assert!(device.resize(&other, &mut rig.io()).is_err());
    let described = Described {
        target_mib: 64,
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    assert!(Balloon::new(&described, 64).is_err());
}

#[test]
fn inflated_pages_are_zero_and_others_stay() {
    let mut rig = Rig::new(4);
    let mut device = active(&mut rig, ALL);
    for page in [0x22_000, 0x2f_000, 0x30_000, 0x31_000, 0x3f_000] {
        rig.fill(page, &[7; 4096]);
    }
    // Out of order, twice, across both regions, the last page, and pages that are not there.
    let pfns = [0x31, 0x2f, 0x30, 0x30, 0x3f, 0x40, u32::MAX, u32::MAX - 1];
    rig.fill(DATA, &words(&pfns));
    rig.fill(DATA + 32, &[0xff; 3]);
    rig.describe(INFLATE, 0, &[(DATA, 35, 0, 0)]);
    rig.offer(INFLATE, 0);
    let progress = device.process_queue(INFLATE, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
    assert_eq!(rig.used(INFLATE), [(0, 0)]);
    for page in [0x2f_000, 0x30_000, 0x31_000] {
        assert_eq!(rig.bytes(page, 4096), [0; 4096], "{page:#x}");
    }
    assert_eq!(rig.bytes(0x22_000, 4096), [7; 4096]);
    // Page 0x3f is the head of a run that leaves memory: none of it goes.
    assert_eq!(rig.bytes(0x3f_000, 4096), [7; 4096]);
    assert_eq!(counter(&device, "inflated-bytes"), 3 * 4096);
    assert_eq!(counter(&device, "refused-ranges"), 2);

    rig.describe(DEFLATE, 0, &[(DATA, 32, 0, 0)]);
    rig.offer(DEFLATE, 0);
    serve(&mut device, &mut rig, DEFLATE);
    assert_eq!(rig.used(DEFLATE), [(0, 0)]);
}

#[test]
fn free_ranges_go_unless_they_must_hold_something() {
    for (poison, kept) in [(0, 0), (0xaa, 7)] {
        let mut rig = Rig::new(4);
        let mut device = active(&mut rig, ALL);
        device.write_config(12, &words(&[poison]));
        rig.fill(DATA, &[7; 0x4000]);
        rig.describe(
            REPORTING,
            0,
            &[
                (DATA, 0x2000, WRITE | NEXT, 1),
                (DATA + 0x2800, 0x1000, WRITE, 0),
            ],
        );
        rig.offer(REPORTING, 0);
        serve(&mut device, &mut rig, REPORTING);
        assert_eq!(rig.used(REPORTING), [(0, 0)]);
        assert_eq!(rig.bytes(DATA, 0x2000), [kept; 0x2000]);
        assert_eq!(rig.bytes(DATA + 0x2000, 0x2000), [7; 0x2000]);
    }
}

#[test]
fn a_poison_that_was_not_negotiated_is_none() {
    let mut rig = Rig::new(4);
    let mut device = balloon();
    device.write_config(12, &[1; 4]);
    let features = F_STATS_VQ | F_PAGE_REPORTING;
    device.activate(rig.activation(features)).unwrap();
    rig.fill(DATA, &[7; 0x1000]);
    rig.describe(REPORTING, 0, &[(DATA, 0x1000, WRITE, 0)]);
    rig.offer(REPORTING, 0);
    serve(&mut device, &mut rig, REPORTING);
    assert_eq!(rig.bytes(DATA, 0x1000), [0; 0x1000]);
}

#[test]
fn queues_are_numbered_by_what_was_negotiated() {
    let mut rig = Rig::new(4);
    let mut device = active(&mut rig, F_PAGE_REPORTING);
    rig.fill(DATA, &[7; 0x1000]);
    rig.describe(2, 0, &[(DATA, 0x1000, WRITE, 0)]);
    rig.offer(2, 0);
    serve(&mut device, &mut rig, 2);
    assert_eq!(rig.bytes(DATA, 0x1000), [0; 0x1000]);
    rig.offer(3, 0);
    serve(&mut device, &mut rig, 3);
    assert_eq!(rig.used(3), []);
}

#[test]
fn statistics_are_asked_for_and_told_next_time() {
    let mut rig = Rig::new(4);
    let mut device = active(&mut rig, ALL);
    let mut entries = Vec::new();
    for (tag, value) in [(4u16, 1000u64), (5, 2000), (99, 1), (4, 3000)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    entries.extend([0; 9]);
    rig.fill(DATA, &entries);
    rig.describe(STATISTICS, 0, &[(DATA, entries.len() as u32, 0, 0)]);
    rig.offer(STATISTICS, 0);
    serve(&mut device, &mut rig, STATISTICS);
    assert_eq!(rig.used(STATISTICS), [], "the buffer is held");
    assert_eq!(counter(&device, "guest-free-bytes"), 3000);
    assert_eq!(counter(&device, "guest-total-bytes"), 2000);
    assert!(!device.counters().iter().any(|c| c.0 == "guest-cache-bytes"));

    ask(&mut device, &mut rig);
    assert_eq!(rig.used(STATISTICS), [(0, 0)], "asking gives it back");
    ask(&mut device, &mut rig);
    assert_eq!(rig.used(STATISTICS).len(), 1, "but only once");
    for _ in 0..2 {
        rig.offer(STATISTICS, 0);
    }
    serve(&mut device, &mut rig, STATISTICS);
    assert_eq!(
        rig.used(STATISTICS).len(),
        2,
        "a second buffer pushes it out"
    );
    device.reset();
    ask(&mut device, &mut rig);
    assert_eq!(rig.used(STATISTICS).len(), 2);
}

#[test]
fn a_turn_ends() {
    let mut rig = Rig::new(4);
    let mut device = active(&mut rig, ALL);
    rig.describe(INFLATE, 0, &[(DATA, 4, 0, 0)]);
    for _ in 0..=TURN_CHAINS {
        rig.offer(INFLATE, 0);
    }
    let progress = device.process_queue(INFLATE, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::More);
    assert_eq!(rig.used(INFLATE).len(), TURN_CHAINS);
}

#[test]
fn malformed_chains_stop_the_device() {
    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        for (what, descriptors, table) in malformed_chains() {
            let mut rig = Rig::new(4);
            let mut device = active(&mut rig, ALL);
            rig.describe(queue, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(queue, 0);
            assert!(
                device.process_queue(queue, &mut rig.io()).is_err(),
                "{what}"
            );
        }
    }
}

use std::sync::Mutex;

use super::super::testing::*;
use super::*;

const AT: u64 = DATA + 0x1000;
const ANSWER: u64 = DATA + 0x2000;

type Work = Box<dyn FnOnce() + Send>;

/// Work that was deferred, for the test to do.
#[derive(Clone, Default)]
struct Deferred(Arc<Mutex<Vec<Work>>>);

impl Deferred {
    fn defer(&self) -> Defer {
        let all = self.0.clone();
        Box::new(move |work| {
            all.lock().unwrap().push(work);
            true
        })
    }

    /// Does it all; how much there was.
    fn run(&self) -> usize {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        let count = all.len();
        all.into_iter().for_each(|work| work());
        count
    }
}

fn file() -> Arc<File> {
    Arc::new(vmm_sys_util::tempfile::TempFile::new().unwrap().into_file())
}

fn pmem(defer: Defer) -> Pmem {
    Pmem::new(GuestAddress(1 << 32), 2 << 20, file(), defer).unwrap()
}

/// Offers a request of `kind` as chain `head`.
fn request(rig: &Rig, head: u16, kind: u32) {
    let offset = u64::from(head) * 8;
    rig.fill(AT + offset, &kind.to_le_bytes());
    rig.fill(ANSWER + offset, &[0xff; 8]);
    let chain = [
        (AT + offset, 4, NEXT, head + 1),
        (ANSWER + offset, 4, WRITE, 0),
    ];
    rig.describe(0, head, &chain);
    rig.offer(0, head);
}

fn answer_of(rig: &Rig, head: u16) -> u32 {
    let bytes = rig.bytes(ANSWER + u64::from(head) * 8, 4);
    u32::from_le_bytes(bytes.try_into().unwrap())
}

fn serve(device: &mut Pmem, rig: &mut Rig) {
    let progress = device.process_queue(0, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
}

fn finish(device: &mut Pmem, rig: &mut Rig) {
    let fd = device.interests()[0].fd;
    let progress = device.process_backend(fd, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
}

#[test]
fn the_configuration_says_where_it_is() {
    let mut config = [0; 16];
    pmem(Deferred::default().defer()).read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
}

#[test]
fn flushes_that_wait_share_the_next() {
    let mut rig = Rig::new(1);
    let deferred = Deferred::default();
    let mut device = pmem(deferred.defer());
    request(&rig, 0, REQ_FLUSH);
    serve(&mut device, &mut rig);
    request(&rig, 2, REQ_FLUSH);
    request(&rig, 4, REQ_FLUSH);
    serve(&mut device, &mut rig);
    assert_eq!(rig.used(0), [], "nothing is durable yet");
    assert_eq!(deferred.run(), 1);
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [(0, 4)]);
    assert_eq!(answer_of(&rig, 2), u32::MAX);
    assert_eq!(deferred.run(), 1);
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [(0, 4), (2, 4), (4, 4)]);
    for head in [0, 2, 4] {
        assert_eq!(answer_of(&rig, head), RESP_OK);
    }
    assert_eq!(device.counters()[0], ("flushes", 2));
    assert_eq!(deferred.run(), 0);
}

#[test]
fn what_fails_or_is_unknown_is_an_error() {
    let mut rig = Rig::new(1);
    let mut device = pmem(Box::new(|_| false));
    request(&rig, 0, REQ_FLUSH);
    request(&rig, 2, 1);
    request(&rig, 4, u32::MAX);
    serve(&mut device, &mut rig);
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [(2, 4), (4, 4), (0, 4)]);
    for head in [0, 2, 4] {
        assert_eq!(answer_of(&rig, head), RESP_ERROR);
    }
    assert_eq!(device.counters()[1], ("failed-flushes", 1));
}

#[test]
fn a_pause_waits_for_the_flush() {
    let mut rig = Rig::new(1);
    let deferred = Deferred::default();
    let mut device = pmem(deferred.defer());
    device.quiesce(&mut rig.io()).unwrap();
    request(&rig, 0, REQ_FLUSH);
    serve(&mut device, &mut rig);
    let worker = std::thread::spawn(move || deferred.run());
    device.quiesce(&mut rig.io()).unwrap();
    assert_eq!(rig.used(0), [(0, 4)]);
    assert_eq!(worker.join().unwrap(), 1);
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0).len(), 1);
}

#[test]
fn a_flush_from_before_a_reset_answers_nothing() {
    let mut rig = Rig::new(1);
    let deferred = Deferred::default();
    let mut device = pmem(deferred.defer());
    request(&rig, 0, REQ_FLUSH);
    serve(&mut device, &mut rig);
    device.reset();
    request(&rig, 2, REQ_FLUSH);
    let old = std::mem::take(&mut *deferred.0.lock().unwrap());
    serve(&mut device, &mut rig);
    old.into_iter().for_each(|work| work());
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [], "the new one is not over");
    deferred.run();
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [(2, 4)]);
}

/// The disk may be slow, and a driver quick.
#[test]
fn resets_do_not_pile_up_flushes() {
    let mut rig = Rig::new(1);
    let deferred = Deferred::default();
    let mut device = pmem(deferred.defer());
    for _ in 0..4 {
        request(&rig, 0, REQ_FLUSH);
        serve(&mut device, &mut rig);
        device.reset();
    }
    assert_eq!(deferred.run(), 1);
    request(&rig, 2, REQ_FLUSH);
    serve(&mut device, &mut rig);
    finish(&mut device, &mut rig);
    assert_eq!(deferred.run(), 1);
    finish(&mut device, &mut rig);
    assert_eq!(rig.used(0), [(2, 4)]);
}

#[test]
fn no_more_requests_wait_than_the_queue_holds() {
    let mut rig = Rig::new(1);
    let deferred = Deferred::default();
    let mut device = pmem(deferred.defer());
    request(&rig, 0, REQ_FLUSH);
    for _ in 0..20 {
        serve(&mut device, &mut rig);
        for _ in 0..SIZE {
            rig.offer(0, 0);
        }
    }
    assert_eq!(device.waiting.len(), usize::from(QUEUE_SIZE));
}

#[test]
fn requests_without_room_stop_the_device() {
    for chain in [
        [(AT, 4, 0, 0), (0, 0, 0, 0)],
        [(AT, 4, NEXT, 1), (ANSWER, 3, WRITE, 0)],
        [(AT, 3, NEXT, 1), (ANSWER, 4, WRITE, 0)],
        [(AT, 4, WRITE, 0), (0, 0, 0, 0)],
    ] {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &chain);
        rig.offer(0, 0);
        let mut device = pmem(Box::new(|_| true));
        assert!(device.process_queue(0, &mut rig.io()).is_err(), "{chain:?}");
        assert_eq!(rig.used(0), []);
    }
}

#[test]
fn malformed_chains_stop_the_device() {
    for (what, descriptors, table) in malformed_chains() {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &descriptors);
        rig.describe_at(DATA, &table);
        rig.offer(0, 0);
        let mut device = pmem(Box::new(|_| true));
        assert!(device.process_queue(0, &mut rig.io()).is_err(), "{what}");
    }
}

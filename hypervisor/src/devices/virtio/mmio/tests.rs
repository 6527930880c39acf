//! The transport against drivers that follow section 4.2, and drivers that do not.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bulkhead_machine::control::Resize;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmm_sys_util::tempfile::TempFile;

use super::super::testing::*;
use super::testing::*;
use super::*;
use crate::devices::virtio::blk;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Entropy;
use crate::devices::virtio::{
    Activation, COMMON_FEATURES, DeviceError, DeviceIo, DeviceType, Progress, ResizeError,
};

/// A feature of the device below.
const OWN_FEATURE: u64 = 1 << 3;

/// What the device below was asked.
#[derive(Default)]
struct Calls {
    activations: AtomicUsize,
    features: AtomicU64,
    turns: AtomicUsize,
    resets: AtomicUsize,
}

/// A device that returns every chain unread.
struct Echo(Arc<Calls>);

impl VirtioDevice for Echo {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        OWN_FEATURE
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        let features = activation.features;
        self.0.activations.fetch_add(1, Ordering::SeqCst);
        self.0.features.store(features, Ordering::SeqCst);
        Ok(())
    }
    fn resize(&mut self, resize: &Resize, io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        match resize {
            Resize::Balloon { target_mib: 0 } => *io.config_changed = true,
            _ => return Err(ResizeError::OutOfRange("only 0 will do".into())),
        }
        Ok(())
    }
    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        self.0.turns.fetch_add(1, Ordering::SeqCst);
        let queue = &mut io.queues[index];
        while let Some(chain) = queue.pop(io.memory)? {
            queue.push(io.memory, &chain, 0)?;
        }
        Ok(Progress::Idle)
    }
    fn reset(&mut self) {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn echo(rig: &Rig) -> (MmioTransport, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let device = Box::new(Echo(calls.clone()));
    (
        MmioTransport::new(device, rig.memory.clone()).unwrap(),
        calls,
    )
}

fn signalled(transport: &MmioTransport, queue: usize) -> bool {
    transport.transport().queue_events()[queue].read().is_ok()
}

#[test]
fn a_device_introduces_itself() {
    let (transport, _) = echo(&Rig::new(2));
    assert_eq!(get(&transport, VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(get(&transport, VIRTIO_MMIO_VERSION), 2);
    assert_eq!(get(&transport, VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(get(&transport, VIRTIO_MMIO_STATUS), 0);
    let mut features = 0;
    for (select, shift) in [(0, 0), (1, 32)] {
        set(&transport, VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        features |= u64::from(get(&transport, VIRTIO_MMIO_DEVICE_FEATURES)) << shift;
    }
    assert_eq!(features, OWN_FEATURE | COMMON_FEATURES);
    set(&transport, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(get(&transport, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    for (queue, max) in [(0, 16), (1, 16), (2, 0), (u32::MAX, 0)] {
        set(&transport, VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(get(&transport, VIRTIO_MMIO_QUEUE_NUM_MAX), max);
    }
    assert_eq!(get(&transport, VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    let mut config = [0; 2];
    transport.read(CONFIG + 7, &mut config);
    assert_eq!(config, [7, 7]);
}

#[test]
fn a_proper_driver_gets_its_answers() {
    let rig = Rig::new(2);
    let (transport, calls) = echo(&rig);
    bring_up_with(&transport, 2, VERSION_1 | OWN_FEATURE);
    assert_eq!(calls.activations.load(Ordering::SeqCst), 1);
    assert_eq!(
        calls.features.load(Ordering::SeqCst),
        VERSION_1 | OWN_FEATURE
    );
    assert!(
        signalled(&transport, 0) && signalled(&transport, 1),
        "looked at once"
    );

    rig.describe(1, 3, &[(DATA, 8, 0, 0)]);
    rig.offer(1, 3);
    set(&transport, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert!(signalled(&transport, 1) && !signalled(&transport, 0));
    assert_eq!(transport.transport().process_queue(1), Progress::Idle);
    assert_eq!(rig.used(1), [(3, 0)]);
    assert!(transport.interrupt().event().read().is_ok());
    assert_eq!(
        get(&transport, VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_VRING
    );
    set(&transport, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(get(&transport, VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    assert_eq!(transport.transport().process_queue(1), Progress::Idle);
    assert_eq!(
        get(&transport, VIRTIO_MMIO_INTERRUPT_STATUS),
        0,
        "nothing returned, no interrupt"
    );
}

#[test]
fn status_moves_only_forward_and_in_order() {
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    let cases: [(&str, &[u32], u32); 10] = [
        (
            "in one write, without features",
            &[all],
            ACKNOWLEDGE | DRIVER,
        ),
        ("driver before acknowledge", &[DRIVER], 0),
        (
            "features before driver",
            &[ACKNOWLEDGE | FEATURES_OK],
            ACKNOWLEDGE,
        ),
        (
            "driver ok before features",
            &[ACKNOWLEDGE | DRIVER | DRIVER_OK],
            ACKNOWLEDGE | DRIVER,
        ),
        (
            "a bit taken back",
            &[ACKNOWLEDGE | DRIVER, DRIVER],
            ACKNOWLEDGE | DRIVER,
        ),
        (
            "unknown bits, and failed",
            &[ACKNOWLEDGE | 0xffff_ffb0],
            FAILED,
        ),
        ("needs reset is the device's", &[NEEDS_RESET], 0),
        (
            "failed stays",
            &[ACKNOWLEDGE, ACKNOWLEDGE | FAILED, all | FAILED],
            ACKNOWLEDGE | FAILED,
        ),
        ("failed then reset", &[FAILED, 0], 0),
        ("reset", &[ACKNOWLEDGE | DRIVER, 0], 0),
    ];
    for (what, writes, status) in cases {
        let (transport, calls) = echo(&Rig::new(2));
        for value in writes {
            set(&transport, VIRTIO_MMIO_STATUS, *value);
        }
        assert_eq!(get(&transport, VIRTIO_MMIO_STATUS), status, "{what}");
        assert_eq!(calls.activations.load(Ordering::SeqCst), 0, "{what}");
    }
}

#[test]
fn features_are_negotiated_once() {
    for (features, accepted) in [
        (VERSION_1, true),
        (
            VERSION_1 | OWN_FEATURE | 1 << VIRTIO_RING_F_INDIRECT_DESC,
            true,
        ),
        (OWN_FEATURE, false),
        (0, false),
        (VERSION_1 | 1 << 5, false),
        (u64::MAX, false),
    ] {
        let (transport, _) = echo(&Rig::new(2));
        accept_features(&transport, VERSION_1);
        set(&transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        accept_features(&transport, features);
        set(
            &transport,
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
        );
        let status = get(&transport, VIRTIO_MMIO_STATUS);
        assert_eq!(status & FEATURES_OK != 0, accepted, "{features:#x}");
    }
    let (transport, calls) = echo(&Rig::new(2));
    set(&transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    accept_features(&transport, VERSION_1);
    set(
        &transport,
        VIRTIO_MMIO_STATUS,
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
    );
    accept_features(&transport, u64::MAX);
    set(
        &transport,
        VIRTIO_MMIO_STATUS,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
    );
    assert_eq!(
        calls.features.load(Ordering::SeqCst),
        VERSION_1,
        "too late to change"
    );
}

#[test]
fn queues_become_ready_only_where_memory_is() {
    type Case = (&'static str, &'static [(u32, u32)], u32);
    const END_LOW: u32 = END as u32;
    let cases: [Case; 12] = [
        ("as it was placed", &[], 1),
        (
            "table behind memory",
            &[(VIRTIO_MMIO_QUEUE_DESC_LOW, END_LOW)],
            0,
        ),
        (
            "table across the end",
            &[(VIRTIO_MMIO_QUEUE_DESC_LOW, END_LOW - 16)],
            0,
        ),
        (
            "available ring behind memory",
            &[(VIRTIO_MMIO_QUEUE_AVAIL_LOW, END_LOW)],
            0,
        ),
        (
            "used ring across the end",
            &[(VIRTIO_MMIO_QUEUE_USED_LOW, END_LOW - 4)],
            0,
        ),
        (
            "used ring far away",
            &[(VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX)],
            0,
        ),
        ("table far away", &[(VIRTIO_MMIO_QUEUE_DESC_HIGH, 1)], 0),
        (
            "all ones",
            &[
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, u32::MAX - 1),
                (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, u32::MAX),
            ],
            0,
        ),
        (
            "a table out of line is not taken",
            &[(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1008)],
            1,
        ),
        (
            "a size of zero is not taken",
            &[(VIRTIO_MMIO_QUEUE_NUM, 0)],
            1,
        ),
        (
            "a size that is no power of two is not taken",
            &[(VIRTIO_MMIO_QUEUE_NUM, 12)],
            1,
        ),
        (
            "a size beyond the largest is not taken",
            &[(VIRTIO_MMIO_QUEUE_NUM, 0x1_0010)],
            1,
        ),
    ];
    for (what, writes, ready) in cases {
        let (transport, _) = echo(&Rig::new(2));
        set(&transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        accept_features(&transport, VERSION_1);
        place_queue(&transport, 1);
        assert_eq!(
            get(&transport, VIRTIO_MMIO_QUEUE_READY),
            0,
            "{what}: too early"
        );
        set(
            &transport,
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
        );
        place_queue(&transport, 1);
        set(&transport, VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(
            get(&transport, VIRTIO_MMIO_QUEUE_READY),
            0,
            "{what}: stopped"
        );
        for (register, value) in writes {
            set(&transport, *register, *value);
        }
        set(&transport, VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(get(&transport, VIRTIO_MMIO_QUEUE_READY), ready, "{what}");
    }
}

#[test]
fn queues_of_a_running_device_cannot_be_moved() {
    let rig = Rig::new(2);
    let (transport, _) = echo(&rig);
    bring_up(&transport, 2);
    for register in [
        VIRTIO_MMIO_QUEUE_DESC_LOW,
        VIRTIO_MMIO_QUEUE_USED_HIGH,
        VIRTIO_MMIO_QUEUE_NUM,
    ] {
        set(&transport, register, 1);
    }
    rig.describe(1, 0, &[(DATA, 8, 0, 0)]);
    rig.offer(1, 0);
    assert_eq!(transport.transport().process_queue(1), Progress::Idle);
    assert_eq!(rig.used(1).len(), 1, "still where it was");
    // Stopping is allowed, and final until the next reset.
    set(&transport, VIRTIO_MMIO_QUEUE_READY, 0);
    set(&transport, VIRTIO_MMIO_QUEUE_READY, 1);
    rig.offer(1, 0);
    assert_eq!(transport.transport().process_queue(1), Progress::Idle);
    assert_eq!(rig.used(1).len(), 1);
}

#[test]
fn nothing_is_served_before_driver_ok() {
    let rig = Rig::new(2);
    let (transport, calls) = echo(&rig);
    set(&transport, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    set(&transport, VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    set(&transport, VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert_eq!(transport.transport().process_queue(0), Progress::Idle);
    assert_eq!(transport.transport().process_backend(0), Progress::Idle);
    assert_eq!(transport.transport().interests(), []);
    assert_eq!(calls.turns.load(Ordering::SeqCst), 0);
}

#[test]
fn a_new_size_is_announced_to_a_driver_at_work() {
    let rig = Rig::new(2);
    let (transport, _) = echo(&rig);
    let generation = || get(&transport, VIRTIO_MMIO_CONFIG_GENERATION);
    let resize = |target_mib| {
        transport
            .transport()
            .resize(&Resize::Balloon { target_mib })
    };
    for (works, announced) in [(false, 0), (true, VIRTIO_MMIO_INT_CONFIG)] {
        if works {
            bring_up(&transport, 2);
        }
        let before = generation();
        assert_eq!(resize(1).unwrap_err().code(), "resize-out-of-range");
        assert_eq!(generation(), before);
        resize(0).unwrap();
        assert_eq!(generation(), before + 1);
        assert_eq!(transport.interrupt().status(), announced);
    }
    let fixed = MmioTransport::new(Box::new(Entropy::new()), rig.memory.clone()).unwrap();
    let error = fixed.transport().resize(&Resize::Balloon { target_mib: 0 });
    assert_eq!(error.unwrap_err().code(), "resize-unsupported");
}

#[test]
fn a_broken_chain_costs_the_device_until_reset() {
    for (what, descriptors, table) in malformed_chains() {
        let rig = Rig::new(2);
        let (transport, calls) = echo(&rig);
        bring_up(&transport, 2);
        rig.describe(0, 0, &descriptors);
        rig.describe_at(DATA, &table);
        rig.offer(0, 0);
        assert_eq!(transport.transport().process_queue(0), Progress::Idle);
        assert_ne!(
            get(&transport, VIRTIO_MMIO_STATUS) & NEEDS_RESET,
            0,
            "{what}"
        );
        assert_eq!(
            get(&transport, VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        assert!(transport.transport().fault().is_some());
        let turns = calls.turns.load(Ordering::SeqCst);
        assert_eq!(transport.transport().process_queue(1), Progress::Idle);
        assert_eq!(calls.turns.load(Ordering::SeqCst), turns, "{what}: stopped");

        set(&transport, VIRTIO_MMIO_STATUS, 0);
        assert_eq!(get(&transport, VIRTIO_MMIO_STATUS), 0);
        assert_eq!(
            calls.resets.load(Ordering::SeqCst),
            2,
            "one by bring_up, one by us"
        );
        assert_eq!(transport.transport().fault(), None);
        rig.set_avail_idx(0, 0);
        bring_up(&transport, 2);
        rig.describe(0, 0, &[(DATA, 8, 0, 0)]);
        rig.offer(0, 0);
        assert_eq!(transport.transport().process_queue(0), Progress::Idle);
        assert_eq!(rig.used(0), [(0, 0)], "{what}: healed");
    }
}

#[test]
fn registers_have_one_width() {
    let (transport, _) = echo(&Rig::new(2));
    for offset in 0..CONFIG {
        for width in [0, 1, 2, 3, 5, 8, 16] {
            let mut data = vec![0xee; width];
            transport.read(offset, &mut data);
            assert!(
                data.iter().all(|byte| *byte == 0),
                "{width} bytes at {offset:#x}"
            );
            transport.write(offset, &vec![0x0f; width]);
        }
        if !offset.is_multiple_of(4) {
            assert_eq!(
                get(&transport, offset as u32),
                0,
                "unaligned at {offset:#x}"
            );
            set(&transport, offset as u32, 0x0f);
        }
    }
    assert_eq!(
        get(&transport, VIRTIO_MMIO_STATUS),
        0,
        "no write had an effect"
    );
}

/// Numbers that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 20
    }
}

#[test]
fn garbage_in_every_register_does_not_matter() {
    let rig = Rig::new(2);
    let mut file = TempFile::new().unwrap().into_file();
    file.write_all(&[0; 4096]).unwrap();
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let devices: [Box<dyn VirtioDevice>; 3] = [
        Box::new(blk::tests::plain(&file)),
        Box::new(Console::new(None, null.into(), false)),
        Box::new(Entropy::new()),
    ];
    for device in devices {
        let queues = device.queue_max_sizes().len();
        let transport = MmioTransport::new(device, rig.memory.clone()).unwrap();
        let mut noise = Noise(1);
        for round in 0..60_000u64 {
            if round % 100 == 0 {
                bring_up(&transport, queues);
            }
            let offset = noise.next() % 0x204;
            let value = match noise.next() % 4 {
                0 => noise.next(),
                1 => noise.next() % 0x100,
                2 => u64::MAX,
                _ => 1 << (noise.next() % 64),
            };
            let width = [1, 2, 4, 4, 4, 8][(noise.next() % 6) as usize];
            match noise.next() % 8 {
                0..4 => transport.write(offset, &value.to_le_bytes()[..width]),
                4 => transport.read(offset, &mut [0; 8][..width]),
                5 => {
                    let at = noise.next() % (0x8000 - 8);
                    rig.fill(at, &value.to_le_bytes());
                }
                6 => rig.offer((noise.next() % 2) as usize, value as u16),
                _ => {
                    let _ = transport
                        .transport()
                        .process_queue((noise.next() % 4) as usize);
                    for interest in transport.transport().interests() {
                        let _ = transport.transport().process_backend(interest.fd);
                    }
                }
            }
        }
        // Whatever happened, a reset and a proper driver make it work again.
        bring_up(&transport, queues);
    }
}

#[test]
fn vcpus_and_the_event_loop_may_meet() {
    let rig = Rig::new(2);
    let (transport, _) = echo(&rig);
    bring_up(&transport, 2);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let event_loop = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for queue in 0..2 {
                    let _ = transport.transport().process_queue(queue);
                }
                assert_eq!(transport.transport().interests(), []);
            }
        });
        let vcpus = [3, 5].map(|seed| {
            let transport = &transport;
            scope.spawn(move || {
                let mut noise = Noise(seed);
                for _ in 0..20_000 {
                    let register = (noise.next() as u32 % 0x104) & !3;
                    set(transport, register, noise.next() as u32);
                    get(transport, register);
                }
            })
        });
        for vcpu in vcpus {
            vcpu.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        event_loop.join().unwrap();
    });
    bring_up(&transport, 2);
}

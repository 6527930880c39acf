//! A driver on the other side of the bus: it finds the registers by the capabilities, as section 4.1
//! says, or does as it likes.

use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::tempfile::TempFile;

use super::super::testing::*;
use super::*;
use crate::devices::pci::host::PciHost;
use crate::devices::pci::testing::Recorder;
use crate::devices::virtio::blk;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Entropy;
use crate::devices::virtio::{COMMON_FEATURES, DeviceError, DeviceIo, Progress};
use crate::machine::bus::Bus;

const WINDOW: u64 = 0xc000_0000;
const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER as u8;
const FEATURES_OK: u8 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK as u8;

/// A machine with one device in slot 1, and what its driver has found.
struct Guest {
    mmio: Arc<Bus>,
    host: PciHost,
    platform: Arc<Recorder>,
    transport: Arc<Transport>,
    /// Structure type to capability.
    capabilities: Vec<(u8, u16)>,
    msix: u16,
}

impl Guest {
    fn new(device: Box<dyn VirtioDevice>, rig: &Rig) -> Self {
        let mmio = Arc::new(Bus::default());
        let window = WINDOW..WINDOW + 0x10_0000;
        let host = PciHost::new(mmio.clone(), [window].into());
        let platform = Arc::new(Recorder::default());
        let function = PciTransport::new(device, rig.memory.clone(), platform.clone()).unwrap();
        let transport = function.transport().clone();
        assert_eq!(host.insert(Arc::new(function)), Ok(1));
        let mut guest = Self {
            mmio,
            host,
            platform,
            transport,
            capabilities: Vec::new(),
            msix: 0,
        };
        let mut at = guest.config::<1>(0x34)[0];
        while at != 0 {
            let [id, next, _, kind] = guest.config(at.into());
            match id {
                0x09 => guest.capabilities.push((kind, at.into())),
                0x11 => guest.msix = at.into(),
                other => panic!("capability {other:#x}"),
            }
            at = next;
        }
        guest
    }

    fn config<const N: usize>(&self, register: u16) -> [u8; N] {
        let mut data = [0xee; N];
        self.host.read_config(1, register, &mut data);
        data
    }

    fn set_config(&self, register: u16, data: &[u8]) {
        self.host.write_config(1, register, data);
    }

    fn bar(&self) -> u64 {
        u64::from(u32::from_le_bytes(self.config(0x10)) & !0xf)
    }

    /// Where the structure `kind` is.
    fn place(&self, kind: u8) -> u64 {
        let (_, at) = self
            .capabilities
            .iter()
            .find(|(own, _)| *own == kind)
            .unwrap();
        assert_eq!(self.config::<1>(at + 4), [0], "in BAR 0");
        self.bar() + u64::from(u32::from_le_bytes(self.config(at + 8)))
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.mmio.read(self.place(CAP_COMMON) + offset, &mut data);
        data
    }

    fn set(&self, offset: u64, data: &[u8]) {
        self.mmio.write(self.place(CAP_COMMON) + offset, data);
    }

    fn status(&self) -> u8 {
        self.get::<1>(20)[0]
    }

    /// Programs and unmasks vector n as message n.
    fn enable_msix(&self, vectors: u32) {
        self.set_config(self.msix + 2, &0x8000u16.to_le_bytes());
        let table = self.bar() + MSIX_TABLE;
        for vector in 0..vectors {
            let entry = table + 16 * u64::from(vector);
            self.mmio.write(entry, &0xfee0_0000u32.to_le_bytes());
            self.mmio.write(entry + 4, &[0; 4]);
            self.mmio.write(entry + 8, &vector.to_le_bytes());
            self.mmio.write(entry + 12, &[0; 4]);
        }
    }

    fn accept(&self, features: u64) {
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.set(8, &select.to_le_bytes());
            self.set(12, &half.to_le_bytes());
        }
    }

    /// Brings the device up as section 3.1.1 says: the configuration has vector 0, queue n vector
    /// n + 1.
    fn bring_up(&self, queues: u16) {
        self.set(20, &[0]);
        assert_eq!(self.status(), 0);
        self.set(20, &[ACKNOWLEDGE]);
        self.set(20, &[DRIVER]);
        self.accept(1 << VIRTIO_F_VERSION_1);
        self.set(20, &[FEATURES_OK]);
        assert_eq!(self.status(), FEATURES_OK);
        self.set(16, &0u16.to_le_bytes());
        for queue in 0..queues {
            self.set(22, &queue.to_le_bytes());
            self.set(24, &SIZE.to_le_bytes());
            self.set(26, &(queue + 1).to_le_bytes());
            assert_eq!(self.get(26), (queue + 1).to_le_bytes());
            for (offset, address) in [32, 40, 48].into_iter().zip(ring_addresses(queue.into())) {
                self.set(offset, &(address.0 as u32).to_le_bytes());
                self.set(offset + 4, &((address.0 >> 32) as u32).to_le_bytes());
            }
            self.set(28, &1u16.to_le_bytes());
            assert_eq!(self.get(28), [1, 0]);
        }
        self.set(20, &[DRIVER_OK]);
        assert_eq!(self.status(), DRIVER_OK);
    }

    /// Data of the messages since the last call.
    fn interrupts(&self) -> Vec<u32> {
        let messages = self.platform.messages();
        messages.into_iter().map(|message| message.data).collect()
    }
}

fn entropy(rig: &Rig) -> Guest {
    Guest::new(Box::new(Entropy::new()), rig)
}

/// Makes the device return a chain.
fn request(rig: &Rig, guest: &Guest) {
    rig.describe(0, 0, &[(DATA, 8, WRITE, 0)]);
    rig.offer(0, 0);
    assert_eq!(guest.transport.process_queue(0), Progress::Idle);
}

#[test]
fn a_device_is_found_by_its_capabilities() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    assert_eq!(guest.config(0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(guest.config(8), [1, 0, 0, 0xff]);
    let kinds: Vec<_> = guest.capabilities.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [CAP_COMMON, CAP_ISR, CAP_NOTIFY, CAP_DEVICE, CAP_PCI]
    );
    assert_eq!(
        guest.config(guest.msix),
        [0x11, guest.config::<2>(guest.msix)[1], 1, 0]
    );
    assert_eq!(guest.place(CAP_NOTIFY), WINDOW + NOTIFY);
    assert_eq!(guest.platform.doorbells(), [WINDOW + NOTIFY]);
    let mut features = 0;
    for (select, shift) in [(0u32, 0), (1, 32)] {
        guest.set(0, &select.to_le_bytes());
        features |= u64::from(u32::from_le_bytes(guest.get(4))) << shift;
    }
    assert_eq!(features, COMMON_FEATURES);
    assert_eq!(guest.get(18), [1, 0], "one queue");
    assert_eq!(guest.get(24), 64u16.to_le_bytes(), "of the largest size");
    assert_eq!(guest.get(16), [0xff, 0xff], "no vector");
    guest.set(22, &1u16.to_le_bytes());
    assert_eq!(guest.get(24), [0, 0], "no such queue");
    assert_eq!(guest.get(26), [0xff, 0xff]);
}

#[test]
fn a_proper_driver_gets_its_answers() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    guest.enable_msix(2);
    guest.bring_up(1);
    let doorbell = guest.place(CAP_NOTIFY);
    while guest.transport.queue_events()[0].read().is_ok() {}
    guest.mmio.write(doorbell, &0u16.to_le_bytes());
    assert!(guest.transport.queue_events()[0].read().is_ok());
    request(&rig, &guest);
    assert_eq!(rig.used(0), [(0, 8)]);
    assert_eq!(guest.interrupts(), [1]);
    let mut isr = [0xee];
    guest.mmio.read(guest.place(CAP_ISR), &mut isr);
    assert_eq!(isr, [0], "the message is all there is");
    // A reset takes the vectors.
    guest.bring_up(0);
    assert_eq!(guest.get(26), [0xff, 0xff]);
}

#[test]
fn a_masked_queue_interrupts_when_it_is_unmasked() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    guest.enable_msix(2);
    guest.bring_up(1);
    let control = guest.bar() + MSIX_TABLE + 16 + 12;
    let pending = || {
        let mut bits = [0; 8];
        guest.mmio.read(guest.bar() + MSIX_PENDING, &mut bits);
        bits[0]
    };
    guest.mmio.write(control, &1u32.to_le_bytes());
    request(&rig, &guest);
    assert_eq!((guest.interrupts(), pending()), (vec![], 2));
    guest.mmio.write(control, &0u32.to_le_bytes());
    assert_eq!((guest.interrupts(), pending()), (vec![1], 0));
    // The whole function, by its capability.
    guest.set_config(guest.msix + 2, &0xc000u16.to_le_bytes());
    request(&rig, &guest);
    assert_eq!((guest.interrupts(), pending()), (vec![], 2));
    let control = guest.config::<4>(guest.msix);
    let unmasked = (u32::from_le_bytes(control) & !(1 << 30)).to_le_bytes();
    guest.set_config(guest.msix, &unmasked);
    assert_eq!((guest.interrupts(), pending()), (vec![1], 0));
}

#[test]
fn a_driver_without_vectors_polls() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    guest.bring_up(1);
    guest.set(26, &7u16.to_le_bytes());
    assert_eq!(guest.get(26), [0xff, 0xff], "there are two");
    request(&rig, &guest);
    assert!(guest.interrupts().is_empty());
    let mut isr = [0];
    for want in [ISR_QUEUE, 0] {
        guest.mmio.read(guest.place(CAP_ISR), &mut isr);
        assert_eq!(isr, [want]);
    }
}

#[test]
fn a_fault_interrupts_by_the_configuration_vector() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    guest.enable_msix(2);
    guest.bring_up(1);
    rig.describe(0, 0, &[(END, 8, WRITE, 0)]);
    rig.offer(0, 0);
    assert_eq!(guest.transport.process_queue(0), Progress::Idle);
    assert_eq!(guest.interrupts(), [0]);
    assert_ne!(guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET as u8, 0);
    guest.bring_up(1);
}

#[test]
fn doorbells_follow_the_bar() {
    let rig = Rig::new(2);
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let guest = Guest::new(Box::new(Console::new(None, null.into(), false)), &rig);
    assert_eq!(
        guest.platform.doorbells().len(),
        guest.transport.queue_events().len()
    );
    guest.set_config(0x10, &(WINDOW as u32 + 0x8_0000).to_le_bytes());
    let doorbells = guest.platform.doorbells();
    assert_eq!(doorbells[..2], [WINDOW + 0x8_3000, WINDOW + 0x8_3004]);
    guest.bring_up(2);
    guest.set_config(0x10, &[0xff; 4]);
    assert!(guest.platform.doorbells().is_empty(), "nowhere");
    guest.set_config(0x10, &(WINDOW as u32).to_le_bytes());
    assert_eq!(guest.status(), DRIVER_OK);
    guest.host.remove(1).unwrap();
    assert!(guest.platform.doorbells().is_empty());
    assert_eq!(guest.config(0), [0xff; 4]);
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let rig = Rig::new(1);
    let guest = entropy(&rig);
    let (_, at) = *guest.capabilities.last().unwrap();
    let select = |offset: u64, length: u32| {
        guest.set_config(at + CAP_PCI_OFFSET, &(offset as u32).to_le_bytes());
        guest.set_config(at + CAP_PCI_LENGTH, &length.to_le_bytes());
    };
    select(COMMON + 20, 1);
    guest.set_config(at + CAP_PCI_DATA, &[ACKNOWLEDGE]);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [ACKNOWLEDGE]);
    select(COMMON + 18, 2);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [1, 0]);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [0; 4], "another width");
    select(COMMON + 19, 2);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [0; 2], "not aligned");
    select(COMMON + 18, 2);
    guest.set_config(at + CAP_PCI_BAR, &[1]);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [0; 2], "no such BAR");
    select(u64::from(u32::MAX - 3), 4);
    guest.set_config(at + CAP_PCI_BAR, &[0]);
    guest.set_config(at + CAP_PCI_DATA, &[0xff; 4]);
    assert_eq!(guest.config(at + CAP_PCI_DATA), [0; 4]);
}

#[test]
fn too_many_queues_are_refused() {
    struct Many(Vec<u16>);
    impl VirtioDevice for Many {
        fn device_type(&self) -> DeviceType {
            DeviceType::Net
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &self.0
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: super::super::Activation<'_>) -> Result<(), DeviceError> {
            Ok(())
        }
        fn process_queue(
            &mut self,
            _: usize,
            _: &mut DeviceIo<'_>,
        ) -> Result<Progress, DeviceError> {
            Ok(Progress::Idle)
        }
        fn reset(&mut self) {}
    }
    let rig = Rig::new(1);
    for (queues, fits) in [
        (1, true),
        (65, true),
        (MAX_QUEUES, true),
        (MAX_QUEUES + 1, false),
    ] {
        let device = Box::new(Many(vec![SIZE; queues]));
        let platform = Arc::new(Recorder::default());
        let built = PciTransport::new(device, rig.memory.clone(), platform);
        assert_eq!(built.is_ok(), fits, "{queues}");
    }
}

proptest! {
    /// Whatever a guest does to registers, tables and configuration space, a reset and a proper
    /// driver make the device work again.
    #[test]
    fn garbage_does_not_matter(
        kind in 0..2,
        steps in vec((any::<u8>(), any::<u16>(), any::<u64>(), 0usize..5), 0..300),
    ) {
        let rig = Rig::new(1);
        let device: Box<dyn VirtioDevice> = if kind == 0 {
            Box::new(Entropy::new())
        } else {
            let mut file = TempFile::new().unwrap().into_file();
            file.write_all(&[0; 4096]).unwrap();
            Box::new(blk::tests::plain(&file))
        };
        let guest = Guest::new(device, &rig);
        guest.bring_up(1);
        for (step, at, value, width) in steps {
            let value = if step & 0x80 == 0 { value } else { value & 0x1f };
            let data = &value.to_le_bytes()[..[1, 2, 4, 4, 8][width]];
            match step & 7 {
                0 => guest.set(u64::from(at) % 64, data),
                1 => {
                    let at = at % 256 / data.len() as u16 * data.len() as u16;
                    guest.set_config(at, data);
                    let _ = guest.config::<4>(at);
                }
                2 => guest.mmio.write(WINDOW + u64::from(at) % BAR_SIZE, data),
                3 => guest.mmio.read(WINDOW + u64::from(at) % BAR_SIZE, &mut [0; 8][..data.len()]),
                4 => guest.mmio.write(WINDOW + MSIX_TABLE + u64::from(at) % 32, data),
                5 => rig.fill(u64::from(at) % 0x4000, data),
                6 => rig.offer(0, value as u16),
                _ => {
                    let _ = guest.transport.process_queue(usize::from(at % 2));
                }
            }
        }
        guest.set_config(4, &6u16.to_le_bytes());
        guest.set_config(0x10, &(WINDOW as u32).to_le_bytes());
        guest.bring_up(1);
        prop_assert!(guest.transport.fault().is_none());
    }
}

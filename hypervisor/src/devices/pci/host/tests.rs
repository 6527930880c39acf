//! The bus against guests that scan it, measure and move BARs, and write what they like.

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};

use super::super::testing::Function;
use super::*;

const LOW: Range<u64> = 0xc000_0000..0xc010_0000;
const HIGH: Range<u64> = 0x40_0000_0000..0x41_0000_0000;

/// A guest at the ports.
struct Guest {
    mmio: Arc<Bus>,
    host: Arc<PciHost>,
    ports: ConfigPorts,
}

impl Guest {
    fn new() -> Self {
        let mmio = Arc::new(Bus::default());
        let host = Arc::new(PciHost::new(mmio.clone(), vec![LOW, HIGH]));
        let ports = ConfigPorts::new(host.clone());
        Self { mmio, host, ports }
    }

    fn select(&mut self, slot: u8, register: u8) {
        let address = ENABLE | u32::from(slot) << 11 | u32::from(register);
        self.ports.write(0, &address.to_le_bytes());
    }

    fn read(&mut self, slot: u8, register: u8) -> u32 {
        self.select(slot, register);
        let mut word = [0; 4];
        self.ports.read(DATA, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, slot: u8, register: u8, value: u32) {
        self.select(slot, register);
        self.ports.write(DATA, &value.to_le_bytes());
    }

    /// What answers at `address`.
    fn at(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.mmio.read(address, &mut byte);
        byte[0]
    }
}

#[test]
fn a_guest_finds_what_is_there() {
    let mut guest = Guest::new();
    let slot = guest.host.insert(Function::new(&[])).unwrap();
    assert_eq!(slot, 1);
    let ids: Vec<_> = (0..SLOTS).map(|slot| guest.read(slot, 0)).collect();
    assert_eq!(ids[..3], [0x0008_1b36, 0x5678_1234, u32::MAX]);
    assert!(ids[2..].iter().all(|id| *id == u32::MAX));
    for (what, address) in [
        ("bus 1", ENABLE | 1 << 16 | 1 << 11),
        ("function 1", ENABLE | 1 << 11 | 1 << 8),
        ("not enabled", 1 << 11),
    ] {
        guest.ports.write(0, &address.to_le_bytes());
        let mut word = [0; 4];
        guest.ports.read(DATA, &mut word);
        assert_eq!(word, [0xff; 4], "{what}");
        guest.ports.read(0, &mut word);
        assert_eq!(word, address.to_le_bytes());
    }
    guest.select(1, 0);
    let mut byte = [0];
    guest.ports.read(DATA + 3, &mut byte);
    assert_eq!(byte, [0x56]);
    guest.ports.read(DATA + 3, &mut [0; 2]);
    let mut half = [0; 2];
    guest.ports.read(0, &mut half);
    assert_eq!(half, [0xff; 2], "the address register has one width");
}

#[test]
fn bars_get_room_in_the_windows() {
    let guest = Guest::new();
    let function = Function::new(&[(0, 0x1000, false), (1, 0x4000, false), (2, 1 << 20, true)]);
    guest.host.insert(function.clone()).unwrap();
    assert_eq!(
        *function.moves.lock().unwrap(),
        [
            (0, None, Some(LOW.start)),
            (1, None, Some(LOW.start + 0x4000)),
            (2, None, Some(HIGH.start)),
        ]
    );
    assert_eq!(guest.at(LOW.start + 0x7fff), 1);
    assert_eq!(guest.at(LOW.start + 0x8000), 0xff);
    // A window full of BARs takes no more, and nothing of what did not fit stays.
    let big = Function::new(&[(0, 0x1000, false), (1, 1 << 20, false)]);
    assert_eq!(guest.host.insert(big), Err(InsertError::NoRoom(1 << 20)));
    assert_eq!(guest.at(LOW.start + 0x1000), 0xff);
    let small = || Function::new(&[(0, 16, false)]);
    for slot in 2..SLOTS {
        assert_eq!(guest.host.insert(small()), Ok(slot));
    }
    assert_eq!(guest.host.insert(small()), Err(InsertError::NoSlot));
    assert!(guest.host.remove(7).is_some());
    assert!(guest.host.remove(7).is_none());
    assert!(guest.host.remove(0).is_none());
    // The slot is free when its owner knows, and no sooner.
    assert_eq!(guest.host.insert(small()), Err(InsertError::NoSlot));
    assert_eq!(guest.host.take_removed().collect::<Vec<_>>(), [7]);
    assert_eq!(guest.host.insert(small()), Ok(7));
}

#[test]
fn a_guest_measures_and_moves_a_bar() {
    let mut guest = Guest::new();
    let function = Function::new(&[(0, 0x1000, false)]);
    guest.host.insert(function.clone()).unwrap();
    let start = LOW.start as u32;
    function.moves.lock().unwrap().clear();
    // As Linux does it: with decoding off.
    guest.write(1, 4, 0);
    guest.write(1, 0x10, u32::MAX);
    assert_eq!(guest.read(1, 0x10), 0xffff_f000);
    guest.write(1, 0x10, start);
    guest.write(1, 4, 2);
    assert_eq!(*function.moves.lock().unwrap(), [], "nothing has moved");
    assert_eq!(guest.at(LOW.start), 0);
    guest.write(1, 0x10, start + 0x8000);
    assert_eq!(
        (guest.at(LOW.start), guest.at(LOW.start + 0x8000)),
        (0xff, 0)
    );
    // Out of the window, and back.
    for (address, answers) in [(0xfee0_0000, false), (start - 0x1000, false), (start, true)] {
        guest.write(1, 0x10, address);
        assert_eq!(guest.at(address.into()) == 0, answers, "{address:#x}");
        assert_eq!(guest.at(LOW.start + 0x8000), 0xff);
    }
}

#[test]
fn a_bar_that_is_off_makes_room() {
    let mut guest = Guest::new();
    guest
        .host
        .insert(Function::new(&[(0, 0x1000, false)]))
        .unwrap();
    guest
        .host
        .insert(Function::new(&[(1, 0x1000, false)]))
        .unwrap();
    let start = LOW.start as u32;
    guest.write(2, 0x14, start);
    assert_eq!(
        (guest.at(LOW.start), guest.at(LOW.start + 0x1000)),
        (0, 0xff),
        "first come"
    );
    guest.write(1, 4, 0);
    guest.write(2, 0x14, start);
    guest.write(2, 0x14, start);
    assert_eq!(guest.at(LOW.start), 1);
    guest.write(1, 4, 2);
    assert_eq!(guest.at(LOW.start), 1);
    guest.write(1, 0x10, start + 0x1000);
    assert_eq!(guest.at(LOW.start + 0x1000), 0);
}

proptest! {
    /// Whatever is written to configuration spaces: what answers lies in a window, two BARs never
    /// answer at one address, and every move began where the last one ended.
    #[test]
    fn bars_never_overlap(
        writes in vec((0u8..4, 0u8..0x30, any::<u32>(), 0usize..3), 0..200),
    ) {
        let mut guest = Guest::new();
        let functions = [
            Function::new(&[(0, 0x1000, false), (2, 0x2000, true)]),
            Function::new(&[(0, 0x4000, false), (1, 0x1000, false)]),
            Function::new(&[(4, 0x8_0000, true)]),
        ];
        for function in &functions {
            guest.host.insert(function.clone()).unwrap();
        }
        for (slot, register, value, kind) in writes {
            // Often something that is possible, so that BARs meet.
            let value = match kind {
                0 => value,
                1 => LOW.start as u32 + value % 0x10_0000,
                _ => (HIGH.start >> 32) as u32,
            };
            let register = if kind == 0 { register } else { 0x10 + register / 8 * 4 };
            guest.write(slot, register, value);
            let mut ranges = Vec::new();
            for function in &functions {
                let sizes: Vec<_> = function.bars().iter().map(|bar| (bar.bar, bar.size)).collect();
                for (bar, size) in sizes {
                    let moves = function.moves.lock().unwrap();
                    let mut at = None;
                    for (_, from, to) in moves.iter().filter(|(number, ..)| *number == bar) {
                        prop_assert!(*from == at);
                        at = *to;
                    }
                    ranges.extend(at.map(|at| at..at + size));
                }
            }
            for (index, range) in ranges.iter().enumerate() {
                prop_assert!([LOW, HIGH].iter().any(|w| w.start <= range.start && range.end <= w.end));
                prop_assert!(!ranges[index + 1..].iter().any(|r| r.start < range.end && range.start < r.end));
            }
        }
    }
}

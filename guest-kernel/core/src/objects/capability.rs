//! The capability: two words that name an object and say what its holder may do with it. Only
//! this room knows where in the words a thing stands; everybody else asks.
//!
//! | kind | `head`, bits 52 to 63 | `data` |
//! | --- | --- | --- |
//! | untyped | size (6), device (1) | watermark and dirty limit, 32 bits each, in units |
//! | frame | rights (4), device (1), pages in bits (6) | where it is mapped |
//! | CNode | radix (6), guard length (6) | guard |
//! | address space, IRQ handler | | number |
//! | page table | level (2) | where it is mapped |
//! | endpoint, notification, reply | rights (4) | badge |
//! | zombie | upper part of its slots left | link to the zombie below, lower part of its slots left |
//!
//! Bits 0 to 3 of `head` are the kind, bits 4 to 51 the object's address: objects lie on
//! multiples of [`UNIT`].

use super::memory::{ADDRESS_BITS, Ref, Stored};
use super::slot::Slot;
use super::{Error, UNIT, UNIT_BITS};

const KIND: u64 = 0xf;
const ADDRESS: u64 = (1 << ADDRESS_BITS) - UNIT;
/// Six bits, wherever they stand.
const SIX: u64 = 0x3f;
const LOW_FIELD: u32 = ADDRESS_BITS;
const HIGH_FIELD: u32 = ADDRESS_BITS + 6;

/// Bits of a zombie's `data` that belong to its count; `head` has twelve more.
const ZOMBIE_LOW_BITS: u32 = u64::BITS - (ADDRESS_BITS - UNIT_BITS);
const ZOMBIE_LOW: u64 = (1 << ZOMBIE_LOW_BITS) - 1;
/// Most slots of a CNode, in bits: what a zombie can count.
pub const MAX_RADIX: u32 = ZOMBIE_LOW_BITS + 12 - 2;
/// The count's highest bit: see [`Capability::carries_root`].
const CARRIES_ROOT: u64 = 1 << (MAX_RADIX + 1);

/// Largest object, and largest untyped, in bits: what a watermark in units can count.
pub const MAX_SIZE_BITS: u32 = 32 + UNIT_BITS - 1;

/// Most pages of a frame, in bits: 2 MiB.
pub const MAX_FRAME_BITS: u32 = 9;

/// What kind of object a capability names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// None: the slot is empty.
    Null = 0,
    /// Memory that can be retyped.
    Untyped = 1,
    /// Memory that can be mapped.
    Frame = 2,
    /// A table of capabilities.
    CNode = 3,
    /// A thread.
    Thread = 4,
    /// A right to CPU time.
    SchedContext = 5,
    /// Where messages are sent and received.
    Endpoint = 6,
    /// Where events are signalled.
    Notification = 7,
    /// Where the answer of one call goes.
    Reply = 8,
    /// An address space.
    AddressSpace = 9,
    /// A page table below an address space.
    PageTable = 10,
    /// The authority to make IRQ handlers.
    IrqControl = 11,
    /// One interrupt.
    IrqHandler = 12,
    /// The authority to give out CPU time.
    SchedControl = 13,
    /// A service of the machine: the console, the end of the partition.
    Service = 14,
    /// A CNode or thread whose slots are being emptied. Nobody can name it.
    Zombie = 15,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Null,
        Self::Untyped,
        Self::Frame,
        Self::CNode,
        Self::Thread,
        Self::SchedContext,
        Self::Endpoint,
        Self::Notification,
        Self::Reply,
        Self::AddressSpace,
        Self::PageTable,
        Self::IrqControl,
        Self::IrqHandler,
        Self::SchedControl,
        Self::Service,
        Self::Zombie,
    ];
}

/// What the holder of an endpoint, notification, reply or frame may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u64);

impl Rights {
    /// Receive, wait; map readable.
    pub const READ: Self = Self(1);
    /// Send, signal; map writable.
    pub const WRITE: Self = Self(2);
    /// Send capabilities along, and be answered with some.
    pub const GRANT: Self = Self(4);
    /// Be answered.
    pub const GRANT_REPLY: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    /// The rights in `bits`; further bits are no rights and are passed over.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// As a bit set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Those that both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that either has.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether one of `wanted` is among these.
    #[must_use]
    pub const fn any(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }
}

/// A capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capability {
    pub(super) head: u64,
    pub(super) data: u64,
}

impl Capability {
    /// What an empty slot holds.
    pub const NULL: Self = Self { head: 0, data: 0 };

    const fn new(kind: Kind, address: u64, low: u64, data: u64) -> Self {
        Self {
            head: kind as u64 | address & ADDRESS | low << LOW_FIELD,
            data,
        }
    }

    /// An untyped of `1 << bits` bytes at `address`. Of the units from its start, those below
    /// `dirty` may hold old contents.
    pub(crate) const fn untyped(address: u64, bits: u32, device: bool, dirty: u64) -> Self {
        let low = bits as u64 | (device as u64) << 6;
        Self::new(Kind::Untyped, address, low, dirty << 32)
    }

    /// A frame of `1 << bits` pages that is mapped nowhere.
    pub(crate) const fn frame(address: u64, bits: u32, device: bool) -> Self {
        let low = Rights::ALL.0 | (device as u64) << 4 | (bits as u64) << 6;
        Self::new(Kind::Frame, address, low, 0)
    }

    /// A CNode of `1 << radix` slots, without a guard.
    pub(crate) const fn cnode(address: u64, radix: u32) -> Self {
        Self::new(Kind::CNode, address, radix as u64, 0)
    }

    /// The first capability to an object without further fields, with all rights and no badge.
    pub(crate) const fn object(kind: Kind, address: u64) -> Self {
        let low = match kind {
            Kind::Endpoint | Kind::Notification | Kind::Reply => Rights::ALL.0,
            _ => 0,
        };
        Self::new(kind, address, low, 0)
    }

    /// An authority or service that is no object in memory; `number` says which.
    pub const fn service(kind: Kind, number: u64) -> Self {
        Self::new(kind, 0, 0, number)
    }

    /// What kind of object it names.
    #[must_use]
    pub fn kind(self) -> Kind {
        Kind::ALL[(self.head & KIND) as usize]
    }

    /// Whether it names an object of this kind.
    #[must_use]
    pub const fn is(self, kind: Kind) -> bool {
        self.head & KIND == kind as u64
    }

    /// Whether the slot is empty.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.is(Kind::Null)
    }

    /// Where the object lies.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.head & ADDRESS
    }

    /// The object, seen as a `T`.
    pub(crate) const fn object_ref<T: Stored>(self) -> Ref<T> {
        Ref::new(self.address())
    }

    const fn low(self) -> u64 {
        self.head >> LOW_FIELD & SIX
    }

    const fn with_low(self, low: u64) -> Self {
        Self {
            head: self.head & !(SIX << LOW_FIELD) | low << LOW_FIELD,
            ..self
        }
    }

    /// Size of an untyped in bits.
    #[must_use]
    pub const fn size_bits(self) -> u32 {
        self.low() as u32
    }

    /// Whether an untyped or frame is no RAM.
    #[must_use]
    pub fn is_device(self) -> bool {
        match self.kind() {
            Kind::Untyped => self.head >> HIGH_FIELD & 1 != 0,
            Kind::Frame => self.low() & 1 << 4 != 0,
            _ => false,
        }
    }

    /// Pages of a frame.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << (self.head >> HIGH_FIELD)
    }

    /// Whether a frame has 2 MiB.
    #[must_use]
    pub const fn is_large(self) -> bool {
        self.head >> HIGH_FIELD == MAX_FRAME_BITS as u64
    }

    /// Units of an untyped that are handed out, from its start.
    #[must_use]
    pub const fn watermark(self) -> u64 {
        self.data & 0xffff_ffff
    }

    /// Units of an untyped, from its start, that may hold old contents.
    #[must_use]
    pub const fn dirty(self) -> u64 {
        self.data >> 32
    }

    /// An untyped with another watermark and dirty limit.
    pub(crate) const fn with_watermark(self, watermark: u64, dirty: u64) -> Self {
        Self {
            data: watermark | dirty << 32,
            ..self
        }
    }

    /// Slots of a CNode, or of a zombie, in bits.
    #[must_use]
    pub const fn radix(self) -> u32 {
        self.low() as u32
    }

    /// Length of a CNode's guard in bits.
    #[must_use]
    pub const fn guard_bits(self) -> u32 {
        (self.head >> HIGH_FIELD) as u32
    }

    /// A CNode's guard.
    #[must_use]
    pub const fn guard(self) -> u64 {
        self.data
    }

    /// A CNode with a guard.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when guard and radix together are longer than an address, or the
    /// guard has bits beyond its length.
    pub(crate) const fn with_guard(self, guard: u64, bits: u64) -> Result<Self, Error> {
        let longest = u64::BITS as u64 - self.radix() as u64;
        if bits >= u64::BITS as u64 || bits > longest || guard >> bits != 0 {
            return Err(Error::InvalidArgument);
        }
        Ok(Self {
            head: self.head & !(SIX << HIGH_FIELD) | bits << HIGH_FIELD,
            data: guard,
        })
    }

    /// The badge of an endpoint or notification; zero is none.
    #[must_use]
    pub const fn badge(self) -> u64 {
        self.data
    }

    /// The same endpoint or notification with a badge.
    pub(super) const fn with_badge(self, badge: u64) -> Self {
        Self {
            data: badge,
            ..self
        }
    }

    /// Where a frame or page table is mapped, as [`super::mapping`] writes it; zero for nowhere.
    pub(super) const fn mapping(self) -> u64 {
        self.data
    }

    /// A frame or page table that is mapped elsewhere.
    pub(super) const fn with_mapping(self, mapping: u64) -> Self {
        Self {
            data: mapping,
            ..self
        }
    }

    /// The level of a page table: 1 maps 4 KiB pages. Zero while it is not mapped.
    pub(super) const fn level(self) -> u32 {
        self.low() as u32
    }

    pub(super) const fn with_level(self, level: u32) -> Self {
        self.with_low(level as u64)
    }

    /// The number of an address space, an interrupt or a CPU.
    pub(crate) const fn number(self) -> u64 {
        self.data
    }

    pub(super) const fn with_number(self, number: u64) -> Self {
        Self {
            data: number,
            ..self
        }
    }

    /// What may be done with an endpoint, notification, reply or frame.
    #[must_use]
    pub const fn rights(self) -> Rights {
        Rights::from_bits(self.low())
    }

    /// The same capability with no more than `rights`. Kinds without rights stay as they are.
    #[must_use]
    pub(crate) fn masked(self, rights: Rights) -> Self {
        match self.kind() {
            Kind::Endpoint | Kind::Notification | Kind::Reply | Kind::Frame => {
                self.with_low(self.low() & !Rights::ALL.0 | self.rights().and(rights).0)
            }
            _ => self,
        }
    }

    /// What is left of the capability to an object with `1 << radix` slots while they are emptied.
    /// `below` is the zombie that waits for this one.
    pub(super) fn into_zombie(self, radix: u32, below: Option<Ref<Slot>>) -> Self {
        let below = super::memory::link(below) >> UNIT_BITS << ZOMBIE_LOW_BITS;
        Self::new(Kind::Zombie, self.address(), 0, below).with_slots_left(1 << radix, false)
    }

    const fn zombie_count(self) -> u64 {
        self.head >> LOW_FIELD << ZOMBIE_LOW_BITS | self.data & ZOMBIE_LOW
    }

    /// How many slots of a zombie may still hold something.
    pub(super) const fn slots_left(self) -> u64 {
        self.zombie_count() & (CARRIES_ROOT - 1)
    }

    /// Whether a slot of the object that was passed over holds the root of all zombies.
    pub(super) const fn carries_root(self) -> bool {
        self.zombie_count() & CARRIES_ROOT != 0
    }

    /// A zombie with so many slots left, and with the root in one passed over or not.
    pub(super) const fn with_slots_left(self, slots: u64, carries_root: bool) -> Self {
        let count = if carries_root {
            slots | CARRIES_ROOT
        } else {
            slots
        };
        Self {
            head: self.head & ((1 << LOW_FIELD) - 1) | count >> ZOMBIE_LOW_BITS << LOW_FIELD,
            data: self.data & !ZOMBIE_LOW | count & ZOMBIE_LOW,
        }
    }

    /// The zombie that waits for this one, unless that is the root.
    pub(super) const fn below(self) -> Option<Ref<Slot>> {
        Ref::from_link(self.data >> ZOMBIE_LOW_BITS << UNIT_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let untyped = Capability::untyped(0xf_ffff_ffff_ffe0, 36, true, 0xffff_ffff);
        assert_eq!(untyped.kind(), Kind::Untyped);
        assert_eq!(untyped.address(), 0xf_ffff_ffff_ffe0);
        assert_eq!((untyped.size_bits(), untyped.is_device()), (36, true));
        assert_eq!((untyped.watermark(), untyped.dirty()), (0, 0xffff_ffff));
        let used = untyped.with_watermark(7, 9);
        assert_eq!((used.watermark(), used.dirty()), (7, 9));
        assert_eq!((used.size_bits(), used.address()), (36, untyped.address()));

        let cnode = Capability::cnode(0x1_2340, 12).with_guard(0x5, 52).unwrap();
        assert_eq!(
            (cnode.radix(), cnode.guard_bits(), cnode.guard()),
            (12, 52, 5)
        );
        assert_eq!(cnode.address(), 0x1_2340);

        for bits in 0..=MAX_FRAME_BITS {
            let frame = Capability::frame(0x20_0000, bits, true);
            let weak = frame.masked(Rights::READ);
            for frame in [frame, weak] {
                assert_eq!((frame.pages(), frame.is_device()), (1 << bits, true));
                assert_eq!(frame.is_large(), bits == MAX_FRAME_BITS);
                assert_eq!(frame.address(), 0x20_0000);
            }
            assert_eq!((frame.rights(), weak.rights()), (Rights::ALL, Rights::READ));
            assert!(!Capability::frame(0x1000, bits, false).is_device());
        }

        let thread = Capability::object(Kind::Thread, 0xf_ffff_ffff_ffe0);
        let below = Ref::new(0xf_ffff_ffff_ff80);
        let zombie = thread.into_zombie(MAX_RADIX, Some(below));
        assert_eq!(
            (zombie.kind(), zombie.address()),
            (Kind::Zombie, thread.address())
        );
        assert_eq!(zombie.slots_left(), 1 << MAX_RADIX);
        assert!(!zombie.carries_root());
        let zombie = zombie.with_slots_left((1 << MAX_RADIX) - 1, true);
        assert!(zombie.carries_root());
        assert_eq!(zombie.slots_left(), (1 << MAX_RADIX) - 1);
        assert_eq!(
            (zombie.below(), zombie.address()),
            (Some(below), thread.address())
        );
        assert_eq!(thread.into_zombie(3, None).below(), None);
    }

    #[test]
    fn kinds_survive_the_way_through_a_word() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(Capability::object(kind, 0x40).kind(), kind);
        }
    }

    #[test]
    fn guards_and_radix_fit_an_address() {
        let cnode = Capability::cnode(0x40, 4);
        assert!(cnode.with_guard(0, 60).is_ok());
        assert!(cnode.with_guard(3, 2).is_ok());
        for (guard, bits) in [(0, 61), (4, 2), (1, 0), (0, 64), (0, u64::MAX)] {
            assert_eq!(cnode.with_guard(guard, bits), Err(Error::InvalidArgument));
        }
    }

    #[test]
    fn rights_only_shrink() {
        let endpoint = Capability::object(Kind::Endpoint, 0x40);
        let reader = endpoint.masked(Rights::READ);
        assert_eq!(reader.masked(Rights::ALL).rights(), Rights::READ);
        assert!(!reader.rights().any(Rights::WRITE.or(Rights::GRANT)));
        let thread = Capability::object(Kind::Thread, 0x40);
        assert_eq!(thread.masked(Rights::READ), thread);
    }
}

//! Retype: how memory becomes objects. The only place where objects come into being after boot.
//!
//! An untyped hands out its memory from its start upwards. When its last child is gone it starts
//! again; whatever it handed out before is zeroed on the way to its next owner, a piece at a time
//! so that an urgent thread waits no longer than for one piece. Memory that was never used is
//! zero as the VMM delivered it, which matters where a kernel instruction takes half a microsecond.

use super::capability::{Capability, Kind, MAX_FRAME_BITS, MAX_RADIX, MAX_SIZE_BITS};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::{Error, Objects, UNIT, UNIT_BITS, derivation};

/// Bytes zeroed before an urgent thread is looked for.
const ZERO_STEP: u64 = 1024;
/// Size of a page in bits.
const PAGE_BITS: u32 = 12;
/// Most objects of one retype: the longest that an urgent thread waits for them.
pub const MAX_COUNT: u64 = 256;

/// What memory can be retyped to, with the size where the caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectType {
    /// Smaller untyped memory, of `1 << bits` bytes.
    Untyped {
        /// Size in bits.
        bits: u64,
    },
    /// A table of `1 << radix` slots.
    CNode {
        /// Slots in bits, at least one.
        radix: u64,
    },
    /// A frame of `1 << bits` pages of 4 KiB.
    Frame {
        /// Pages in bits.
        bits: u64,
    },
    /// A thread.
    Thread,
    /// A scheduling context.
    SchedContext,
    /// An endpoint.
    Endpoint,
    /// A notification.
    Notification,
    /// A reply object.
    Reply,
    /// An address space.
    AddressSpace,
    /// A page table.
    PageTable,
}

impl ObjectType {
    /// Size of one object in bits.
    ///
    /// # Errors
    /// [`Error::Range`] for a size that no object of the type has.
    fn size_bits(self) -> Result<u32, Error> {
        let sized = |bits: u64, min: u32, max: u32| {
            u32::try_from(bits)
                .ok()
                .filter(|bits| (min..=max).contains(bits))
                .ok_or(Error::Range {
                    min: u64::from(min),
                    max: u64::from(max),
                })
        };
        Ok(match self {
            Self::Untyped { bits } => sized(bits, UNIT_BITS, MAX_SIZE_BITS)?,
            Self::CNode { radix } => sized(radix, 1, MAX_RADIX)? + UNIT_BITS,
            Self::Frame { bits } => sized(bits, 0, MAX_FRAME_BITS)? + PAGE_BITS,
            Self::PageTable => PAGE_BITS,
            Self::AddressSpace => super::mapping::SPACE_BITS,
            Self::Thread => super::thread::SIZE_BITS,
            Self::SchedContext => 7,
            Self::Endpoint | Self::Notification | Self::Reply => 6,
        })
    }

    /// Whether memory of a device can be it: the kernel itself never reads or writes there.
    const fn fits_device(self) -> bool {
        matches!(self, Self::Untyped { .. } | Self::Frame { .. })
    }

    fn capability(self, address: u64, bits: u32, parent: Capability) -> Capability {
        let device = parent.is_device();
        match self {
            Self::Untyped { .. } => {
                // Old contents go with the memory: nobody has zeroed it.
                let start = (address - parent.address()) >> UNIT_BITS;
                let dirty = parent
                    .dirty()
                    .saturating_sub(start)
                    .min(1 << (bits - UNIT_BITS));
                Capability::untyped(address, bits, device, dirty)
            }
            Self::CNode { .. } => Capability::cnode(address, bits - UNIT_BITS),
            Self::Frame { .. } => Capability::frame(address, bits - PAGE_BITS, device),
            Self::Thread => Capability::object(Kind::Thread, address),
            Self::SchedContext => Capability::object(Kind::SchedContext, address),
            Self::Endpoint => Capability::object(Kind::Endpoint, address),
            Self::Notification => Capability::object(Kind::Notification, address),
            Self::Reply => Capability::object(Kind::Reply, address),
            Self::AddressSpace => Capability::object(Kind::AddressSpace, address),
            Self::PageTable => Capability::object(Kind::PageTable, address),
        }
    }
}

impl<M: Memory> Objects<M> {
    /// Makes `count` objects out of the untyped in `slot`, and puts their capabilities into the
    /// slots of the CNode `to` from `offset` on.
    ///
    /// # Errors
    /// In this order: [`Error::InvalidCapability`] when `slot` holds no untyped or `to` is no
    /// CNode; [`Error::IllegalOperation`] for what a device cannot be; [`Error::Range`] for a
    /// size, an offset or a count; [`Error::DeleteFirst`] for a slot in use;
    /// [`Error::NotEnoughMemory`]; [`Error::Preempted`], with some old contents zeroed.
    pub fn retype(
        &mut self,
        slot: Ref<Slot>,
        object: ObjectType,
        to: Capability,
        offset: u64,
        count: u64,
    ) -> Result<(), Error> {
        let untyped = self.capability(slot);
        if untyped.kind() != Kind::Untyped || to.kind() != Kind::CNode {
            return Err(Error::InvalidCapability);
        }
        if untyped.is_device() && !object.fits_device() {
            return Err(Error::IllegalOperation);
        }
        let bits = object.size_bits()?;
        let slots = 1_u64 << to.radix();
        let within = |value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(Error::Range { min, max })
            }
        };
        within(offset, 0, slots - 1)?;
        within(count, 1, (slots - offset).min(MAX_COUNT))?;
        let first = to.object_ref::<Slot>().at(offset);
        if (0..count).any(|n| !self.capability(first.at(n)).is_null()) {
            return Err(Error::DeleteFirst);
        }
        if object == ObjectType::AddressSpace && count > self.free_spaces() {
            return Err(Error::NotEnoughMemory { available: 0 });
        }
        let (untyped, start, end) = self.room(slot, untyped, bits, count)?;
        let (untyped, zeroed) = if matches!(object, ObjectType::Untyped { .. }) {
            (untyped, Ok(()))
        } else {
            self.zero_from(untyped, start)
        };
        self.memory.get_mut(slot).set_capability(untyped);
        zeroed?;
        for n in 0..count {
            let address = untyped.address() + (start << UNIT_BITS) + (n << bits);
            let made = match object {
                ObjectType::AddressSpace => self.begin_space(address)?,
                object => object.capability(address, bits, untyped),
            };
            derivation::insert(&mut self.memory, slot, first.at(n), made, true);
        }
        let used = untyped.with_watermark(end, untyped.dirty());
        self.memory.get_mut(slot).set_capability(used);
        Ok(())
    }

    /// The untyped as it is to be before it hands out memory, and the units it will hand out: from
    /// the watermark on, or from the start when nothing of it is in use any more.
    fn room(
        &self,
        slot: Ref<Slot>,
        untyped: Capability,
        bits: u32,
        count: u64,
    ) -> Result<(Capability, u64, u64), Error> {
        let unused = derivation::first_child(&self.memory, slot).is_none();
        let untyped = if unused {
            untyped.with_watermark(0, untyped.dirty().max(untyped.watermark()))
        } else {
            untyped
        };
        // The address counts, not the offset: a page has to lie on a page whatever the untyped
        // it comes from, and untypeds are aligned to their size.
        let all = 1_u64 << (untyped.size_bits() - UNIT_BITS);
        let available = Error::NotEnoughMemory {
            available: (all - untyped.watermark()) << UNIT_BITS,
        };
        let unit_bits = bits - UNIT_BITS;
        let start = untyped.watermark().next_multiple_of(1 << unit_bits);
        let room = all.checked_sub(start).ok_or(available)?;
        if room >> unit_bits < count {
            return Err(available);
        }
        Ok((untyped, start, start + (count << unit_bits)))
    }

    /// Zeroes what of the units from `start` on may hold old contents, from the top down, so that
    /// the dirty limit always tells what is left to do. Of a device nothing is touched.
    fn zero_from(
        &mut self,
        mut untyped: Capability,
        start: u64,
    ) -> (Capability, Result<(), Error>) {
        while untyped.dirty() > start && !untyped.is_device() {
            let units = (untyped.dirty() - start).min(ZERO_STEP / UNIT);
            let from = untyped.dirty() - units;
            self.memory
                .zero(untyped.address() + from * UNIT, units * UNIT);
            untyped = untyped.with_watermark(untyped.watermark(), from);
            if from > start && self.memory.preemption_pending() {
                return (untyped, Err(Error::Preempted));
            }
        }
        (untyped, Ok(()))
    }
}

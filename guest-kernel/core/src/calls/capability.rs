//! Capability spaces: copy, mint, move, mutate, rotate, delete, revoke; and untyped memory.

use bulkhead_abi::object::{
    TYPE_ADDRESS_SPACE, TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION, TYPE_PAGE_TABLE,
    TYPE_REPLY, TYPE_SCHED_CONTEXT, TYPE_THREAD, TYPE_UNTYPED,
};
use bulkhead_abi::syscall::Status;

use super::{Answer, Arguments, Outcome, Refusal};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::UNIT_BITS;
use crate::objects::capability::{Kind, Rights};
use crate::objects::memory::Ref;
use crate::objects::slot::Slot;
use crate::objects::thread::Thread;
use crate::objects::untyped::ObjectType;

impl<H: Hardware> Kernel<H> {
    /// The slot at an address of `depth` bits below the CNode that `cnode` names.
    pub(super) fn slot(
        &self,
        thread: Ref<Thread>,
        cnode: u64,
        index: u64,
        depth: u64,
    ) -> Result<Ref<Slot>, Refusal> {
        let cnode = self.capability(thread, cnode, Kind::CNode)?;
        Ok(self.objects.resolve(cnode, index, depth)?)
    }

    /// Destination and source of an operation that puts one capability into another slot.
    fn two_slots(
        &self,
        thread: Ref<Thread>,
        cnode: u64,
        [index, depth, from, from_index, from_depth, ..]: Arguments,
    ) -> Result<(Ref<Slot>, Ref<Slot>), Refusal> {
        let to = self.slot(thread, cnode, index, depth)?;
        let from = self.slot(thread, from, from_index, from_depth)?;
        Ok((to, from))
    }

    pub(super) fn copy(&mut self, thread: Ref<Thread>, cnode: u64, arguments: Arguments) -> Answer {
        let (to, from) = self.two_slots(thread, cnode, arguments)?;
        let [.., rights, _, _] = arguments;
        self.objects.copy(to, from, Rights::from_bits(rights))?;
        Ok(Outcome::Done)
    }

    pub(super) fn mint(&mut self, thread: Ref<Thread>, cnode: u64, arguments: Arguments) -> Answer {
        let (to, from) = self.two_slots(thread, cnode, arguments)?;
        let [.., rights, data, _] = arguments;
        let (guard_bits, rights) = (rights >> 32, Rights::from_bits(rights));
        self.objects.mint(to, from, rights, data, guard_bits)?;
        Ok(Outcome::Done)
    }

    /// Move, and with a guard mutate.
    pub(super) fn relocate(
        &mut self,
        thread: Ref<Thread>,
        cnode: u64,
        arguments: Arguments,
        guarded: bool,
    ) -> Answer {
        let (to, from) = self.two_slots(thread, cnode, arguments)?;
        let [.., guard, bits, _] = arguments;
        let guard = guarded.then_some((guard, bits));
        self.objects.relocate(to, from, guard)?;
        Ok(Outcome::Done)
    }

    pub(super) fn rotate(
        &mut self,
        thread: Ref<Thread>,
        cnode: u64,
        arguments: Arguments,
    ) -> Answer {
        let [.., from, from_index, from_depth] = arguments;
        // The pivot stands where other operations have their source.
        let (to, pivot) = self.two_slots(thread, cnode, arguments)?;
        let from = self.slot(thread, from, from_index, from_depth)?;
        self.objects.rotate((to, None), (pivot, None), from)?;
        Ok(Outcome::Done)
    }

    pub(super) fn delete(
        &mut self,
        thread: Ref<Thread>,
        cnode: u64,
        [index, depth, ..]: Arguments,
    ) -> Answer {
        let slot = self.slot(thread, cnode, index, depth)?;
        self.count_time();
        self.objects.delete(slot)?;
        Ok(Outcome::Done)
    }

    pub(super) fn revoke(
        &mut self,
        thread: Ref<Thread>,
        cnode: u64,
        [index, depth, ..]: Arguments,
    ) -> Answer {
        let slot = self.slot(thread, cnode, index, depth)?;
        self.count_time();
        self.objects.revoke(slot)?;
        Ok(Outcome::Done)
    }

    pub(super) fn retype(
        &mut self,
        thread: Ref<Thread>,
        untyped: u64,
        [object, size, cnode, index, depth, offset, count, _]: Arguments,
    ) -> Answer {
        let object = match object {
            TYPE_UNTYPED => ObjectType::Untyped { bits: size },
            TYPE_FRAME => ObjectType::Frame { bits: size },
            TYPE_CNODE => ObjectType::CNode { radix: size },
            TYPE_THREAD => ObjectType::Thread,
            TYPE_SCHED_CONTEXT => ObjectType::SchedContext,
            TYPE_ENDPOINT => ObjectType::Endpoint,
            TYPE_NOTIFICATION => ObjectType::Notification,
            TYPE_REPLY => ObjectType::Reply,
            TYPE_ADDRESS_SPACE => ObjectType::AddressSpace,
            TYPE_PAGE_TABLE => ObjectType::PageTable,
            _ => return Err(Status::InvalidArgument.into()),
        };
        let (slot, _) = self.lookup(thread, untyped)?;
        let mut to = self.capability(thread, cnode, Kind::CNode)?;
        if depth != 0 {
            let at = self.objects.resolve(to, index, depth)?;
            to = self.objects.capability(at);
        }
        self.objects.retype(slot, object, to, offset, count)?;
        Ok(Outcome::Done)
    }

    pub(super) fn inspect(&mut self, thread: Ref<Thread>, untyped: u64) -> Answer {
        let found = self.capability(thread, untyped, Kind::Untyped)?;
        let used = found.watermark() << UNIT_BITS;
        Ok(Outcome::Values([u64::from(found.size_bits()), used]))
    }
}

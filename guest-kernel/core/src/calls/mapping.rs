//! Frames and page tables in address spaces.

use bulkhead_abi::layout::PAGE_SIZE;
use bulkhead_abi::syscall::Status;

use super::{Answer, Arguments, Outcome, Refusal};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::capability::Kind;
use crate::objects::mapping::Part;
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;
use crate::paging::Rights;

/// Most tables that are missing on the way to an address.
const MAX_TABLES: u64 = 3;

impl<H: Hardware> Kernel<H> {
    pub(super) fn map_frame(
        &mut self,
        thread: Ref<Thread>,
        frame: u64,
        [space, address, rights, first, count, ..]: Arguments,
    ) -> Answer {
        let (slot, _) = self.lookup(thread, frame)?;
        let space = self.capability(thread, space, Kind::AddressSpace)?;
        let rights = Rights::from_bits(rights)?;
        let part = Part { first, count };
        self.objects.map_frame(slot, space, address, rights, part)?;
        Ok(Outcome::Done)
    }

    pub(super) fn unmap_frame(
        &mut self,
        thread: Ref<Thread>,
        frame: u64,
        [first, count, ..]: Arguments,
    ) -> Answer {
        let (slot, _) = self.lookup(thread, frame)?;
        self.objects.unmap_frame(slot, Part { first, count })?;
        Ok(Outcome::Done)
    }

    pub(super) fn frame_address(&mut self, thread: Ref<Thread>, frame: u64) -> Answer {
        let frame = self.capability(thread, frame, Kind::Frame)?;
        Ok(Outcome::Values([
            frame.address(),
            frame.pages() * PAGE_SIZE,
        ]))
    }

    /// Puts tables from successive handles on where they are missing, up to `count`. An error is of
    /// the first one alone: what stops a further one ends the call.
    pub(super) fn map_tables(
        &mut self,
        thread: Ref<Thread>,
        table: u64,
        [space, address, count, ..]: Arguments,
    ) -> Answer {
        if count > MAX_TABLES {
            let range = [0, MAX_TABLES];
            return Err(Refusal::Refused(Status::OutOfRange, Some(range)));
        }
        let space = self.capability(thread, space, Kind::AddressSpace)?;
        let (slot, _) = self.lookup(thread, table)?;
        self.objects.map_table(slot, space, address)?;
        let mut used = 1;
        while used < count
            && let Ok((slot, _)) = self.lookup(thread, table.wrapping_add(used))
            && self.objects.map_table(slot, space, address).is_ok()
        {
            used += 1;
        }
        Ok(Outcome::Value(used))
    }
}

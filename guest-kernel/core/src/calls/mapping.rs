//! Frames and page tables in address spaces.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use super::{Answer, Arguments, Outcome};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::capability::Kind;
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;
use crate::paging::Rights;

impl<H: Hardware> Kernel<H> {
    pub(super) fn map_frame(
        &mut self,
        thread: Ref<Thread>,
        frame: u64,
        [space, address, rights, ..]: Arguments,
    ) -> Answer {
        let (slot, _) = self.lookup(thread, frame)?;
        let space = self.capability(thread, space, Kind::AddressSpace)?;
        let rights = Rights::from_bits(rights)?;
        self.objects.map_frame(slot, space, address, rights)?;
        Ok(Outcome::Done)
    }

    pub(super) fn unmap_frame(&mut self, thread: Ref<Thread>, frame: u64) -> Answer {
        let (slot, _) = self.lookup(thread, frame)?;
        self.objects.unmap_frame(slot)?;
        Ok(Outcome::Done)
    }

    pub(super) fn frame_address(&mut self, thread: Ref<Thread>, frame: u64) -> Answer {
        let frame = self.capability(thread, frame, Kind::Frame)?;
        let length = if frame.is_large() {
            LARGE_PAGE_SIZE
        } else {
            PAGE_SIZE
        };
        Ok(Outcome::Values([frame.address(), length]))
    }

    pub(super) fn map_table(
        &mut self,
        thread: Ref<Thread>,
        table: u64,
        [space, address, ..]: Arguments,
    ) -> Answer {
        let (slot, _) = self.lookup(thread, table)?;
        let space = self.capability(thread, space, Kind::AddressSpace)?;
        self.objects.map_table(slot, space, address)?;
        Ok(Outcome::Done)
    }
}

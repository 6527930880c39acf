//! Memory from the pool, in the first address space.

use bulkhead_abi::syscall::Status;

use super::{Answer, Outcome, Refusal};
use crate::hardware::Hardware;
use crate::kernel::{Kernel, service};
use crate::objects::capability::Kind;
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;
use crate::paging::{AddressSpace, Rights};
use crate::user::UserRange;

/// Pages zeroed before a call that needs them restarts: 2.4 ms where kernel mode is interpreted.
pub(super) const CLEAN_STEP: u64 = 8;

impl<H: Hardware> Kernel<H> {
    pub(super) fn map(
        &mut self,
        thread: Ref<Thread>,
        pool: u64,
        [address, bytes, rights]: [u64; 3],
    ) -> Answer {
        self.service(thread, pool, service::POOL)?;
        if self.space(thread) != self.first_space() {
            return Err(Status::InvalidCapability.into());
        }
        let (range, rights) = (
            UserRange::pages(address, bytes)?,
            Rights::from_bits(rights)?,
        );
        let space = self.first_space()?;
        let mapped = space.map(&mut self.objects.memory, &mut self.untyped, range, rights);
        self.or_clean(range.page_count(), mapped)
    }

    pub(super) fn protect(
        &mut self,
        thread: Ref<Thread>,
        space: u64,
        [address, bytes, rights]: [u64; 3],
    ) -> Answer {
        let space = self.pooled_space(thread, space)?;
        let (range, rights) = (
            UserRange::pages(address, bytes)?,
            Rights::from_bits(rights)?,
        );
        let changed = space.protect(&mut self.objects.memory, &mut self.untyped, range, rights);
        self.or_clean(1, changed)
    }

    pub(super) fn unmap(
        &mut self,
        thread: Ref<Thread>,
        space: u64,
        [address, bytes, _]: [u64; 3],
    ) -> Answer {
        let space = self.pooled_space(thread, space)?;
        let range = UserRange::pages(address, bytes)?;
        // The kernel writes to the state page by its physical address: it must stay what it is.
        if self
            .state_page
            .is_some_and(|bound| range.contains(bound.address))
        {
            return Err(Status::InvalidAddress.into());
        }
        let unmapped = space.unmap(&mut self.objects.memory, &mut self.untyped, range);
        self.or_clean(1, unmapped)
    }

    /// The first address space, if that is what a handle names.
    fn pooled_space(&self, thread: Ref<Thread>, handle: u64) -> Result<AddressSpace, Refusal> {
        let found = self.capability(thread, handle, Kind::AddressSpace)?;
        let first = self.first_space()?;
        if AddressSpace::at(found.address()) == first {
            Ok(first)
        } else {
            Err(Status::InvalidCapability.into())
        }
    }

    /// Turns a lack of memory into a restart while given-back pages can still be zeroed for it.
    fn or_clean(&mut self, pages: u64, result: Result<(), Status>) -> Answer {
        let dirty = self.untyped.dirty_pages();
        match result {
            Ok(()) => Ok(Outcome::Value(0)),
            Err(Status::NotEnoughMemory)
                if dirty > 0 && pages <= self.untyped.ready_pages() + dirty =>
            {
                self.untyped.clean(&mut self.objects.memory, CLEAN_STEP);
                Ok(Outcome::Restart)
            }
            Err(status) => Err(status.into()),
        }
    }
}

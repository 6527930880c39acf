//! Interrupts of devices: from a thread's registers to [`crate::objects::interrupt`].

use super::{Answer, Arguments, Outcome};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::capability::Kind;
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;

impl<H: Hardware> Kernel<H> {
    pub(super) fn make_handler(
        &mut self,
        thread: Ref<Thread>,
        control: u64,
        [device, cnode, index, depth, ..]: Arguments,
    ) -> Answer {
        let (control, _) = self.lookup(thread, control)?;
        let to = self.slot(thread, cnode, index, depth)?;
        self.objects.make_handler(control, to, device)?;
        Ok(Outcome::Done)
    }

    pub(super) fn bind_interrupt(
        &mut self,
        thread: Ref<Thread>,
        handler: u64,
        [notification, ..]: Arguments,
    ) -> Answer {
        let handler = self.capability(thread, handler, Kind::IrqHandler)?;
        let source = match notification {
            0 => None,
            handle => Some(self.lookup(thread, handle)?.0),
        };
        self.count_time();
        self.objects.bind_interrupt(handler, source)?;
        Ok(Outcome::Done)
    }

    pub(super) fn acknowledge_interrupt(&mut self, thread: Ref<Thread>, handler: u64) -> Answer {
        let handler = self.capability(thread, handler, Kind::IrqHandler)?;
        self.objects.acknowledge_interrupt(handler)?;
        Ok(Outcome::Done)
    }
}

//! Messages and notifications: from a thread's registers to [`crate::objects::ipc`].

use bulkhead_abi::timeout::Timeout;

use super::{Answer, Outcome, Refusal};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::capability::{Capability, Kind};
use crate::objects::ipc::{MessageInfo, Sending};
use crate::objects::memory::Ref;
use crate::objects::thread::Thread;

impl<H: Hardware> Kernel<H> {
    /// What `rax` says beside the operation: of the message, and how long to wait.
    fn message_info(&self, thread: Ref<Thread>) -> (MessageInfo, Timeout) {
        let rax = self.objects.memory.get(thread).frame.rax;
        let info = MessageInfo::from_bits(rax & !Timeout::MASK);
        (info, Timeout::of(rax))
    }

    /// If `thread` waits now, then no longer than that.
    #[inline]
    fn limit(&mut self, thread: Ref<Thread>, timeout: Timeout) {
        if timeout.is_some() {
            self.set_limit(thread, timeout);
        }
    }

    #[cold]
    fn set_limit(&mut self, thread: Ref<Thread>, timeout: Timeout) {
        let ns = timeout.microseconds().saturating_mul(1_000);
        let ticks = self.ticks(ns);
        self.objects.limit_wait(thread, ticks);
    }

    /// The reply object that a receiver names, or none.
    fn reply_object(&self, thread: Ref<Thread>) -> Result<Option<Capability>, Refusal> {
        match self.objects.memory.get(thread).frame.rsi {
            0 => Ok(None),
            handle => self.capability(thread, handle, Kind::Reply).map(Some),
        }
    }

    pub(super) fn send(&mut self, thread: Ref<Thread>, endpoint: u64, how: Sending) -> Answer {
        let endpoint = self.capability(thread, endpoint, Kind::Endpoint)?;
        let (info, timeout) = self.message_info(thread);
        self.count_time();
        self.objects.send(thread, endpoint, info, how)?;
        self.limit(thread, timeout);
        Ok(Outcome::Answered)
    }

    pub(super) fn receive(&mut self, thread: Ref<Thread>, endpoint: u64, poll: bool) -> Answer {
        let endpoint = self.capability(thread, endpoint, Kind::Endpoint)?;
        let reply = self.reply_object(thread)?;
        let (_, timeout) = self.message_info(thread);
        self.count_time();
        self.objects.receive(thread, endpoint, reply, poll)?;
        self.limit(thread, timeout);
        Ok(Outcome::Answered)
    }

    pub(super) fn reply(&mut self, thread: Ref<Thread>, reply: u64) -> Answer {
        let reply = self.capability(thread, reply, Kind::Reply)?;
        let (info, _) = self.message_info(thread);
        self.count_time();
        self.objects.reply(thread, reply, info)?;
        Ok(Outcome::Done)
    }

    pub(super) fn reply_receive(&mut self, thread: Ref<Thread>, endpoint: u64) -> Answer {
        let endpoint = self.capability(thread, endpoint, Kind::Endpoint)?;
        let handle = self.objects.memory.get(thread).frame.rsi;
        let reply = self.capability(thread, handle, Kind::Reply)?;
        let (info, timeout) = self.message_info(thread);
        self.count_time();
        self.objects.reply_receive(thread, endpoint, reply, info)?;
        self.limit(thread, timeout);
        Ok(Outcome::Answered)
    }

    pub(super) fn cancel_badged_sends(&mut self, thread: Ref<Thread>, endpoint: u64) -> Answer {
        let endpoint = self.capability(thread, endpoint, Kind::Endpoint)?;
        self.objects.cancel_badged_sends(endpoint)?;
        Ok(Outcome::Done)
    }

    pub(super) fn signal(&mut self, thread: Ref<Thread>, notification: u64) -> Answer {
        let notification = self.capability(thread, notification, Kind::Notification)?;
        self.objects.signal(notification)?;
        Ok(Outcome::Done)
    }

    pub(super) fn wait(&mut self, thread: Ref<Thread>, notification: u64, poll: bool) -> Answer {
        let notification = self.capability(thread, notification, Kind::Notification)?;
        let (_, timeout) = self.message_info(thread);
        self.count_time();
        self.objects.wait(thread, notification, poll)?;
        self.limit(thread, timeout);
        Ok(Outcome::Answered)
    }
}

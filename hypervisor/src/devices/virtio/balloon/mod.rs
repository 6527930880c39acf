//! The traditional memory balloon (virtio 1.2, section 5.5): the guest gives pages back because the
//! host asks (inflate), or because they are free anyway (free page reporting), and says how it fares
//! (statistics).
//!
//! Pages leave the host's memory at once, and come back as zeros when the guest touches them: to
//! deflate is to say so, and nothing else. Nothing a driver writes here can reach beyond its own
//! memory; a page it names without need is a page it loses.

mod stats;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use bulkhead_machine::control::Resize;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, ResizeError, VirtioDevice,
    read_config_bytes,
};
use crate::machine::memory::discard;
use stats::Statistics;

/// Feature bits (section 5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_POISON: u64 = 1 << 4;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Entries of each queue; Linux reports up to 32 free ranges in one chain.
const QUEUE_SIZE: u16 = 128;
/// Page frame numbers count pages of this size, whatever pages the guest uses (section 5.5.6).
const PAGE: u64 = 4096;
/// Pages in a MiB.
const PAGES_PER_MIB: u64 = 256;
/// Most page frame numbers of a chain that are acted on, so that a turn is bounded; Linux sends up
/// to 256. The guest keeps the rest to itself.
const MAX_PFNS: usize = 4096;
/// Most bytes of a chain of free ranges that are acted on; Linux reports up to 128 MiB.
const MAX_REPORTED: u64 = 256 << 20;
/// Chains served in a turn.
const TURN_CHAINS: usize = 8;

/// What a queue is for. Queues are numbered by what was negotiated: Linux, and with it every device
/// there is, leaves no gap for a queue that does not exist, though section 5.5.2 numbers them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// See the module.
#[derive(Debug)]
pub struct Balloon {
    features: u64,
    roles: Vec<Role>,
    /// Bytes of memory, as MiB: the target is below.
    memory_mib: u64,
    /// Pages the guest is asked to give.
    target: u32,
    /// Pages the driver says it gave.
    actual: u32,
    /// What the driver fills free pages with, where negotiated.
    poison: u32,
    statistics: Statistics,
    /// The driver's buffer for statistics, which goes back when they are asked for.
    held: Option<Chain>,
    /// Written when statistics are asked for.
    ask: EventFd,
    discarded_bytes: u64,
    reported_bytes: u64,
    refused: u64,
}

impl Balloon {
    /// A balloon in a partition of `memory_mib` MiB.
    ///
    /// # Errors
    /// The target is not less than the memory, or the host gives no eventfd.
    pub fn new(
        described: &bulkhead_machine::device::Balloon,
        memory_mib: u64,
    ) -> Result<Self, ResizeError> {
        let optional = [
            (described.deflate_on_oom, F_DEFLATE_ON_OOM),
            (
                described.free_page_reporting,
                F_PAGE_REPORTING | F_PAGE_POISON,
            ),
        ];
        let chosen = optional.iter().filter(|(on, _)| *on);
        Ok(Self {
            features: chosen.fold(F_STATS_VQ, |all, (_, bits)| all | bits),
            roles: Vec::new(),
            memory_mib,
            target: pages(described.target_mib, memory_mib)?,
            actual: 0,
            poison: 0,
            statistics: Statistics::default(),
            held: None,
            ask: EventFd::new(EFD_NONBLOCK)?,
            discarded_bytes: 0,
            reported_bytes: 0,
            refused: 0,
        })
    }

    /// Takes the pages whose numbers `chain` holds.
    fn inflate(&mut self, chain: &Chain, memory: &GuestMemoryMmap) -> io::Result<()> {
        let count = (chain.readable.len() / 4).min(MAX_PFNS as u64) as usize;
        let mut bytes = vec![0; count * 4];
        chain.readable.read_at(memory, 0, &mut bytes)?;
        let words = bytes.as_chunks().0.iter();
        let mut pfns: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
        pfns.sort_unstable();
        pfns.dedup();
        for run in pfns.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let start = GuestAddress(u64::from(run.first().copied().unwrap_or(0)) * PAGE);
            self.discarded_bytes += self.take(memory, start, run.len() as u64 * PAGE);
        }
        Ok(())
    }

    /// Takes free ranges. Their contents must read as they were, as zeros, or as what the driver
    /// fills free pages with (section 5.5.6.7): pages that have to be filled stay.
    fn report(&mut self, chain: &Chain, memory: &GuestMemoryMmap) {
        if self.poison != 0 {
            return;
        }
        let mut rest = MAX_REPORTED;
        for (start, len) in chain.writable.ranges() {
            let len = u64::from(len).min(rest);
            rest -= len;
            self.reported_bytes += self.take(memory, start, len);
        }
    }

    /// Gives a range back to the host, if all of it is memory: bytes given.
    fn take(&mut self, memory: &GuestMemoryMmap, start: GuestAddress, len: u64) -> u64 {
        let given = match memory.check_range(start, len as usize) {
            true => discard(memory, start, len),
            false => Err(io::ErrorKind::InvalidInput.into()),
        };
        given.unwrap_or_else(|_| {
            self.refused += 1;
            0
        })
    }

    /// The driver's answer to a question for statistics, or its first buffer.
    fn learn(&mut self, chain: Chain, memory: &GuestMemoryMmap) -> io::Result<()> {
        self.statistics = Statistics::read(&chain.readable, memory)?;
        self.held = Some(chain);
        Ok(())
    }
}

/// A target in pages.
fn pages(target_mib: u64, memory_mib: u64) -> Result<u32, ResizeError> {
    let pages = target_mib.checked_mul(PAGES_PER_MIB);
    match pages.and_then(|pages| u32::try_from(pages).ok()) {
        Some(pages) if target_mib < memory_mib => Ok(pages),
        _ => Err(ResizeError::OutOfRange(format!(
            "a balloon of {target_mib} MiB leaves nothing of {memory_mib} MiB of memory"
        ))),
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        if self.features & F_PAGE_REPORTING == 0 {
            &[QUEUE_SIZE; 3]
        } else {
            &[QUEUE_SIZE; 4]
        }
    }

    /// `struct virtio_balloon_config` (section 5.5.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = [self.target, self.actual, 0, self.poison].map(u32::to_le_bytes);
        read_config_bytes(config.as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match offset {
            4 => self.actual = u32::from_le_bytes(word),
            12 => self.poison = u32::from_le_bytes(word),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        let optional = [
            (F_STATS_VQ, Role::Statistics),
            (F_PAGE_REPORTING, Role::Reporting),
        ];
        self.roles = vec![Role::Inflate, Role::Deflate];
        let chosen = optional
            .iter()
            .filter(|(bit, _)| activation.features & bit != 0);
        self.roles.extend(chosen.map(|(_, role)| *role));
        if activation.features & F_PAGE_POISON == 0 {
            self.poison = 0;
        }
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        // The answer is told next time: whoever asks does not wait for a guest.
        let _ = self.ask.write(1);
        let mut counters = vec![
            ("target-bytes", u64::from(self.target) * PAGE),
            ("actual-bytes", u64::from(self.actual) * PAGE),
            ("inflated-bytes", self.discarded_bytes),
            ("reported-bytes", self.reported_bytes),
            ("refused-ranges", self.refused),
        ];
        counters.extend(self.statistics.counters());
        counters
    }

    fn resize(&mut self, resize: &Resize, io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        let Resize::Balloon { target_mib } = resize else {
            return Err(ResizeError::Fixed);
        };
        self.target = pages(*target_mib, self.memory_mib)?;
        *io.config_changed = true;
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let (Some(role), Some(queue)) = (self.roles.get(index), io.queues.get_mut(index)) else {
            return Ok(Progress::Idle);
        };
        let role = *role;
        for _ in 0..TURN_CHAINS {
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            match role {
                Role::Inflate => self.inflate(&chain, io.memory)?,
                Role::Deflate => {}
                Role::Reporting => self.report(&chain, io.memory),
                Role::Statistics => {
                    // One buffer is all a driver has (section 5.5.6.3); a second pushes it out.
                    if let Some(old) = self.held.take() {
                        queue.push(io.memory, &old, 0)?;
                    }
                    self.learn(chain, io.memory)?;
                    continue;
                }
            }
            queue.push(io.memory, &chain, 0)?;
        }
        Ok(Progress::More)
    }

    fn interests(&self) -> Vec<Interest> {
        let asked = Interest {
            fd: self.ask.as_raw_fd(),
            events: EventSet::IN,
        };
        vec![asked]
    }

    fn process_backend(
        &mut self,
        _fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let _ = self.ask.read();
        let index = self.roles.iter().position(|r| *r == Role::Statistics);
        if let Some(queue) = index.and_then(|index| io.queues.get_mut(index))
            && let Some(chain) = self.held.take()
        {
            queue.push(io.memory, &chain, 0)?;
        }
        Ok(Progress::Idle)
    }

    fn reset(&mut self) {
        self.roles.clear();
        self.actual = 0;
        self.poison = 0;
        self.held = None;
        self.statistics = Statistics::default();
    }
}

#[cfg(test)]
mod tests;

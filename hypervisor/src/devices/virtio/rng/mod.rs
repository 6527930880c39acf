//! virtio-rng (virtio 1.2, section 5.4): one queue of writable buffers, filled from the host's
//! `getrandom`. Nothing is kept: a snapshot of it is empty, and a fork draws fresh bytes.

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Activation, DeviceError, DeviceIo, DeviceType, Progress, VirtioDevice};

/// Entries of the request queue.
const QUEUE_SIZE: u16 = 64;
/// Most bytes one request is answered with; a longer buffer is filled in part, as section 5.4.6
/// allows. It bounds the time and the host memory a guest can claim at once.
pub const MAX_REQUEST_BYTES: u64 = 4096;
/// Requests served in a turn.
const TURN_REQUESTS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Entropy {
    _private: (),
}

impl Entropy {
    /// The device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _activation: Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let Some(queue) = io.queues.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        let mut bytes = [0; MAX_REQUEST_BYTES as usize];
        for _ in 0..TURN_REQUESTS {
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            // Section 5.4.6.1: a request without writable bytes cannot be answered.
            if chain.writable.is_empty() {
                return Err(DeviceError::Unanswerable);
            }
            let len = chain.writable.len().min(MAX_REQUEST_BYTES) as usize;
            let wanted = bytes.get_mut(..len).unwrap_or_default();
            // The host's pool is ready long before a VMM runs; where it is not, the guest gets
            // no bytes rather than weak ones.
            let drawn = getrandom(&mut *wanted, GetRandomFlags::NONBLOCK).unwrap_or(0);
            let fresh = wanted.get(..drawn).unwrap_or_default();
            chain.writable.write_at(io.memory, 0, fresh)?;
            queue.push(io.memory, &chain, drawn as u32)?;
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn buffers_are_filled_to_the_cap() {
        let mut rig = Rig::new(1);
        rig.describe(
            0,
            0,
            &[(DATA, 64, WRITE, 0), (DATA + 0x1000, 0x8000, WRITE, 0)],
        );
        rig.offer(0, 0);
        rig.offer(0, 1);
        let mut device = Entropy::new();
        assert_eq!(
            device.process_queue(0, &mut rig.io()).unwrap(),
            Progress::Idle
        );
        assert_eq!(rig.used(0), [(0, 64), (1, MAX_REQUEST_BYTES as u32)]);
        assert!(rig.bytes(DATA, 64).iter().any(|byte| *byte != 0));
        let cap = DATA + 0x1000 + MAX_REQUEST_BYTES;
        assert!(rig.bytes(cap - 64, 64).iter().any(|byte| *byte != 0));
        assert!(
            rig.bytes(cap, 64).iter().all(|byte| *byte == 0),
            "nothing behind the cap"
        );
    }

    #[test]
    fn a_request_without_room_is_an_error() {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &[(DATA, 64, 0, 0)]);
        rig.offer(0, 0);
        assert!(Entropy::new().process_queue(0, &mut rig.io()).is_err());
        assert_eq!(rig.used(0), []);
    }

    #[test]
    fn malformed_chains_stop_the_device() {
        for (what, descriptors, table) in malformed_chains() {
            let mut rig = Rig::new(1);
            rig.describe(0, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(0, 0);
            assert!(
                Entropy::new().process_queue(0, &mut rig.io()).is_err(),
                "{what}"
            );
            assert_eq!(rig.used(0), [], "{what}");
        }
    }
}

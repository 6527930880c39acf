//! The exit port: a guest writes its exit status there, and the partition is over.

use bulkhead_machine::control::Ended;

use crate::machine::bus::BusDevice;
use crate::machine::ending::Ending;

/// One write-only port, [`bulkhead_abi::machine::EXIT_PORT`].
#[derive(Debug)]
pub struct ExitPort {
    ending: Ending,
}

impl ExitPort {
    /// Reports to `ending`.
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [status, ..] = *data {
            self.ending.end(Ended::Exit { status });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_status_counts() {
        let ending = Ending::new().unwrap();
        let mut port = ExitPort::new(ending.clone());
        port.write(0, &[]);
        assert!(ending.outcome().is_none());
        port.write(0, &[42]);
        port.write(0, &[0]);
        assert!(matches!(
            ending.outcome(),
            Some(Ok(Ended::Exit { status: 42 }))
        ));
    }
}

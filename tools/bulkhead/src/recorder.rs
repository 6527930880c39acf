//! Records what an operator does at the command line. The supervisor's `bulkhead-ledger` records for
//! partitions; a command writes its few records itself, which several processes may do at once.

use crate::failure::Failure;
use bulkhead_ledger::{Log, directory, signer};
use bulkhead_places::Place;
use bulkhead_record::{Entry, RecordError, Recorder};
use bulkhead_supervisor::reason;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// The ledger, open for writing.
struct Ledger(Mutex<Log>);

impl Recorder for Ledger {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = log.append(vec![entry.clone()]);
        recorded.map_err(|error| RecordError::NotWritten(error.to_string()))
    }
}

/// Opens the ledger; makes it if there is none.
pub(crate) fn open() -> Result<impl Recorder, Failure> {
    let segments = made(&Place::data()?.below("ledger"))?;
    let second = made(&Place::checkpoints()?)?;
    let keys = made(&Place::config()?.below("keys"))?;
    let log = Log::open(segments, &second, signer(&keys)?)?;
    Ok(Ledger(Mutex::new(log)))
}

fn made(place: &Place) -> Result<OwnedFd, Failure> {
    let path = place.make()?;
    directory(path).map_err(|error| {
        let message = format!("cannot use `{}`: {}", path.display(), reason(&error));
        Failure::new("place-unusable", message)
    })
}

//! The supervisor's ledger, as far as a gateway sees it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use bulkhead_record::Entry;
use bulkhead_record::wire::{Answer, MAX_REQUEST_BYTES, Outcome, Request};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// A writer of the ledger that keeps entries in memory, and has no space after `space` of them.
pub fn writer(socket: OwnedFd, space: usize) -> Arc<Mutex<Vec<Entry>>> {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let kept = entries.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        loop {
            let len = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return,
                Ok((_, len)) => len,
                // It ended before it read an answer.
                Err(rustix::io::Errno::CONNRESET) => continue,
                Err(errno) => panic!("{errno}"),
            };
            let request: Request = serde_json::from_slice(&buffer[..len]).unwrap();
            let mut kept = kept.lock().unwrap();
            let outcome = match kept.len() < space {
                true => Outcome::Recorded(kept.len() as u64),
                false => Outcome::NotWritten("no space left".into()),
            };
            if kept.len() < space {
                kept.push(request.entry);
            }
            let answer = Answer {
                id: request.id,
                outcome,
            };
            let answer = serde_json::to_vec(&answer).unwrap();
            // The gateway may be gone.
            let _ = send(&socket, &answer, SendFlags::NOSIGNAL);
        }
    });
    entries
}

//! Random bytes from the host, for what a guest is given at its start.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::Error;

/// Fills `seed`, waiting for a host that has just started where need be.
///
/// # Errors
/// The host has none.
pub(crate) fn fill_random(seed: &mut [u8]) -> Result<(), Error> {
    let got = getrandom(&mut *seed, GetRandomFlags::empty())
        .map_err(Error::io("the host's random source failed"))?;
    if got != seed.len() {
        return Err(Error::Io {
            what: "the host's random source failed",
            source: std::io::ErrorKind::UnexpectedEof.into(),
        });
    }
    Ok(())
}

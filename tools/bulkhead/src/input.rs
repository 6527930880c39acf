//! Files that people name on the command line, read whole and no further than they may be long.

use crate::failure::Failure;
use bulkhead_supervisor::reason;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of the file at `path`, or of standard input where that is `-`; one byte more than `most`
/// if it is longer than that, for whoever checks it to refuse.
pub(crate) fn read(path: &Path, most: usize, what: &str, code: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = most as u64 + 1;
    let read = match path == Path::new("-") {
        true => io::stdin().take(most).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let path = path.display();
            let message = format!("cannot read the {what} `{path}`: {}", reason(&error));
            Err(Failure::new(code, message))
        }
    }
}

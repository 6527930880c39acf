//! Files that people name on the command line, and those beside them, read whole and no further than they
//! may be long.

use crate::failure::Failure;
use bulkhead_supervisor::reason;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
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
        Err(error) => Err(unreadable(path, what, code, &error)),
    }
}

/// The same of a file that may be absent, and that is opened once. One that is there and cannot be read,
/// or is no regular file, is not taken for absent; nor is a link that leads nowhere.
pub(crate) fn read_if_there(
    path: &Path,
    most: usize,
    what: &str,
    code: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error: &io::Error| unreadable(path, what, code, error);
    let mut options = File::options();
    // A pipe without a writer must not keep us waiting.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = flags.bits().cast_signed();
    let file = match options.read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.symlink_metadata() {
                Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(None),
                Ok(_) | Err(_) => Err(failed(&error)),
            };
        }
        Err(error) => return Err(failed(&error)),
    };
    if !file.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(failed(&io::Error::other("it is no regular file")));
    }
    let mut bytes = Vec::new();
    let read = file.take(most as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    Ok(Some(bytes))
}

fn unreadable(path: &Path, what: &str, code: &str, error: &io::Error) -> Failure {
    let path = path.display();
    let message = format!("cannot read the {what} `{path}`: {}", reason(error));
    Failure::new(code, message)
}

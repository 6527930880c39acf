//! Files in memory that last as long as their system runs, for what a partition may do only so often or
//! so much: a guest that resets itself gets other processes, and no other amounts. Used by the launcher
//! and by what makes these processes ready.

use crate::error::Error;
use crate::initramfs::memory_file;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// By the names of partitions, and of what each file is for.
#[derive(Debug, Default)]
pub(crate) struct Lasting(Mutex<BTreeMap<(String, &'static CStr), File>>);

impl Lasting {
    /// The file of this partition for this. A new one holds `contents`.
    pub(crate) fn file(
        &self,
        partition: &str,
        purpose: &'static CStr,
        contents: &[u8],
    ) -> Result<File, Error> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (partition.to_owned(), purpose);
        if !files.contains_key(&key) {
            let mut file = memory_file(purpose)?;
            let written = file.write_all(contents);
            written.map_err(Error::system("write a memfd"))?;
            files.insert(key.clone(), file);
        }
        let file = files.get(&key).map(File::try_clone);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = file.ok_or_else(missing).flatten();
        file.map_err(Error::system("duplicate a descriptor"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_partition_finds_again_what_it_left_and_nothing_of_others() {
        let lasting = Lasting::default();
        let found = |partition: &str, purpose| {
            let file = lasting.file(partition, purpose, b"new").unwrap();
            let mut text = [0; 3];
            file.read_exact_at(&mut text, 0).unwrap();
            file.write_all_at(b"old", 0).unwrap();
            text
        };
        assert_eq!(&found("p", c"calls"), b"new");
        assert_eq!(&found("p", c"calls"), b"old");
        assert_eq!(&found("q", c"calls"), b"new");
        assert_eq!(&found("p", c"spent"), b"new");
    }
}

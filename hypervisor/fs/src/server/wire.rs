//! Taking a request apart, and putting a reply together. Used by the server.

use std::ffi::CStr;

use rustix::io::{Errno, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::fuse::OutHeader;

/// Longest name in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// What is left of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Args<'a>(&'a [u8]);

impl<'a> Args<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next structure.
    pub(super) fn take<T: FromBytes>(&mut self) -> Result<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// The next string, without its NUL.
    pub(super) fn string(&mut self) -> Result<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self
            .0
            .get(string.count_bytes().saturating_add(1)..)
            .unwrap_or_default();
        Ok(string)
    }

    /// The next string, which names an entry of a directory: not more than one component, and not
    /// the directory itself or its parent.
    pub(super) fn name(&mut self) -> Result<&'a CStr> {
        let name = self.string()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: u32) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }
}

const HEADER: usize = size_of::<OutHeader>();

/// A reply in the making, within what the guest can take.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl<'a> Reply<'a> {
    /// An empty reply; `None` where not even that fits.
    pub(super) fn new(bytes: &'a mut [u8]) -> Option<Self> {
        (bytes.len() >= HEADER).then_some(Self { bytes, len: HEADER })
    }

    /// Bytes it can still take.
    pub(super) fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.len)
    }

    /// Appends `value`; `EIO` where the guest left no room.
    pub(super) fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) -> Result<()> {
        let bytes = value.as_bytes();
        self.fill(bytes.len(), |room| {
            room.copy_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    /// Has `write` fill up to `len` bytes; appends as many as it says.
    pub(super) fn fill(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let end = self.len.saturating_add(len);
        let room = self.bytes.get_mut(self.len..end).ok_or(Errno::IO)?;
        self.len += write(room)?.min(len);
        Ok(())
    }

    /// Writes the header; returns the reply's length.
    pub(super) fn finish(self, unique: u64) -> usize {
        self.end(0, unique)
    }

    /// Turns it into an error; returns its length.
    pub(super) fn fail(mut self, unique: u64, errno: Errno) -> usize {
        self.len = HEADER;
        self.end(errno.raw_os_error().saturating_neg(), unique)
    }

    fn end(self, error: i32, unique: u64) -> usize {
        let header = OutHeader {
            len: self.len as u32,
            error,
            unique,
        };
        // `new` saw room for it.
        let _ = header.write_to_prefix(self.bytes);
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        let long = [&[b'a'; 256][..], b"\0"].concat();
        let longest = [&[b'a'; 255][..], b"\0"].concat();
        for (bytes, expected) in [
            (&b"\0"[..], Err(Errno::INVAL)),
            (b".\0", Err(Errno::INVAL)),
            (b"..\0", Err(Errno::INVAL)),
            (b"/\0", Err(Errno::INVAL)),
            (b"a/b\0", Err(Errno::INVAL)),
            (b"../a\0", Err(Errno::INVAL)),
            (b"no end", Err(Errno::INVAL)),
            (b"", Err(Errno::INVAL)),
            (&long, Err(Errno::NAMETOOLONG)),
            (&longest, Ok(255)),
            (b"...\0", Ok(3)),
            (b"a\\b\xff\0rest", Ok(4)),
        ] {
            let name = Args::new(bytes).name().map(CStr::count_bytes);
            assert_eq!(name, expected, "{bytes:?}");
        }
    }

    #[test]
    fn arguments_end_where_the_request_ends() {
        let mut args = Args::new(b"\x01\x02\x03\x04a\0bc");
        assert_eq!(args.take::<u32>().unwrap().to_le_bytes(), [1, 2, 3, 4]);
        assert_eq!(args.string().unwrap(), c"a");
        assert_eq!(args.take::<u32>().unwrap_err(), Errno::INVAL);
        assert_eq!(args.bytes(3).unwrap_err(), Errno::INVAL);
        assert_eq!(args.bytes(2).unwrap(), b"bc");
        assert_eq!(args.bytes(0).unwrap(), b"");
        assert_eq!(args.string().unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn replies_stay_within_their_room() {
        assert!(Reply::new(&mut [0; HEADER - 1]).is_none());
        let mut bytes = [0xaa; HEADER + 6];
        let mut reply = Reply::new(&mut bytes).unwrap();
        reply.put(&7u32).unwrap();
        assert_eq!(reply.put(&7u32).unwrap_err(), Errno::IO);
        assert_eq!(reply.room(), 2);
        reply.fill(2, |_| Ok(usize::MAX)).unwrap();
        assert_eq!(reply.finish(9), HEADER + 6);
        let reply = Reply::new(&mut bytes).unwrap();
        assert_eq!(reply.fail(9, Errno::NOENT), HEADER);
        let header = OutHeader::read_from_prefix(&bytes).unwrap().0;
        assert_eq!((header.len, header.error, header.unique), (16, -2, 9));
    }
}

//! The cpio `newc` format of an initramfs (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`): an iterator over the entries of an archive nobody vouches for.
//! It allocates nothing and follows nothing it has not checked.

/// Longest name of an entry in bytes, its NUL included (Linux `PATH_MAX`).
pub const MAX_NAME_BYTES: usize = 4096;
/// Most entries of an archive.
pub const MAX_ENTRIES: usize = 65_536;

const HEADER_BYTES: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";

/// Why an archive was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// Not cpio, or another of its formats.
    #[error(
        "the archive is no cpio archive in newc format: pack it uncompressed with `cpio -o -H newc`"
    )]
    Magic,
    /// The archive ends inside an entry, or before its trailer.
    #[error("the archive ends before its trailer: it was truncated")]
    Truncated,
    /// A header field is not hexadecimal.
    #[error("an entry of the archive has a damaged header")]
    Header,
    /// A name is empty, without its NUL, too long, or leads out of the root with `..`.
    #[error("an entry of the archive has a name that is empty, too long or contains `..`")]
    Name,
    /// More than [`MAX_ENTRIES`].
    #[error("the archive has more than 65536 entries")]
    TooMany,
}

/// One file, directory, symbolic link or device of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path as archived, without its NUL.
    pub name: &'a [u8],
    /// Type and permissions (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of hard links.
    pub links: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// Tells hard links apart: device major, minor, inode.
    pub identity: (u32, u32, u32),
    /// Contents, or the target of a symbolic link.
    pub data: &'a [u8],
}

/// The entries of `archive`, up to its trailer; ends after the first error.
pub fn entries(archive: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, CpioError>> {
    let mut rest = Some((archive, 0));
    core::iter::from_fn(move || {
        let (bytes, count) = rest.take()?;
        if count == MAX_ENTRIES {
            return Some(Err(CpioError::TooMany));
        }
        match entry(bytes) {
            Ok(Some((entry, next))) => {
                rest = Some((next, count + 1));
                Some(Ok(entry))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    })
}

/// Reads the entry at the start of `bytes`; `None` for the trailer.
fn entry(bytes: &[u8]) -> Result<Option<(Entry<'_>, &[u8])>, CpioError> {
    // "070702" differs only in that its checksum field is used.
    match bytes.get(..6) {
        Some(b"070701" | b"070702") => {}
        Some(_) => return Err(CpioError::Magic),
        None => return Err(CpioError::Truncated),
    }
    let header = bytes.get(..HEADER_BYTES).ok_or(CpioError::Truncated)?;
    let field = |index: usize| -> Result<u32, CpioError> {
        let digits = header
            .get(6 + index * 8..14 + index * 8)
            .ok_or(CpioError::Header)?;
        hexadecimal(digits)
    };
    let (size, name_size) = (field(6)? as usize, field(11)? as usize);
    if !(2..=MAX_NAME_BYTES).contains(&name_size) {
        return Err(CpioError::Name);
    }
    let name_end = HEADER_BYTES + name_size;
    let name = bytes
        .get(HEADER_BYTES..name_end)
        .ok_or(CpioError::Truncated)?;
    // Padding of a name with several NULs is how archives align their data.
    let name = match name.iter().position(|b| *b == 0) {
        None | Some(0) => return Err(CpioError::Name),
        Some(end) => name.get(..end).ok_or(CpioError::Name)?,
    };
    if name == TRAILER {
        return Ok(None);
    }
    if name.split(|b| *b == b'/').any(|part| part == b"..") {
        return Err(CpioError::Name);
    }
    let data_start = name_end.next_multiple_of(4);
    let data_end = data_start.checked_add(size).ok_or(CpioError::Truncated)?;
    let data = bytes
        .get(data_start..data_end)
        .ok_or(CpioError::Truncated)?;
    let next = bytes
        .get(data_end.next_multiple_of(4)..)
        .ok_or(CpioError::Truncated)?;
    let entry = Entry {
        name,
        mode: field(1)?,
        uid: field(2)?,
        gid: field(3)?,
        links: field(4)?,
        mtime: field(5)?,
        identity: (field(7)?, field(8)?, field(0)?),
        data,
    };
    Ok(Some((entry, next)))
}

/// Eight hexadecimal digits, without sign or blank.
fn hexadecimal(digits: &[u8]) -> Result<u32, CpioError> {
    digits.iter().try_fold(0, |number: u32, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(CpioError::Header)?;
        Ok(number << 4 | digit)
    })
}

/// Builds archives for tests.
#[cfg(test)]
pub(crate) mod build {
    use alloc::vec::Vec;

    /// Appends one entry.
    pub(crate) fn push(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
        let number = archive.len();
        let fields = [
            number,
            mode as usize,
            0,
            0,
            1,
            7,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(alloc::format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    /// An archive of `(name, mode, data)`.
    pub(crate) fn archive(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, mode, data) in entries {
            push(&mut archive, name, *mode, data);
        }
        push(&mut archive, "TRAILER!!!", 0, &[]);
        archive
    }
}

#[cfg(test)]
mod tests {
    use super::build::archive;
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<Entry<'_>>, CpioError> {
        entries(bytes).collect()
    }

    #[test]
    fn reads_what_was_packed() {
        let bytes = archive(&[
            (".", 0o40755, b""),
            ("bin/x", 0o100755, b"hello"),
            ("l", 0o120777, b"bin/x"),
        ]);
        let entries = all(&bytes).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            (entries[1].name, entries[1].data),
            (&b"bin/x"[..], &b"hello"[..])
        );
        assert_eq!((entries[2].mode, entries[2].mtime), (0o120777, 7));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive(&[("a", 0o100644, b"12345"), ("bb", 0o100644, b"1")]);
        // The trailer's own padding is not needed.
        let needed = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count() + 1;
        for len in 0..needed {
            assert!(all(&bytes[..len]).is_err(), "{len}");
        }
        assert!(all(&bytes[..needed]).is_ok());
    }

    #[test]
    fn padded_names_align_data() {
        let mut bytes = archive(&[("name", 0o100644, b"x")]);
        // namesize 5 -> 9: "name" and five NULs; the header keeps its length.
        bytes.splice(94..102, *b"00000009");
        bytes.splice(114..114, [0; 4]);
        assert_eq!(all(&bytes).unwrap()[0].name, b"name");
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "..", "a/../b", "../x"] {
            assert_eq!(
                all(&archive(&[(name, 0o100644, b"")])),
                Err(CpioError::Name),
                "{name}"
            );
        }
        assert!(all(&archive(&[("..a", 0o100644, b"")])).is_ok());
        assert_eq!(all(b"\x1f\x8b\x08\0\0\0\0"), Err(CpioError::Magic));
        assert_eq!(all(b""), Err(CpioError::Truncated));
        let mut signed = archive(&[("a", 0, b"")]);
        signed[6] = b'+';
        assert_eq!(all(&signed), Err(CpioError::Header));
    }

    #[test]
    fn sizes_near_the_limit_do_not_wrap() {
        let mut bytes = archive(&[("a", 0o100644, b"")]);
        bytes[54..62].copy_from_slice(b"ffffffff");
        assert_eq!(all(&bytes), Err(CpioError::Truncated));
    }

    proptest! {
        #[test]
        fn damage_is_never_fatal(at in 0usize..300, with: u8) {
            let mut bytes = archive(&[("a", 0o100644, b"12345"), ("bb", 0o100644, b"1")]);
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = all(&bytes);
        }

        #[test]
        fn noise_is_never_fatal(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = b"070701".to_vec();
            bytes.extend(noise);
            let _ = all(&bytes);
        }
    }
}

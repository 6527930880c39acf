//! Writes a cpio archive in `newc` format (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Owners become 0:0, and inode numbers count up: the same files give the same bytes.

use std::io::{self, Read, Write};

/// What an entry is, beside its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// `st_mode`: type and permissions.
    pub(crate) mode: u32,
    /// Modification time in seconds since 1970; out of range means 0.
    pub(crate) mtime: i64,
    /// Major and minor number of a device node.
    pub(crate) device: (u32, u32),
}

pub(crate) const DIRECTORY: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;

/// An archive being written. It ends well only with [`Writer::finish`].
#[derive(Debug)]
pub(crate) struct Writer<W> {
    output: W,
    inode: u32,
    written: u64,
    limit: u64,
}

impl<W: Write> Writer<W> {
    /// Starts an archive of at most `limit` bytes.
    pub(crate) fn new(output: W, limit: u64) -> Self {
        Self {
            output,
            inode: 0,
            written: 0,
            limit,
        }
    }

    /// Adds an entry whose contents are exactly `len` bytes of `contents`.
    ///
    /// # Errors
    /// Of reading and writing; `UnexpectedEof` when `contents` is shorter, `FileTooLarge` when the
    /// entry is beyond the format or the archive beyond its limit.
    pub(crate) fn entry(
        &mut self,
        name: &str,
        metadata: Metadata,
        contents: &mut dyn Read,
        len: u64,
    ) -> io::Result<()> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(len).map_err(|_| too_large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
        if self
            .written
            .saturating_add(len)
            .saturating_add(512 + u64::from(name_size))
            > self.limit
        {
            return Err(too_large());
        }
        self.inode += 1;
        let (major, minor) = metadata.device;
        let mtime = u32::try_from(metadata.mtime).unwrap_or(0);
        let fields = [
            self.inode,
            metadata.mode,
            0,
            0,
            1,
            mtime,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.write(header.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad()?;
        let copied = io::copy(&mut contents.take(len), &mut self.output)?;
        self.written += copied;
        if copied != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad()
    }

    /// Adds an entry with contents in memory: a directory, a link, a small file.
    pub(crate) fn small(&mut self, name: &str, meta: Metadata, contents: &[u8]) -> io::Result<()> {
        self.entry(name, meta, &mut &*contents, contents.len() as u64)
    }

    /// Writes the trailer and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.limit = u64::MAX;
        self.small("TRAILER!!!", Metadata::default(), &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        let zeros = [0; 4];
        self.write(zeros.get(..missing as usize).unwrap_or(&zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32) -> Metadata {
        Metadata {
            mode: REGULAR | mode,
            mtime: 1_700_000_000,
            device: (0, 0),
        }
    }

    /// Debian's own reader is the judge of the format.
    fn listed_by_cpio(archive: &[u8]) -> Option<String> {
        use std::process::{Command, Stdio};
        let mut child = Command::new("cpio")
            .args(["-tv", "--quiet", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(archive).ok()?;
        let output = child.wait_with_output().ok()?;
        assert!(output.status.success());
        String::from_utf8(output.stdout).ok()
    }

    #[test]
    fn an_archive_is_what_the_format_says() {
        let mut writer = Writer::new(Vec::new(), 1 << 20);
        let dir = Metadata {
            mode: DIRECTORY | 0o755,
            ..Metadata::default()
        };
        writer.small("bin", dir, &[]).unwrap();
        writer.small("bin/a", file(0o755), b"hello").unwrap();
        let link = Metadata {
            mode: 0o120_777,
            ..Metadata::default()
        };
        writer.small("bin/b", link, b"a").unwrap();
        let archive = writer.finish().unwrap();
        assert_eq!(archive.len() % 4, 0);
        let head = "07070100000001000041ed000000000000000000000001";
        assert!(archive.starts_with(head.as_bytes()));
        // 110 bytes of header and "bin\0" make 114, padded to 116.
        assert_eq!(archive[116..122], *b"070701");
        assert_eq!(archive[116 + 110..116 + 116], *b"bin/a\0");
        assert_eq!(archive[232..237], *b"hello");
        if let Some(listing) = listed_by_cpio(&archive) {
            let lines: Vec<&str> = listing.lines().collect();
            assert_eq!(lines.len(), 3, "{listing}");
            assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("bin"));
            assert!(lines[1].starts_with("-rwxr-xr-x") && lines[1].contains(" 5 "));
            assert!(lines[2].ends_with("bin/b -> a"));
        }
    }

    #[test]
    fn the_limit_and_short_contents_are_errors() {
        let mut writer = Writer::new(Vec::new(), 1024);
        let big = writer.small("a", file(0o644), &[0; 1024]).unwrap_err();
        assert_eq!(big.kind(), io::ErrorKind::FileTooLarge);
        let short = writer
            .entry("a", file(0o644), &mut &b"ab"[..], 3)
            .unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let huge = writer
            .entry("a", file(0o644), &mut io::empty(), 1 << 32)
            .unwrap_err();
        assert_eq!(huge.kind(), io::ErrorKind::FileTooLarge);
    }
}

//! Where console bytes go: as they are, as prefixed lines, or into a log of bounded size.

use super::Output;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest line that is held back for its end; longer ones are passed on in pieces.
const MAX_LINE: usize = 8 * 1024;
/// Most bytes of one log file. Two are kept, so that a flood costs 8 MiB and the latest stays.
const MAX_LOG: u64 = 4 * 1024 * 1024;
/// ANSI colours of prefixes, in turn.
pub(crate) const PREFIX_COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Passes bytes on as they are.
#[derive(Debug)]
pub(crate) struct Raw<W>(pub(crate) W);

impl<W: Write + Send> Output for Raw<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Passes whole lines on, each behind the partition's name. A line is one write, so that the lines
/// of partitions never mix.
#[derive(Debug)]
pub(crate) struct Prefixed<W> {
    to: W,
    prefix: Vec<u8>,
    /// The reader is a terminal: show control characters instead of sending them, so that no guest
    /// can forge another's prefix.
    terminal: bool,
    line: Vec<u8>,
    log: Option<Log>,
}

impl<W: Write + Send> Prefixed<W> {
    /// `name | `, padded to `width`; coloured when `colour` says so.
    pub(crate) fn new(
        to: W,
        name: &str,
        width: usize,
        colour: Option<u8>,
        terminal: bool,
        log: Option<Log>,
    ) -> Self {
        let prefix = match colour {
            Some(colour) => format!("\x1b[{colour}m{name:width$} |\x1b[0m "),
            None => format!("{name:width$} | "),
        };
        Self {
            to,
            prefix: prefix.into_bytes(),
            terminal,
            line: Vec::new(),
            log,
        }
    }

    fn end_line(&mut self) -> io::Result<()> {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let mut whole = self.prefix.clone();
        for byte in line {
            match byte {
                b'\t' => whole.push(b'\t'),
                0..0x20 | 0x7f if self.terminal => whole.extend([b'^', byte ^ 0x40]),
                _ => whole.push(*byte),
            }
        }
        whole.push(b'\n');
        self.line.clear();
        self.to.write_all(&whole)?;
        self.to.flush()
    }
}

impl<W: Write + Send> Output for Prefixed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.write(bytes)?;
        }
        for byte in bytes {
            if *byte == b'\n' || self.line.len() == MAX_LINE {
                self.end_line()?;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            Ok(())
        } else {
            self.end_line()
        }
    }
}

/// A partition's log: the current file and the one before it.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

/// The older and the current log file of a partition.
pub fn log_paths(directory: &Path, partition: &str) -> [PathBuf; 2] {
    [
        directory.join(format!("{partition}.log.1")),
        directory.join(format!("{partition}.log")),
    ]
}

impl Log {
    /// Opens the log of `partition` in the system's state directory. Two streams of one partition
    /// share the file.
    pub(crate) fn open(directory: &Path, partition: &str) -> io::Result<Self> {
        let [_, path] = log_paths(directory, partition);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { path, file })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_full = |len: u64| len.saturating_add(bytes.len() as u64) > MAX_LOG;
        if is_full(self.file.metadata()?.len()) {
            // The other stream may have turned the page already; then we follow it.
            if is_full(fs::metadata(&self.path).map_or(0, |metadata| metadata.len())) {
                fs::rename(&self.path, self.path.with_extension("log.1"))?;
            }
            let mut options = OpenOptions::new();
            self.file = options
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.path)?;
        }
        self.file.write_all(bytes)
    }
}

impl Output for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A full disk costs lines of the log, not the system.
        let _ = self.append(bytes);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn prefixed(terminal: bool, colour: Option<u8>, writes: &[&[u8]]) -> String {
        let mut output = Prefixed::new(Vec::new(), "web", 5, colour, terminal, None);
        for bytes in writes {
            output.write(bytes).unwrap();
        }
        output.finish().unwrap();
        String::from_utf8(output.to).unwrap()
    }

    #[test]
    fn lines_are_whole_and_prefixed() {
        for (writes, text) in [
            (&[b"a\nb\n".as_slice()][..], "web   | a\nweb   | b\n"),
            (&[b"a", b"b\r\n", b"c"], "web   | ab\nweb   | c\n"),
            (&[b"\n"], "web   | \n"),
            (&[b""], ""),
        ] {
            assert_eq!(prefixed(false, None, writes), text);
        }
        let long = vec![b'x'; MAX_LINE + 1];
        assert_eq!(prefixed(false, None, &[&long]).lines().count(), 2);
    }

    #[test]
    fn colour_and_control_characters() {
        assert_eq!(
            prefixed(false, Some(36), &[b"a\n"]),
            "\x1b[36mweb   |\x1b[0m a\n"
        );
        let forged = b"\x1b[1Gnative | x\ty\x7f\n".as_slice();
        assert_eq!(
            prefixed(true, None, &[forged]),
            "web   | ^[[1Gnative | x\ty^?\n"
        );
        assert!(prefixed(false, None, &[forged]).contains('\x1b'));
    }

    #[test]
    fn a_full_disk_costs_lines_of_the_log_only() {
        let dir = tempdir().unwrap();
        let [_, path] = log_paths(dir.path(), "web");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let log = Log::open(dir.path(), "web").unwrap();
        let mut output = Prefixed::new(Vec::new(), "web", 3, None, false, Some(log));
        output.write(b"a\n").unwrap();
        assert_eq!(output.to, b"web | a\n");
    }

    #[test]
    fn logs_are_bounded_and_keep_the_latest() {
        let dir = tempdir().unwrap();
        let mut log = Log::open(dir.path(), "web").unwrap();
        let mut other = Log::open(dir.path(), "web").unwrap();
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..10 {
            log.write(&block).unwrap();
            other.write(&block).unwrap();
        }
        log.write(b"last").unwrap();
        let [old, new] = log_paths(dir.path(), "web");
        let total = fs::metadata(&old).unwrap().len() + fs::metadata(&new).unwrap().len();
        assert!(total <= 2 * MAX_LOG, "{total}");
        let either = [fs::read(&old).unwrap(), fs::read(&new).unwrap()];
        assert!(either.iter().any(|bytes| bytes.ends_with(b"last")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

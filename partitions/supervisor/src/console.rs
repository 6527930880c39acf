//! The supervisor's side of a partition's console: pipes to the VMM and the threads that pump them.
//!
//! A thread per stream, since either side may block as long as it likes. Whoever waits for the
//! last byte watches [`Pumps::finished`], which hangs up when the last output thread is done.

mod gate;
mod output;

pub(crate) use gate::Gate;
pub(crate) use output::PREFIX_COLOURS;
pub use output::log_paths;
pub(crate) use output::{Log, Prefixed, Raw};

use crate::error::Error;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::thread;

/// In raw mode, this byte of input (Ctrl-]) ends the partition.
pub(crate) const ESCAPE: u8 = 0x1d;
/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;

/// What the pumps tell the supervisor's loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// [`ESCAPE`] was typed.
    Escape,
    /// Nobody reads our standard output any more.
    BrokenPipe,
    /// Output could not be written, for another reason: its errno.
    OutputFailed(u8),
}

/// What errnos are told apart by from the other notices.
const ERRNO: u8 = 0x80;
/// What a failure without an errno, or with an outlandish one, is told as.
const EIO: u8 = 5;

impl Notice {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Escape => b'e',
            Self::BrokenPipe => b'p',
            Self::OutputFailed(errno) => ERRNO | errno,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'e' => Some(Self::Escape),
            b'p' => Some(Self::BrokenPipe),
            ERRNO.. => Some(Self::OutputFailed(byte & !ERRNO)),
            _ => None,
        }
    }

    fn from_error(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        let errno = error
            .raw_os_error()
            .and_then(|errno| u8::try_from(errno).ok())
            .filter(|errno| *errno < ERRNO);
        Self::OutputFailed(errno.unwrap_or(EIO))
    }
}

/// The VMM's ends of the streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: Option<OwnedFd>,
    pub(crate) error: Option<OwnedFd>,
}

/// Our ends of the streams, before the pumps run.
#[derive(Debug)]
pub(crate) struct Ends {
    input: PipeWriter,
    output: PipeReader,
    error: PipeReader,
}

/// Where one stream's bytes go.
pub(crate) trait Output: Send {
    /// Takes `bytes`, not necessarily a whole line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// No more bytes follow.
    fn finish(&mut self) -> io::Result<()>;
}

/// Running output threads.
#[derive(Debug)]
pub(crate) struct Pumps {
    /// Readable (end of file) when every output byte was passed on.
    pub(crate) finished: PipeReader,
}

/// Makes the pipes of one console.
pub(crate) fn pipes() -> Result<(Streams, Ends), Error> {
    let pipe = || io::pipe().map_err(Error::system("create a pipe"));
    let ((input_theirs, input), (output, output_theirs), (error, error_theirs)) =
        (pipe()?, pipe()?, pipe()?);
    let streams = Streams {
        input: Some(input_theirs.into()),
        output: Some(output_theirs.into()),
        error: Some(error_theirs.into()),
    };
    Ok((
        streams,
        Ends {
            input,
            output,
            error,
        },
    ))
}

impl Ends {
    /// Starts the pumps. `input` says whether our standard input is the partition's, and whether
    /// [`ESCAPE`] in it ends the partition.
    pub(crate) fn pump(
        self,
        output: Box<dyn Output>,
        error: Box<dyn Output>,
        input: Option<Input>,
        notices: &PipeWriter,
    ) -> Result<Pumps, Error> {
        let failed = "start a console thread";
        let clone = |pipe: &PipeWriter| pipe.try_clone().map_err(Error::system("duplicate a pipe"));
        let (finished, alive) = io::pipe().map_err(Error::system("create a pipe"))?;
        for (from, to) in [(self.output, output), (self.error, error)] {
            let (alive, notices) = (clone(&alive)?, clone(notices)?);
            let pump = move || {
                pump_output(from, to, notices);
                drop(alive);
            };
            let thread = thread::Builder::new()
                .name("console".to_owned())
                .spawn(pump);
            thread.map_err(Error::system(failed))?;
        }
        if let Some(input) = input {
            let (to, notices) = (self.input, clone(notices)?);
            let pump = move || pump_input(&input, to, notices);
            let thread = thread::Builder::new().name("input".to_owned()).spawn(pump);
            thread.map_err(Error::system(failed))?;
        }
        Ok(Pumps { finished })
    }
}

/// How our standard input becomes a partition's.
#[derive(Debug)]
pub(crate) struct Input {
    /// The terminal is in raw mode: look for [`ESCAPE`].
    pub(crate) escape: bool,
    /// Bytes that stand for the end of input, for a guest whose console is a terminal to it.
    pub(crate) end: &'static [u8],
    /// Input waits for a message here; a hang-up means that nobody will take it.
    pub(crate) gate: Option<Receiver<()>>,
}

fn pump_output(mut from: PipeReader, mut to: Box<dyn Output>, mut notices: PipeWriter) {
    let mut buffer = vec![0; CHUNK];
    let done = loop {
        match from.read(&mut buffer) {
            Ok(0) => break to.finish(),
            Ok(count) => {
                if let Err(error) = to.write(buffer.get(..count).unwrap_or_default()) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = done {
        // The loop may be gone already; then there is nobody to tell.
        let _ = notices.write_all(&[Notice::from_error(&error).to_byte()]);
    }
}

fn pump_input(input: &Input, mut to: PipeWriter, mut notices: PipeWriter) {
    if let Some(gate) = &input.gate
        && gate.recv().is_err()
    {
        return;
    }
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => {
                let _ = to.write_all(input.end);
                return;
            }
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                if input.escape && bytes.contains(&ESCAPE) {
                    let _ = notices.write_all(&[Notice::Escape.to_byte()]);
                    return;
                }
                // The partition has ended or closed its input: nobody wants the rest.
                if to.write_all(bytes).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_their_byte() {
        let errno = io::Error::from_raw_os_error;
        for (notice, expected) in [
            (Notice::Escape, Notice::Escape),
            (Notice::from_error(&errno(32)), Notice::BrokenPipe),
            (Notice::from_error(&errno(28)), Notice::OutputFailed(28)),
            (Notice::from_error(&errno(133)), Notice::OutputFailed(EIO)),
            (
                Notice::from_error(&io::Error::other("")),
                Notice::OutputFailed(EIO),
            ),
        ] {
            assert_eq!(notice, expected);
            assert_eq!(Notice::from_byte(notice.to_byte()), Some(expected));
        }
        assert_eq!(Notice::from_byte(b'x'), None);
    }
}

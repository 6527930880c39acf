//! Text that must not be seen: asked for on the terminal without an echo, or read from standard
//! input. Neither passes through a buffer of the standard library, which would keep a copy.

use crate::failure::Failure;
use bulkhead_supervisor::reason;
use bulkhead_vault::Secret;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// The terminal without an echo, and back again.
struct Hidden {
    terminal: File,
    before: Termios,
}

/// What a key does.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Edit,
    Enter,
    Interrupt,
}

impl Hidden {
    fn enter() -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                "no-terminal",
                format!("there is no terminal to ask on: {}", reason(&error)),
            )
            .help("give the key with --key, and the value on standard input")
        };
        let terminal = File::options()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .map_err(failed)?;
        let before = tcgetattr(&terminal).map_err(|errno| failed(errno.into()))?;
        let mut hidden = before.clone();
        // Keys come one by one, Ctrl-C as well: it must not end us before the echo is back.
        hidden.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&terminal, OptionalActions::Now, &hidden)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        let _ = self.terminal.write_all(b"\n");
    }
}

/// Asks a person for a line of at most `most` bytes.
pub(crate) fn ask(question: &str, most: usize) -> Result<Secret, Failure> {
    let mut hidden = Hidden::enter()?;
    let asked = write!(hidden.terminal, "{question}: ");
    asked.map_err(|error| Failure::new("terminal", format!("cannot ask: {}", reason(&error))))?;
    // The whole of it at once: a buffer that grows leaves its old bytes behind.
    let mut line = Secret::with_capacity(most);
    loop {
        let mut byte = [0];
        match rustix::io::read(&hidden.terminal, &mut byte) {
            Ok(0) => return Err(interrupted()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => {
                return Err(Failure::new(
                    "terminal",
                    format!("cannot read the terminal: {errno}"),
                ));
            }
        }
        match press(&mut line, byte[0]) {
            Key::Edit => {}
            Key::Enter => return Ok(line),
            Key::Interrupt => return Err(interrupted()),
        }
    }
}

/// Asks twice, for what nobody could correct later.
pub(crate) fn ask_twice(question: &str, most: usize) -> Result<Secret, Failure> {
    let first = ask(question, most)?;
    let again = ask(&format!("{question}, once more"), most)?;
    match first == again {
        true => Ok(first),
        false => Err(Failure::new("not-repeated", "the two inputs differ")),
    }
}

fn interrupted() -> Failure {
    Failure::new("interrupted", "nothing was entered").status(130)
}

fn press(line: &mut Secret, key: u8) -> Key {
    let length = line.expose().len();
    match key {
        b'\r' | b'\n' => return Key::Enter,
        // Ctrl-C, Ctrl-\; Ctrl-D with nothing before it.
        3 | 28 => return Key::Interrupt,
        4 if length == 0 => return Key::Interrupt,
        4 => return Key::Enter,
        // Ctrl-U.
        21 => line.truncate(0),
        // Backspace takes a whole character.
        8 | 127 => {
            let before = line.expose().iter().rposition(|byte| byte & 0xc0 != 0x80);
            line.truncate(before.unwrap_or(0));
        }
        _ => line.push(key),
    }
    Key::Edit
}

/// Reads standard input to its end; one byte more than `most` if there is more.
pub(crate) fn read_all(most: usize) -> Result<Secret, Failure> {
    read_while(most, |_| true)
}

/// Reads a line of standard input, and nothing behind it. What ends it does not belong to it.
pub(crate) fn read_line(most: usize) -> Result<Secret, Failure> {
    let mut line = read_while(most, |byte| byte != b'\n')?;
    if line.expose().ends_with(b"\r") {
        line.truncate(line.expose().len() - 1);
    }
    Ok(line)
}

fn read_while(most: usize, more: impl Fn(u8) -> bool) -> Result<Secret, Failure> {
    let stdin = io::stdin();
    let mut bytes = Secret::with_capacity(most + 1);
    while bytes.expose().len() <= most {
        // One at a time: what comes behind a line is somebody else's to read.
        let mut byte = [0];
        match rustix::io::read(stdin.as_fd(), &mut byte) {
            Ok(0) => break,
            Ok(_) if more(byte[0]) => bytes.push(byte[0]),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure::new(
                    "input",
                    format!("cannot read standard input: {errno}"),
                ));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Vec<u8>, Option<Key>) {
        let mut line = Secret::with_capacity(16);
        for key in keys {
            match press(&mut line, *key) {
                Key::Edit => {}
                end => return (line.expose().to_vec(), Some(end)),
            }
        }
        (line.expose().to_vec(), None)
    }

    #[test]
    fn a_line_can_be_edited_blindly() {
        for (keys, line, end) in [
            (&b"abc\n"[..], &b"abc"[..], Some(Key::Enter)),
            (b"abx\x7fc\r", b"abc", Some(Key::Enter)),
            (b"\x7f\x08a\n", b"a", Some(Key::Enter)),
            ("a\u{e9}\x7fb\n".as_bytes(), b"ab", Some(Key::Enter)),
            (b"wrong\x15right\n", b"right", Some(Key::Enter)),
            (b"abc\x03", b"abc", Some(Key::Interrupt)),
            (b"\x04", b"", Some(Key::Interrupt)),
            (b"abc\x04", b"abc", Some(Key::Enter)),
            (b"abc", b"abc", None),
        ] {
            assert_eq!(typed(keys), (line.to_vec(), end), "{keys:?}");
        }
    }

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(typed(&[b'x'; 64]).0.len(), 16);
    }
}

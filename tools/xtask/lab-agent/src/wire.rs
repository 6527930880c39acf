//! What `cargo xtask lab` and the agent in the lab say to each other: frames on one byte stream
//! (a virtio-serial port). One stream, so that the status can never overtake the last output.
//!
//! A frame is a kind (one byte), the length of its body (`u32`, little-endian) and the body.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

/// Largest body in bytes; longer output travels in several frames.
pub const MAX_BODY: usize = 64 * 1024;

/// What a frame means; the comment says who sends it and what its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Agent: it is up. No body.
    Ready = 1,
    /// Host: one more word of the command.
    Arg = 2,
    /// Host: one more `NAME=value` of its environment.
    Env = 3,
    /// Host: a path that is to be sent back, as part of one tar archive, when the command ended.
    Out = 4,
    /// Host: run it. No body.
    Start = 5,
    /// Host: bytes for its standard input; an empty body is the end of the input.
    Stdin = 6,
    /// Agent: bytes of its standard output.
    Stdout = 7,
    /// Agent: bytes of its standard error.
    Stderr = 8,
    /// Agent: bytes of the tar archive of all [`Kind::Out`] paths.
    Archive = 9,
    /// Agent: it ended; the body is its status (`i32`, little-endian). The last frame.
    Exit = 10,
    /// Agent: it could not be started; the body is a sentence. The last frame.
    Failed = 11,
    /// Host: nothing, but it wakes the emulated host; see docs/lab.md. No body.
    Wake = 12,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [
            Ready, Arg, Env, Out, Start, Stdin, Stdout, Stderr, Archive, Exit, Failed, Wake,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Sends one frame.
///
/// # Errors
/// Those of the stream, and `InvalidInput` for a body above [`MAX_BODY`].
pub fn send(stream: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    if body.len() > MAX_BODY {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "frame is too long",
        ));
    }
    let mut frame = Vec::with_capacity(5 + body.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(body);
    stream.write_all(&frame)?;
    stream.flush()
}

/// Receives one frame; `None` where the stream ends between two frames.
///
/// # Errors
/// Those of the stream, and `InvalidData` for an unknown kind or a body above [`MAX_BODY`].
pub fn receive(stream: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0];
    if stream.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let [byte] = kind;
    let kind = Kind::from_byte(byte).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("unknown frame {byte}"))
    })?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_BODY {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {len} bytes"),
        ));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_order_and_whole() {
        let mut stream = Vec::new();
        send(&mut stream, Kind::Stdout, b"a\0b").unwrap();
        send(&mut stream, Kind::Stdin, b"").unwrap();
        send(&mut stream, Kind::Exit, &(-7i32).to_le_bytes()).unwrap();
        let mut stream = stream.as_slice();
        let mut next = || receive(&mut stream).unwrap();
        assert_eq!(next(), Some((Kind::Stdout, b"a\0b".to_vec())));
        assert_eq!(next(), Some((Kind::Stdin, Vec::new())));
        assert_eq!(next(), Some((Kind::Exit, (-7i32).to_le_bytes().to_vec())));
        assert_eq!(next(), None);
    }

    #[test]
    fn every_kind_survives_its_byte() {
        for byte in 0..=u8::MAX {
            if let Some(kind) = Kind::from_byte(byte) {
                assert_eq!(kind as u8, byte);
            }
        }
        assert_eq!((1..=11).filter_map(Kind::from_byte).count(), 11);
    }

    #[test]
    fn torn_and_foreign_bytes_are_errors() {
        for bytes in [
            &[0u8][..],
            &[Kind::Wake as u8 + 1, 0, 0, 0, 0],
            &[Kind::Stdout as u8],
            &[Kind::Stdout as u8, 1, 0, 0],
            &[Kind::Stdout as u8, 2, 0, 0, 0, b'x'],
            &[Kind::Stdout as u8, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(receive(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
        assert!(send(&mut Vec::new(), Kind::Stdout, &vec![0; MAX_BODY + 1]).is_err());
    }
}

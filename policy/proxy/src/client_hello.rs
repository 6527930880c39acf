//! Which server a TLS client asks for: a reader of the ClientHello (RFC 8446, section 4.1.2) that
//! needs no more than the first bytes of a connection and keeps nothing. Used by the gateway, which
//! lets a connection through or not, and by the proxy, which ends it or hands it on.

/// Most bytes that a client may take to say which server it asks for.
pub const MAX_BYTES: usize = 16 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// The beginning of a ClientHello, or nothing yet.
    Incomplete,
    /// No TLS.
    Other,
    /// TLS that asks for this server; `None` where it names none.
    Tls(Option<String>),
    /// What begins like TLS and is not, or takes more than [`MAX_BYTES`].
    Malformed,
}

/// A record of the handshake protocol.
const HANDSHAKE: u8 = 22;
/// Longest record that is not encrypted.
const MAX_RECORD: usize = 1 << 14;
/// The handshake message.
const CLIENT_HELLO: u8 = 1;
/// The extension `server_name` (RFC 6066, section 3).
const SERVER_NAME: usize = 0;
/// Its one kind of name.
const HOST_NAME: u8 = 0;

/// What is wrong with a message, or missing at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Incomplete,
    Malformed,
}

/// Reads the first bytes of a connection, as many as have come.
pub fn read(bytes: &[u8]) -> FirstBytes {
    if !matches!(bytes.first(), None | Some(&HANDSHAKE)) {
        return FirstBytes::Other;
    }
    match handshake(bytes).and_then(|message| server_name(&message)) {
        Ok(name) => FirstBytes::Tls(name),
        Err(Fault::Incomplete) if bytes.len() < MAX_BYTES => FirstBytes::Incomplete,
        Err(_) => FirstBytes::Malformed,
    }
}

/// The body of the ClientHello, out of the records that carry it.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut rest = Bytes(bytes.get(..bytes.len().min(MAX_BYTES)).unwrap_or_default());
    let mut message = Vec::new();
    loop {
        let kind = rest.take(1)?;
        let version = rest.take(2)?;
        let length = rest.number(2)?;
        // 3.1 to 3.4 stand for TLS 1.0 to 1.3; 3.0 is SSL, which nobody may speak (RFC 7568).
        if kind != [HANDSHAKE]
            || !matches!(version, [3, 1..=4])
            || !(1..=MAX_RECORD).contains(&length)
        {
            return Err(Fault::Malformed);
        }
        // A message that is there in part may be wrong already, and then nobody waits for the rest.
        let taken = rest.take(length.min(rest.0.len()))?;
        message.extend_from_slice(taken);
        let mut head = Bytes(&message);
        if let Ok(kind) = head.take(1)
            && kind != [CLIENT_HELLO]
        {
            return Err(Fault::Malformed);
        }
        if let Ok(needed) = head.number(3) {
            if needed > MAX_BYTES {
                return Err(Fault::Malformed);
            }
            let have = head.0.len();
            // What follows a ClientHello in its record can only be an error, come or still to come.
            if have + (length - taken.len()) > needed {
                return Err(Fault::Malformed);
            }
            if have == needed {
                return Ok(head.0.to_vec());
            }
        }
        if taken.len() < length {
            return Err(Fault::Incomplete);
        }
    }
}

/// The name in a whole ClientHello.
fn server_name(message: &[u8]) -> Result<Option<String>, Fault> {
    let whole = |read: Result<_, Fault>| read.map_err(|_| Fault::Malformed);
    whole(find_name(message))
}

fn find_name(message: &[u8]) -> Result<Option<String>, Fault> {
    let mut hello = Bytes(message);
    // Version and random number.
    hello.take(2 + 32)?;
    let session = hello.list(1)?;
    let suites = hello.list(2)?;
    let compression = hello.list(1)?;
    let proper = session.len() <= 32
        && suites.len() >= 2
        && suites.len().is_multiple_of(2)
        && !compression.is_empty();
    if !proper {
        return Err(Fault::Malformed);
    }
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Bytes(hello.list(2)?);
    if !hello.0.is_empty() {
        return Err(Fault::Malformed);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.list(2)?;
        if kind == SERVER_NAME {
            let found = host_name(body)?;
            if name.replace(found).is_some() {
                return Err(Fault::Malformed);
            }
        }
    }
    Ok(name)
}

/// The one name of the extension's list, in lower case without the final dot.
fn host_name(body: &[u8]) -> Result<String, Fault> {
    let mut body = Bytes(body);
    let mut list = Bytes(body.list(2)?);
    let kind = list.take(1)?;
    let name = list.list(2)?;
    if kind != [HOST_NAME] || !list.0.is_empty() || !body.0.is_empty() {
        return Err(Fault::Malformed);
    }
    let name = std::str::from_utf8(name).map_err(|_| Fault::Malformed)?;
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let empty = name.split('.').any(str::is_empty);
    match !empty && name.len() <= 253 && name.bytes().all(plain) {
        true => Ok(name),
        false => Err(Fault::Malformed),
    }
}

/// Bytes that have not been read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Fault::Incomplete)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of `count` bytes, at most 3.
    fn number(&mut self, count: usize) -> Result<usize, Fault> {
        let bytes = self.take(count)?;
        Ok(bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// Bytes behind their number, which has `count` bytes.
    fn list(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let length = self.number(count)?;
        self.take(length)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(count: usize, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - count..], bytes].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &list(2, body)].concat()
    }

    fn name(name: &str) -> Vec<u8> {
        let entry = [&[HOST_NAME][..], &list(2, name.as_bytes())].concat();
        extension(0, &list(2, &entry))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &list(1, &[1; 32]),
            &list(2, &[0x13, 1]),
            &list(1, &[0]),
            &list(2, extensions),
        ]
        .concat();
        [&[CLIENT_HELLO][..], &list(3, &body)].concat()
    }

    fn record(message: &[u8]) -> Vec<u8> {
        [&[HANDSHAKE, 3, 1][..], &list(2, message)].concat()
    }

    fn asks_for(text: &str) -> FirstBytes {
        FirstBytes::Tls(Some(text.to_owned()))
    }

    #[test]
    fn the_name_is_found_and_nothing_less_will_do() {
        let extensions = [
            extension(10, &[0; 6]),
            name("A.Example."),
            extension(21, &[0; 9]),
        ];
        let hello = record(&message(&extensions.concat()));
        assert_eq!(read(&hello), asks_for("a.example"));
        for cut in 0..hello.len() {
            assert_eq!(read(&hello[..cut]), FirstBytes::Incomplete, "{cut}");
        }
        let more = [&hello[..], &record(b"more")].concat();
        assert_eq!(read(&more), asks_for("a.example"));
    }

    #[test]
    fn records_may_split_it_anywhere() {
        let whole = message(&name("a.example"));
        for cut in 1..whole.len() {
            let (first, second) = whole.split_at(cut);
            let hello = [record(first), record(second)].concat();
            assert_eq!(read(&hello), asks_for("a.example"), "{cut}");
        }
    }

    #[test]
    fn a_record_that_goes_on_after_it_is_malformed_before_the_rest_has_come() {
        let hello = message(&name("a.example"));
        let longer = record(&[&hello[..], b"more"].concat());
        for cut in longer.len() - 4..=longer.len() {
            assert_eq!(read(&longer[..cut]), FirstBytes::Malformed, "{cut}");
        }
    }

    #[test]
    fn no_name_is_no_name() {
        assert_eq!(read(&record(&message(&[]))), FirstBytes::Tls(None));
        let mut without = message(&[]);
        without.truncate(without.len() - 2);
        without[3] -= 2;
        assert_eq!(read(&record(&without)), FirstBytes::Tls(None));
    }

    #[test]
    fn other_protocols_are_told_apart_at_the_first_byte() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x",
            b"\x80\x2e\x01",
            b"\0",
        ] {
            assert_eq!(read(bytes), FirstBytes::Other);
        }
        assert_eq!(read(b""), FirstBytes::Incomplete);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let twice = [name("a.example"), name("b.example")].concat();
        let entries = [
            &[HOST_NAME][..],
            &list(2, b"a"),
            &[HOST_NAME],
            &list(2, b"b"),
        ]
        .concat();
        let two = extension(0, &list(2, &entries));
        let behind = extension(0, &[list(2, &[0, 0, 1, b'a']), vec![0]].concat());
        for extensions in [
            twice,
            two,
            behind,
            extension(0, &[]),
            extension(0, &list(2, &[])),
            name(""),
            name("."),
            name("a.example.."),
            name(".a.example"),
            name("a b"),
            name("a\0.example"),
            name("\u{e9}.example"),
            name(&"a".repeat(254)),
            vec![0, 0, 0],
        ] {
            let hello = record(&message(&extensions));
            assert_eq!(read(&hello), FirstBytes::Malformed, "{extensions:?}");
        }
        let hello = message(&name("a.example"));
        let behind = [&hello[..], &[1]].concat();
        for bytes in [
            record(&behind),
            record(&[2, 0, 0, 0]),
            [&[HANDSHAKE, 3, 0][..], &list(2, &hello)].concat(),
            [&[HANDSHAKE, 2, 1][..], &list(2, &hello)].concat(),
            record(&[]),
            [record(&hello[..9]), vec![23, 3, 1, 0, 1, 0]].concat(),
            vec![HANDSHAKE, 3, 1, 0x40, 1],
            record(&[1, 1, 0, 0]),
        ] {
            assert_eq!(read(&bytes), FirstBytes::Malformed, "{bytes:?}");
        }
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let long = message(&[name("a.example"), extension(21, &[0; 15_000])].concat());
        let hello = record(&long);
        assert_eq!(read(&hello), asks_for("a.example"));
        let tiny: Vec<u8> = long.iter().flat_map(|byte| record(&[*byte])).collect();
        assert_eq!(read(&tiny[..MAX_BYTES - 1]), FirstBytes::Incomplete);
        assert_eq!(read(&tiny), FirstBytes::Malformed);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(damage in 0_usize..200, to: u8, cut in 0_usize..200) {
            let mut hello = record(&message(&name("a.example")));
            let at = damage % hello.len();
            hello[at] = to;
            let early = read(&hello[..cut.min(hello.len())]);
            if early != FirstBytes::Incomplete {
                prop_assert_eq!(early, read(&hello));
            }
        }
    }
}

//! Where one request of HTTP/1 ends and the next begins (RFC 9112): a strict reader that lets bytes
//! through only as long as every server would read them in the same way. What is behind it parses
//! them, and writes each request anew. Used by the proxy, for guests that speak HTTP/1.

/// Longest head of a request.
pub const MAX_HEAD: usize = 64 * 1024;
/// Longest line with the size of a chunk.
const MAX_SIZE_LINE: usize = 18;
/// Longest trailer section.
const MAX_TRAILERS: usize = 8 * 1024;

/// What could be read in two ways, or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line feed without carriage return, or the reverse.
    #[error("a line of the request does not end in CR LF")]
    LineEnd,
    /// A header continued on a second line.
    #[error("a header of the request is folded")]
    Folded,
    /// Not `METHOD target HTTP/1.1`.
    #[error("the request line is malformed")]
    RequestLine,
    /// Not `name: value`.
    #[error("a header of the request is malformed")]
    Header,
    /// Host is missing, or there twice.
    #[error("the request has not exactly one Host")]
    Host,
    /// Both ways to tell the length.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    TwoLengths,
    /// A length that is none, or several.
    #[error("the Content-Length of the request is no single number")]
    Length,
    /// Another encoding than `chunked`, once.
    #[error("the Transfer-Encoding of the request is not chunked alone")]
    Encoding,
    /// A chunk's size with an extension.
    #[error("a chunk of the request has an extension")]
    ChunkExtension,
    /// A chunk that is none.
    #[error("a chunk of the request is malformed")]
    Chunk,
    /// Longer than anybody needs.
    #[error("the request's head is longer than {MAX_HEAD} bytes")]
    TooLong,
}

/// Where in a request the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// It is no HTTP any more.
    Raw,
}

/// A reader of one connection's bytes.
#[derive(Clone, Debug)]
pub struct Framing {
    state: State,
    scan: Scan,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            state: State::Head,
            scan: Scan::default(),
        }
    }
}

/// How far lines were looked at that are not whole yet: each byte is looked at once, however small
/// the pieces are in which they come.
#[derive(Clone, Copy, Debug)]
struct Scan {
    /// Bytes that were looked at.
    at: usize,
    previous: u8,
    /// Bytes of the line so far, with its carriage return.
    line: usize,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            at: 0,
            previous: b'\n',
            line: 0,
        }
    }
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
}

impl Framing {
    /// How many of `bytes`, which follow what was let through before, are let through now; 0 until
    /// there are more.
    ///
    /// # Errors
    /// Nothing from here on is let through.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let (count, next) = match self.state {
            State::Raw => (bytes.len(), State::Raw),
            State::Head => match self.scan.end_of_head(bytes)? {
                None => return Ok(0),
                Some(end) => (end, head(bytes.get(..end).unwrap_or_default())?),
            },
            State::Body(left) => match part(bytes, left) {
                (count, 0) => (count, State::Head),
                (count, left) => (count, State::Body(left)),
            },
            State::ChunkSize => match line(bytes, MAX_SIZE_LINE, Violation::Chunk)? {
                None => return Ok(0),
                Some(text) => match chunk_size(text)? {
                    0 => (text.len() + 2, State::Trailers),
                    size => (text.len() + 2, State::Chunk(size)),
                },
            },
            State::Chunk(left) => match part(bytes, left) {
                (count, 0) => (count, State::ChunkEnd),
                (count, left) => (count, State::Chunk(left)),
            },
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => (2, State::ChunkSize),
                [b'\r'] => return Ok(0),
                _ => return Err(Violation::Chunk),
            },
            State::Trailers => match line(bytes, MAX_TRAILERS, Violation::Header)? {
                None => return Ok(0),
                Some(b"") => (2, State::Head),
                Some(_) => match self.scan.end_of_lines(bytes, MAX_TRAILERS)? {
                    None => return Ok(0),
                    Some(end) => {
                        trailers(bytes.get(..end).unwrap_or_default())?;
                        (end, State::Head)
                    }
                },
            },
        };
        self.state = next;
        self.scan = Scan::default();
        Ok(count)
    }

    /// Between two requests: what follows is another protocol.
    pub fn end_http(&mut self) {
        if self.state == State::Head {
            self.state = State::Raw;
        }
    }
}

/// How many of `left` bytes are there, and how many are left after them.
fn part(bytes: &[u8], left: u64) -> (usize, u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (count, left.saturating_sub(count as u64))
}

impl Scan {
    /// Checks the line ends that are there, and finds the end of an empty line.
    fn end_of_lines(&mut self, bytes: &[u8], most: usize) -> Result<Option<usize>, Violation> {
        for byte in bytes.get(self.at..).unwrap_or_default() {
            self.at += 1;
            if self.at > most {
                return Err(Violation::TooLong);
            }
            match (self.previous, *byte) {
                (b'\r', b'\n') if self.line == 1 => return Ok(Some(self.at)),
                (b'\r', b'\n') => self.line = 0,
                (b'\r', _) | (_, b'\n') => return Err(Violation::LineEnd),
                _ => self.line += 1,
            }
            self.previous = *byte;
        }
        Ok(None)
    }

    fn end_of_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.end_of_lines(bytes, MAX_HEAD)? {
            // An empty line in front, which some servers skip and some do not.
            Some(2) => Err(Violation::RequestLine),
            end => Ok(end),
        }
    }
}

/// The first line without its end.
fn line(bytes: &[u8], most: usize, otherwise: Violation) -> Result<Option<&[u8]>, Violation> {
    let looked = bytes.get(..most + 2).unwrap_or(bytes);
    let Some(at) = looked.iter().position(|byte| *byte == b'\n') else {
        return match bytes.len() > most + 1 {
            true => Err(otherwise),
            false => Ok(None),
        };
    };
    let text = bytes.get(..at).and_then(|text| text.strip_suffix(b"\r"));
    text.map(Some).ok_or(Violation::LineEnd)
}

fn chunk_size(text: &[u8]) -> Result<u64, Violation> {
    if text.contains(&b';') {
        return Err(Violation::ChunkExtension);
    }
    let digits = (1..=15).contains(&text.len()) && text.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits);
    let size = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    size.ok_or(Violation::Chunk)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The name in lower case and the value of a header's line.
fn header(line: &[u8]) -> Result<(Vec<u8>, &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Folded);
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.ok_or(Violation::Header)?);
    let value = value.strip_prefix(b":").unwrap_or_default();
    let clean = |byte: &u8| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || !value.iter().all(clean) {
        return Err(Violation::Header);
    }
    Ok((name.to_ascii_lowercase(), value.trim_ascii()))
}

/// The lines of a block that ends in an empty one.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = block.strip_suffix(b"\r\n\r\n").unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Checks a whole head, and tells what follows it.
fn head(bytes: &[u8]) -> Result<State, Violation> {
    let mut lines = lines(bytes);
    let newest = request_line(lines.next().unwrap_or_default())?;
    let mut hosts = 0;
    let mut length = None;
    let mut chunked = false;
    for line in lines {
        let (name, value) = header(line)?;
        match name.as_slice() {
            b"host" => hosts += 1,
            b"content-length" if length.is_some() => return Err(Violation::Length),
            b"content-length" => length = Some(content_length(value)?),
            b"transfer-encoding" => {
                if chunked || !newest || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::Encoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && newest) {
        return Err(Violation::Host);
    }
    let body = match (length, chunked) {
        (Some(_), true) => return Err(Violation::TwoLengths),
        (_, true) => Body::Chunked,
        (length, false) => Body::Length(length.unwrap_or(0)),
    };
    Ok(match body {
        Body::Length(0) => State::Head,
        Body::Length(length) => State::Body(length),
        Body::Chunked => State::ChunkSize,
    })
}

/// Whether the request is of HTTP/1.1, and not 1.0.
fn request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    let proper = !method.is_empty()
        && method.iter().all(|byte| is_token(*byte))
        && !target.is_empty()
        && target.iter().all(u8::is_ascii_graphic);
    match version {
        b"HTTP/1.1" if proper => Ok(true),
        b"HTTP/1.0" if proper => Ok(false),
        _ => Err(Violation::RequestLine),
    }
}

fn content_length(value: &[u8]) -> Result<u64, Violation> {
    let digits = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    let length = text.and_then(|text| text.parse().ok());
    length.ok_or(Violation::Length)
}

/// Checks a trailer section: nothing in it may speak about the request's framing or its place.
fn trailers(bytes: &[u8]) -> Result<(), Violation> {
    for line in lines(bytes) {
        let (name, _) = header(line)?;
        if matches!(
            name.as_slice(),
            b"content-length" | b"transfer-encoding" | b"host"
        ) {
            return Err(Violation::Header);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that is let through of `bytes`, which come in pieces of `size`.
    fn through(bytes: &[u8], size: usize) -> (usize, Result<(), Violation>) {
        let mut framing = Framing::default();
        let (mut from, mut have) = (0, 0);
        while have < bytes.len() {
            have = (have + size).min(bytes.len());
            loop {
                match framing.advance(&bytes[from..have]) {
                    Ok(0) => break,
                    Ok(count) => from += count,
                    Err(violation) => return (from, Err(violation)),
                }
            }
        }
        (from, Ok(()))
    }

    fn whole(text: &str) {
        for size in [1, 7, 4096] {
            let expected = (text.len(), Ok(()));
            assert_eq!(through(text.as_bytes(), size), expected, "{size} {text:?}");
        }
    }

    fn refused(text: &str, violation: Violation) {
        for size in [1, 7, 4096] {
            let (_, end) = through(text.as_bytes(), size);
            assert_eq!(end, Err(violation), "{size} {text:?}");
        }
    }

    const HOST: &str = "Host: a.example\r\n";

    #[test]
    fn proper_requests_pass_one_after_the_other() {
        whole(&format!(
            "GET / HTTP/1.1\r\n{HOST}\r\nGET /b HTTP/1.1\r\n{HOST}X: \u{e9} y\t\r\n\r\n"
        ));
        whole(&format!(
            "POST / HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello"
        ));
        whole("GET / HTTP/1.0\r\n\r\n");
        whole(&format!(
            "POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0A\r\n0123456789\
             \r\n0\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n"
        ));
        whole(&format!(
            "POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\nDigest: x\r\nB: y\r\n\r\n"
        ));
    }

    #[test]
    fn what_servers_read_in_different_ways_does_not_pass() {
        use Violation as V;
        let with = |headers: &str| format!("POST / HTTP/1.1\r\n{HOST}{headers}\r\n");
        let chunked = |body: &str| format!("{}{body}", with("Transfer-Encoding: chunked\r\n"));
        let smuggled = "0\r\n\r\nGET /secret HTTP/1.1\r\nHost: a.example\r\n\r\n";
        for (text, violation) in [
            // CL.TE, TE.CL, TE.TE, CL.CL.
            (
                with("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + smuggled,
                V::TwoLengths,
            ),
            (
                with("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n") + smuggled,
                V::TwoLengths,
            ),
            (
                with("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"),
                V::Encoding,
            ),
            (with("Transfer-Encoding: x, chunked\r\n"), V::Encoding),
            (
                with("Transfer-Encoding: chunked, identity\r\n"),
                V::Encoding,
            ),
            (with("Transfer-Encoding: chunked, chunked\r\n"), V::Encoding),
            (with("Transfer-Encoding: chunked;q=1\r\n"), V::Encoding),
            (with("Transfer-Encoding: \r\n"), V::Encoding),
            (
                with("Content-Length: 1\r\nContent-Length: 2\r\n"),
                V::Length,
            ),
            (with("Content-Length: 0x1\r\n"), V::Length),
            (with("Content-Length: 1 1\r\n"), V::Length),
            (format!("GET / HTTP/1.1\r\n X: y\r\n{HOST}\r\n"), V::Folded),
            (with("X: y\r\rZ: z\r\n"), V::LineEnd),
            (with("X: y\n\r\n"), V::LineEnd),
            (with("Transfer-Encoding: \x0bchunked\r\n"), V::Header),
            (with("Transfer-Encoding : chunked\r\n"), V::Header),
            (with("Transfer-Encoding: identity\r\n"), V::Encoding),
            (
                with("Content-Length: 1\r\nContent-Length: 1\r\n"),
                V::Length,
            ),
            (with("Content-Length: 1, 1\r\n"), V::Length),
            (with("Content-Length: +1\r\n"), V::Length),
            (with("Content-Length: \r\n"), V::Length),
            (with("Content-Length: 99999999999999999999\r\n"), V::Length),
            (with("X: y\r\n z\r\n"), V::Folded),
            (with("X: y\r\n\tTransfer-Encoding: chunked\r\n"), V::Folded),
            (with("X: y\nTransfer-Encoding: chunked\r\n"), V::LineEnd),
            (with("X: y\rZ: z\r\n"), V::LineEnd),
            (with("X: \0\r\n"), V::Header),
            (with("X\r\n"), V::Header),
            (with(": x\r\n"), V::Header),
            (with("Host: b.example\r\n"), V::Host),
            ("GET / HTTP/1.1\r\nX: y\r\n\r\n".into(), V::Host),
            ("\r\nGET / HTTP/1.1\r\n".into(), V::RequestLine),
            (format!("GET  / HTTP/1.1\r\n{HOST}\r\n"), V::RequestLine),
            (format!("GET /a b HTTP/1.1\r\n{HOST}\r\n"), V::RequestLine),
            (format!("GET / HTTP/1.2\r\n{HOST}\r\n"), V::RequestLine),
            (format!("GET /\r\n{HOST}\r\n"), V::RequestLine),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), V::RequestLine),
            (
                "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                V::Encoding,
            ),
            (chunked("5;x=y\r\nhello\r\n"), V::ChunkExtension),
            (chunked("5 \r\nhello\r\n"), V::Chunk),
            (chunked("0x5\r\nhello\r\n"), V::Chunk),
            (chunked("-1\r\n"), V::Chunk),
            (chunked("\r\n"), V::Chunk),
            (chunked("ffffffffffffffff\r\n"), V::Chunk),
            (chunked("5\nhello\r\n"), V::LineEnd),
            (chunked("5\r\nhello5\r\n"), V::Chunk),
            (chunked("5\r\nhello\n5\r\n"), V::Chunk),
            (chunked("00000000000000000000"), V::Chunk),
            (chunked("0\r\nContent-Length: 5\r\n\r\n"), V::Header),
            (chunked("0\r\n folded\r\n\r\n"), V::Folded),
            (chunked("0\r\nX: y\n\r\n"), V::LineEnd),
        ] {
            refused(&text, violation);
        }
    }

    #[test]
    fn nothing_is_kept_without_bound() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_HEAD));
        refused(&long, Violation::TooLong);
        let trailers = format!(
            "POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n{}",
            "A: b\r\n".repeat(MAX_TRAILERS / 6 + 2)
        );
        refused(&trailers, Violation::TooLong);
    }

    #[test]
    fn another_protocol_begins_between_requests_alone() {
        let mut framing = Framing::default();
        framing.end_http();
        assert_eq!(framing.advance(b"\x81\x05hello"), Ok(7));
        let mut framing = Framing::default();
        let text = format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\n");
        assert_eq!(framing.advance(text.as_bytes()), Ok(text.len()));
        framing.end_http();
        assert_eq!(framing.advance(b"hellonext"), Ok(5));
        assert_eq!(framing.advance(b"\n"), Err(Violation::LineEnd));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes: Vec<u8>, size in 1_usize..9, at in 0_usize..80) {
            let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            let mut text = head.into_bytes();
            let at = at.min(text.len());
            text.splice(at..at, bytes);
            let (count, end) = through(&text, size);
            prop_assert_eq!((count, end), through(&text, text.len()));
        }
    }
}

//! Server-sent events: bytes to events and back (HTML standard, section 9.2).

use std::mem;

/// Longest event in bytes.
pub(crate) const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// One event: its name, if it has one, and its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The `event` field.
    pub(crate) name: Option<String>,
    /// The `data` fields, joined by line feeds.
    pub(crate) data: String,
}

/// Why a stream is no stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    /// An event, or a line, without end.
    #[error("an event of the stream is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    /// Not text.
    #[error("the stream is not UTF-8")]
    NotText,
}

/// Takes bytes as they come and gives events as they become whole.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return, of which a line feed may be the other half.
    after_return: bool,
    event: Event,
    has_data: bool,
    size: usize,
}

impl Parser {
    /// Events that `bytes` make whole.
    ///
    /// # Errors
    /// The stream is malformed; nothing after it can be read.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_half = mem::take(&mut self.after_return) && byte == b'\n';
            match byte {
                b'\n' if second_half => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = mem::take(&mut self.line);
                    events.extend(self.end_line(&line)?);
                }
                _ => {
                    self.line.push(byte);
                    self.grow(1)?;
                }
            }
        }
        Ok(events)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), SseError> {
        self.size += bytes;
        if self.size > MAX_EVENT_BYTES {
            Err(SseError::TooLong)
        } else {
            Ok(())
        }
    }

    fn end_line(&mut self, line: &[u8]) -> Result<Option<Event>, SseError> {
        self.grow(1)?;
        if line.is_empty() {
            self.size = 0;
            let event = mem::take(&mut self.event);
            return Ok(mem::take(&mut self.has_data).then_some(event));
        }
        let line = std::str::from_utf8(line).map_err(|_| SseError::NotText)?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "event" => self.event.name = Some(value.to_owned()),
            // Comments, `id` and `retry` say nothing of an answer.
            _ => {}
        }
        Ok(None)
    }
}

impl Event {
    /// An event without a name.
    pub(crate) fn data(data: String) -> Self {
        Self { name: None, data }
    }

    /// An event with a name.
    pub(crate) fn named(name: &str, data: String) -> Self {
        Self {
            name: Some(name.to_owned()),
            data,
        }
    }

    /// The event as bytes.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::with_capacity(self.data.len() + 32);
        if let Some(name) = &self.name {
            text.push_str(&format!("event: {name}\n"));
        }
        for line in self.data.split('\n') {
            text.push_str(&format!("data: {line}\n"));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(text: &[u8]) -> Result<Vec<Event>, SseError> {
        Parser::default().push(text)
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let data = |data: &str| Event::data(data.to_owned());
        for (text, expected) in [
            ("data: a\n\n", vec![data("a")]),
            ("data:a\r\n\r\ndata:  b\r\r", vec![data("a"), data(" b")]),
            ("data: a\ndata: b\n\n", vec![data("a\nb")]),
            (": ping\n\nid: 1\nretry: 5\n\n", vec![]),
            (
                "event: e\ndata: x\n\n",
                vec![Event::named("e", "x".to_owned())],
            ),
            ("event: e\n\ndata: x\n\n", vec![data("x")]),
            ("data\n\n", vec![data("")]),
            ("data: unfinished\n", vec![]),
        ] {
            assert_eq!(events(text.as_bytes()), Ok(expected), "{text:?}");
        }
        assert_eq!(events(b"data: \xff\n\n"), Err(SseError::NotText));
        assert_eq!(
            events(&vec![b'a'; MAX_EVENT_BYTES + 1]),
            Err(SseError::TooLong)
        );
        let lines = b"data: a\n".repeat(MAX_EVENT_BYTES / 8 + 1);
        assert_eq!(events(&lines), Err(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            text in "(data: ?[a-zé]{0,3}|event: x|:|\r\n|\n|\r){0,12}",
            at in 0_usize..100,
        ) {
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            let mut parser = Parser::default();
            let mut parts = parser.push(head).unwrap();
            parts.extend(parser.push(tail).unwrap());
            prop_assert_eq!(parts, events(bytes).unwrap());
        }

        #[test]
        fn an_event_reads_as_it_is_written(name in "[a-z]{1,5}", data in "[^\r]{0,20}") {
            let event = Event::named(&name, data);
            prop_assert_eq!(events(event.encode().as_bytes()), Ok(vec![event]));
        }
    }
}

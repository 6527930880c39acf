//! A provider's stream, read as bytes come and written as the guest's wire wants it.

use bulkhead_models::Wire;
use serde_json::Value;

use crate::sse::{Event, Parser};
use crate::translate::stream::{ToAnthropic, ToOpenai};
use crate::wire::{Usage, anthropic as a, openai as o};

/// How the data of the last event of an OpenAI stream reads.
const DONE: &str = "[DONE]";

/// One stream.
#[derive(Debug)]
pub(crate) struct Relay {
    parser: Parser,
    from: Wire,
    writer: Writer,
    /// Whether a guest of the OpenAI wire asked for the chunk with the usage.
    usage_wanted: bool,
    usage: Option<Usage>,
    text_bytes: u64,
    /// The answer has said why it ended.
    finished: bool,
    complete: bool,
}

#[derive(Debug)]
enum Writer {
    Same,
    Anthropic(ToAnthropic),
    Openai(ToOpenai),
}

impl Relay {
    /// A stream of the wire `from` for a guest of the wire `to`; `created` in seconds of Unix time.
    pub(crate) fn new(from: Wire, to: Wire, usage_wanted: bool, created: u64) -> Self {
        let writer = match (from, to) {
            (Wire::Openai, Wire::Anthropic) => Writer::Anthropic(ToAnthropic::default()),
            (Wire::Anthropic, Wire::Openai) => Writer::Openai(ToOpenai::new(usage_wanted, created)),
            (Wire::Openai, Wire::Openai) | (Wire::Anthropic, Wire::Anthropic) => Writer::Same,
        };
        Self {
            parser: Parser::default(),
            from,
            writer,
            usage_wanted,
            usage: None,
            text_bytes: 0,
            finished: false,
            complete: false,
        }
    }

    /// The events that `bytes` make for the guest.
    ///
    /// # Errors
    /// Why the stream cannot go on, in one sentence.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for event in self.parser.push(bytes).map_err(|error| error.to_string())? {
            if self.complete {
                break;
            }
            match self.from {
                Wire::Openai => self.chunk(event, &mut events)?,
                Wire::Anthropic => self.event(event, &mut events)?,
            }
        }
        Ok(events)
    }

    /// The provider has closed the stream: the events that are still due.
    ///
    /// # Errors
    /// The answer had not ended.
    pub(crate) fn close(&mut self) -> Result<Vec<Event>, String> {
        match (self.complete, self.finished) {
            (true, _) => Ok(Vec::new()),
            (false, true) => self.end(),
            (false, false) => Err("the provider's stream ended early".to_owned()),
        }
    }

    /// Whether the answer is whole.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What the answer took, if it is whole and its provider said so. What a stream says before its
    /// end is not what it takes in the end.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.usage.filter(|_| self.complete)
    }

    /// Bytes of text and arguments so far.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    fn chunk(&mut self, event: Event, events: &mut Vec<Event>) -> Result<(), String> {
        if event.data == DONE {
            events.extend(self.end()?);
            return Ok(());
        }
        let chunk: o::Chunk = read(&event)?;
        if let Some(error) = &chunk.error {
            return Err(said(error));
        }
        for choice in &chunk.choices {
            self.text_bytes = self.text_bytes.saturating_add(choice.delta.text_bytes());
            self.finished |= choice.finish_reason.is_some();
        }
        self.usage = o::usage(chunk.usage.as_ref()).or(self.usage);
        match &mut self.writer {
            Writer::Anthropic(writer) => {
                events.extend(writer.chunk(&chunk).map_err(|error| error.0)?);
            }
            // The chunk with the usage, which only the router asked for.
            _ if chunk.choices.is_empty() && chunk.usage.is_some() && !self.usage_wanted => {}
            _ => events.push(event),
        }
        Ok(())
    }

    fn event(&mut self, event: Event, events: &mut Vec<Event>) -> Result<(), String> {
        let read: a::Event = read(&event)?;
        match &read {
            a::Event::MessageStart { message } => {
                self.usage = a::usage(message.usage.as_ref(), self.usage);
            }
            a::Event::ContentBlockDelta { delta, .. } => {
                let text = match delta {
                    a::Delta::Text { text } => text.len(),
                    a::Delta::InputJson { partial_json } => partial_json.len(),
                    a::Delta::Other => 0,
                };
                let text = u64::try_from(text).unwrap_or(u64::MAX);
                self.text_bytes = self.text_bytes.saturating_add(text);
            }
            a::Event::MessageDelta { delta, usage } => {
                self.finished |= delta.stop_reason.is_some();
                // What was told at the start is of the start: without a usage here there is none.
                self.usage = a::usage(usage.as_ref(), self.usage);
            }
            a::Event::Error { error } => return Err(said(error)),
            _ => {}
        }
        let last = matches!(read, a::Event::MessageStop {});
        match &mut self.writer {
            Writer::Openai(writer) => {
                events.extend(writer.event(&read).map_err(|error| error.0)?);
            }
            _ if last => {}
            _ => events.push(event),
        }
        if last {
            events.extend(self.end()?);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<Vec<Event>, String> {
        self.complete = true;
        match &mut self.writer {
            Writer::Anthropic(writer) => writer.end(self.usage).map_err(|error| error.0),
            Writer::Openai(writer) => Ok(writer.end(self.usage)),
            Writer::Same => Ok(vec![match self.from {
                Wire::Openai => Event::data(DONE.to_owned()),
                Wire::Anthropic => {
                    Event::named("message_stop", r#"{"type":"message_stop"}"#.to_owned())
                }
            }]),
        }
    }
}

fn read<'e, T: serde::Deserialize<'e>>(event: &'e Event) -> Result<T, String> {
    serde_json::from_str(&event.data)
        .map_err(|_| "the provider's stream has an event that is malformed".to_owned())
}

/// The message of an error, which both wires have at the same place.
pub(crate) fn said(error: &Value) -> String {
    let message = error.get("message").or(Some(error)).and_then(Value::as_str);
    let message: String = message.unwrap_or("an error").chars().take(500).collect();
    format!("the provider says: {message}")
}

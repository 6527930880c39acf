//! Streams: each event of the provider's wire becomes none, one or more of the guest's.

use std::mem;

use serde_json::{Value, json};

use super::answer::{finish_reason, no_reasoning, stop_reason, usage_to_openai};
use super::{Untranslatable, refuse};
use crate::sse::Event;
use crate::wire::anthropic::{self as a, Delta, SaidBlock};
use crate::wire::{Usage, openai as o};

/// What is open in the Anthropic stream that is written.
#[derive(Debug, Default, PartialEq, Eq)]
enum Open {
    #[default]
    Nothing,
    Text,
    /// The call of this number in the OpenAI stream.
    Call(u32),
}

/// Writes an Anthropic stream of the chunks of an OpenAI one.
#[derive(Debug, Default)]
pub(crate) struct ToAnthropic {
    began: bool,
    open: Open,
    /// Number of the next block.
    next: u32,
    finish: Option<String>,
    refused: bool,
}

impl ToAnthropic {
    /// The events for one chunk.
    pub(crate) fn chunk(&mut self, chunk: &o::Chunk) -> Result<Vec<Event>, Untranslatable> {
        let mut events = Vec::new();
        if !mem::replace(&mut self.began, true) {
            let message = json!({
                "id": chunk.id,
                "type": "message",
                "role": "assistant",
                "model": chunk.model,
                "content": [],
                "stop_reason": null,
                "stop_sequence": null,
                "usage": { "input_tokens": 0, "output_tokens": 0 },
            });
            events.push(event("message_start", json!({ "message": message })));
        }
        if chunk.choices.len() > 1 {
            return refuse("the answer has more than one choice");
        }
        let Some(choice) = chunk.choices.first() else {
            return Ok(events);
        };
        no_reasoning(&choice.delta)?;
        let texts = [&choice.delta.content, &choice.delta.refusal];
        for text in texts.into_iter().flatten().filter(|text| !text.is_empty()) {
            if self.open != Open::Text {
                self.close(&mut events);
                self.open = Open::Text;
                let block = json!({ "type": "text", "text": "" });
                events.push(self.indexed("content_block_start", "content_block", block));
            }
            let delta = json!({ "type": "text_delta", "text": text });
            events.push(self.indexed("content_block_delta", "delta", delta));
        }
        self.refused |= choice
            .delta
            .refusal
            .as_ref()
            .is_some_and(|text| !text.is_empty());
        for call in choice.delta.tool_calls.iter().flatten() {
            self.call(call, &mut events)?;
        }
        if choice.finish_reason.is_some() {
            self.finish.clone_from(&choice.finish_reason);
        }
        Ok(events)
    }

    fn call(&mut self, call: &o::SaidCall, events: &mut Vec<Event>) -> Result<(), Untranslatable> {
        if self.open != Open::Call(call.index) {
            let (Some(id), Some(name)) = (&call.id, &call.function.name) else {
                return refuse("the stream goes back to a tool call that another one followed");
            };
            self.close(events);
            self.open = Open::Call(call.index);
            let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
            events.push(self.indexed("content_block_start", "content_block", block));
        }
        if let Some(arguments) = call
            .function
            .arguments
            .as_ref()
            .filter(|text| !text.is_empty())
        {
            let delta = json!({ "type": "input_json_delta", "partial_json": arguments });
            events.push(self.indexed("content_block_delta", "delta", delta));
        }
        Ok(())
    }

    /// An event about the block that is open.
    fn indexed(&self, name: &str, key: &str, value: Value) -> Event {
        event(name, json!({ "index": self.next, key: value }))
    }

    fn close(&mut self, events: &mut Vec<Event>) {
        if mem::take(&mut self.open) != Open::Nothing {
            events.push(event("content_block_stop", json!({ "index": self.next })));
            self.next += 1;
        }
    }

    /// The events that end the stream.
    pub(crate) fn end(&mut self, usage: Option<Usage>) -> Result<Vec<Event>, Untranslatable> {
        let mut events = Vec::new();
        self.close(&mut events);
        let stop_reason = match self.refused {
            true => "refusal",
            false => stop_reason(self.finish.as_deref())?,
        };
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": null });
        let usage = usage.unwrap_or_default();
        let usage = json!({ "input_tokens": usage.input, "output_tokens": usage.output });
        events.push(event(
            "message_delta",
            json!({ "delta": delta, "usage": usage }),
        ));
        events.push(event("message_stop", json!({})));
        Ok(events)
    }
}

/// An event of the Anthropic wire, whose data has its name too.
fn event(name: &str, mut data: Value) -> Event {
    if let Some(data) = data.as_object_mut() {
        data.insert("type".to_owned(), json!(name));
    }
    Event::named(name, data.to_string())
}

/// Writes an OpenAI stream of the events of an Anthropic one.
#[derive(Debug)]
pub(crate) struct ToOpenai {
    /// Whether the guest asked for a chunk with the usage.
    usage_wanted: bool,
    created: u64,
    id: String,
    model: String,
    /// Block of the call that is open, and its number among the calls.
    call: Option<(u32, u32)>,
    calls: u32,
}

impl ToOpenai {
    /// `created` is in seconds of Unix time.
    pub(crate) fn new(usage_wanted: bool, created: u64) -> Self {
        let (id, model) = (String::new(), String::new());
        Self {
            usage_wanted,
            created,
            id,
            model,
            call: None,
            calls: 0,
        }
    }

    /// The events for one event.
    pub(crate) fn event(&mut self, event: &a::Event) -> Result<Vec<Event>, Untranslatable> {
        let said = match event {
            a::Event::MessageStart { message } => {
                self.id.clone_from(&message.id);
                self.model.clone_from(&message.model);
                self.delta(json!({ "role": "assistant", "content": "" }), None)
            }
            a::Event::ContentBlockStart {
                content_block: SaidBlock::Text { text },
                ..
            } => {
                if self.calls > 0 {
                    return refuse("the answer has text after a tool call, unlike the OpenAI wire");
                }
                if text.is_empty() {
                    return Ok(Vec::new());
                }
                self.delta(json!({ "content": text }), None)
            }
            a::Event::ContentBlockStart {
                index,
                content_block: SaidBlock::ToolUse { id, name, .. },
            } => {
                let number = self.calls;
                self.calls = self.calls.saturating_add(1);
                self.call = Some((*index, number));
                let function = json!({ "name": name, "arguments": "" });
                let call =
                    json!({ "index": number, "id": id, "type": "function", "function": function });
                self.delta(json!({ "tool_calls": [call] }), None)
            }
            a::Event::ContentBlockStart {
                content_block: SaidBlock::Other,
                ..
            } => {
                return refuse("the answer has a block that has no counterpart on the OpenAI wire");
            }
            a::Event::ContentBlockDelta {
                delta: Delta::Text { text },
                ..
            } => self.delta(json!({ "content": text }), None),
            a::Event::ContentBlockDelta {
                index,
                delta: Delta::InputJson { partial_json },
            } => {
                let Some((_, number)) = self.call.filter(|(block, _)| block == index) else {
                    return refuse("the stream has arguments of a tool call that is not open");
                };
                let function = json!({ "arguments": partial_json });
                let call = json!({ "index": number, "function": function });
                self.delta(json!({ "tool_calls": [call] }), None)
            }
            a::Event::ContentBlockDelta {
                delta: Delta::Other,
                ..
            }
            | a::Event::Other => {
                return refuse(
                    "the stream has an event that has no counterpart on the OpenAI wire",
                );
            }
            a::Event::MessageDelta { delta, .. } => match &delta.stop_reason {
                Some(reason) => self.delta(json!({}), Some(finish_reason(Some(reason))?)),
                None => return Ok(Vec::new()),
            },
            a::Event::ContentBlockStop {}
            | a::Event::MessageStop {}
            | a::Event::Ping {}
            | a::Event::Error { .. } => return Ok(Vec::new()),
        };
        Ok(vec![said])
    }

    fn chunk(&self, choices: Value, usage: Value) -> Event {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(chunk) = chunk.as_object_mut().filter(|_| self.usage_wanted) {
            chunk.insert("usage".to_owned(), usage);
        }
        Event::data(chunk.to_string())
    }

    fn delta(&self, delta: Value, finish: Option<&str>) -> Event {
        let choice =
            json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish });
        self.chunk(json!([choice]), Value::Null)
    }

    /// The events that end the stream.
    pub(crate) fn end(&self, usage: Option<Usage>) -> Vec<Event> {
        let told = usage.filter(|_| self.usage_wanted);
        let told = told.map(|usage| self.chunk(json!([]), usage_to_openai(usage)));
        told.into_iter()
            .chain([Event::data("[DONE]".to_owned())])
            .collect()
    }
}

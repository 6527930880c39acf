//! Messages: `POST /v1/messages`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::{Never, TextOr, Usage};

/// The version of the wire that is spoken.
pub(crate) const VERSION: &str = "2023-06-01";

/// What a guest may ask.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) model: String,
    pub(crate) messages: Vec<Message>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) system: Option<TextOr<TextBlock>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop_sequences: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tools: Option<Vec<Tool>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tool_choice: Option<ToolChoice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Metadata>,
    // What only this wire has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: TextOr<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    User,
    Assistant,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Block {
    Text {
        text: String,
        // What clients send back of an answer, empty.
        #[serde(default, skip_serializing)]
        citations: Option<Vec<Never>>,
    },
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
    ToolResult {
        tool_use_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<TextOr<TextBlock>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        is_error: Option<bool>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum TextBlock {
    Text { text: String },
}

/// A tool of the guest's; those that a provider runs itself have other types, and are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tool {
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<ToolKind>,
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    pub(crate) input_schema: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolKind {
    Custom,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum ToolChoice {
    Auto {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disable_parallel_tool_use: Option<bool>,
    },
    Any {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disable_parallel_tool_use: Option<bool>,
    },
    Tool {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disable_parallel_tool_use: Option<bool>,
    },
    None {},
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) content: Vec<Value>,
    #[serde(default)]
    pub(crate) stop_reason: Option<String>,
    #[serde(default)]
    pub(crate) usage: Option<Value>,
}

/// One block of an answer, of the kinds that the other wire has too.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum SaidBlock {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Map<String, Value>,
    },
    #[serde(other)]
    Other,
}

/// An event of an answer that is streamed.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    MessageStart {
        message: Answer,
    },
    ContentBlockStart {
        index: u32,
        content_block: SaidBlock,
    },
    ContentBlockDelta {
        index: u32,
        delta: Delta,
    },
    ContentBlockStop {},
    MessageDelta {
        delta: End,
        #[serde(default)]
        usage: Option<Value>,
    },
    MessageStop {},
    Ping {},
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

/// A piece of a block.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct End {
    #[serde(default)]
    pub(crate) stop_reason: Option<String>,
}

impl Answer {
    /// Bytes of text and arguments.
    pub(crate) fn text_bytes(&self) -> u64 {
        let bytes = |block: &Value| {
            let text = block
                .get("text")
                .and_then(Value::as_str)
                .map_or(0, str::len);
            // What an empty object is written as says nothing.
            let input = block
                .get("input")
                .map_or(0, |input| input.to_string().len());
            text + input.saturating_sub(2)
        };
        self.content
            .iter()
            .map(|block| u64::try_from(bytes(block)).unwrap_or(u64::MAX))
            .sum()
    }
}

/// Usage as this wire tells it; a usage that is malformed is none. A stream tells the input at its
/// start, so where it is absent later it is that of `before`.
pub(crate) fn usage(value: Option<&Value>, before: Option<Usage>) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Told {
        input_tokens: Option<u64>,
        cache_creation_input_tokens: Option<u64>,
        cache_read_input_tokens: Option<u64>,
        output_tokens: Option<u64>,
    }
    let told = Told::deserialize(value?).ok()?;
    let input = told.input_tokens.map(|input| {
        let created = told.cache_creation_input_tokens.unwrap_or(0);
        let read = told.cache_read_input_tokens.unwrap_or(0);
        input.saturating_add(created).saturating_add(read)
    });
    let input = input.or(before.map(|before| before.input))?;
    Some(Usage {
        input,
        output: told.output_tokens?,
    })
}

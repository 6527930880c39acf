//! Whole answers: the provider speaks one wire, the guest the other.

use serde_json::{Value, json};

use super::request::arguments;
use super::{Untranslatable, refuse};
use crate::wire::anthropic::{self as a, SaidBlock};
use crate::wire::openai as o;

/// Why the Anthropic wire says that an answer ended, of why the OpenAI wire does.
pub(crate) fn stop_reason(finish: Option<&str>) -> Result<&'static str, Untranslatable> {
    Ok(match finish {
        Some("stop") => "end_turn",
        Some("length") => "max_tokens",
        Some("tool_calls") => "tool_use",
        Some("content_filter") => "refusal",
        Some(other) => {
            return refuse(format!(
                "the answer ended with `{}`, which has no counterpart on the Anthropic wire",
                other.escape_debug()
            ));
        }
        None => return refuse("the answer does not say how it ended"),
    })
}

/// Why the OpenAI wire says that an answer ended, of why the Anthropic wire does.
pub(crate) fn finish_reason(stop: Option<&str>) -> Result<&'static str, Untranslatable> {
    Ok(match stop {
        Some("end_turn" | "stop_sequence") => "stop",
        Some("max_tokens" | "model_context_window_exceeded") => "length",
        Some("tool_use") => "tool_calls",
        Some("refusal") => "content_filter",
        Some(other) => {
            return refuse(format!(
                "the answer ended with `{}`, which has no counterpart on the OpenAI wire",
                other.escape_debug()
            ));
        }
        None => return refuse("the answer does not say how it ended"),
    })
}

/// Refuses reasoning in the clear, for which the Anthropic wire wants a signature.
pub(crate) fn no_reasoning(said: &o::Said) -> Result<(), Untranslatable> {
    match said.reasoning_content.as_deref() {
        None | Some("") => Ok(()),
        Some(_) => refuse(
            "the answer has reasoning without a signature, which has no counterpart on the \
             Anthropic wire",
        ),
    }
}

/// An answer of the OpenAI wire as one of the Anthropic wire.
pub(crate) fn to_anthropic(answer: &o::Answer) -> Result<Value, Untranslatable> {
    let [choice] = answer.choices.as_slice() else {
        return refuse("the answer has not exactly one choice");
    };
    let said = &choice.message;
    no_reasoning(said)?;
    let mut content = Vec::new();
    for text in [&said.content, &said.refusal]
        .into_iter()
        .flatten()
        .filter(|t| !t.is_empty())
    {
        content.push(json!({ "type": "text", "text": text }));
    }
    for call in said.tool_calls.iter().flatten() {
        let (Some(id), Some(name)) = (&call.id, &call.function.name) else {
            return refuse("a tool call of the answer has no id or no name");
        };
        let input = arguments(call.function.arguments.as_deref().unwrap_or_default())?;
        content.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
    }
    let refused = said
        .refusal
        .as_ref()
        .is_some_and(|refusal| !refusal.is_empty());
    let stop_reason = match refused {
        true => "refusal",
        false => stop_reason(choice.finish_reason.as_deref())?,
    };
    let usage = o::usage(answer.usage.as_ref()).unwrap_or_default();
    Ok(json!({
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": { "input_tokens": usage.input, "output_tokens": usage.output },
    }))
}

/// An answer of the Anthropic wire as one of the OpenAI wire; `created` in seconds of Unix time.
pub(crate) fn to_openai(answer: &a::Answer, created: u64) -> Result<Value, Untranslatable> {
    let mut text: Option<String> = None;
    let mut calls = Vec::new();
    for block in &answer.content {
        match serde_json::from_value(block.clone()) {
            Ok(SaidBlock::Text { text: more }) if calls.is_empty() => {
                text.get_or_insert_default().push_str(&more);
            }
            Ok(SaidBlock::Text { .. }) => {
                return refuse("the answer has text after a tool call, unlike the OpenAI wire");
            }
            Ok(SaidBlock::ToolUse { id, name, input }) => {
                let arguments = Value::Object(input).to_string();
                let function = json!({ "name": name, "arguments": arguments });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            Ok(SaidBlock::Other) | Err(_) => return unknown_block(block),
        }
    }
    let finish_reason = finish_reason(answer.stop_reason.as_deref())?;
    let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
    if let Some(message) = message.as_object_mut().filter(|_| !calls.is_empty()) {
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(json!({
        "id": answer.id,
        "object": "chat.completion",
        "created": created,
        "model": answer.model,
        "choices": [{
            "index": 0,
            "message": message,
            "logprobs": null,
            "finish_reason": finish_reason,
        }],
        "usage": usage_to_openai(a::usage(answer.usage.as_ref(), None).unwrap_or_default()),
    }))
}

/// Usage as the OpenAI wire tells it.
pub(crate) fn usage_to_openai(usage: crate::wire::Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input.saturating_add(usage.output),
    })
}

fn unknown_block<T>(block: &Value) -> Result<T, Untranslatable> {
    let kind = block
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("nothing");
    refuse(format!(
        "the answer has a block of type `{}`, which has no counterpart on the OpenAI wire",
        kind.escape_debug()
    ))
}

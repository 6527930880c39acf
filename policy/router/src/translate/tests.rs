//! Translations beside files of what they have to be (`golden/`), and what has none.

use bulkhead_models::Wire;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{answer, request};
use crate::relay::Relay;
use crate::sse::{Event, Parser};
use crate::wire::{anthropic as a, openai as o};

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!("../../golden/", $name))
    };
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn requests_both_ways() {
    let (openai, anthropic) = (
        golden!("request.openai.json"),
        golden!("request.anthropic.json"),
    );
    let read: o::Request = serde_json::from_str(openai).unwrap();
    assert_eq!(
        json!(request::to_anthropic(&read).unwrap()),
        parse(anthropic)
    );
    let read: a::Request = serde_json::from_str(anthropic).unwrap();
    assert_eq!(json!(request::to_openai(&read).unwrap()), parse(openai));
}

#[test]
fn answers_both_ways() {
    let (openai, anthropic) = (
        golden!("answer.openai.json"),
        golden!("answer.anthropic.json"),
    );
    let read: o::Answer = serde_json::from_str(openai).unwrap();
    assert_eq!(answer::to_anthropic(&read).unwrap(), parse(anthropic));
    let read: a::Answer = serde_json::from_str(anthropic).unwrap();
    assert_eq!(
        answer::to_openai(&read, 1_700_000_000).unwrap(),
        parse(openai)
    );
}

/// Events with their data as JSON, so that the order of keys does not matter.
fn readable(events: &[Event]) -> Vec<(Option<String>, Value)> {
    let data = |event: &Event| serde_json::from_str(&event.data).unwrap_or(json!(event.data));
    events
        .iter()
        .map(|event| (event.name.clone(), data(event)))
        .collect()
}

/// `text` through a relay, in pieces of `size` bytes.
fn relayed(from: Wire, to: Wire, text: &str, size: usize) -> Vec<Event> {
    let mut relay = Relay::new(from, to, true, 1_700_000_000);
    let pieces = text
        .as_bytes()
        .chunks(size)
        .map(|piece| relay.push(piece).unwrap());
    let events: Vec<Event> = pieces.collect::<Vec<_>>().into_iter().flatten().collect();
    assert!(relay.is_complete());
    assert_eq!(relay.close(), Ok(Vec::new()));
    assert_eq!(relay.usage().unwrap().output, 12);
    events
}

#[test]
fn streams_both_ways() {
    let (openai, anthropic) = (
        golden!("stream.openai.sse"),
        golden!("stream.anthropic.sse"),
    );
    for (from, to, given, expected) in [
        (
            Wire::Openai,
            Wire::Anthropic,
            openai,
            golden!("stream.openai-as-anthropic.sse"),
        ),
        (
            Wire::Anthropic,
            Wire::Openai,
            anthropic,
            golden!("stream.anthropic-as-openai.sse"),
        ),
        (Wire::Openai, Wire::Openai, openai, openai),
        (Wire::Anthropic, Wire::Anthropic, anthropic, anthropic),
    ] {
        let expected = Parser::default().push(expected.as_bytes()).unwrap();
        for size in [1, 7, 100_000] {
            let events = relayed(from, to, given, size);
            let (events, expected) = (readable(&events), readable(&expected));
            for (event, expected) in events.iter().zip(&expected) {
                assert_eq!(event, expected, "{from:?} {to:?}");
            }
            assert_eq!(events.len(), expected.len());
        }
    }
}

fn openai(change: Value) -> o::Request {
    let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let fields = change.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(fields);
    serde_json::from_value(request).unwrap()
}

fn anthropic(change: Value) -> a::Request {
    let mut request =
        json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
    let fields = change.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(fields);
    serde_json::from_value(request).unwrap()
}

#[test]
fn what_anthropic_lacks_is_refused() {
    let say = |role: &str, rest: Value| {
        let mut message = json!({"role": role, "content": "x"});
        message
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        message
    };
    let call = |arguments: &str| {
        let function = json!({"name": "f", "arguments": arguments});
        json!({"tool_calls": [{"id": "1", "type": "function", "function": function}]})
    };
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
    for (change, part) in [
        (json!({"seed": 1}), "`seed`"),
        (json!({"frequency_penalty": 1}), "`frequency_penalty`"),
        (json!({"presence_penalty": 1}), "`presence_penalty`"),
        (json!({"logit_bias": {}}), "`logit_bias`"),
        (json!({"logprobs": true}), "`logprobs`"),
        (json!({"top_logprobs": 1}), "`top_logprobs`"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "`response_format`",
        ),
        (json!({"reasoning_effort": "low"}), "`reasoning_effort`"),
        (json!({"temperature": 1.5}), "`temperature`"),
        (json!({"tools": strict}), "`strict`"),
        (
            json!({"messages": [say("user", json!({})), say("system", json!({}))]}),
            "first turn",
        ),
        (
            json!({"messages": [say("user", json!({"name": "n"}))]}),
            "`name`",
        ),
        (
            json!({"messages": [say("assistant", json!({"refusal": "n"}))]}),
            "`refusal`",
        ),
        (
            json!({"messages": [say("assistant", call("[1]"))]}),
            "no JSON object",
        ),
    ] {
        let error = request::to_anthropic(&openai(change.clone())).unwrap_err();
        assert!(error.0.contains(part), "{change}: {error}");
    }
    for change in [
        json!({"logprobs": false}),
        json!({"temperature": 1}),
        json!({"seed": null}),
        json!({"messages": [say("assistant", call(""))]}),
        json!({"messages": [say("assistant", json!({"audio": null, "annotations": []}))]}),
    ] {
        assert!(
            request::to_anthropic(&openai(change.clone())).is_ok(),
            "{change}"
        );
    }
}

#[test]
fn what_openai_lacks_is_refused() {
    let said =
        |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
    let text = json!({"type": "text", "text": "x"});
    let call = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "1"});
    for (change, part) in [
        (json!({"top_k": 5}), "`top_k`"),
        (
            json!({"stop_sequences": ["1", "2", "3", "4", "5"]}),
            "at most 4",
        ),
        (said("user", json!([text, result])), "before other text"),
        (said("user", json!([call])), "`tool_use`"),
        (said("assistant", json!([call, text])), "after a tool call"),
        (said("assistant", json!([result])), "`tool_result`"),
    ] {
        let error = request::to_openai(&anthropic(change.clone())).unwrap_err();
        assert!(error.0.contains(part), "{change}: {error}");
    }
    let failed =
        json!({"type": "tool_result", "tool_use_id": "1", "content": "y", "is_error": true});
    let request = request::to_openai(&anthropic(said("user", json!([failed])))).unwrap();
    assert_eq!(json!(request.messages[0])["content"], "[error] y");
}

#[test]
fn answers_that_cannot_be_said_are_refused() {
    let openai = parse(golden!("answer.openai.json"));
    let anthropic = parse(golden!("answer.anthropic.json"));
    for (path, value, part) in [
        (
            "/choices/0/finish_reason",
            json!("function_call"),
            "`function_call`",
        ),
        ("/choices/0/finish_reason", Value::Null, "how it ended"),
        (
            "/choices/0/message/reasoning_content",
            json!("hm"),
            "reasoning",
        ),
        ("/choices/0/message/tool_calls/0/id", Value::Null, "no id"),
        ("/choices", json!([]), "exactly one choice"),
    ] {
        let mut changed = openai.clone();
        changed["choices"][0]["message"]["reasoning_content"] = json!("");
        *changed.pointer_mut(path).unwrap() = value;
        let read: o::Answer = serde_json::from_value(changed).unwrap();
        let error = answer::to_anthropic(&read).unwrap_err();
        assert!(error.0.contains(part), "{path}: {error}");
    }
    for (path, value, part) in [
        ("/stop_reason", json!("pause_turn"), "`pause_turn`"),
        (
            "/content/2",
            json!({"type": "text", "text": "x"}),
            "after a tool call",
        ),
        (
            "/content/0",
            json!({"type": "redacted_thinking", "data": "x"}),
            "`redacted_thinking`",
        ),
    ] {
        let mut changed = anthropic.clone();
        *changed.pointer_mut(path).unwrap() = value;
        let read: a::Answer = serde_json::from_value(changed).unwrap();
        let error = answer::to_openai(&read, 1).unwrap_err();
        assert!(error.0.contains(part), "{path}: {error}");
    }
}

#[test]
fn streams_that_cannot_be_said_are_refused() {
    let chunk = |delta: Value| {
        format!(
            "data: {}\n\n",
            json!({"choices": [{"index": 0, "delta": delta}]})
        )
    };
    let call = |index: u32, id: Option<&str>| {
        let function = json!({"name": id.map(|_| "f"), "arguments": "{}"});
        chunk(json!({"tool_calls": [{"index": index, "id": id, "function": function}]}))
    };
    let start = |block: Value| {
        let event = json!({"type": "content_block_start", "index": 0, "content_block": block});
        format!("data: {event}\n\n")
    };
    let delta = |delta: Value| {
        let event = json!({"type": "content_block_delta", "index": 3, "delta": delta});
        format!("data: {event}\n\n")
    };
    let tool = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
    let text = json!({"type": "text", "text": ""});
    let arguments = json!({"type": "input_json_delta", "partial_json": "{}"});
    for (from, to, stream, part) in [
        (
            Wire::Openai,
            Wire::Anthropic,
            chunk(json!({"reasoning_content": "x"})),
            "reasoning",
        ),
        (
            Wire::Openai,
            Wire::Anthropic,
            [call(0, Some("a")), call(1, Some("b")), call(0, None)].concat(),
            "goes back",
        ),
        (
            Wire::Anthropic,
            Wire::Openai,
            start(json!({"type": "thinking"})),
            "no counterpart",
        ),
        (
            Wire::Anthropic,
            Wire::Openai,
            [start(tool), start(text)].concat(),
            "after a tool call",
        ),
        (Wire::Anthropic, Wire::Openai, delta(arguments), "not open"),
        (
            Wire::Anthropic,
            Wire::Openai,
            delta(json!({"type": "x_delta"})),
            "no counterpart",
        ),
    ] {
        let error = Relay::new(from, to, true, 1)
            .push(stream.as_bytes())
            .unwrap_err();
        assert!(error.contains(part), "{stream}: {error}");
        let same = Relay::new(from, from, true, 1).push(stream.as_bytes());
        assert!(same.is_ok(), "{stream}: {same:?}");
    }
}

proptest! {
    /// Whatever a provider sends: no panic, and nothing after an error or the end.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..3000) {
        for (from, text) in [
            (Wire::Openai, golden!("stream.openai.sse")),
            (Wire::Anthropic, golden!("stream.anthropic.sse")),
        ] {
            for to in [Wire::Openai, Wire::Anthropic] {
                let mut relay = Relay::new(from, to, false, 1);
                let cut = cut.min(text.len());
                let good = relay.push(&text.as_bytes()[..cut]);
                prop_assert!(good.is_ok());
                let _ = relay.push(&bytes);
                let _ = relay.close();
            }
        }
    }
}

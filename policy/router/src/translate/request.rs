//! Requests: a guest speaks one wire, the provider the other.

use serde_json::{Map, Value, json};

use super::{Untranslatable, refuse};
use crate::wire::anthropic::{self as a, Block, Role, TextBlock, ToolChoice};
use crate::wire::openai::{self as o, Message, NamedTool, Part, ToolWord};
use crate::wire::{TextOr, WordOr};

/// Stop sequences that the OpenAI wire takes.
const MAX_STOPS: usize = 4;
/// How a tool's failure begins on the OpenAI wire, which has no field for it.
const FAILED: &str = "[error] ";

fn none<T>(value: Option<&T>, field: &str, wire: &str) -> Result<(), Untranslatable> {
    match value {
        None => Ok(()),
        Some(_) => refuse(format!("`{field}` has no counterpart on the {wire} wire")),
    }
}

/// A request of the OpenAI wire as one of the Anthropic wire.
pub(crate) fn to_anthropic(request: &o::Request) -> Result<a::Request, Untranslatable> {
    let to = "Anthropic";
    none(request.seed.as_ref(), "seed", to)?;
    none(request.frequency_penalty.as_ref(), "frequency_penalty", to)?;
    none(request.presence_penalty.as_ref(), "presence_penalty", to)?;
    none(request.logit_bias.as_ref(), "logit_bias", to)?;
    none(request.logprobs.as_ref().filter(|on| **on), "logprobs", to)?;
    none(request.top_logprobs.as_ref(), "top_logprobs", to)?;
    none(request.response_format.as_ref(), "response_format", to)?;
    none(request.reasoning_effort.as_ref(), "reasoning_effort", to)?;
    if request
        .temperature
        .as_ref()
        .and_then(serde_json::Number::as_f64)
        .is_some_and(|t| t > 1.0)
    {
        return refuse("a `temperature` above 1 has no counterpart on the Anthropic wire");
    }
    let (system, messages) = messages_to_anthropic(&request.messages)?;
    let tools = request
        .tools
        .as_ref()
        .map(|tools| tools.iter().map(tool_to_anthropic).collect());
    Ok(a::Request {
        model: request.model.clone(),
        messages,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        system,
        stop_sequences: request.stop.as_ref().map(|stop| match stop {
            TextOr::Text(stop) => vec![stop.clone()],
            TextOr::Parts(stops) => stops.clone(),
        }),
        stream: request.stream,
        temperature: request.temperature.clone(),
        top_p: request.top_p.clone(),
        tools: tools.transpose()?,
        tool_choice: choice_to_anthropic(request),
        metadata: request.user.clone().map(|user| a::Metadata {
            user_id: Some(user),
        }),
        top_k: None,
    })
}

type Prompt = (Option<TextOr<TextBlock>>, Vec<a::Message>);

fn messages_to_anthropic(given: &[Message]) -> Result<Prompt, Untranslatable> {
    let mut system = Vec::new();
    let mut messages: Vec<a::Message> = Vec::new();
    let mut say = |role: Role, blocks: Vec<Block>| match messages.last_mut() {
        // The Anthropic wire wants turns, and the results of all calls in one.
        Some(a::Message {
            role: last,
            content: TextOr::Parts(said),
        }) if *last == role => {
            said.extend(blocks);
        }
        _ => messages.push(a::Message {
            role,
            content: TextOr::Parts(blocks),
        }),
    };
    let mut began = false;
    for message in given {
        match message {
            Message::System { content, name } | Message::Developer { content, name } => {
                none(name.as_ref(), "name", "Anthropic")?;
                if began {
                    return refuse(
                        "a system message after the first turn has no counterpart on the \
                         Anthropic wire",
                    );
                }
                system.extend(texts(content));
                continue;
            }
            Message::User { content, name } => {
                none(name.as_ref(), "name", "Anthropic")?;
                say(Role::User, blocks(content));
            }
            Message::Assistant {
                content,
                name,
                refusal,
                tool_calls,
                ..
            } => {
                none(name.as_ref(), "name", "Anthropic")?;
                none(refusal.as_ref(), "refusal", "Anthropic")?;
                let mut said = content.as_ref().map(blocks).unwrap_or_default();
                for o::ToolCall::Function { id, function } in tool_calls.iter().flatten() {
                    let (id, name) = (id.clone(), function.name.clone());
                    let input = arguments(&function.arguments)?;
                    said.push(Block::ToolUse { id, name, input });
                }
                say(Role::Assistant, said);
            }
            Message::Tool {
                content,
                tool_call_id,
            } => {
                let texts = texts(content)
                    .into_iter()
                    .map(|text| TextBlock::Text { text });
                let result = Block::ToolResult {
                    tool_use_id: tool_call_id.clone(),
                    content: Some(TextOr::Parts(texts.collect())),
                    is_error: None,
                };
                say(Role::User, vec![result]);
            }
        }
        began = true;
    }
    let system: Vec<TextBlock> = system
        .into_iter()
        .map(|text| TextBlock::Text { text })
        .collect();
    Ok((
        (!system.is_empty()).then_some(TextOr::Parts(system)),
        messages,
    ))
}

/// The texts of a content. Empty ones say nothing, and the Anthropic wire refuses them.
fn texts(content: &TextOr<Part>) -> Vec<String> {
    let texts = match content {
        TextOr::Text(text) => vec![text.clone()],
        TextOr::Parts(parts) => parts
            .iter()
            .map(|Part::Text { text }| text.clone())
            .collect(),
    };
    texts.into_iter().filter(|text| !text.is_empty()).collect()
}

fn blocks(content: &TextOr<Part>) -> Vec<Block> {
    let texts = texts(content).into_iter();
    texts
        .map(|text| Block::Text {
            text,
            citations: None,
        })
        .collect()
}

/// The arguments of a call, which the OpenAI wire has as a text.
pub(crate) fn arguments(text: &str) -> Result<Map<String, Value>, Untranslatable> {
    let text = if text.is_empty() { "{}" } else { text };
    serde_json::from_str(text).or_else(|_| {
        refuse("the arguments of a tool call are no JSON object, which the Anthropic wire wants")
    })
}

fn tool_to_anthropic(tool: &o::Tool) -> Result<a::Tool, Untranslatable> {
    let o::Tool::Function { function } = tool;
    none(
        function.strict.as_ref().filter(|on| **on),
        "strict",
        "Anthropic",
    )?;
    let no_arguments = || Map::from_iter([("type".to_owned(), json!("object"))]);
    Ok(a::Tool {
        kind: None,
        name: function.name.clone(),
        description: function.description.clone(),
        input_schema: function.parameters.clone().unwrap_or_else(no_arguments),
    })
}

fn choice_to_anthropic(request: &o::Request) -> Option<ToolChoice> {
    let one_at_a_time = request.parallel_tool_calls.map(|parallel| !parallel);
    let disable_parallel_tool_use = one_at_a_time.filter(|one| *one);
    match &request.tool_choice {
        None if disable_parallel_tool_use.is_none() => None,
        None | Some(WordOr::Word(ToolWord::Auto)) => Some(ToolChoice::Auto {
            disable_parallel_tool_use,
        }),
        Some(WordOr::Word(ToolWord::None)) => Some(ToolChoice::None {}),
        Some(WordOr::Word(ToolWord::Required)) => Some(ToolChoice::Any {
            disable_parallel_tool_use,
        }),
        Some(WordOr::More(NamedTool::Function { function })) => {
            let name = function.name.clone();
            Some(ToolChoice::Tool {
                name,
                disable_parallel_tool_use,
            })
        }
    }
}

/// A request of the Anthropic wire as one of the OpenAI wire.
pub(crate) fn to_openai(request: &a::Request) -> Result<o::Request, Untranslatable> {
    none(request.top_k.as_ref(), "top_k", "OpenAI")?;
    let stops = request
        .stop_sequences
        .as_ref()
        .filter(|stops| !stops.is_empty());
    if stops.is_some_and(|stops| stops.len() > MAX_STOPS) {
        return refuse(format!(
            "the OpenAI wire takes at most {MAX_STOPS} stop sequences"
        ));
    }
    let mut messages = Vec::new();
    if let Some(system) = &request.system {
        let content = match system {
            TextOr::Text(text) => TextOr::Text(text.clone()),
            TextOr::Parts(blocks) => TextOr::Parts(parts(blocks)),
        };
        messages.push(Message::System {
            content,
            name: None,
        });
    }
    for message in &request.messages {
        match (message.role, &message.content) {
            (Role::User, TextOr::Text(text)) => {
                messages.push(Message::User {
                    content: TextOr::Text(text.clone()),
                    name: None,
                });
            }
            (Role::Assistant, TextOr::Text(text)) => {
                messages.push(assistant(Some(TextOr::Text(text.clone())), None));
            }
            (Role::User, TextOr::Parts(blocks)) => user_blocks(blocks, &mut messages)?,
            (Role::Assistant, TextOr::Parts(blocks)) => messages.push(assistant_blocks(blocks)?),
        }
    }
    let (tool_choice, one_at_a_time) = choice_to_openai(request.tool_choice.as_ref());
    Ok(o::Request {
        model: request.model.clone(),
        messages,
        max_tokens: request.max_tokens,
        stream: request.stream,
        temperature: request.temperature.clone(),
        top_p: request.top_p.clone(),
        stop: stops.map(|stops| TextOr::Parts(stops.clone())),
        tools: request
            .tools
            .as_ref()
            .map(|tools| tools.iter().map(tool_to_openai).collect()),
        tool_choice,
        parallel_tool_calls: one_at_a_time.map(|one| !one),
        user: request
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.user_id.clone()),
        ..o::Request::default()
    })
}

fn parts(blocks: &[TextBlock]) -> Vec<Part> {
    blocks
        .iter()
        .map(|TextBlock::Text { text }| Part::Text { text: text.clone() })
        .collect()
}

fn assistant(content: Option<TextOr<Part>>, tool_calls: Option<Vec<o::ToolCall>>) -> Message {
    Message::Assistant {
        content,
        name: None,
        refusal: None,
        tool_calls,
        function_call: None,
        audio: None,
        annotations: None,
    }
}

fn user_blocks(blocks: &[Block], messages: &mut Vec<Message>) -> Result<(), Untranslatable> {
    let mut said = Vec::new();
    for block in blocks {
        match block {
            Block::Text { text, .. } => said.push(Part::Text { text: text.clone() }),
            Block::ToolUse { .. } => return refuse("a user's message has a `tool_use` block"),
            Block::ToolResult { .. } if !said.is_empty() => {
                return refuse("the OpenAI wire wants the results of tools before other text");
            }
            Block::ToolResult {
                tool_use_id,
                content,
                is_error,
            } => {
                let failed = is_error == &Some(true);
                let content = match content {
                    None => TextOr::Text(if failed {
                        FAILED.to_owned()
                    } else {
                        String::new()
                    }),
                    Some(TextOr::Text(text)) if failed => TextOr::Text(format!("{FAILED}{text}")),
                    Some(TextOr::Text(text)) => TextOr::Text(text.clone()),
                    Some(TextOr::Parts(blocks)) => {
                        let mut parts = parts(blocks);
                        if failed {
                            parts.insert(
                                0,
                                Part::Text {
                                    text: FAILED.to_owned(),
                                },
                            );
                        }
                        TextOr::Parts(parts)
                    }
                };
                messages.push(Message::Tool {
                    content,
                    tool_call_id: tool_use_id.clone(),
                });
            }
        }
    }
    if !said.is_empty() || blocks.is_empty() {
        messages.push(Message::User {
            content: TextOr::Parts(said),
            name: None,
        });
    }
    Ok(())
}

fn assistant_blocks(blocks: &[Block]) -> Result<Message, Untranslatable> {
    let mut said = Vec::new();
    let mut calls = Vec::new();
    for block in blocks {
        match block {
            Block::Text { .. } if !calls.is_empty() => {
                return refuse("the OpenAI wire has no text after a tool call in one message");
            }
            Block::Text { text, .. } => said.push(Part::Text { text: text.clone() }),
            Block::ToolUse { id, name, input } => calls.push(o::ToolCall::Function {
                id: id.clone(),
                function: o::Called {
                    name: name.clone(),
                    arguments: Value::Object(input.clone()).to_string(),
                },
            }),
            Block::ToolResult { .. } => {
                return refuse("an assistant's message has a `tool_result` block");
            }
        }
    }
    let content = (!said.is_empty() || calls.is_empty()).then_some(TextOr::Parts(said));
    Ok(assistant(content, (!calls.is_empty()).then_some(calls)))
}

fn tool_to_openai(tool: &a::Tool) -> o::Tool {
    let function = o::Function {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: Some(tool.input_schema.clone()),
        strict: None,
    };
    o::Tool::Function { function }
}

fn choice_to_openai(
    choice: Option<&ToolChoice>,
) -> (Option<WordOr<ToolWord, NamedTool>>, Option<bool>) {
    match choice {
        None => (None, None),
        Some(ToolChoice::Auto {
            disable_parallel_tool_use: one,
        }) => (Some(WordOr::Word(ToolWord::Auto)), *one),
        Some(ToolChoice::Any {
            disable_parallel_tool_use: one,
        }) => (Some(WordOr::Word(ToolWord::Required)), *one),
        Some(ToolChoice::Tool {
            name,
            disable_parallel_tool_use: one,
        }) => {
            let function = o::FunctionName { name: name.clone() };
            (Some(WordOr::More(NamedTool::Function { function })), *one)
        }
        Some(ToolChoice::None {}) => (Some(WordOr::Word(ToolWord::None)), None),
    }
}

//! What a guest asks, on either wire: read strictly, and written for a provider.

use bulkhead_models::{LimitField, Model, Provider, Wire};
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::Number;

use crate::translate::{Untranslatable, refuse, request};
use crate::wire::{anthropic, openai};

/// Tokens that a provider may add to a request of its own: what frames messages, and the prompt
/// that explains tools.
const OVERHEAD_TOKENS: u64 = 1024;

/// A request of a guest.
#[derive(Clone, Debug)]
pub struct Chat(Request);

#[derive(Clone, Debug)]
enum Request {
    Openai(openai::Request),
    Anthropic(anthropic::Request),
}

/// Why a body is no request that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// It is not of the wire, or has a field that is not served.
    #[error("the request is not served: {0}")]
    Malformed(String),
    /// It cannot be said on the provider's wire.
    #[error("{0}")]
    Untranslatable(String),
}

impl From<Untranslatable> for ChatError {
    fn from(error: Untranslatable) -> Self {
        Self::Untranslatable(error.0)
    }
}

/// What a provider is sent, and the most tokens that it can make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The body.
    pub body: Bytes,
    /// Most tokens of input. No tokenizer makes more tokens of a text than it has bytes, and the
    /// body has all texts.
    pub input: u64,
    /// Most tokens of output, which the body says too.
    pub output: u64,
}

impl Chat {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub fn parse(wire: Wire, body: &[u8]) -> Result<Self, ChatError> {
        // It may quote what the guest wrote.
        let malformed =
            |error: serde_json::Error| ChatError::Malformed(one_line(&error.to_string()));
        let wrong = |why: &str| Err(ChatError::Malformed(why.to_owned()));
        match wire {
            Wire::Openai => {
                let request: openai::Request = serde_json::from_slice(body).map_err(malformed)?;
                if request.n.is_some_and(|n| n != 1) {
                    return wrong("`n` is other than 1");
                }
                if request.max_tokens.is_some() && request.max_completion_tokens.is_some() {
                    return wrong("`max_tokens` and `max_completion_tokens` exclude each other");
                }
                Ok(Self(Request::Openai(request)))
            }
            Wire::Anthropic => {
                let request = serde_json::from_slice(body).map_err(malformed)?;
                Ok(Self(Request::Anthropic(request)))
            }
        }
    }

    /// The wire it is of.
    pub fn wire(&self) -> Wire {
        match &self.0 {
            Request::Openai(_) => Wire::Openai,
            Request::Anthropic(_) => Wire::Anthropic,
        }
    }

    /// The model that is asked for.
    pub fn model(&self) -> &str {
        match &self.0 {
            Request::Openai(request) => &request.model,
            Request::Anthropic(request) => &request.model,
        }
    }

    /// Whether the answer is to be streamed.
    pub(crate) fn streams(&self) -> bool {
        let stream = match &self.0 {
            Request::Openai(request) => request.stream,
            Request::Anthropic(request) => request.stream,
        };
        stream == Some(true)
    }

    /// Whether the guest wants a chunk with the usage at the end of its stream.
    pub(crate) fn wants_usage(&self) -> bool {
        match &self.0 {
            Request::Openai(request) => request
                .stream_options
                .as_ref()
                .is_some_and(|options| options.include_usage),
            Request::Anthropic(_) => true,
        }
    }

    fn max_tokens(&self) -> Option<u32> {
        match &self.0 {
            Request::Openai(request) => request.max_completion_tokens.or(request.max_tokens),
            Request::Anthropic(request) => request.max_tokens,
        }
    }

    /// What the answer may be kept by, if the same question has the same answer: the request at
    /// temperature 0, not streamed.
    pub(crate) fn question(&self) -> Option<Bytes> {
        let temperature = match &self.0 {
            Request::Openai(request) => &request.temperature,
            Request::Anthropic(request) => &request.temperature,
        };
        let zero = temperature.as_ref().and_then(Number::as_f64) == Some(0.0);
        if !zero || self.streams() {
            return None;
        }
        let (mark, mut question) = match &self.0 {
            Request::Openai(request) => (b'o', json(request).ok()?),
            Request::Anthropic(request) => (b'a', json(request).ok()?),
        };
        question.push(mark);
        Some(Bytes::from(question))
    }

    /// What `provider` is sent, to have `model` answer.
    ///
    /// # Errors
    /// It cannot be said on the provider's wire, or asks for more tokens than the model gives.
    pub fn ask(&self, provider: &Provider, model: &Model) -> Result<Asked, ChatError> {
        let output = self.max_tokens().unwrap_or(model.max_tokens);
        if output > model.max_tokens {
            let most = model.max_tokens;
            let name = &model.name;
            return Ok(refuse(format!(
                "`{name}` gives at most {most} tokens, not {output}"
            ))?);
        }
        let body = match (provider.wire, &self.0) {
            (Wire::Openai, Request::Openai(request)) => json(&openai_body(
                request.clone(),
                provider.limit_field,
                model,
                output,
            )),
            (Wire::Openai, Request::Anthropic(request)) => {
                let request = request::to_openai(request)?;
                json(&openai_body(request, provider.limit_field, model, output))
            }
            (Wire::Anthropic, Request::Anthropic(request)) => {
                json(&anthropic_body(request.clone(), model, output))
            }
            (Wire::Anthropic, Request::Openai(request)) => json(&anthropic_body(
                request::to_anthropic(request)?,
                model,
                output,
            )),
        };
        let body = body.map_err(|error| ChatError::Malformed(error.to_string()))?;
        let input = u64::try_from(body.len())
            .unwrap_or(u64::MAX)
            .saturating_add(OVERHEAD_TOKENS);
        Ok(Asked {
            body: Bytes::from(body),
            input,
            output: output.into(),
        })
    }
}

/// `text` with its control characters escaped: a guest is not to write lines of a log.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(value)
}

/// The request with the provider's name of the model, a bound on the answer, and the usage asked
/// for, without which nothing could be settled.
fn openai_body(
    mut request: openai::Request,
    field: LimitField,
    model: &Model,
    output: u32,
) -> openai::Request {
    request.model.clone_from(&model.upstream);
    (request.max_tokens, request.max_completion_tokens) = match field {
        LimitField::MaxTokens => (Some(output), None),
        LimitField::MaxCompletionTokens => (None, Some(output)),
    };
    let streams = request.stream == Some(true);
    request.stream_options = streams.then_some(openai::StreamOptions {
        include_usage: true,
    });
    request
}

fn anthropic_body(
    mut request: anthropic::Request,
    model: &Model,
    output: u32,
) -> anthropic::Request {
    request.model.clone_from(&model.upstream);
    request.max_tokens = Some(output);
    request
}

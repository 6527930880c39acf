//! A refusal, in the form that the guest's wire has for errors.

use std::convert::Infallible;
use std::time::Duration;

use bulkhead_models::Wire;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::sse::Event;

/// Body of a response.
pub type Body = BoxBody<Bytes, Infallible>;

/// Why a guest gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// One sentence.
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The name that a wire has for the kind of error.
    fn kind(&self, wire: Wire) -> &'static str {
        match (self.status.as_u16(), wire) {
            (402, Wire::Openai) => "insufficient_quota",
            (402, Wire::Anthropic) => "billing_error",
            (401, _) => "authentication_error",
            (403, _) => "permission_error",
            (404, Wire::Anthropic) => "not_found_error",
            (413, Wire::Anthropic) => "request_too_large",
            (429, _) => "rate_limit_error",
            (504, Wire::Anthropic) => "timeout_error",
            (400..=499, _) => "invalid_request_error",
            (_, _) => "api_error",
        }
    }

    fn body(&self, wire: Wire) -> Value {
        let kind = self.kind(wire);
        match wire {
            Wire::Openai => json!({
                "error": { "message": self.message, "type": kind, "param": null, "code": kind },
            }),
            Wire::Anthropic => json!({
                "type": "error",
                "error": { "type": kind, "message": self.message },
            }),
        }
    }

    /// The refusal as a response.
    pub(crate) fn response(&self, wire: Wire) -> Response<Body> {
        let mut response = respond(self.status, Bytes::from(self.body(wire).to_string()));
        if let Some(pause) = self.retry_after {
            let seconds = pause.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(RETRY_AFTER, value);
            }
        }
        response
    }

    /// The refusal as the last event of a stream.
    pub(crate) fn event(&self, wire: Wire) -> Event {
        let data = self.body(wire).to_string();
        match wire {
            Wire::Openai => Event::data(data),
            Wire::Anthropic => Event::named("error", data),
        }
    }
}

/// A response of JSON.
pub(crate) fn respond(status: StatusCode, json: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(json).boxed());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

//! One call to one provider: what it may cost is reserved and recorded, then the provider is asked,
//! then it is settled and recorded what became of it. In this order, whatever happens between.

use std::sync::Arc;

use bulkhead_models::{Key, Model, Provider, Wire};
use bulkhead_record::Verdict;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use crate::budget::{Cost, Exhausted, Reservation};
use crate::chat::Asked;
use crate::recording::detail;
use crate::refusal::{Body, Refusal, respond};
use crate::relay::{Relay, said};
use crate::router::{Call, Inner, not_recorded};
use crate::sse::Event;
use crate::standing::{self, Turn};
use crate::translate::answer;
use crate::upstream::{self, Failure};
use crate::wire::{Usage, anthropic, openai};

/// Longest answer that is not streamed, and longest error.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// Longest stream.
const MAX_STREAM_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of text for which a provider counts at least one token. A token can have more, and a text
/// of nothing else is no answer: who tells of fewer tokens than this is not believed.
const MAX_BYTES_PER_TOKEN: u64 = 16;
/// Pieces of a stream that wait for a slow guest.
const WAITING_PIECES: usize = 16;

/// Whom to ask, and what.
pub(crate) struct Attempt<'m> {
    pub(crate) number: usize,
    pub(crate) provider: &'m Provider,
    pub(crate) model: &'m Model,
    pub(crate) asked: &'m Asked,
    pub(crate) turn: Turn,
}

/// What became of an attempt; where another one may follow, the call is given back.
pub(crate) enum Tried {
    Answered(Response<Body>),
    /// Nobody else would answer it better.
    Refused(Refusal),
    Unaffordable(Exhausted, Call),
    OtherKey(Call),
    OtherProvider {
        timed_out: bool,
        call: Call,
    },
}

/// A call that has its reservation and its intent in the ledger, and has to be settled.
struct Open {
    inner: Arc<Inner>,
    reservation: Reservation,
    intent: u64,
    number: usize,
    turn: Turn,
    model: Model,
    name: String,
    trust_usage: bool,
    input_bytes: u64,
}

/// What a call cost.
enum Bill {
    /// Nothing: it was not made, or an error was all that came.
    Nothing,
    /// Nobody knows.
    Unknown,
    /// What the provider says, for so many bytes of text.
    Told(Option<Usage>, u64),
}

impl Inner {
    /// Makes one attempt.
    pub(crate) async fn attempt(self: &Arc<Self>, attempt: Attempt<'_>, call: Call) -> Tried {
        let Attempt {
            number,
            provider,
            model,
            asked,
            turn,
        } = attempt;
        let key = provider.keys.get(turn.key);
        let worst = Cost {
            tokens: asked.input.saturating_add(asked.output),
            money: model.cost(asked.input, asked.output),
        };
        let reservation = match self.account.reserve(worst) {
            Ok(reservation) => reservation,
            Err(exhausted) => {
                self.standing(number, |one| one.correct(&turn, 0));
                return Tried::Unaffordable(exhausted, call);
            }
        };
        let mut detail = detail([
            ("provider", provider.name.clone()),
            ("upstream", model.upstream.clone()),
            ("key", key.map_or_else(String::new, |key| key.name.clone())),
            ("reserved_tokens", worst.tokens.to_string()),
            ("reserved_money", worst.money.to_string()),
        ]);
        detail.extend(call.notes.clone());
        let intent = match self.recording.intent(&model.name, detail).await {
            Ok(intent) => intent,
            Err(error) => {
                reservation.settle(Cost::default());
                self.standing(number, |one| one.correct(&turn, 0));
                return Tried::Refused(not_recorded(&error));
            }
        };
        let open = Open {
            inner: Arc::clone(self),
            reservation,
            intent,
            number,
            turn,
            model: model.clone(),
            name: provider.name.clone(),
            trust_usage: provider.trust_usage,
            input_bytes: u64::try_from(asked.body.len()).unwrap_or(u64::MAX),
        };
        let outside = &self.outside;
        let value = key.map(|key| &key.value);
        let body = asked.body.clone();
        match upstream::send(&*outside.connector, &outside.tls, provider, value, body).await {
            Ok(response) => open.answered(provider, key, response, call).await,
            Err(Failure::NotSent(why)) => open.failed(Bill::Nothing, &why, false, call).await,
            Err(Failure::Lost(why)) => open.failed(Bill::Unknown, &why, false, call).await,
            Err(Failure::TimedOut) => {
                open.failed(Bill::Unknown, "no answer in time", true, call)
                    .await
            }
        }
    }
}

impl Open {
    /// The head of a response has come.
    async fn answered(
        self,
        provider: &Provider,
        key: Option<&Key>,
        response: Response<Incoming>,
        call: Call,
    ) -> Tried {
        let clock = &self.inner.outside.clock;
        let (now, unix) = (clock.monotonic(), clock.unix());
        let pause = standing::pause(response.headers(), unix);
        let status = response.status();
        self.inner
            .standing(self.number, |one| match (status, pause) {
                (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                    one.unknown_key(&self.turn, now);
                }
                (StatusCode::TOO_MANY_REQUESTS, pause) => one.too_much(&self.turn, now, pause),
                (_, Some(pause)) => one.exhausted(&self.turn, now, pause),
                (_, None) => {}
            });
        let said = || format!("the provider answered {}", status.as_u16());
        match status {
            _ if status.is_success() && call.chat.streams() => {
                self.stream(provider, response.into_body(), call).await
            }
            _ if status.is_success() => self.whole(provider, response.into_body(), call).await,
            // What is wrong with a key is nothing that a guest could mend, or should see.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let why = said();
                match self.close(Bill::Nothing, Verdict::Failed, &why).await {
                    Ok(()) => Tried::OtherKey(call),
                    Err(refusal) => Tried::Refused(refusal),
                }
            }
            // Said by something between, which does not know what the provider made of it.
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                self.failed(Bill::Unknown, &said(), false, call).await
            }
            _ if status.is_server_error() => self.failed(Bill::Nothing, &said(), false, call).await,
            _ => {
                let message = error_message(response.into_body(), provider, key).await;
                let message = message.unwrap_or_else(said);
                let status = if status.is_client_error() {
                    status
                } else {
                    StatusCode::BAD_GATEWAY
                };
                let refusal = Refusal::new(status, message);
                let closed = self
                    .close(Bill::Nothing, Verdict::Failed, &refusal.message)
                    .await;
                Tried::Refused(closed.err().unwrap_or(refusal))
            }
        }
    }

    /// Reads an answer that comes whole.
    async fn whole(self, provider: &Provider, body: Incoming, call: Call) -> Tried {
        let read = Limited::new(body, MAX_ANSWER_BYTES).collect();
        let bytes = match timeout(provider.timeout, read).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                return self
                    .failed(Bill::Unknown, &error.to_string(), false, call)
                    .await;
            }
            Err(_) => {
                return self
                    .failed(Bill::Unknown, "no answer in time", true, call)
                    .await;
            }
        };
        let created = self.inner.outside.clock.unix().as_secs();
        let Some((bill, answer)) = read_answer(provider.wire, call.chat.wire(), &bytes, created)
        else {
            return self
                .failed(Bill::Unknown, "the answer is malformed", false, call)
                .await;
        };
        self.inner.standing(self.number, |one| one.succeeded());
        let inner = Arc::clone(&self.inner);
        let keeps = self.model.cache;
        match answer {
            Ok(answer) => {
                if let Err(refusal) = self.close(bill, Verdict::Done, "answered").await {
                    return Tried::Refused(refusal);
                }
                if let Some(question) = call.question.filter(|_| keeps) {
                    inner.keep(question, answer.clone());
                }
                Tried::Answered(respond(StatusCode::OK, answer))
            }
            // Asked again it would cost again.
            Err(why) => {
                let refusal = Refusal::new(StatusCode::BAD_GATEWAY, why);
                let closed = self.close(bill, Verdict::Failed, &refusal.message).await;
                Tried::Refused(closed.err().unwrap_or(refusal))
            }
        }
    }

    /// Reads a stream up to its first event; from there on it has begun, and nobody else is asked.
    async fn stream(self, provider: &Provider, mut body: Incoming, call: Call) -> Tried {
        let created = self.inner.outside.clock.unix().as_secs();
        let to = call.chat.wire();
        let mut relay = Relay::new(provider.wire, to, call.chat.wants_usage(), created);
        let mut bytes = 0;
        let first = loop {
            match next(provider, &mut body, &mut relay, &mut bytes).await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => break events,
                Err(Broken { why, timed_out }) => {
                    return self.failed(Bill::Unknown, &why, timed_out, call).await;
                }
            }
        };
        let (mut sender, channel) = Channel::new(WAITING_PIECES);
        let provider = provider.clone();
        tokio::spawn(async move {
            self.relay(&provider, body, relay, bytes, first, &mut sender, to)
                .await;
            drop(call);
        });
        let mut response = Response::new(channel.boxed());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Tried::Answered(response)
    }

    /// Passes a stream on to its end, or to the end of guest or provider.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two ends of a stream, and where it stands"
    )]
    async fn relay(
        self,
        provider: &Provider,
        mut body: Incoming,
        mut relay: Relay,
        mut bytes: usize,
        mut events: Vec<Event>,
        sender: &mut Sender<Bytes>,
        to: Wire,
    ) {
        let mut deliver = async |events: &[Event]| {
            let text: String = events.iter().map(Event::encode).collect();
            let sent = timeout(provider.timeout, sender.send_data(Bytes::from(text))).await;
            matches!(sent, Ok(Ok(())))
        };
        let failure = |why: &str| Refusal::new(StatusCode::BAD_GATEWAY, why).event(to);
        while !relay.is_complete() {
            if !events.is_empty() && !deliver(&events).await {
                let why = "the guest went away before the end of the stream";
                // The recorder says so itself; there is nobody left to tell.
                let _ = self.close(Bill::Unknown, Verdict::Failed, why).await;
                return;
            }
            match next(provider, &mut body, &mut relay, &mut bytes).await {
                Ok(more) => events = more,
                Err(Broken { why, .. }) => {
                    let inner = Arc::clone(&self.inner);
                    let (number, now) = (self.number, inner.now());
                    inner.standing(number, |one| one.failed(now));
                    let closed = self.close(Bill::Unknown, Verdict::Failed, &why).await;
                    let why = closed.err().map_or(why, |refusal| refusal.message);
                    deliver(&[failure(&why)]).await;
                    return;
                }
            }
        }
        self.inner.standing(self.number, |one| one.succeeded());
        // Before the guest has the end, so that its next call finds this one settled.
        let bill = Bill::Told(relay.usage(), relay.text_bytes());
        match self.close(bill, Verdict::Done, "answered").await {
            Ok(()) => deliver(&events).await,
            Err(refusal) => deliver(&[failure(&refusal.message)]).await,
        };
    }

    /// The provider did not answer; another one may.
    async fn failed(self, bill: Bill, why: &str, timed_out: bool, call: Call) -> Tried {
        let now = self.inner.now();
        self.inner.standing(self.number, |one| one.failed(now));
        match self.close(bill, Verdict::Failed, why).await {
            Ok(()) => Tried::OtherProvider { timed_out, call },
            Err(refusal) => Tried::Refused(refusal),
        }
    }

    /// Settles the call and records its outcome.
    async fn close(self, bill: Bill, verdict: Verdict, reason: &str) -> Result<(), Refusal> {
        let Self {
            inner,
            reservation,
            intent,
            number,
            turn,
            model,
            name,
            ..
        } = self;
        let worst = reservation.worst();
        let (cost, note) = match bill {
            Bill::Nothing => (Some(Cost::default()), "nothing was used"),
            Bill::Unknown => (None, "unknown; all that was reserved is spent"),
            Bill::Told(None, _) => (None, "not told; all that was reserved is spent"),
            Bill::Told(Some(_), _) if !self.trust_usage => (
                None,
                "told, but not trusted; all that was reserved is spent",
            ),
            Bill::Told(Some(Usage { input, output }), text) => {
                let cost = Cost {
                    tokens: input.saturating_add(output),
                    money: model.cost(input, output),
                };
                let least = |bytes: u64| bytes.div_ceil(MAX_BYTES_PER_TOKEN);
                match () {
                    () if input < least(self.input_bytes) || output < least(text) => (
                        None,
                        "told, but too low to be true; all that was reserved is spent",
                    ),
                    () if cost.tokens > worst.tokens || cost.money > worst.money => {
                        (Some(cost), "told; more than was possible")
                    }
                    () => (Some(cost), "told"),
                }
            }
        };
        let charged = cost.unwrap_or(worst);
        match cost {
            Some(cost) => reservation.settle(cost),
            None => drop(reservation),
        }
        inner.standing(number, |one| one.correct(&turn, charged.tokens));
        if verdict == Verdict::Failed {
            inner.log(&format!("model.chat {:?} at {name}: {reason}", model.name));
        }
        let detail = detail([
            ("provider", name),
            ("usage", note.to_owned()),
            ("tokens", charged.tokens.to_string()),
            ("money", charged.money.to_string()),
        ]);
        let recording = &inner.recording;
        let outcome = recording
            .outcome(&model.name, Some(intent), verdict, reason, detail)
            .await;
        if inner.account.take_alert() {
            inner.alert(intent).await;
        }
        outcome.map(drop).map_err(|error| {
            inner.log(&format!("an outcome is not recorded: {error}"));
            let message = format!("the answer is withheld, since it cannot be recorded: {error}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
        })
    }
}

impl Inner {
    /// Tells that most of the budget is spent.
    async fn alert(&self, intent: u64) {
        let spent = self.spent();
        let reason = format!(
            "{} percent of the budget for models is spent",
            crate::ALERT_PERCENT
        );
        self.log(&reason);
        let detail = detail([
            ("tokens", spent.tokens.to_string()),
            ("money", spent.money.to_string()),
        ]);
        if let Err(error) = self.recording.alert(intent, &reason, detail).await {
            self.log(&format!("the alert is not recorded: {error}"));
        }
    }

    fn spent(&self) -> bulkhead_models::Spent {
        self.account.spent()
    }
}

/// Why a stream goes no further.
struct Broken {
    why: String,
    timed_out: bool,
}

/// The events of the next piece of a stream.
async fn next(
    provider: &Provider,
    body: &mut Incoming,
    relay: &mut Relay,
    bytes: &mut usize,
) -> Result<Vec<Event>, Broken> {
    let broken = |why: String| Broken {
        why,
        timed_out: false,
    };
    match timeout(provider.timeout, body.frame()).await {
        Err(_) => {
            let why = "the provider's stream stalled".to_owned();
            Err(Broken {
                why,
                timed_out: true,
            })
        }
        Ok(None) => relay.close().map_err(broken),
        Ok(Some(Err(_))) => Err(broken("the provider's stream ended early".to_owned())),
        Ok(Some(Ok(frame))) => {
            let Ok(data) = frame.into_data() else {
                return Ok(Vec::new());
            };
            *bytes = bytes.saturating_add(data.len());
            if *bytes > MAX_STREAM_BYTES {
                let why = format!("the provider's stream is longer than {MAX_STREAM_BYTES} bytes");
                return Err(broken(why));
            }
            relay.push(&data).map_err(broken)
        }
    }
}

/// What a whole answer cost, and how the guest gets it; nothing if it is no answer at all.
fn read_answer(
    from: Wire,
    to: Wire,
    bytes: &Bytes,
    created: u64,
) -> Option<(Bill, Result<Bytes, String>)> {
    let (bill, translated) = match from {
        Wire::Openai => {
            let answer: openai::Answer = serde_json::from_slice(bytes).ok()?;
            let said = answer
                .choices
                .iter()
                .map(|choice| choice.message.text_bytes())
                .sum();
            let bill = Bill::Told(openai::usage(answer.usage.as_ref()), said);
            (bill, (to != from).then(|| answer::to_anthropic(&answer)))
        }
        Wire::Anthropic => {
            let answer: anthropic::Answer = serde_json::from_slice(bytes).ok()?;
            let usage = anthropic::usage(answer.usage.as_ref(), None);
            let bill = Bill::Told(usage, answer.text_bytes());
            (
                bill,
                (to != from).then(|| answer::to_openai(&answer, created)),
            )
        }
    };
    let answer = match translated {
        None => Ok(bytes.clone()),
        Some(Ok(answer)) => Ok(Bytes::from(answer.to_string())),
        Some(Err(error)) => Err(error.0),
    };
    Some((bill, answer))
}

/// What a provider says is wrong, without its key should it repeat it.
async fn error_message(body: Incoming, provider: &Provider, key: Option<&Key>) -> Option<String> {
    let read = Limited::new(body, MAX_ANSWER_BYTES).collect();
    let bytes = timeout(provider.timeout, read).await.ok()?.ok()?.to_bytes();
    let error: Value = serde_json::from_slice(&bytes).ok()?;
    let message = said(error.get("error")?);
    match key.filter(|key| message.contains(key.value.expose())) {
        Some(_) => None,
        None => Some(message),
    }
}

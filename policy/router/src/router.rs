//! The front of the router: what a guest may ask, read and checked, and to whom it goes.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_conditions::Asker;
use bulkhead_models::{Model, Models, Order, Provider, Spent, Takes, Wire};
use bulkhead_record::{Recorder, Verdict};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use rustls::ClientConfig;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::budget::{Account, Carry, Exhausted};
use crate::cache::Cache;
use crate::call::{Attempt, Tried};
use crate::chat::{Asked, Chat, one_line};
use crate::clock::Clock;
use crate::recording::{Detail, Recording};
use crate::refusal::{Body, Refusal, respond};
use crate::standing::Standing;
use crate::upstream::Connect;
use crate::window::Window;

/// Longest body of a request.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Longest time for the body of a request.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Calls at a time; further ones wait.
const MAX_CALLS: usize = 16;
/// Most providers and keys that are tried for one call.
const MAX_ATTEMPTS: usize = 8;

/// A person's answer that is waited for: how they consented, or why nobody did.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>;

/// What asks a person for consent. It sees to it that nobody waits for ever.
pub trait Ask: Send + Sync {
    /// Asks whether `models` may be called.
    fn ask<'a>(&'a self, models: &'a str, why: &'a str) -> Asking<'a>;
}

/// What the router does to the world, and knows of it.
pub struct Outside {
    /// Opens connections to providers.
    pub connector: Arc<dyn Connect>,
    /// Whom to trust as a provider.
    pub tls: Arc<ClientConfig>,
    /// Where calls are recorded.
    pub recorder: Arc<dyn Recorder>,
    /// What answers for the partition's conditions, if there are any.
    pub conditions: Option<Arc<Asker>>,
    /// Who asks a person, where a model takes consent.
    pub consent: Arc<dyn Ask>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who keeps what is spent for the router that comes after this one.
    pub carry: Option<Carry>,
    /// Where lines for people go: of refusals and failures.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The router of one partition.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) models: Models,
    pub(crate) account: Arc<Account>,
    pub(crate) recording: Recording,
    pub(crate) outside: Outside,
    standings: Mutex<Vec<Standing>>,
    rate: Mutex<Rate>,
    cache: Mutex<Cache>,
    calls: Arc<Semaphore>,
    /// When it began, as its clock says.
    began: Duration,
}

struct Rate {
    window: Window,
    /// The refusal of those that were too many is recorded already.
    told: bool,
}

/// A call, read and allowed to begin.
pub(crate) struct Call {
    pub(crate) chat: Chat,
    /// What its answer may be kept by.
    pub(crate) question: Option<Bytes>,
    /// What conditions and persons say of it, for records.
    pub(crate) notes: Detail,
    /// Held while it lasts.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// A request that is allowed, and may begin.
struct Allowed {
    /// What conditions and persons say of it, for records.
    notes: Detail,
    /// What was asked for: models that take more are not called.
    has: Takes,
    /// Its place among those that go on at the same time.
    permit: OwnedSemaphorePermit,
}

/// Where a call may go: a provider and one of its models.
struct Candidate<'m> {
    number: usize,
    provider: &'m Provider,
    model: &'m Model,
    asked: Asked,
}

/// Locks what no holder leaves half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    /// A router that works with `models`.
    ///
    /// # Errors
    /// The host gives no threads for the records.
    pub fn new(models: Models, outside: Outside) -> io::Result<Self> {
        let standings = models.providers.iter().map(Standing::new).collect();
        let window = Window::new(models.requests_per_minute.into());
        Ok(Self(Arc::new(Inner {
            account: Account::new(models.budget, models.spent, outside.carry.clone()),
            recording: Recording::start(
                &outside.recorder,
                outside.conditions.as_ref(),
                models.actor.clone(),
            )?,
            standings: Mutex::new(standings),
            rate: Mutex::new(Rate {
                window,
                told: false,
            }),
            cache: Mutex::new(Cache::default()),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            began: outside.clock.monotonic(),
            models,
            outside,
        })))
    }

    /// What was spent, calls that have not ended counted as dear as they can become.
    pub fn spent(&self) -> Spent {
        self.0.account.spent()
    }

    /// Answers one request of the guest. It has to run on a tokio runtime with time and sockets.
    /// A guest that goes away stops a stream, and nothing else: what was begun is settled.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let anthropic = head.headers.contains_key("anthropic-version");
        let wire = match (&head.method, head.uri.path()) {
            (&Method::POST, "/v1/chat/completions") => Wire::Openai,
            (&Method::POST, "/v1/messages") => Wire::Anthropic,
            (&Method::GET, "/v1/models") if anthropic => return self.list(Wire::Anthropic),
            (&Method::GET, "/v1/models") => return self.list(Wire::Openai),
            _ => {
                let wire = if anthropic {
                    Wire::Anthropic
                } else {
                    Wire::Openai
                };
                let what = "there is nothing here but POST /v1/chat/completions, POST /v1/messages \
                            and GET /v1/models";
                return Refusal::new(StatusCode::NOT_FOUND, what).response(wire);
            }
        };
        if let Err(refusal) = self.0.admit().await {
            return refusal.response(wire);
        }
        // What it would turn on is not known here, and so not what it would cost.
        let refused = match (
            head.headers.contains_key("anthropic-beta"),
            head.uri.query(),
        ) {
            (true, _) => Err("the header `anthropic-beta` is not served".to_owned()),
            (false, Some(_)) => Err("a query after the path is not served".to_owned()),
            (false, None) => read(body).await,
        };
        let chat = match refused {
            Ok(body) => Chat::parse(wire, &body).map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        let chat = match chat {
            Ok(chat) => chat,
            Err(why) => {
                let refusal = Refusal::new(StatusCode::BAD_REQUEST, why);
                return self.0.refuse("unknown", refusal).await.response(wire);
            }
        };
        // A guest that goes away now calls nobody.
        let allowed = match self.0.allow(&chat).await {
            Ok(allowed) => allowed,
            Err(refusal) => return refusal.response(wire),
        };
        let inner = Arc::clone(&self.0);
        // In a task of its own, which a guest that goes away does not end.
        let answer = tokio::spawn(async move { inner.chat(chat, allowed).await }).await;
        let answer = answer.unwrap_or_else(|_| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Err(Refusal::new(status, "the call could not be finished"))
        });
        answer.unwrap_or_else(|refusal| refusal.response(wire))
    }

    /// The models there are for this partition.
    fn list(&self, wire: Wire) -> Response<Body> {
        let age = self.0.age();
        let models = self.0.models.providers.iter().flat_map(|p| &p.models);
        let models = models.filter(|model| model.takes(age).is_some());
        let names = models.flat_map(|model| [&model.name].into_iter().chain(&model.aliases));
        let names: std::collections::BTreeSet<&String> = names.collect();
        let list = match wire {
            Wire::Openai => {
                let data = names.iter().map(|name| {
                    json!({ "id": name, "object": "model", "created": 0, "owned_by": "bulkhead" })
                });
                json!({ "object": "list", "data": data.collect::<Vec<_>>() })
            }
            Wire::Anthropic => {
                let data = names.iter().map(|name| {
                    let made = "1970-01-01T00:00:00Z";
                    json!({ "type": "model", "id": name, "display_name": name, "created_at": made })
                });
                let (first, last) = (names.first(), names.last());
                let data = data.collect::<Vec<_>>();
                json!({ "data": data, "has_more": false, "first_id": first, "last_id": last })
            }
        };
        respond(StatusCode::OK, Bytes::from(list.to_string()))
    }
}

/// The body of a request.
async fn read<B>(body: B) -> Result<Bytes, String>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    match timeout(BODY_TIME, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(format!(
            "the request is longer than {MAX_REQUEST_BYTES} bytes"
        )),
        Ok(Err(_)) => Err("the request ended early".to_owned()),
        Err(_) => Err("the request took too long to come".to_owned()),
    }
}

impl Inner {
    /// Counts a request against the partition's rate.
    async fn admit(&self) -> Result<(), Refusal> {
        let (wait, first) = {
            let mut rate = lock(&self.rate);
            let now = self.now();
            match rate.window.ready(now, 1) {
                Ok(()) => {
                    rate.window.take(now, 1);
                    rate.told = false;
                    return Ok(());
                }
                Err(wait) => (wait, !std::mem::replace(&mut rate.told, true)),
            }
        };
        let limit = self.models.requests_per_minute;
        let message =
            format!("the partition may make {limit} requests a minute, and has made them");
        let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, message);
        refusal.retry_after = Some(wait);
        // The first of them alone, or a guest could fill the ledger with refusals.
        if first {
            Err(self.refuse("unknown", refusal).await)
        } else {
            Err(refusal)
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.outside.clock.monotonic()
    }

    /// Writes a line for people.
    pub(crate) fn log(&self, line: &str) {
        (self.outside.log)(&one_line(line));
    }

    /// Records a refusal. It is one whether that succeeds or not.
    async fn refuse(&self, model: &str, refusal: Refusal) -> Refusal {
        self.log(&format!(
            "model.chat {model:?} refused: {}",
            refusal.message
        ));
        if let Err(error) = self.recording.refusal(model, &refusal.message).await {
            self.log(&format!("the refusal is not recorded: {error}"));
        }
        refusal
    }

    /// Seconds since it began.
    fn age(&self) -> u64 {
        self.now().saturating_sub(self.began).as_secs()
    }

    /// Whether grants, conditions and, where it takes one, a person allow a request, and when there is
    /// a place for it. Nothing is set aside for it meanwhile, and while a person thinks it takes no place.
    async fn allow(&self, chat: &Chat) -> Result<Allowed, Refusal> {
        let model = chat.model();
        let served: Vec<(&Model, Takes)> = self.called(model).map(|one| (one.2, one.3)).collect();
        if served.is_empty() {
            return Err(self.refuse(model, not_granted(model)).await);
        }
        // By the names that grants and conditions have, whatever the guest calls them.
        let named = |least: Takes| {
            let served = served.iter().filter(|(_, takes)| *takes >= least);
            let mut names: Vec<String> = served.map(|(model, _)| model.name.clone()).collect();
            names.sort();
            names.dedup();
            names
        };
        let names = named(Takes::Nothing);
        let notes = self.permitted(model, names.clone()).await?;
        let taking = named(Takes::Consent);
        let consent = match taking.is_empty() {
            true => None,
            false => Some(self.consent(model, &taking.join(", ")).await?),
        };
        let calls = Arc::clone(&self.calls);
        if let (None, Ok(permit)) = (&consent, Arc::clone(&calls).try_acquire_owned()) {
            let has = Takes::Nothing;
            return Ok(Allowed { notes, has, permit });
        }
        let permit = calls.acquire_owned().await;
        let permit = permit
            .map_err(|_| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the router is closed"))?;
        // They may have changed while a person thought, or others were served.
        let mut notes = self.permitted(model, names).await?;
        let has = match consent {
            None => Takes::Nothing,
            Some(how) => {
                notes.insert("consent".to_owned(), how);
                Takes::Consent
            }
        };
        Ok(Allowed { notes, has, permit })
    }

    /// A person's consent to calls of `asked`, of which the guest named one `model`.
    async fn consent(&self, model: &str, asked: &str) -> Result<String, Refusal> {
        let why = "the grant of model.chat demands it";
        match self.outside.consent.ask(asked, why).await {
            Ok(how) => Ok(how),
            Err(none) => {
                let message = format!("it takes a person's consent, and there was none: {none}");
                let refusal = Refusal::new(StatusCode::FORBIDDEN, message);
                Err(self.refuse(model, refusal).await)
            }
        }
    }

    /// Whether conditions permit calls of all these models, of which the guest named one `model`.
    async fn permitted(&self, model: &str, names: Vec<String>) -> Result<Detail, Refusal> {
        match self.recording.ask(names).await {
            Ok(notes) => Ok(notes),
            Err(ruling) => {
                let refusal = Refusal::new(StatusCode::FORBIDDEN, ruling.to_string());
                Err(self.refuse(model, refusal).await)
            }
        }
    }

    /// Serves a request that is allowed: from the cache, or by the first provider that can.
    async fn chat(
        self: Arc<Self>,
        chat: Chat,
        allowed: Allowed,
    ) -> Result<Response<Body>, Refusal> {
        let model = chat.model().to_owned();
        // A grant may have ended while a person thought, or others were served.
        let served = self.called(&model).filter(|one| one.3 <= allowed.has);
        let served: Vec<_> = served.map(|one| (one.0, one.1, one.2)).collect();
        if served.is_empty() {
            return Err(self.refuse(&model, not_granted(&model)).await);
        }
        let may_cache = served.iter().any(|(_, _, model)| model.cache);
        let question = chat.question().filter(|_| may_cache);
        let call = Call {
            chat,
            question,
            notes: allowed.notes,
            _permit: allowed.permit,
        };
        if let Some(answer) = self.cached(&call).await? {
            return Ok(answer);
        }
        match self.route(call, served).await {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.refuse(&model, refusal).await),
        }
    }

    /// Providers that have a model called so, with what a call takes now.
    fn called<'m>(
        &'m self,
        name: &'m str,
    ) -> impl Iterator<Item = (usize, &'m Provider, &'m Model, Takes)> + 'm {
        let age = self.age();
        let providers = self.models.providers.iter().enumerate();
        providers.flat_map(move |(number, provider)| {
            let models = provider.models.iter().filter(|model| model.is_called(name));
            models.filter_map(move |model| Some((number, provider, model, model.takes(age)?)))
        })
    }

    async fn cached(&self, call: &Call) -> Result<Option<Response<Body>>, Refusal> {
        let Some(question) = &call.question else {
            return Ok(None);
        };
        let Some(answer) = lock(&self.cache).get(question) else {
            return Ok(None);
        };
        let (reason, detail) = ("answered from the cache", call.notes.clone());
        let model = call.chat.model();
        let recorded = self
            .recording
            .outcome(model, None, Verdict::Done, reason, detail)
            .await;
        recorded.map_err(|error| not_recorded(&error))?;
        Ok(Some(respond(StatusCode::OK, answer)))
    }

    /// Keeps an answer for who asks the same.
    pub(crate) fn keep(&self, question: Bytes, answer: Bytes) {
        lock(&self.cache).put(question, answer);
    }

    /// Changes what is known of how a provider stands.
    pub(crate) fn standing<T>(
        &self,
        number: usize,
        change: impl FnOnce(&mut Standing) -> T,
    ) -> Option<T> {
        lock(&self.standings).get_mut(number).map(change)
    }

    /// Tries providers and their keys in turn until one answers.
    async fn route(
        self: &Arc<Self>,
        mut call: Call,
        served: Vec<(usize, &Provider, &Model)>,
    ) -> Result<Response<Body>, Refusal> {
        let mut why = Why::default();
        let candidates = self.candidates(&call.chat, served, &mut why);
        let mut attempts = 0;
        for candidate in candidates {
            let tokens = candidate.asked.input.saturating_add(candidate.asked.output);
            while attempts < MAX_ATTEMPTS {
                let now = self.now();
                let turn = self.standing(candidate.number, |one| one.take(now, tokens));
                let turn = match turn {
                    Some(Ok(turn)) => turn,
                    Some(Err(wait)) => {
                        why.wait = Some(why.wait.map_or(wait, |other| other.min(wait)));
                        break;
                    }
                    None => break,
                };
                attempts += 1;
                let attempt = Attempt {
                    number: candidate.number,
                    provider: candidate.provider,
                    model: candidate.model,
                    asked: &candidate.asked,
                    turn,
                };
                match self.attempt(attempt, call).await {
                    Tried::Answered(answer) => return Ok(answer),
                    Tried::Refused(refusal) => return Err(refusal),
                    Tried::Unaffordable(exhausted, back) => {
                        why.exhausted = Some(exhausted);
                        call = back;
                        break;
                    }
                    Tried::OtherKey(back) => call = back,
                    Tried::OtherProvider {
                        timed_out,
                        call: back,
                    } => {
                        why.failed = true;
                        why.timed_out |= timed_out;
                        call = back;
                        break;
                    }
                }
            }
        }
        Err(why.refusal(call.chat.model()))
    }

    /// Who can serve the call, in the order in which they are asked.
    fn candidates<'m>(
        &self,
        chat: &Chat,
        served: Vec<(usize, &'m Provider, &'m Model)>,
        why: &mut Why,
    ) -> Vec<Candidate<'m>> {
        let mut candidates = Vec::new();
        for (number, provider, model) in served {
            match chat.ask(provider, model) {
                Ok(asked) => candidates.push(Candidate {
                    number,
                    provider,
                    model,
                    asked,
                }),
                Err(error) => why.unsayable = Some(error.to_string()),
            }
        }
        let now = self.now();
        candidates.sort_by_cached_key(|candidate| {
            let doubted = self.standing(candidate.number, |one| one.is_doubted(now));
            let cost = candidate
                .model
                .cost(candidate.asked.input, candidate.asked.output);
            let (cost, priority) = (cost.micro_cents(), u64::from(candidate.provider.priority));
            match self.models.order {
                Order::Priority => (doubted, priority, cost),
                Order::Cost => (doubted, cost, priority),
            }
        });
        candidates
    }
}

/// Whether there is such a model elsewhere is not told, and neither is whether there was a grant.
fn not_granted(model: &str) -> Refusal {
    let message = format!("the partition has no grant `model.chat` for `{model}`");
    Refusal::new(StatusCode::NOT_FOUND, message)
}

/// Nothing is done that cannot be recorded.
pub(crate) fn not_recorded(error: &bulkhead_record::RecordError) -> Refusal {
    let message = format!("the call is not made, since it cannot be recorded: {error}");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// Why no provider has answered so far.
#[derive(Debug, Default)]
struct Why {
    failed: bool,
    timed_out: bool,
    exhausted: Option<Exhausted>,
    wait: Option<Duration>,
    unsayable: Option<String>,
}

impl Why {
    fn refusal(self, model: &str) -> Refusal {
        if let Some(exhausted) = self.exhausted {
            return Refusal::new(StatusCode::PAYMENT_REQUIRED, exhausted.to_string());
        }
        if self.failed && self.timed_out {
            let message = format!("no provider of `{model}` answered in time");
            return Refusal::new(StatusCode::GATEWAY_TIMEOUT, message);
        }
        if self.failed {
            let message = format!("no provider of `{model}` answers at the moment");
            return Refusal::new(StatusCode::BAD_GATEWAY, message);
        }
        if let Some(wait) = self.wait {
            let message = format!("every provider of `{model}` has reached its limit");
            let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, message);
            refusal.retry_after = Some(wait);
            return refusal;
        }
        let message = self
            .unsayable
            .unwrap_or_else(|| format!("no provider takes `{model}`"));
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }
}

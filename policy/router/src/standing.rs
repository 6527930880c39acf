//! How each provider and key stands: who is exhausted and until when, who has failed lately, whose
//! turn it is.

use std::time::Duration;

use bulkhead_models::Provider;
use hyper::HeaderMap;

use crate::clock;
use crate::window::{Ticket, Window};

/// How long a key rests whose provider says that it is too much, and not for how long.
const REST: Duration = Duration::from_secs(5);
/// How long it rests at least then.
const SHORTEST_REST: Duration = Duration::from_secs(1);
/// How long a key rests that its provider does not know.
const UNKNOWN_KEY: Duration = Duration::from_secs(300);
/// Longest time for which a provider that failed is asked last.
const LONGEST_DOUBT: Duration = Duration::from_secs(60);

/// One provider.
#[derive(Debug)]
pub(crate) struct Standing {
    /// For each key until when it rests; one for a provider without keys.
    keys: Vec<Duration>,
    /// Key that is tried next.
    turn: usize,
    failures: u32,
    doubted_until: Duration,
    requests: Option<Window>,
    tokens: Option<Window>,
}

/// A provider is to be asked once.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Number of the key.
    pub(crate) key: usize,
    tokens: Option<Ticket>,
}

impl Standing {
    pub(crate) fn new(provider: &Provider) -> Self {
        Self {
            keys: vec![Duration::ZERO; provider.keys.len().max(1)],
            turn: 0,
            failures: 0,
            doubted_until: Duration::ZERO,
            requests: provider
                .requests_per_minute
                .map(|limit| Window::new(limit.into())),
            tokens: provider.tokens_per_minute.map(Window::new),
        }
    }

    /// Takes a turn of a call that may take `tokens`.
    ///
    /// # Errors
    /// All keys rest, or a limit is reached; the time to wait.
    pub(crate) fn take(&mut self, now: Duration, tokens: u64) -> Result<Turn, Duration> {
        let count = self.keys.len();
        let ready = |key: &usize| self.keys.get(*key).is_some_and(|until| *until <= now);
        let key = (0..count)
            .map(|step| (self.turn + step) % count)
            .find(ready);
        let Some(key) = key else {
            let soonest = self.keys.iter().min().copied().unwrap_or(now);
            return Err(soonest.saturating_sub(now));
        };
        let windows = [(&mut self.requests, 1), (&mut self.tokens, tokens)];
        for (window, amount) in windows {
            if let Some(window) = window {
                window.ready(now, amount)?;
            }
        }
        self.turn = (key + 1) % count;
        if let Some(requests) = &mut self.requests {
            requests.take(now, 1);
        }
        let tokens = self.tokens.as_mut().map(|window| window.take(now, tokens));
        Ok(Turn { key, tokens })
    }

    /// It is known how many tokens a turn took.
    pub(crate) fn correct(&mut self, turn: &Turn, tokens: u64) {
        if let (Some(window), Some(ticket)) = (&mut self.tokens, turn.tokens) {
            window.correct(ticket, tokens);
        }
    }

    /// Nothing remains to the key: it rests for as long as the provider says.
    pub(crate) fn exhausted(&mut self, turn: &Turn, now: Duration, pause: Duration) {
        self.rest(turn, now + pause);
    }

    /// It was too much for the provider: the key rests for as long as it says, or for a while.
    pub(crate) fn too_much(&mut self, turn: &Turn, now: Duration, pause: Option<Duration>) {
        self.rest(turn, now + pause.unwrap_or(REST).max(SHORTEST_REST));
    }

    /// The provider does not know the key.
    pub(crate) fn unknown_key(&mut self, turn: &Turn, now: Duration) {
        self.rest(turn, now + UNKNOWN_KEY);
    }

    fn rest(&mut self, turn: &Turn, until: Duration) {
        if let Some(key) = self.keys.get_mut(turn.key) {
            *key = (*key).max(until);
        }
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.doubted_until = Duration::ZERO;
    }

    /// It did not answer, or not well; the longer in a row, the longer others come first.
    pub(crate) fn failed(&mut self, now: Duration) {
        let doubt = Duration::from_secs(1 << self.failures.min(6)).min(LONGEST_DOUBT);
        self.failures = self.failures.saturating_add(1);
        self.doubted_until = now + doubt;
    }

    /// Whether others should be asked first.
    pub(crate) fn is_doubted(&self, now: Duration) -> bool {
        self.doubted_until > now
    }
}

/// How long the provider wants no more requests with this key, as its headers say: because it says
/// so, or because nothing remains until it counts anew.
pub(crate) fn pause(headers: &HeaderMap, unix: Duration) -> Option<Duration> {
    const COUNTS: [(&str, &str); 6] = [
        (
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        (
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ),
        (
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ),
        (
            "anthropic-ratelimit-input-tokens-remaining",
            "anthropic-ratelimit-input-tokens-reset",
        ),
        (
            "anthropic-ratelimit-output-tokens-remaining",
            "anthropic-ratelimit-output-tokens-reset",
        ),
    ];
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let said = text("retry-after").and_then(|said| clock::pause(said, unix));
    let counts = COUNTS
        .into_iter()
        .filter(|(remaining, _)| text(remaining) == Some("0"));
    let resets = counts.filter_map(|(_, reset)| clock::pause(text(reset)?, unix));
    resets.chain(said).max()
}

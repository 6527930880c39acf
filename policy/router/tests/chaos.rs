//! Ten thousand calls, to providers that fail, stall, hang up, cut streams, talk nonsense
//! and lie about usage. Whatever they do, what they really bill never exceeds the budget: not by a
//! cent, nor by a millionth of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_models::{Money, Order, Wire};
use bulkhead_record::Kind;
use fake::{
    End, Fake, Reply, Seen, World, anthropic_answer, anthropic_stream, key, models, openai_answer,
    openai_stream, price, provider,
};
use serde_json::{Value, json};

/// Prices in dollars per million tokens, here in millionths of a cent per token.
const INPUT: u64 = 300;
const OUTPUT: u64 = 1500;

/// Chance that is the same in every run.
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// A number below `bound` (splitmix64).
    fn below(&self, bound: u64) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut z = self.0.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What providers have really billed.
#[derive(Default)]
struct Bills {
    tokens: AtomicU64,
    micro_cents: AtomicU64,
    /// How often each thing happened.
    what: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

impl Bills {
    fn bill(&self, input: u64, output: u64) {
        self.tokens.fetch_add(input + output, Ordering::SeqCst);
        self.micro_cents
            .fetch_add(input * INPUT + output * OUTPUT, Ordering::SeqCst);
    }

    fn count(&self, what: &'static str) {
        *self.what.lock().unwrap().entry(what).or_default() += 1;
    }
}

/// One provider's day: what it does to a request, and what it bills for it.
fn misbehave(wire: Wire, liar: bool, dice: &Dice, bills: &Bills, seen: &Seen) -> Reply {
    let bytes = u64::try_from(seen.bytes).unwrap();
    let most = seen.body["max_tokens"].as_u64().unwrap();
    // As many tokens as a request allows at most, at times; as few as there can be, at others.
    let input = match dice.below(10) {
        0 => bytes + 1024,
        1 => bytes.div_ceil(16),
        _ => bytes / 4 + dice.below(100),
    };
    let output = match dice.below(5) {
        0 => most,
        _ => 1 + dice.below(most),
    };
    let text = "four".repeat(usize::try_from(output.min(40)).unwrap());
    let streams = seen.body["stream"] == json!(true);
    let usage = match dice.below(20) {
        0 => None,
        1 => Some((0, 0)),
        2 => Some((0, output)),
        3 => Some((input, 0)),
        4 => Some((input * 2, most + 1)),
        // What could be true, and is half of it.
        _ if liar => Some((
            input.div_ceil(2).max(bytes.div_ceil(16)),
            output.div_ceil(2),
        )),
        _ => Some((input, output)),
    };
    let answer = || {
        let (input, output) = usage.unwrap_or((0, 0));
        let mut answer = match wire {
            Wire::Openai => openai_answer(&text, input, output),
            Wire::Anthropic => anthropic_answer(&text, input, output),
        };
        if usage.is_none() {
            answer.as_object_mut().unwrap().remove("usage");
        }
        answer
    };
    let spaced = text.replace("four", "four ");
    let pieces = || match wire {
        Wire::Openai => openai_stream(&spaced, usage),
        Wire::Anthropic => anthropic_stream(&spaced, usage),
    };
    let chance = dice.below(100);
    let free = match chance {
        0..6 => Some(("429", Reply::status(429))),
        6..9 => Some((
            "429 with a time",
            Reply::status(429).with("retry-after", "2"),
        )),
        9..15 => Some(("500", Reply::status(500))),
        15..18 => Some(("529", Reply::status(529))),
        18..20 => Some(("401", Reply::status(401))),
        _ => None,
    };
    if let Some((what, reply)) = free {
        bills.count(what);
        return reply;
    }
    bills.bill(input, output);
    let (what, reply) = match chance {
        20..24 => ("502 after the work", Reply::status(502)),
        24..28 => ("hang up after the work", Reply::Hang),
        28..30 => ("stall after the work", Reply::Stall),
        30..33 => (
            "nonsense",
            Reply::Whole(200, Vec::new(), "{\"content\": [}".to_owned()),
        ),
        33..43 if streams => {
            let mut pieces = pieces();
            let kept = dice.below(u64::try_from(pieces.len()).unwrap());
            pieces.truncate(usize::try_from(kept).unwrap());
            match chance {
                33..40 => ("cut stream", Reply::Stream(pieces, End::Cut)),
                40..42 => ("short stream", Reply::Stream(pieces, End::Clean)),
                _ => ("stalled stream", Reply::Stream(pieces, End::Stall)),
            }
        }
        _ if streams => ("stream", Reply::Stream(pieces(), End::Clean)),
        _ => ("answer", Reply::ok(answer())),
    };
    bills.count(what);
    reply
}

/// A guest's call; whether it got a whole answer.
async fn call(world: &World, dice: &Dice) -> bool {
    let (streams, anthropic) = (dice.below(2) == 0, dice.below(2) == 0);
    let words = usize::try_from(dice.below(200)).unwrap();
    let question = json!({
        "model": "m",
        "messages": [{"role": "user", "content": "why ".repeat(words)}],
        "max_tokens": 1 + dice.below(200),
        "stream": streams,
    });
    let path = if anthropic {
        "/v1/messages"
    } else {
        "/v1/chat/completions"
    };
    let (status, headers, body) = world.post(path, &question).await;
    world.clock.forward(50);
    let error = |body: &str| {
        let error: Value = serde_json::from_str(body).unwrap();
        assert!(error["error"]["message"].is_string(), "{body}");
    };
    if status != 200 {
        assert!([402, 429, 502, 504].contains(&status), "{status}: {body}");
        error(&body);
        return false;
    }
    if headers["content-type"] == "application/json" {
        let answer: Value = serde_json::from_str(&body).unwrap();
        let key = if anthropic { "content" } else { "choices" };
        assert!(answer[key][0].is_object(), "{body}");
        return true;
    }
    let last = body.trim_end().rsplit("\n\n").next().unwrap();
    let end = if anthropic {
        "event: message_stop\n"
    } else {
        "data: [DONE]"
    };
    if last.starts_with(end) {
        return true;
    }
    error(last.rsplit_once("data: ").unwrap().1);
    false
}

/// `calls` calls, 64 at a time, of a partition that may spend what some `affordable` of them cost.
async fn chaos(calls: u64, affordable: u64, seed: u64) {
    let dice = Dice::new(seed);
    let bills = Arc::new(Bills::default());
    let mut providers = Vec::new();
    for (number, wire, liar) in [
        (0, Wire::Openai, false),
        (1, Wire::Anthropic, false),
        (2, Wire::Openai, true),
        (3, Wire::Anthropic, true),
    ] {
        let (of_fake, bills) = (dice.clone(), Arc::clone(&bills));
        let fake = Fake::start(move |seen| misbehave(wire, liar, &of_fake, &bills, seen)).await;
        let mut one = provider(&format!("p{number}"), wire, fake.address);
        one.keys = (0..50)
            .map(|key_number| key(&format!("k{key_number}")))
            .collect();
        one.timeout = Duration::from_millis(200);
        one.trust_usage = !liar;
        one.priority = number;
        one.models[0].input = price("3");
        one.models[0].output = price("15");
        providers.push(one);
    }
    let mut models = models(providers);
    models.order = Order::Cost;
    let limit = affordable * (400 * INPUT + 100 * OUTPUT);
    models.budget.money = Some(Money::from_micro_cents(limit));
    models.budget.tokens = Some(affordable * 700);
    let budget = models.budget;
    let world = Arc::new(World::new(models));
    let begun = Instant::now();
    let left = Arc::new(AtomicU64::new(calls));
    let guests: Vec<_> = (0..64)
        .map(|_| {
            let (world, dice, left) = (Arc::clone(&world), dice.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let mut good = 0_u64;
                let one_less = |left: u64| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
                    .is_ok()
                {
                    good += u64::from(call(&world, &dice).await);
                }
                good
            })
        })
        .collect();
    let mut good = 0;
    for guest in guests {
        good += guest.await.unwrap();
    }
    let (tokens, money) = (
        bills.tokens.load(Ordering::SeqCst),
        Money::from_micro_cents(bills.micro_cents.load(Ordering::SeqCst)),
    );
    let spent = world.router.spent();
    println!(
        "{calls} calls in {:?}: {good} answered; billed {money} and {tokens} tokens, counted {} \
         and {}, of {:?}\n{:?}",
        begun.elapsed(),
        spent.money,
        spent.tokens,
        budget,
        bills.what.lock().unwrap(),
    );
    assert!(Some(money) <= budget.money, "{money} billed");
    assert!(Some(tokens) <= budget.tokens, "{tokens} tokens billed");
    assert!(
        spent.money >= money && spent.tokens >= tokens,
        "all that was billed is counted"
    );
    assert!(good > calls / 10, "{good} of {calls}");
    let entries = world.memory.entries.lock().unwrap();
    let mut open = std::collections::BTreeSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let index = u64::try_from(index).unwrap();
        match (entry.kind, entry.intent) {
            (Kind::Intent, None) => assert!(open.insert(index)),
            (Kind::Outcome, Some(intent)) if entry.action == "model.chat" => {
                assert!(open.remove(&intent), "one outcome for each intent");
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{} calls have no outcome", open.len());
    let alerts = entries
        .iter()
        .filter(|entry| entry.action == "model.budget")
        .count();
    assert_eq!(alerts, 1);
}

#[tokio::test]
async fn no_chaos_of_providers_overspends_a_budget() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let calls = number("BULKHEAD_CHAOS_CALLS").unwrap_or(10_000);
    let seed = number("BULKHEAD_CHAOS_SEED").unwrap_or(5);
    // The budget is used up on the way, so that calls fight for the last of it.
    chaos(calls, calls * 2 / 3, seed).await;
}

//! Who is asked, when, and what it costs: failover, keys, limits, budgets, the cache, the ledger.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bulkhead_models::{Budget, Money, Order, Wire};
use fake::{
    Fake, Reply, World, anthropic_answer, key, model, models, openai_answer, price, provider,
    question,
};
use serde_json::{Value, json};

fn good() -> Reply {
    Reply::ok(openai_answer("hello there", 20, 3))
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn message(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn a_call_reaches_its_provider_with_its_key_and_name() {
    let fake = Fake::start(|_| good()).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let (status, answer) = world.chat(&question()).await;
    assert_eq!((status, text(&answer)), (200, "hello there"));
    let seen = fake.last();
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(seen.header("authorization"), Some("Bearer value-of-p-key"));
    assert_eq!(seen.body["model"], "m-upstream");
    assert_eq!(seen.body["max_tokens"], 100);
    let records = world.records();
    let expected = [("intent", "allowed"), ("outcome", "done")];
    assert_eq!(records, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let details = world.details();
    assert_eq!(details[0]["key"], "p-key");
    assert_eq!(
        (details[1]["tokens"].as_str(), details[1]["money"].as_str()),
        ("23", "0.000026")
    );
    assert!(
        !format!("{details:?}").contains("value-of"),
        "no key in a record"
    );
}

#[tokio::test]
async fn what_the_guest_sends_as_its_key_goes_nowhere() {
    let fake = Fake::start(|_| Reply::ok(anthropic_answer("hi", 20, 1))).await;
    let world = World::new(models(vec![provider("p", Wire::Anthropic, fake.address)]));
    let headers = [
        ("x-api-key", "guest"),
        ("authorization", "Bearer guest"),
        ("x-other", "y"),
    ];
    let body = question().to_string();
    let (status, _, _) = world.send("POST", "/v1/messages", &headers, body).await;
    assert_eq!(status, 200);
    let seen = fake.last();
    assert_eq!(seen.header("x-api-key"), Some("value-of-p-key"));
    assert_eq!(seen.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(
        (seen.header("authorization"), seen.header("x-other")),
        (None, None)
    );
}

/// What a provider does, whether another one is asked then, and whether the call may have cost.
#[tokio::test]
async fn failover() {
    let broken = Reply::Whole(200, Vec::new(), "{\"choices\": [".to_owned());
    for (reply, goes_on, spent) in [
        (Reply::status(429), true, false),
        (Reply::status(500), true, false),
        (Reply::status(503), true, false),
        (Reply::status(529), true, false),
        (Reply::status(502), true, true),
        (Reply::status(504), true, true),
        (Reply::Hang, true, true),
        (Reply::Stall, true, true),
        (broken, true, true),
        (Reply::status(401), true, false),
        (Reply::status(403), true, false),
        (Reply::status(400), false, false),
        (Reply::status(404), false, false),
        (Reply::status(413), false, false),
        (Reply::status(422), false, false),
        (Reply::status(302), false, false),
    ] {
        let what = format!("{reply:?}");
        let first = Fake::start(move |_| reply.clone()).await;
        let second = Fake::start(|_| good()).await;
        let mut providers = vec![
            provider("first", Wire::Openai, first.address),
            provider("second", Wire::Openai, second.address),
        ];
        providers[1].priority = 1;
        let world = World::new(models(providers));
        let (status, answer) = world.chat(&question()).await;
        assert_eq!(first.calls(), 1, "{what}");
        assert_eq!(status == 200, goes_on, "{what}: {answer}");
        assert_eq!(second.calls(), usize::from(goes_on), "{what}");
        let own = if goes_on { 23 } else { 0 };
        let worst = u64::try_from(first.last().bytes).unwrap() + 1024 + 100;
        let expected = own + if spent { worst } else { 0 };
        assert_eq!(world.router.spent().tokens, expected, "{what}");
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_costs_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let second = Fake::start(|_| good()).await;
    let mut providers = vec![provider("gone", Wire::Openai, nobody)];
    let world = World::new(models(providers.clone()));
    let (status, answer) = world.chat(&question()).await;
    assert_eq!(
        (status, message(&answer)),
        (502, "no provider of `m` answers at the moment")
    );
    assert_eq!(world.router.spent().tokens, 0);
    providers.push(provider("second", Wire::Openai, second.address));
    let world = World::new(models(providers));
    for _ in 0..3 {
        assert_eq!(world.chat(&question()).await.0, 200);
    }
    let tried = world
        .details()
        .iter()
        .filter(|d| d["provider"] == "gone")
        .count();
    assert_eq!(
        tried, 2,
        "an intent and an outcome: who failed is asked last for a while"
    );
}

#[tokio::test]
async fn who_says_when_to_come_back_is_not_asked_before() {
    let limited: [(&str, &[(&'static str, &str)]); 4] = [
        ("429", &[("retry-after", "30")]),
        ("429", &[("retry-after", "Tue, 14 Nov 2023 22:13:50 GMT")]),
        (
            "200",
            &[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "30s"),
            ],
        ),
        (
            "200",
            &[
                ("anthropic-ratelimit-tokens-remaining", "0"),
                ("anthropic-ratelimit-tokens-reset", "2023-11-14T22:13:50Z"),
            ],
        ),
    ];
    for (status, headers) in limited {
        let mut reply = if status == "200" {
            good()
        } else {
            Reply::status(429)
        };
        for (name, value) in headers {
            reply = reply.with(name, value);
        }
        let fake = Fake::start(move |_| reply.clone()).await;
        let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
        let (first, _) = world.chat(&question()).await;
        assert_eq!(first.to_string(), status);
        world.clock.forward(29_500);
        let (status, headers, _) = world.post("/v1/chat/completions", &question()).await;
        assert_eq!((status, fake.calls()), (429, 1), "{headers:?}");
        assert_eq!(headers["retry-after"], "1");
        world.clock.forward(501);
        world.chat(&question()).await;
        assert_eq!(fake.calls(), 2);
    }
}

#[tokio::test]
async fn keys_take_turns_and_rest_alone() {
    let fake = Fake::start(|seen| match seen.header("authorization").unwrap() {
        "Bearer value-of-b" => Reply::status(429).with("retry-after", "60"),
        "Bearer value-of-c" => {
            let echo = json!({"error": {"message": "unknown key value-of-c"}}).to_string();
            Reply::Whole(401, Vec::new(), echo)
        }
        _ => good(),
    })
    .await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.keys = vec![key("a"), key("b"), key("c"), key("d")];
    let world = World::new(models(vec![one]));
    for _ in 0..6 {
        assert_eq!(world.chat(&question()).await.0, 200);
    }
    let keys: Vec<String> = (fake.seen.lock().unwrap().iter())
        .map(|seen| {
            seen.header("authorization")
                .unwrap()
                .replace("Bearer value-of-", "")
        })
        .collect();
    assert_eq!(keys, ["a", "b", "c", "d", "a", "d", "a", "d"]);
}

#[tokio::test]
async fn a_key_that_a_provider_repeats_does_not_reach_the_guest() {
    let fake = Fake::start(|_| {
        let body = json!({"error": {"message": "bad thing: value-of-p-key"}}).to_string();
        Reply::Whole(400, Vec::new(), body)
    })
    .await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let (status, answer) = world.chat(&question()).await;
    assert_eq!(
        (status, message(&answer)),
        (400, "the provider answered 400")
    );
    let entries = format!("{:?}", world.memory.entries.lock().unwrap());
    assert!(!entries.contains("value-of"), "{entries}");
}

#[tokio::test]
async fn the_limits_of_a_provider_are_kept() {
    let fake = Fake::start(|_| good()).await;
    let spare = Fake::start(|_| good()).await;
    let mut providers = vec![
        provider("p", Wire::Openai, fake.address),
        provider("spare", Wire::Openai, spare.address),
    ];
    providers[0].requests_per_minute = Some(2);
    providers[1].tokens_per_minute = Some(30);
    providers[1].priority = 1;
    let world = World::new(models(providers));
    for expected in [200, 200, 200, 429] {
        assert_eq!(world.chat(&question()).await.0, expected);
    }
    assert_eq!((fake.calls(), spare.calls()), (2, 1));
    world.clock.forward(60_000);
    assert_eq!(world.chat(&question()).await.0, 200);
    assert_eq!(fake.calls(), 3);
}

#[tokio::test]
async fn a_call_that_cannot_be_recorded_takes_none_of_the_providers_tokens() {
    let fake = Fake::start(|_| good()).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.tokens_per_minute = Some(30);
    let world = World::new(models(vec![one]));
    world.memory.broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(world.chat(&question()).await.0, 503);
    }
    world.memory.broken.store(false, Ordering::SeqCst);
    assert_eq!(world.chat(&question()).await.0, 200);
    assert_eq!(fake.calls(), 1);
}

#[tokio::test]
async fn the_cheapest_is_asked_first_where_that_is_the_order() {
    for (order, expected) in [(Order::Priority, (1, 0)), (Order::Cost, (0, 1))] {
        let dear = Fake::start(|_| good()).await;
        let cheap = Fake::start(|_| good()).await;
        let mut providers = vec![
            provider("dear", Wire::Openai, dear.address),
            provider("cheap", Wire::Openai, cheap.address),
        ];
        providers[1].priority = 5;
        providers[1].models[0].output = price("0.5");
        let mut models = models(providers);
        models.order = order;
        let world = World::new(models);
        assert_eq!(world.chat(&question()).await.0, 200);
        assert_eq!((dear.calls(), cheap.calls()), expected);
    }
}

#[tokio::test]
async fn a_model_without_a_grant_looks_like_none_at_all() {
    let fake = Fake::start(|_| good()).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.models[0].aliases = vec!["alias".to_owned()];
    let world = World::new(models(vec![one]));
    for (name, expected) in [("alias", 200), ("m", 200), ("m-upstream", 404), ("x", 404)] {
        let mut question = question();
        question["model"] = json!(name);
        assert_eq!(world.chat(&question).await.0, expected, "{name}");
    }
    assert_eq!(fake.calls(), 2);
    let refused = world
        .records()
        .into_iter()
        .filter(|(kind, _)| kind == "refusal")
        .count();
    assert_eq!(refused, 2);
    let (_, _, list) = world.send("GET", "/v1/models", &[], String::new()).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["alias", "m"]);
    let version = [("anthropic-version", "2023-06-01")];
    let (_, _, list) = world
        .send("GET", "/v1/models", &version, String::new())
        .await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list["first_id"], &list["data"][1]["type"]),
        (&json!("alias"), &json!("model"))
    );
}

#[tokio::test]
async fn the_budget_refuses_before_the_call_and_is_exact_after_it() {
    let fake = Fake::start(|_| good()).await;
    let mut models = models(vec![provider("p", Wire::Openai, fake.address)]);
    assert_eq!(World::new(models.clone()).chat(&question()).await.0, 200);
    let worst = u64::try_from(fake.last().bytes).unwrap() + 1024 + 100;
    fake.seen.lock().unwrap().clear();
    // Exactly enough for the second call.
    models.budget = Budget {
        tokens: Some(100 + 23 + worst),
        money: None,
    };
    models.spent.tokens = 100;
    let world = World::new(models);
    for expected in [200, 200, 402] {
        let (status, answer) = world.chat(&question()).await;
        assert_eq!(status, expected, "{answer}");
        if status == 402 {
            assert_eq!(answer["error"]["type"], "insufficient_quota");
            let left = format!("and {} are left of the budget", worst - 23);
            assert!(message(&answer).contains(&left), "{answer}");
        }
        if fake.calls() == 2 {
            assert_eq!(world.router.spent().tokens, 146);
        }
    }
    assert_eq!(fake.calls(), 2);
    let body = question().to_string();
    let (status, _, answer) = world.send("POST", "/v1/messages", &[], body).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (status, &answer["error"]["type"]),
        (402, &json!("billing_error"))
    );
}

#[tokio::test]
async fn a_request_without_a_bound_gets_one() {
    let fake = Fake::start(|_| good()).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let mut question = question();
    question.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(world.chat(&question).await.0, 200);
    assert_eq!(fake.last().body["max_tokens"], 1000);
    question["max_tokens"] = json!(1001);
    let (status, answer) = world.chat(&question).await;
    assert_eq!(
        (status, message(&answer)),
        (400, "`m` gives at most 1000 tokens, not 1001")
    );
}

#[tokio::test]
async fn usage_is_believed_as_far_as_it_can_be_true() {
    let usage = |usage: Value| {
        let mut answer = openai_answer("a text of forty bytes, which are many...", 0, 0);
        answer["usage"] = usage;
        Reply::ok(answer)
    };
    let told = |input: i64, output: i64| json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": 0});
    // The body has some 90 bytes and so at least 6 tokens, the text 40 and so at least 3.
    for (reply, expected) in [
        (usage(told(20, 10)), Some(30)),
        (usage(told(6, 3)), Some(9)),
        (usage(told(5, 3)), None),
        (usage(told(6, 2)), None),
        (usage(told(0, 0)), None),
        (usage(told(-20, 10)), None),
        (usage(json!(null)), None),
        (
            usage(json!({"prompt_tokens": "20", "completion_tokens": 10})),
            None,
        ),
        (usage(told(20, 100_000)), Some(100_020)),
    ] {
        let what = format!("{reply:?}");
        let fake = Fake::start(move |_| reply.clone()).await;
        let mut models = models(vec![provider("p", Wire::Openai, fake.address)]);
        models.budget.tokens = Some(10_000);
        let world = World::new(models.clone());
        assert_eq!(world.chat(&question()).await.0, 200);
        let bytes = u64::try_from(fake.last().bytes).unwrap();
        assert_eq!(bytes.div_ceil(16), 6);
        let worst = bytes + 1024 + 100;
        assert_eq!(
            world.router.spent().tokens,
            expected.unwrap_or(worst),
            "{what}"
        );
        models.providers[0].trust_usage = false;
        let world = World::new(models);
        assert_eq!(world.chat(&question()).await.0, 200);
        assert_eq!(world.router.spent().tokens, worst, "not trusted: {what}");
    }
}

#[tokio::test]
async fn an_alert_is_recorded_once_at_four_fifths() {
    // A call costs 0.0007, or a millionth less.
    for (input, expected) in [(500, 1), (499, 0)] {
        let fake = Fake::start(move |_| Reply::ok(openai_answer("x", input, 100))).await;
        let mut models = models(vec![provider("p", Wire::Openai, fake.address)]);
        models.budget.money = Some("0.0100".parse::<Money>().unwrap());
        models.spent.money = "0.0073".parse().unwrap();
        let world = World::new(models.clone());
        let alerts = |world: &World| {
            let entries = world.memory.entries.lock().unwrap();
            entries
                .iter()
                .filter(|entry| entry.action == "model.budget")
                .count()
        };
        assert_eq!(world.chat(&question()).await.0, 200);
        assert_eq!(alerts(&world), expected);
        let lines = world.log.lock().unwrap().clone();
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.starts_with("80 percent"))
                .count(),
            expected
        );
        assert_eq!(world.chat(&question()).await.0, 200);
        assert_eq!(alerts(&world), 1);
        models.spent = world.router.spent();
        models.budget.money = Some("0.0105".parse().unwrap());
        let world = World::new(models);
        assert_eq!(world.chat(&question()).await.0, 200);
        assert_eq!(alerts(&world), 0, "it was told before");
    }
}

#[tokio::test]
async fn nothing_is_done_that_cannot_be_recorded() {
    let fake = Fake::start(|_| good()).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    world.memory.broken.store(true, Ordering::SeqCst);
    let (status, answer) = world.chat(&question()).await;
    assert_eq!(status, 503);
    assert!(
        message(&answer).contains("the ledger's writer is gone"),
        "{answer}"
    );
    assert_eq!((fake.calls(), world.router.spent().tokens), (0, 0));
    world.memory.broken.store(false, Ordering::SeqCst);
    assert_eq!(world.chat(&question()).await.0, 200);
}

#[tokio::test]
async fn an_answer_whose_outcome_cannot_be_recorded_is_withheld() {
    let memory = Arc::new(std::sync::OnceLock::<Arc<fake::Memory>>::new());
    let breaks = Arc::clone(&memory);
    let fake = Fake::start(move |_| {
        breaks.get().unwrap().broken.store(true, Ordering::SeqCst);
        good()
    })
    .await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    assert!(memory.set(Arc::clone(&world.memory)).is_ok());
    let (status, answer) = world.chat(&question()).await;
    assert_eq!(status, 503);
    assert!(
        message(&answer).starts_with("the answer is withheld"),
        "{answer}"
    );
    assert_eq!(
        world.router.spent().tokens,
        23,
        "it was billed all the same"
    );
}

#[tokio::test]
async fn the_partition_has_a_rate() {
    let fake = Fake::start(|_| good()).await;
    let mut models = models(vec![provider("p", Wire::Openai, fake.address)]);
    models.requests_per_minute = 3;
    let world = World::new(models);
    for expected in [200, 200, 200, 429, 429, 429] {
        assert_eq!(world.chat(&question()).await.0, expected);
    }
    let refused = world
        .records()
        .into_iter()
        .filter(|(kind, _)| kind == "refusal")
        .count();
    assert_eq!(refused, 1, "or a guest could fill the ledger");
    world.clock.forward(60_000);
    assert_eq!(world.chat(&question()).await.0, 200);
}

#[tokio::test]
async fn the_cache_answers_what_was_asked_before() {
    let number = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&number);
    let fake = Fake::start(move |_| {
        let text = format!("answer {}", count.fetch_add(1, Ordering::SeqCst));
        Reply::ok(openai_answer(&text, 20, 3))
    })
    .await;
    let mut one = provider("p", Wire::Openai, fake.address);
    let world = World::new(models(vec![one.clone()]));
    let mut zero = question();
    zero["temperature"] = json!(0);
    for calls in [1, 2] {
        world.chat(&zero).await;
        assert_eq!(fake.calls(), calls, "not unless it is allowed");
    }
    one.models[0].cache = true;
    let world = World::new(models(vec![one]));
    let (_, first) = world.chat(&zero).await;
    let (status, again) = world.chat(&zero).await;
    assert_eq!((status, &again, fake.calls()), (200, &first, 3));
    assert_eq!(world.router.spent().tokens, 23);
    assert_eq!(
        world.records().last().unwrap(),
        &("outcome".to_owned(), "done".to_owned())
    );
    for (key, value) in [("temperature", json!(0.5)), ("max_tokens", json!(99))] {
        let mut other = zero.clone();
        other[key] = value;
        let (_, answer) = world.chat(&other).await;
        assert_ne!(answer, first);
    }
    assert_eq!(fake.calls(), 5);
    world.memory.broken.store(true, Ordering::SeqCst);
    assert_eq!(
        world.chat(&zero).await.0,
        503,
        "not even from the cache without a record"
    );
}

#[tokio::test]
async fn two_models_of_one_provider() {
    let fake = Fake::start(|_| good()).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.models.push(model("n"));
    let world = World::new(models(vec![one]));
    let mut question = question();
    question["model"] = json!("n");
    assert_eq!(world.chat(&question).await.0, 200);
    assert_eq!(fake.last().body["model"], "n-upstream");
}

//! Guests and providers of both wires, whole and streamed, and what each wire's errors look like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::time::Duration;

use bulkhead_models::{LimitField, Wire};
use fake::{
    End, Fake, Reply, World, anthropic_answer, anthropic_stream, model, models, openai_answer,
    openai_stream, provider, question, tls,
};
use serde_json::{Value, json};

const TEXT: &str = "one two three";

/// A provider of `wire` that answers as it is asked.
async fn honest(wire: Wire) -> Fake {
    Fake::start(move |seen| {
        let streams = seen.body["stream"] == json!(true);
        match (wire, streams) {
            (Wire::Openai, false) => Reply::ok(openai_answer(TEXT, 30, 3)),
            (Wire::Anthropic, false) => Reply::ok(anthropic_answer(TEXT, 30, 3)),
            (Wire::Openai, true) => Reply::Stream(openai_stream(TEXT, Some((30, 3))), End::Clean),
            (Wire::Anthropic, true) => {
                Reply::Stream(anthropic_stream(TEXT, Some((30, 3))), End::Clean)
            }
        }
    })
    .await
}

fn path(wire: Wire) -> &'static str {
    match wire {
        Wire::Openai => "/v1/chat/completions",
        Wire::Anthropic => "/v1/messages",
    }
}

/// The events of a stream: name and data.
fn events(body: &str) -> Vec<(Option<String>, String)> {
    let event = |block: &str| {
        let field = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::to_owned)
        };
        (field("event: "), field("data: ").unwrap())
    };
    body.split("\n\n")
        .filter(|block| !block.is_empty())
        .map(event)
        .collect()
}

/// The text of a stream, and its usage if it tells one.
fn read(wire: Wire, body: &str) -> (String, Option<(u64, u64)>) {
    let mut text = String::new();
    let mut usage = None;
    for (name, data) in events(body) {
        if data == "[DONE]" {
            continue;
        }
        let data: Value = serde_json::from_str(&data).unwrap();
        match wire {
            Wire::Openai => {
                assert_eq!(
                    (name, &data["object"]),
                    (None, &json!("chat.completion.chunk"))
                );
                text += data["choices"][0]["delta"]["content"]
                    .as_str()
                    .unwrap_or_default();
                if let Some(told) = data["usage"].as_object() {
                    let number = |name: &str| told[name].as_u64().unwrap();
                    usage = Some((number("prompt_tokens"), number("completion_tokens")));
                }
            }
            Wire::Anthropic => {
                assert_eq!(name.as_deref(), data["type"].as_str());
                text += data["delta"]["text"].as_str().unwrap_or_default();
                let input = &data["message"]["usage"]["input_tokens"];
                let told = &data["usage"];
                let input = told["input_tokens"].as_u64().or(input.as_u64());
                let before = usage.unwrap_or((0, 0));
                let output = told["output_tokens"].as_u64().unwrap_or(before.1);
                usage = Some((input.unwrap_or(before.0), output));
            }
        }
    }
    (text, usage)
}

#[tokio::test]
async fn every_guest_understands_every_provider() {
    for guest in [Wire::Openai, Wire::Anthropic] {
        for spoken in [Wire::Openai, Wire::Anthropic] {
            let fake = honest(spoken).await;
            let world = World::new(models(vec![provider("p", spoken, fake.address)]));
            let (status, _, answer) = world.post(path(guest), &question()).await;
            assert_eq!(status, 200, "{answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let (text, input) = match guest {
                Wire::Openai => (
                    &answer["choices"][0]["message"]["content"],
                    &answer["usage"]["prompt_tokens"],
                ),
                Wire::Anthropic => (
                    &answer["content"][0]["text"],
                    &answer["usage"]["input_tokens"],
                ),
            };
            assert_eq!(
                (text, input),
                (&json!(TEXT), &json!(30)),
                "{guest:?} {spoken:?}"
            );
            assert_eq!(fake.last().path, path(spoken));
            assert_eq!(world.router.spent().tokens, 33);
        }
    }
}

#[tokio::test]
async fn every_guest_understands_every_stream() {
    for guest in [Wire::Openai, Wire::Anthropic] {
        for spoken in [Wire::Openai, Wire::Anthropic] {
            for usage_wanted in [false, true] {
                let fake = honest(spoken).await;
                let world = World::new(models(vec![provider("p", spoken, fake.address)]));
                let mut question = question();
                question["stream"] = json!(true);
                if usage_wanted && guest == Wire::Openai {
                    question["stream_options"] = json!({"include_usage": true});
                }
                let (status, headers, body) = world.post(path(guest), &question).await;
                assert_eq!(
                    (status, &headers["content-type"]),
                    (200, &"text/event-stream".parse().unwrap())
                );
                let (text, usage) = read(guest, &body);
                assert_eq!(text, TEXT, "{guest:?} {spoken:?}\n{body}");
                let told = usage_wanted || guest == Wire::Anthropic;
                assert_eq!(
                    usage,
                    told.then_some((30, 3)),
                    "{guest:?} {spoken:?}\n{body}"
                );
                let last = events(&body).pop().unwrap();
                match guest {
                    Wire::Openai => assert_eq!(last, (None, "[DONE]".to_owned())),
                    Wire::Anthropic => assert_eq!(last.0.as_deref(), Some("message_stop")),
                }
                assert_eq!(world.router.spent().tokens, 33, "{guest:?} {spoken:?}");
                if spoken == Wire::Openai {
                    assert_eq!(fake.last().body["stream_options"]["include_usage"], true);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_has_begun_ends_in_an_error_and_is_asked_of_nobody_else() {
    for guest in [Wire::Openai, Wire::Anthropic] {
        for spoken in [Wire::Openai, Wire::Anthropic] {
            for end in [End::Cut, End::Stall, End::Clean] {
                let first = Fake::start(move |_| {
                    let mut pieces = match spoken {
                        Wire::Openai => openai_stream(TEXT, Some((30, 3))),
                        Wire::Anthropic => anthropic_stream(TEXT, Some((30, 3))),
                    };
                    pieces.truncate(pieces.len() - 4);
                    Reply::Stream(pieces, end)
                })
                .await;
                let second = honest(spoken).await;
                let mut providers = vec![
                    provider("first", spoken, first.address),
                    provider("second", spoken, second.address),
                ];
                providers[1].priority = 1;
                providers[0].timeout = Duration::from_millis(100);
                let world = World::new(models(providers));
                let mut question = question();
                question["stream"] = json!(true);
                let (status, _, body) = world.post(path(guest), &question).await;
                assert_eq!((status, second.calls()), (200, 0));
                let (name, data) = events(&body).pop().unwrap();
                let data: Value = serde_json::from_str(&data).unwrap();
                assert_eq!(
                    name.as_deref() == Some("error"),
                    guest == Wire::Anthropic,
                    "{body}"
                );
                let message = data["error"]["message"].as_str().unwrap();
                let expected = if end == End::Stall {
                    "stalled"
                } else {
                    "ended early"
                };
                assert!(message.ends_with(expected), "{message}");
                let worst = u64::try_from(first.last().bytes).unwrap() + 1024 + 100;
                assert_eq!(world.router.spent().tokens, worst, "all that was reserved");
                let (kind, verdict) = world.records().pop().unwrap();
                assert_eq!((kind.as_str(), verdict.as_str()), ("outcome", "failed"));
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_has_not_begun_is_asked_of_another() {
    let overloaded =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"busy\"}}\n\n";
    for (pieces, end) in [
        (vec![], End::Clean),
        (vec![], End::Cut),
        (vec![], End::Stall),
        (vec![": comment\n\n".to_owned()], End::Clean),
        (vec![overloaded.to_owned()], End::Clean),
        (vec!["data: nonsense\n\n".to_owned()], End::Clean),
    ] {
        let what = format!("{pieces:?} {end:?}");
        let first = Fake::start(move |_| Reply::Stream(pieces.clone(), end)).await;
        let second = honest(Wire::Openai).await;
        let mut providers = vec![
            provider("first", Wire::Anthropic, first.address),
            provider("second", Wire::Openai, second.address),
        ];
        providers[1].priority = 1;
        providers[0].timeout = Duration::from_millis(100);
        let world = World::new(models(providers));
        let mut question = question();
        question["stream"] = json!(true);
        let (status, _, body) = world.post("/v1/messages", &question).await;
        assert_eq!(
            (status, first.calls(), second.calls()),
            (200, 1, 1),
            "{what}"
        );
        assert_eq!(read(Wire::Anthropic, &body).0, TEXT, "{what}");
    }
}

#[tokio::test]
async fn a_guest_that_goes_away_is_settled() {
    let long = "word ".repeat(10_000);
    let pieces = openai_stream(&long, None);
    let fake = Fake::start(move |_| Reply::Stream(pieces.clone(), End::Stall)).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let mut question = question();
    question["stream"] = json!(true);
    let request = hyper::Request::post("/v1/chat/completions")
        .body(http_body_util::Full::new(hyper::body::Bytes::from(
            question.to_string(),
        )))
        .unwrap();
    drop(world.router.handle(request).await);
    let worst = u64::try_from(fake.last().bytes).unwrap() + 1024 + 100;
    for _ in 0..200 {
        if world.records().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let reason = world.memory.entries.lock().unwrap()[1].reason.clone();
    assert_eq!(reason, "the guest went away before the end of the stream");
    assert_eq!(world.router.spent().tokens, worst);
}

#[tokio::test]
async fn what_a_wire_cannot_say_is_refused_or_asked_elsewhere() {
    let anthropic = honest(Wire::Anthropic).await;
    let openai = honest(Wire::Openai).await;
    let mut providers = vec![provider("a", Wire::Anthropic, anthropic.address)];
    let mut question = question();
    question["seed"] = json!(7);
    let world = World::new(models(providers.clone()));
    let (status, answer) = world.chat(&question).await;
    let sentence = "`seed` has no counterpart on the Anthropic wire";
    assert_eq!(
        (status, &answer["error"]["message"]),
        (400, &json!(sentence))
    );
    assert_eq!(
        world.records(),
        [("refusal".to_owned(), "denied".to_owned())]
    );
    providers.push(provider("o", Wire::Openai, openai.address));
    let world = World::new(models(providers));
    assert_eq!(world.chat(&question).await.0, 200);
    assert_eq!((anthropic.calls(), openai.calls()), (0, 1));
    assert_eq!(openai.last().body["seed"], 7);
}

#[tokio::test]
async fn an_answer_that_the_guests_wire_cannot_say_is_refused_and_paid() {
    let fake = Fake::start(|seen| {
        let mut answer = anthropic_answer(TEXT, 30, 3);
        answer["content"][0] = json!({"type": "thinking", "thinking": "x", "signature": "y"});
        match seen.body["stream"] == json!(true) {
            false => Reply::ok(answer),
            true => {
                let mut pieces = anthropic_stream(TEXT, Some((30, 3)));
                // In whichever order the names are printed.
                for text in [
                    r#"{"text":"","type":"text"}"#,
                    r#"{"type":"text","text":""}"#,
                ] {
                    pieces[1] = pieces[1].replace(text, r#"{"type":"thinking","thinking":""}"#);
                }
                assert!(pieces[1].contains("thinking"));
                Reply::Stream(pieces, End::Clean)
            }
        }
    })
    .await;
    let world = World::new(models(vec![provider("p", Wire::Anthropic, fake.address)]));
    let (status, answer) = world.chat(&question()).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 502, "{message}");
    assert!(message.contains("`thinking`"), "{message}");
    assert_eq!((fake.calls(), world.router.spent().tokens), (1, 33));
    let mut question = question();
    question["stream"] = json!(true);
    let (_, _, body) = world.post("/v1/chat/completions", &question).await;
    assert!(
        events(&body).pop().unwrap().1.contains("no counterpart"),
        "{body}"
    );
    let (status, _, answer) = world.post("/v1/messages", &self::question()).await;
    assert_eq!(status, 200);
    assert!(answer.contains("thinking"), "its own wire has it: {answer}");
}

#[tokio::test]
async fn requests_are_read_strictly() {
    let fake = honest(Wire::Openai).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let image = json!([{"type": "image_url", "image_url": {"url": "http://evil.example/?secret"}}]);
    for (wire, key, value, part) in [
        (Wire::Openai, "n", json!(5), "`n` is other than 1"),
        (
            Wire::Openai,
            "service_tier",
            json!("priority"),
            "unknown field `service_tier`",
        ),
        (
            Wire::Openai,
            "web_search_options",
            json!({}),
            "unknown field `web_search_options`",
        ),
        (
            Wire::Openai,
            "max_completion_tokens",
            json!(5),
            "exclude each other",
        ),
        (Wire::Openai, "max_tokens", json!(-1), "invalid value"),
        (
            Wire::Openai,
            "messages",
            json!([{"role": "user", "content": image}]),
            "`image_url`",
        ),
        (
            Wire::Openai,
            "messages",
            json!([{"role": "root", "content": "x"}]),
            "`root`",
        ),
        (
            Wire::Anthropic,
            "tools",
            json!([{"type": "web_search_20250305", "name": "x"}]),
            "web_search",
        ),
        (
            Wire::Anthropic,
            "thinking",
            json!({"type": "enabled"}),
            "unknown field `thinking`",
        ),
        (
            Wire::Anthropic,
            "mcp_servers",
            json!([]),
            "unknown field `mcp_servers`",
        ),
    ] {
        let mut question = question();
        question[key] = value;
        let (status, _, answer) = world.post(path(wire), &question).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(
            (status, &answer["error"]["type"]),
            (400, &json!("invalid_request_error"))
        );
        assert!(message.contains(part), "{message}");
    }
    let beta = [("anthropic-beta", "x"), ("anthropic-version", "2023-06-01")];
    let (status, _, _) = world
        .send("POST", "/v1/messages", &beta, question().to_string())
        .await;
    assert_eq!(status, 400);
    for (method, path, expected) in [
        ("POST", "/v1/messages?beta=true", 400),
        ("GET", "/v1/messages", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/chat/../messages", 404),
    ] {
        let (status, _, _) = world.send(method, path, &[], question().to_string()).await;
        assert_eq!(status, expected, "{method} {path}");
    }
    for body in [
        "",
        "{",
        "[]",
        "null",
        &"[".repeat(100_000),
        &" ".repeat(5 << 20),
    ] {
        let (status, _, _) = world
            .send("POST", "/v1/messages", &[], body.to_owned())
            .await;
        assert_eq!(status, 400, "{}", body.get(..20).unwrap_or(body));
    }
    assert_eq!(fake.calls(), 0);
}

#[tokio::test]
async fn a_guest_writes_no_lines_of_the_log() {
    let fake = honest(Wire::Openai).await;
    let world = World::new(models(vec![provider("p", Wire::Openai, fake.address)]));
    let mut question = question();
    question["model"] = json!("x\nforged");
    world.chat(&question).await;
    question["a\nfield"] = json!(1);
    world.chat(&question).await;
    let log = world.log.lock().unwrap();
    assert_eq!(log.len(), 2);
    for line in log.iter() {
        assert!(!line.contains('\n') && line.contains("\\n"), "{line}");
    }
}

#[tokio::test]
async fn the_bound_on_the_answer_has_the_name_that_the_provider_knows() {
    let fake = honest(Wire::Openai).await;
    for (field, has, lacks) in [
        (LimitField::MaxTokens, "max_tokens", "max_completion_tokens"),
        (
            LimitField::MaxCompletionTokens,
            "max_completion_tokens",
            "max_tokens",
        ),
    ] {
        let mut one = provider("p", Wire::Openai, fake.address);
        one.limit_field = field;
        let world = World::new(models(vec![one]));
        for asked in ["max_tokens", "max_completion_tokens"] {
            let mut question = question();
            question.as_object_mut().unwrap().remove("max_tokens");
            question[asked] = json!(77);
            assert_eq!(world.chat(&question).await.0, 200);
            assert_eq!(
                (&fake.last().body[has], &fake.last().body[lacks]),
                (&json!(77), &Value::Null)
            );
        }
    }
}

#[tokio::test]
async fn providers_are_reached_by_tls_and_only_if_they_are_trusted() {
    let (acceptor, roots) = tls();
    let fake = Fake::start_with(Some(acceptor), |_| Reply::ok(openai_answer(TEXT, 30, 3))).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.url = format!("https://localhost:{}/v1", fake.address.port())
        .parse()
        .unwrap();
    let world = World::trusting(models(vec![one.clone()]), roots.clone());
    assert_eq!(world.chat(&question()).await.0, 200);
    let stranger = World::new(models(vec![one.clone()]));
    assert_eq!(stranger.chat(&question()).await.0, 502);
    one.url = format!("https://elsewhere.example:{}/v1", fake.address.port())
        .parse()
        .unwrap();
    let misled = World::trusting(models(vec![one]), roots);
    assert_eq!(misled.chat(&question()).await.0, 502);
    assert_eq!((fake.calls(), misled.router.spent().tokens), (1, 0));
}

#[tokio::test]
async fn tools_go_there_and_back() {
    let fake = Fake::start(|_| {
        let mut answer = anthropic_answer("let me see", 90, 20);
        let call = json!({"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "/"}});
        answer["content"].as_array_mut().unwrap().push(call);
        answer["stop_reason"] = json!("tool_use");
        Reply::ok(answer)
    })
    .await;
    let mut one = provider("p", Wire::Anthropic, fake.address);
    one.models = vec![model("m")];
    let world = World::new(models(vec![one]));
    let tools =
        json!([{"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}]);
    let mut question = question();
    question["tools"] = tools;
    let (status, answer) = world.chat(&question).await;
    assert_eq!(
        (status, &answer["choices"][0]["finish_reason"]),
        (200, &json!("tool_calls"))
    );
    let message = answer["choices"][0]["message"].clone();
    assert_eq!(
        message["tool_calls"][0]["function"]["arguments"],
        r#"{"path":"/"}"#
    );
    let said = question["messages"].as_array_mut().unwrap();
    said.push(message);
    said.push(json!({"role": "tool", "tool_call_id": "t1", "content": "bin etc"}));
    assert_eq!(world.chat(&question).await.0, 200);
    let seen = fake.last().body;
    assert_eq!(
        seen["messages"][1]["content"][1]["input"],
        json!({"path": "/"})
    );
    assert_eq!(seen["messages"][2]["content"][0]["tool_use_id"], "t1");
    assert_eq!(seen["tools"][0]["input_schema"], json!({"type": "object"}));
}

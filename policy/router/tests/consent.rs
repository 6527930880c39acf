//! A person's consent to calls of models: asked before anything of a call is done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::sync::{Arc, Mutex};

use bulkhead_models::{Budget, Grant, Model, Models, Spent, Wire};
use bulkhead_router::{Ask, Asking};
use fake::{Fake, Reply, World, model, models, openai_answer, provider, question};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// A question, and where its answer goes.
type Asked = (String, oneshot::Sender<Result<String, String>>);

/// A person who answers when the test does.
#[derive(Clone, Default)]
struct Person(Arc<Mutex<Vec<Asked>>>);

impl Ask for Person {
    fn ask<'a>(&'a self, models: &'a str, why: &'a str) -> Asking<'a> {
        assert!(why.contains("model.chat"));
        let (answer, answered) = oneshot::channel();
        self.0.lock().unwrap().push((models.to_owned(), answer));
        Box::pin(async { answered.await.unwrap() })
    }
}

impl Person {
    /// The next question.
    async fn asked(&self) -> Asked {
        loop {
            if let Some(asked) = self.0.lock().unwrap().pop() {
                return asked;
            }
            yield_now().await;
        }
    }

    /// Answers the next question; what it was about.
    async fn says(&self, answer: Result<&str, &str>) -> String {
        let (models, answered) = self.asked().await;
        let owned = answer.map(str::to_owned).map_err(str::to_owned);
        answered.send(owned).unwrap();
        models
    }

    fn is_left_alone(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

fn asking(name: &str) -> Model {
    Model {
        grants: vec![Grant {
            approval: true,
            lifetime: None,
        }],
        aliases: vec!["other".to_owned()],
        cache: true,
        ..model(name)
    }
}

/// A provider of `m`, which takes consent, and of `f`, which takes none.
async fn world() -> (Arc<World>, Fake, Person) {
    within(Budget::default()).await
}

async fn within(budget: Budget) -> (Arc<World>, Fake, Person) {
    let fake = Fake::start(|_| Reply::ok(openai_answer("hello there", 20, 3))).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    one.models = vec![asking("m"), model("f")];
    let person = Person::default();
    let described = Models {
        budget,
        ..models(vec![one])
    };
    let world = World::asking(described, Arc::new(person.clone()));
    (Arc::new(world), fake, person)
}

fn called(model: &str) -> Value {
    let mut question = question();
    question["model"] = json!(model);
    question["temperature"] = json!(0);
    question
}

#[tokio::test]
async fn a_call_waits_for_a_person_and_has_the_consent_on_record() {
    let (world, fake, person) = world().await;
    for name in ["m", "other"] {
        let before = fake.calls();
        let body = called(name);
        let (answer, asked) = tokio::join!(world.chat(&body), async {
            let (asked, answer) = person.asked().await;
            assert_eq!(fake.calls(), before, "nothing is sent before the answer");
            answer.send(Ok("a person said so".to_owned())).unwrap();
            asked
        });
        assert_eq!(answer.0, 200, "{}", answer.1);
        assert_eq!(asked, "m", "by the name that grants have");
    }
    assert_eq!(world.details()[0]["consent"], "a person said so");
    // Who takes none asks nobody.
    assert_eq!(world.chat(&called("f")).await.0, 200);
    assert!(person.is_left_alone());
}

#[tokio::test]
async fn a_no_is_an_error_of_the_wire_and_reaches_nobody() {
    let (world, fake, person) = world().await;
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let body = called("m");
        let (answer, _) =
            tokio::join!(world.post(path, &body), person.says(Err("nobody answered")));
        let (status, _, body) = answer;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 403, "{path}");
        assert_eq!(body["error"]["type"], "permission_error", "{path}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.ends_with("there was none: nobody answered"),
            "{message}"
        );
    }
    assert_eq!((fake.calls(), world.router.spent()), (0, Spent::default()));
    let refusal = ("refusal".to_owned(), "denied".to_owned());
    assert_eq!(world.records(), [refusal.clone(), refusal]);
}

#[tokio::test]
async fn an_answer_that_is_kept_takes_consent_as_well() {
    let (world, fake, person) = world().await;
    let body = called("m");
    let (first, _) = tokio::join!(world.chat(&body), person.says(Ok("yes")));
    assert_eq!(first.0, 200);
    let (second, _) = tokio::join!(world.chat(&body), person.says(Err("no")));
    assert_eq!(second.0, 403);
    let (third, _) = tokio::join!(world.chat(&body), person.says(Ok("yes")));
    assert_eq!((third.0, fake.calls()), (200, 1));
}

#[tokio::test]
async fn nothing_is_set_aside_while_a_person_thinks() {
    // For some calls, which others make.
    let (world, fake, person) = within(Budget {
        tokens: Some(3000),
        money: None,
    })
    .await;
    let body = called("m");
    let other = called("f");
    let (waiting, ()) = tokio::join!(world.chat(&body), async {
        let (_, answer) = person.asked().await;
        assert_eq!(world.router.spent(), Spent::default());
        // Others go on meanwhile, and may have the budget.
        loop {
            if world.chat(&other).await.0 == 402 {
                break;
            }
        }
        answer.send(Ok("yes".to_owned())).unwrap();
    });
    assert_eq!(waiting.0, 402, "{}", waiting.1);
    assert!(fake.calls() > 0);
}

#[tokio::test]
async fn a_guest_that_went_away_meanwhile_calls_nobody() {
    let (world, fake, person) = world().await;
    let own = Arc::clone(&world);
    let gone = tokio::spawn(async move { own.chat(&called("m")).await });
    let (_, answer) = person.asked().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert!(answer.send(Ok("yes".to_owned())).is_err(), "nobody waits");
    assert_eq!(fake.calls(), 0);
    // As many as wait take no place from those that do not.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let own = Arc::clone(&world);
            tokio::spawn(async move { own.chat(&called("m")).await })
        })
        .collect();
    let mut questions = Vec::new();
    for _ in &waiting {
        questions.push(person.asked().await);
    }
    assert_eq!(world.chat(&called("f")).await.0, 200);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A provider whose one model `m` is granted so.
async fn granted(grants: Vec<Grant>) -> (Arc<World>, Fake, Person) {
    let fake = Fake::start(|_| Reply::ok(openai_answer("hello there", 20, 3))).await;
    let mut one = provider("p", Wire::Openai, fake.address);
    let cache = true;
    one.models = vec![Model {
        grants,
        cache,
        ..model("m")
    }];
    let person = Person::default();
    let world = World::asking(models(vec![one]), Arc::new(person.clone()));
    (Arc::new(world), fake, person)
}

fn grant(approval: bool, lifetime: u64) -> Grant {
    let lifetime = Some(lifetime);
    Grant { approval, lifetime }
}

#[tokio::test]
async fn a_grant_ends_with_its_lifetime_and_one_that_lasts_longer_counts_then() {
    let (world, fake, person) = granted(vec![grant(false, 60), grant(true, 90)]).await;
    let body = called("m");
    assert_eq!(world.chat(&body).await.0, 200);
    world.clock.forward(60_000);
    // What was kept is no way around it.
    let (asked, _) = tokio::join!(world.chat(&body), person.says(Ok("yes")));
    assert_eq!(asked.0, 200);
    let listed = async || world.send("GET", "/v1/models", &[], String::new()).await.2;
    assert!(listed().await.contains("\"m\""));
    world.clock.forward(30_000);
    let (status, text) = world.chat(&body).await;
    assert_eq!(status, 404);
    assert!(text.to_string().contains("no grant `model.chat`"), "{text}");
    assert!(!listed().await.contains("\"m\""));
    assert!(fake.calls() == 1 && person.is_left_alone());
}

#[tokio::test]
async fn a_grant_that_ends_while_a_person_thinks_lets_nothing_through() {
    let (world, fake, person) = granted(vec![grant(true, 60)]).await;
    let body = called("m");
    let (waiting, ()) = tokio::join!(world.chat(&body), async {
        let (_, answer) = person.asked().await;
        world.clock.forward(60_000);
        answer.send(Ok("yes".to_owned())).unwrap();
    });
    assert_eq!((waiting.0, fake.calls()), (404, 0));
    assert_eq!(world.records().last().unwrap().1, "denied");
}

#[tokio::test]
async fn a_guest_that_went_away_before_there_was_a_place_calls_nobody() {
    // As many as may go on at the same time, whom nobody answers.
    const PLACES: usize = 16;
    let silent = Fake::start(|_| Reply::Stall).await;
    let answering = Fake::start(|_| Reply::ok(openai_answer("hello there", 20, 3))).await;
    let mut one = provider("p", Wire::Openai, silent.address);
    one.timeout = std::time::Duration::from_secs(1);
    let mut other = provider("q", Wire::Openai, answering.address);
    other.models = vec![model("f")];
    let world = World::asking(models(vec![one, other]), Arc::new(Person::default()));
    let world = Arc::new(world);
    let waiting: Vec<_> = (0..PLACES + 4)
        .map(|_| {
            let own = Arc::clone(&world);
            tokio::spawn(async move { own.chat(&question()).await })
        })
        .collect();
    while silent.calls() < PLACES {
        yield_now().await;
    }
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    // It gets a place behind all who waited before it.
    assert_eq!(world.chat(&called("f")).await.0, 200);
    assert_eq!(silent.calls(), PLACES);
}

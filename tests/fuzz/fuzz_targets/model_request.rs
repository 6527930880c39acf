//! A guest's request for a model, on either wire: refused, or said on each provider's wire strictly
//! enough to be read again
#![no_main]

use std::time::Duration;

use bulkhead_models::{LimitField, Model, Provider, Wire};
use bulkhead_router::chat::{Chat, ChatError};
use libfuzzer_sys::fuzz_target;

fn provider(wire: Wire, limit_field: LimitField) -> Option<Provider> {
    Some(Provider {
        name: "p".to_owned(),
        wire,
        url: "http://127.0.0.1/v1".parse().ok()?,
        addresses: Vec::new(),
        keys: Vec::new(),
        priority: 0,
        requests_per_minute: None,
        tokens_per_minute: None,
        timeout: Duration::from_secs(1),
        limit_field,
        trust_usage: true,
        models: vec![Model {
            name: "m".to_owned(),
            aliases: Vec::new(),
            upstream: "upstream".to_owned(),
            input: "1".parse().ok()?,
            output: "2".parse().ok()?,
            max_tokens: 1000,
            cache: false,
            grants: Vec::new(),
        }],
    })
}

fuzz_target!(|bytes: &[u8]| {
    for wire in [Wire::Openai, Wire::Anthropic] {
        let chat = match Chat::parse(wire, bytes) {
            Ok(chat) => chat,
            Err(error) => {
                assert_eq!(error.to_string().lines().count(), 1);
                continue;
            }
        };
        assert_eq!(chat.wire(), wire);
        let fields = [LimitField::MaxTokens, LimitField::MaxCompletionTokens];
        for (to, field) in [
            (Wire::Openai, fields[0]),
            (Wire::Openai, fields[1]),
            (Wire::Anthropic, fields[0]),
        ] {
            let Some(provider) = provider(to, field) else {
                return;
            };
            let asked = match chat.ask(&provider, &provider.models[0]) {
                Ok(asked) => asked,
                Err(error) => {
                    assert!(matches!(error, ChatError::Untranslatable(_)), "{error}");
                    continue;
                }
            };
            assert!(asked.output <= 1000);
            assert!(asked.input > asked.body.len() as u64);
            // What was written is of the provider's wire, and says the same when it is said again.
            let read = Chat::parse(to, &asked.body);
            let read = read.unwrap_or_else(|error| panic!("{error}: {:?}", asked.body));
            assert_eq!(read.model(), "upstream");
            let again = read.ask(&provider, &provider.models[0]);
            assert_eq!(again.map(|again| again.body), Ok(asked.body));
        }
    }
});

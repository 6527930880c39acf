//! What a packet of a client asks for, and whether it may. Packets come from processes that a guest may
//! have taken over: they are bounded, parsed strictly, and answered or fatal for their client.

use bulkhead_record::Entry;
use bulkhead_record::wire::{Answer, MAX_ANSWER_BYTES, Outcome, Request};

/// Characters of a reason that surely fit into an answer: JSON takes up to six bytes for each.
const MAX_REASON_CHARS: usize = MAX_ANSWER_BYTES / 8;
/// Most bytes of an actor's name.
const MAX_ACTOR_BYTES: usize = 256;

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// This is to be recorded.
    Record(u64, Entry),
    /// This is not, for a reason that the client is told.
    Refuse(u64, String),
    /// It is no request.
    Nonsense,
}

/// True for names that an actor can have.
pub fn is_actor(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_ACTOR_BYTES
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && !name.split('/').any(str::is_empty)
}

/// Looks at a packet of a client that may name `actor`, or what is below it, as the actor, and as the
/// intent of an outcome one of the `size` records that there are.
pub fn look_at(packet: &[u8], actor: &str, size: u64) -> Packet {
    let Ok(Request { id, entry }) = serde_json::from_slice(packet) else {
        return Packet::Nonsense;
    };
    if let Some(intent) = entry.intent.filter(|intent| *intent >= size) {
        return Packet::Refuse(
            id,
            format!("there is no record {intent} to name as the intent"),
        );
    }
    let below = entry.actor.strip_prefix(actor);
    let may = below.is_some_and(|below| below.is_empty() || below.starts_with('/'));
    if may && is_actor(&entry.actor) {
        return Packet::Record(id, entry);
    }
    let named: String = entry.actor.escape_debug().take(MAX_ACTOR_BYTES).collect();
    Packet::Refuse(id, format!("`{actor}` cannot record what `{named}` does"))
}

/// The answer to a request.
pub(super) fn answer(id: u64, outcome: Outcome) -> Vec<u8> {
    let short = |text: String| text.chars().take(MAX_REASON_CHARS).collect();
    let outcome = match outcome {
        Outcome::Recorded(index) => Outcome::Recorded(index),
        Outcome::NotWritten(why) => Outcome::NotWritten(short(why)),
        Outcome::Refused(why) => Outcome::Refused(short(why)),
    };
    // Answers are plain data: they always serialise.
    serde_json::to_vec(&Answer { id, outcome }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::entry;

    fn packet(actor: &str) -> Vec<u8> {
        let entry = Entry {
            actor: actor.to_owned(),
            ..entry("x")
        };
        serde_json::to_vec(&Request { id: 7, entry }).unwrap()
    }

    #[test]
    fn a_client_speaks_for_itself_and_what_is_below_it() {
        for actor in ["s/a", "s/a/tool", "s/a/b/c"] {
            let packet = look_at(&packet(actor), "s/a", 1);
            assert!(matches!(packet, Packet::Record(7, _)), "{actor}");
        }
        for actor in [
            "s/b", "s", "s/ab", "", "operator", "s/a/", "s/a//b", "s/a/\n", "s/a b",
        ] {
            let packet = look_at(&packet(actor), "s/a", 1);
            assert!(matches!(packet, Packet::Refuse(7, _)), "{actor:?}");
        }
        for nonsense in [&b""[..], b"{}", b"null", b"{\"id\":7}", &packet("s/a")[1..]] {
            assert_eq!(look_at(nonsense, "s/a", 1), Packet::Nonsense);
        }
    }

    #[test]
    fn an_intent_is_a_record_that_is_there() {
        for (intent, is_there) in [
            (0, true),
            (6, true),
            (7, false),
            (1 << 53, false),
            (u64::MAX, false),
        ] {
            let entry = Entry {
                intent: Some(intent),
                ..entry("x")
            };
            let entry = Entry {
                actor: "s/a".to_owned(),
                ..entry
            };
            let packet = serde_json::to_vec(&Request { id: 7, entry }).unwrap();
            let looked = look_at(&packet, "s/a", 7);
            assert_eq!(matches!(looked, Packet::Record(..)), is_there, "{intent}");
            assert_eq!(matches!(looked, Packet::Refuse(..)), !is_there, "{intent}");
        }
    }

    #[test]
    fn answers_fit_whatever_their_reason() {
        let why = "\u{1}".repeat(100_000);
        let answer = answer(u64::MAX, Outcome::NotWritten(why));
        assert!((2000..=MAX_ANSWER_BYTES).contains(&answer.len()));
    }
}

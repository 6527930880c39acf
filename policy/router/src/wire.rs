//! The two wires as types. Requests are strict: a field that stands in none of the types is refused
//! by name, since what a guest asks for must neither be dropped nor reach a provider unseen (fields
//! there are that multiply the price, or make the provider fetch addresses). What providers answer
//! is read for its text, tool calls and usage; other fields are looked at only to translate.

pub(crate) mod anthropic;
pub(crate) mod openai;

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Tokens that a call took, as a provider says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of the request, those that a provider had in a cache among them.
    pub(crate) input: u64,
    /// Tokens of the answer, hidden ones among them.
    pub(crate) output: u64,
}

/// A value that cannot be there: only `null` and empty lists of it are read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Never {}

/// A text, or a list of parts.
#[derive(Clone, Debug)]
pub(crate) enum TextOr<T> {
    Text(String),
    Parts(Vec<T>),
}

impl<T> Default for TextOr<T> {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl<T: Serialize> Serialize for TextOr<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Parts(parts) => parts.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = list.next_element()? {
                    parts.push(part);
                }
                Ok(TextOr::Parts(parts))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A word, or an object that says more: what `tool_choice` is on the OpenAI wire.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum WordOr<W, T> {
    Word(W),
    More(T),
}

impl<'de, W: DeserializeOwned, T: DeserializeOwned> Deserialize<'de> for WordOr<W, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`, which would lose what is wrong with either.
        let value = Value::deserialize(deserializer)?;
        let read = match value {
            Value::String(word) => {
                let word: de::value::StringDeserializer<serde_json::Error> =
                    word.into_deserializer();
                W::deserialize(word).map(Self::Word)
            }
            other => T::deserialize(other).map(Self::More),
        };
        read.map_err(de::Error::custom)
    }
}

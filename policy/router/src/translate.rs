//! From one wire to the other: requests, answers and streams. What the other wire cannot say is
//! refused with one sentence; nothing is dropped.

pub(crate) mod answer;
pub(crate) mod request;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

/// What the other wire has no words for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Untranslatable(pub(crate) String);

/// Refuses with a sentence.
pub(crate) fn refuse<T>(sentence: impl Into<String>) -> Result<T, Untranslatable> {
    Err(Untranslatable(sentence.into()))
}

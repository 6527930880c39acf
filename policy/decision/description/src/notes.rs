//! What the record of an act says about conditions.

use crate::{Act, Said};
use std::collections::BTreeMap;

/// Detail of a record: which conditions permit the act.
pub const CONDITIONS: &str = "conditions";
/// Detail of a record of what was done although conditions would deny it: why they would.
pub const WOULD_DENY: &str = "would-deny";
/// Detail of the same: the acts that they would deny, as JSON, where that is not too long.
pub const ACTS: &str = "acts";
/// Longest detail in bytes.
const MAX_BYTES: usize = 4096;

/// Answers about an act that may be done, for its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    permitted: Vec<String>,
    would_deny: Vec<String>,
    acts: Vec<Act>,
}

impl Notes {
    /// Adds what was said of an act.
    pub fn add(&mut self, act: &Act, said: Said) {
        let text = said.ruling.to_string();
        let texts = match said.ruling.is_permitted() {
            true => &mut self.permitted,
            false => {
                self.acts.push(act.clone());
                &mut self.would_deny
            }
        };
        if !texts.contains(&text) {
            texts.push(text);
        }
    }

    /// As details of a record.
    pub fn into_detail(self) -> BTreeMap<String, String> {
        let mut detail = BTreeMap::new();
        for (name, texts) in [(CONDITIONS, self.permitted), (WOULD_DENY, self.would_deny)] {
            if !texts.is_empty() {
                let mut text = texts.join("; ");
                text.truncate(text.floor_char_boundary(MAX_BYTES));
                detail.insert(name.to_owned(), text);
            }
        }
        let acts = match self.acts.is_empty() {
            true => String::new(),
            false => serde_json::to_string(&self.acts).unwrap_or_default(),
        };
        if (1..=MAX_BYTES).contains(&acts.len()) {
            detail.insert(ACTS.to_owned(), acts);
        }
        detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ruling;

    #[test]
    fn what_a_record_says_is_bounded() {
        let mut notes = Notes::default();
        for number in 0..1000 {
            let by = vec![format!("\u{e4}{number}")];
            for (ruling, enforced) in [
                (Ruling::Permitted(by.clone()), true),
                (Ruling::Forbidden(by), false),
            ] {
                notes.add(&Act::Model(number.to_string()), Said { ruling, enforced });
            }
        }
        let detail = notes.into_detail();
        assert!(detail.values().all(|value| value.len() <= MAX_BYTES));
        assert!(detail[WOULD_DENY].starts_with("forbidden by condition \u{e4}0; "));
        assert!(!detail.contains_key(ACTS), "half a list is no list");
        assert!(Notes::default().into_detail().is_empty());
    }
}

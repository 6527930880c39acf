//! What the record of an act says about conditions.

use crate::{Act, Ruling, Said};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Detail of a record: which conditions permit the act.
pub const CONDITIONS: &str = "conditions";
/// Detail of a record of what was done although conditions would deny it: why they would.
pub const WOULD_DENY: &str = "would-deny";
/// Detail of the same: what they would deny, as JSON, where that is not too long; [`denied`] reads it.
const ACTS: &str = "acts";
/// Longest detail in bytes.
const MAX_BYTES: usize = 4096;

/// An act that was done although conditions would deny it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// What was done.
    pub act: Act,
    /// What they say of it.
    pub ruling: Ruling,
}

/// What a record says was done although conditions would deny it; nothing where it does not say what.
pub fn denied(detail: &BTreeMap<String, String>) -> Option<Vec<Denied>> {
    serde_json::from_str(detail.get(ACTS)?).ok()
}

/// Answers about an act that may be done, for its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    permitted: Vec<String>,
    would_deny: Vec<String>,
    denied: Vec<Denied>,
}

impl Notes {
    /// Adds what was said of an act.
    pub fn add(&mut self, act: &Act, said: Said) {
        let text = said.ruling.to_string();
        let texts = match said.ruling.is_permitted() {
            true => &mut self.permitted,
            false => {
                self.denied.push(Denied {
                    act: act.clone(),
                    ruling: said.ruling,
                });
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
        let acts = match self.denied.is_empty() {
            true => String::new(),
            false => serde_json::to_string(&self.denied).unwrap_or_default(),
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

    #[test]
    fn what_would_be_denied_is_told_act_by_act() {
        let mut notes = Notes::default();
        let by = || vec!["x".to_owned()];
        let said = [
            ("a", Ruling::Permitted(by())),
            ("b", Ruling::Forbidden(by())),
            ("c", Ruling::NotPermitted),
        ];
        for (name, ruling) in said.clone() {
            let said = Said {
                ruling,
                enforced: false,
            };
            notes.add(&Act::Model(name.to_owned()), said);
        }
        let detail = notes.into_detail();
        let expected = said.into_iter().skip(1).map(|(name, ruling)| Denied {
            act: Act::Model(name.to_owned()),
            ruling,
        });
        assert_eq!(denied(&detail), Some(expected.collect()));
        for nonsense in ["", "{}", "[{}]"] {
            let detail = BTreeMap::from([(ACTS.to_owned(), nonsense.to_owned())]);
            assert_eq!(denied(&detail), None);
        }
        assert_eq!(denied(&BTreeMap::new()), None);
    }

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

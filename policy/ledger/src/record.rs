//! One record: its canonical JSON (RFC 8785), which is the leaf of the tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_record::{Entry, MAX_ENTRY_BYTES};
use serde::{Deserialize, Serialize};

use crate::tree::Hash;

/// Most bytes of a record: those of its entry, and some hundred around it.
pub(crate) const MAX_RECORD_BYTES: usize = MAX_ENTRY_BYTES + 512;
/// How a record begins that is the first behind a checkpoint.
const AFTER: &[u8] = b"{\"after\":\"";
/// Digits of a hash in there.
const AFTER_DIGITS: usize = 44;

/// A record of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// SHA-256 of the checkpoint before it, in base64; absent where a record is between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What happened.
    pub entry: Entry,
    /// Its place, counted from 0.
    pub index: u64,
    /// When it was written, in milliseconds since 1970.
    pub time: u64,
}

impl Record {
    /// A record behind the checkpoint with the hash `after`, if one is right before it.
    pub fn new(entry: Entry, index: u64, time: u64, after: Option<&Hash>) -> Self {
        Self {
            after: after.map(|hash| STANDARD.encode(hash)),
            entry,
            index,
            time,
        }
    }

    /// Its canonical form.
    ///
    /// # Errors
    /// None that is known: a record is plain data.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_jcs::to_vec(self)
    }

    /// The record that `json` is.
    ///
    /// # Errors
    /// It is none, or not in its canonical form.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let record: Self = serde_json::from_slice(json)?;
        match record.to_json()? == json {
            true => Ok(record),
            false => Err(serde::de::Error::custom("it is not in the canonical form")),
        }
    }
}

/// The index in a record's canonical form, found without parsing all of it.
pub(crate) fn index_of(json: &[u8]) -> Option<u64> {
    let rest = json.strip_suffix(b"}")?;
    let (rest, _) = number_at_end(rest)?;
    let rest = rest.strip_suffix(b",\"time\":")?;
    let (rest, index) = number_at_end(rest)?;
    rest.strip_suffix(b",\"index\":").map(|_| index)
}

/// What is before the digits at the end, and the number they are.
fn number_at_end(text: &[u8]) -> Option<(&[u8], u64)> {
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let (rest, digits) = text.split_at_checked(text.len() - digits.count())?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((rest, number))
}

/// The hash of the checkpoint before it in a record's canonical form, if one is named.
pub(crate) fn after_of(json: &[u8]) -> Option<Hash> {
    let digits = json.strip_prefix(AFTER)?.get(..AFTER_DIGITS)?;
    STANDARD.decode(digits).ok()?.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bulkhead_record::{Kind, Verdict};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub(crate) fn entry(object: &str) -> Entry {
        Entry {
            kind: Kind::Intent,
            actor: "system/partition".to_owned(),
            action: "net.connect".to_owned(),
            object: object.to_owned(),
            verdict: Verdict::Allowed,
            reason: "grant 1".to_owned(),
            intent: None,
            detail: BTreeMap::new(),
        }
    }

    #[test]
    fn the_canonical_form_is_this() {
        let mut entry = entry("a\"\n\u{e9}\u{1}");
        entry.intent = Some(3);
        entry.detail.insert("b".to_owned(), "2".to_owned());
        entry.detail.insert("a".to_owned(), "1".to_owned());
        let record = Record::new(entry, 7, 1_700_000_000_123, Some(&[0; 32]));
        let json = record.to_json().unwrap();
        assert_eq!(
            String::from_utf8(json.clone()).unwrap(),
            "{\"after\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\",\"entry\":{\
             \"action\":\"net.connect\",\"actor\":\"system/partition\",\
             \"detail\":{\"a\":\"1\",\"b\":\"2\"},\"intent\":3,\"kind\":\"intent\",\
             \"object\":\"a\\\"\\n\u{e9}\\u0001\",\"reason\":\"grant 1\",\
             \"verdict\":\"allowed\"},\"index\":7,\"time\":1700000000123}"
        );
        assert_eq!(Record::from_json(&json).unwrap(), record);
        assert_eq!((index_of(&json), after_of(&json)), (Some(7), Some([0; 32])));
        let spaced = [&json[..json.len() - 1], b" }"].concat();
        assert!(Record::from_json(&spaced).is_err());
        assert_eq!(index_of(&spaced), None);
    }

    proptest! {
        #[test]
        fn records_come_back(object in ".*", reason in ".*", index in 0u64..1 << 53, time in 0u64..1 << 53, first in any::<bool>(), detail in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4)) {
            let mut entry = entry(&object);
            entry.reason = reason;
            entry.detail = detail;
            let after = first.then_some([5; 32]);
            let record = Record::new(entry, index, time, after.as_ref());
            let json = record.to_json().unwrap();
            prop_assert_eq!(Record::from_json(&json).unwrap(), record);
            prop_assert_eq!(index_of(&json), Some(index));
            prop_assert_eq!(after_of(&json), after);
        }

        #[test]
        fn nonsense_is_no_record(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (index_of(&json), after_of(&json));
            prop_assert!(Record::from_json(&json).is_err());
        }
    }
}

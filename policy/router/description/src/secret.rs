//! A key's value: wiped when it is dropped, never printed.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// A key's value.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct KeyValue(Zeroizing<String>);

impl KeyValue {
    /// The value, for the one header it goes into.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for KeyValue {
    fn from(value: String) -> Self {
        Self(Zeroizing::new(value))
    }
}

impl Serialize for KeyValue {
    /// Without a copy that nobody would wipe.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyValue")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_does_not_print() {
        let value = KeyValue::from("hunter2".to_owned());
        assert_eq!(
            format!("{value:?} {:?}", Some(&value)),
            "KeyValue Some(KeyValue)"
        );
        assert_eq!(value.expose(), "hunter2");
    }
}

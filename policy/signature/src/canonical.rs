//! Canonical JSON (RFC 8785): one value, one sequence of bytes, so that what was signed can be
//! compared byte by byte.

use serde_json::{Number, Value};

/// Largest whole number that every reader of JSON takes for the same (RFC 7493, section 2.2).
const MAX_EXACT: u64 = (1 << 53) - 1;

/// Why a value or a text has no canonical form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// A number that readers of JSON would round differently.
    #[error("the number {0} is beyond what JSON says exactly (9007199254740991)")]
    Number(String),
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// The text is JSON, in another form than the canonical one.
    #[error("JSON that is not in canonical form")]
    Form,
}

/// The canonical form of `value`.
///
/// # Errors
/// A number in it is not exact.
pub fn to_vec(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    check_numbers(value)?;
    serde_jcs::to_vec(value).map_err(|error| CanonicalError::Syntax(error.to_string()))
}

/// Reads a text that has to be in canonical form: a name twice, another order or a space more is
/// refused.
///
/// # Errors
/// It is not JSON, or not in canonical form.
pub fn from_slice(bytes: &[u8]) -> Result<Value, CanonicalError> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| CanonicalError::Syntax(error.to_string()))?;
    match to_vec(&value)? == bytes {
        true => Ok(value),
        false => Err(CanonicalError::Form),
    }
}

fn check_numbers(value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) if !is_exact(number) => {
            Err(CanonicalError::Number(number.to_string()))
        }
        Value::Array(values) => values.iter().try_for_each(check_numbers),
        Value::Object(map) => map.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}

fn is_exact(number: &Number) -> bool {
    match (number.as_u64(), number.as_i64(), number.as_f64()) {
        (Some(whole), _, _) => whole <= MAX_EXACT,
        (None, Some(whole), _) => whole.unsigned_abs() <= MAX_EXACT,
        (None, None, Some(float)) => float.fract() != 0.0 || float.abs() <= MAX_EXACT as f64,
        (None, None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// RFC 8785, section 3.2.2 and 3.2.3.
    #[test]
    fn the_example_of_the_specification() {
        let text = r#"{
            "numbers": [333333333.33333329, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let expected = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,4.5,0.002,1e-27],\
                        \"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            String::from_utf8(to_vec(&value).unwrap()).unwrap(),
            expected
        );
    }

    /// RFC 8785, section 3.2.3: names are sorted by their UTF-16 code units.
    #[test]
    fn names_are_sorted_as_utf_16() {
        let names = [
            "\u{20ac}",
            "\r",
            "\u{fb33}",
            "1",
            "\u{1f600}",
            "\u{80}",
            "\u{f6}",
        ];
        let map: serde_json::Map<String, Value> = (names.iter())
            .map(|name| ((*name).to_owned(), json!(0)))
            .collect();
        let text = String::from_utf8(to_vec(&Value::Object(map)).unwrap()).unwrap();
        let order = [
            "\\r",
            "1",
            "\u{80}",
            "\u{f6}",
            "\u{20ac}",
            "\u{1f600}",
            "\u{fb33}",
        ];
        let expected: Vec<String> = order.iter().map(|name| format!("\"{name}\":0")).collect();
        assert_eq!(text, format!("{{{}}}", expected.join(",")));
    }

    /// RFC 8785, appendix B.
    #[test]
    fn numbers_as_the_specification_prints_them() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x4340_0000_0000_0000 - 1, "9007199254740991"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
        ] {
            let value = Value::from(f64::from_bits(bits));
            assert_eq!(to_vec(&value).unwrap(), expected.as_bytes(), "{bits:x}");
        }
    }

    #[test]
    fn inexact_numbers_are_refused() {
        let exact = json!([9_007_199_254_740_991_u64, -9_007_199_254_740_991_i64, 0.5]);
        assert!(to_vec(&exact).is_ok());
        for value in [
            json!(9_007_199_254_740_992_u64),
            json!({"a": [u64::MAX]}),
            json!(-9_007_199_254_740_992_i64),
            json!(1e300),
        ] {
            assert!(
                matches!(to_vec(&value), Err(CanonicalError::Number(_))),
                "{value}"
            );
        }
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        assert_eq!(
            from_slice(b"{\"a\":1,\"b\":[]}"),
            Ok(json!({"a": 1, "b": []}))
        );
        for text in [
            "{\"b\":[],\"a\":1}",
            "{\"a\":1, \"b\":[]}",
            "{\"a\":1,\"a\":1}",
            "{\"a\":1.0}",
            "{\"\\u0061\":1}",
            "{\"a\":1}\n",
        ] {
            assert_eq!(
                from_slice(text.as_bytes()),
                Err(CanonicalError::Form),
                "{text}"
            );
        }
        let deep = "[".repeat(100_000);
        for text in ["", "{", "\"\u{0}\"", "nul", deep.as_str()] {
            assert!(matches!(
                from_slice(text.as_bytes()),
                Err(CanonicalError::Syntax(_))
            ));
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<f32>()
                .prop_filter("finite", |f| f.is_finite() && f.abs() < 1e9)
                .prop_map(|f| Value::from(f64::from(f))),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_form_is_its_own(value in any_value()) {
            let text = to_vec(&value).unwrap();
            let again = from_slice(&text).unwrap();
            prop_assert_eq!(to_vec(&again).unwrap(), text);
        }
    }
}

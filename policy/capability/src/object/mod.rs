//! Objects of capabilities, one file a kind: how each is written, and what is narrower than what.

pub(crate) mod network;
pub(crate) mod pattern;
pub(crate) mod pci;
pub(crate) mod ring;
pub(crate) mod spawn;

/// Longest name of a secret, ring or role.
const MAX_NAME: usize = 64;

/// Whether `text` names a secret, a ring or a role: 1 to 64 of letters, digits, `.`, `_` and `-`,
/// the first a letter or digit. Fit for a file name and for one word of a command.
pub fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts = text.bytes().next();
    starts.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.len() <= MAX_NAME
        && text.bytes().all(plain)
}

/// Serde's and the standard library's conversions of a type with a text form.
macro_rules! text_form {
    ($type:ty, $error:ty) => {
        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use text_form;

//! What a guest may ask of a web server: methods and paths, as a grant narrows them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Methods and paths that are allowed. An empty list narrows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    /// Upper-case methods (RFC 9110, section 9), sorted, each once; empty: all but `CONNECT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// Patterns of paths, sorted, each once; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
}

/// A method: 1 to 24 upper-case letters, and not `CONNECT`, which is a proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Method(String);

/// Paths by their segments: `/v1/models` is itself alone, `*` stands for any one segment, and a
/// last segment `**` for any number of them, none included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern {
    segments: Vec<String>,
    /// It ends in `**`.
    below: bool,
}

/// Why a text is no method or pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHttpError {
    /// Not a method.
    #[error("`{0}` is no method; write one such as GET or POST")]
    Method(String),
    /// Not a pattern.
    #[error(
        "`{0}` is no pattern of paths; write one such as /v1/models, /repos/*/issues or /files/**"
    )]
    Path(String),
}

const MAX_PATTERN_BYTES: usize = 1024;

impl FromStr for Method {
    type Err = ParseHttpError;

    fn from_str(text: &str) -> Result<Self, ParseHttpError> {
        let letters = text.bytes().all(|byte| byte.is_ascii_uppercase());
        if !letters || text.is_empty() || text.len() > 24 || text == "CONNECT" {
            return Err(ParseHttpError::Method(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Method {
    /// The method as it stands in a request.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PathPattern {
    type Err = ParseHttpError;

    fn from_str(text: &str) -> Result<Self, ParseHttpError> {
        let wrong = || ParseHttpError::Path(text.to_owned());
        let rest = text.strip_prefix('/').ok_or_else(wrong)?;
        if text.len() > MAX_PATTERN_BYTES {
            return Err(wrong());
        }
        let mut segments: Vec<&str> = rest.split('/').collect();
        let below = segments.last() == Some(&"**");
        if below {
            segments.pop();
        }
        let last = segments.len().saturating_sub(1);
        let plain = |(at, segment): (usize, &&str)| {
            let text = segment
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'?' | b'#' | b'%'));
            // An empty last segment is the path that ends in a slash.
            let present = !segment.is_empty() || (at == last && !below);
            *segment == "*" || (text && present && !matches!(*segment, "." | ".."))
        };
        if !segments.iter().enumerate().all(plain) {
            return Err(wrong());
        }
        Ok(Self {
            segments: segments.into_iter().map(str::to_owned).collect(),
            below,
        })
    }
}

impl PathPattern {
    /// Whether the path of a web request is one of those meant: never one that [could be read in two
    /// ways](is_unambiguous).
    pub fn matches_request(&self, path: &str) -> bool {
        is_unambiguous(path) && self.matches(path)
    }

    /// Whether the path of a file is one of those meant, or of a request that is [known to be
    /// unambiguous](is_unambiguous). One with `..`, `.`, `//` or without a leading slash never is;
    /// escapes are compared as they stand.
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/').filter(|_| is_plain(path)) else {
            return false;
        };
        let mut given = rest.split('/');
        for segment in &self.segments {
            match given.next() {
                Some(found) if segment == found => {}
                Some(found) if segment == "*" && !found.is_empty() => {}
                _ => return false,
            }
        }
        self.below || given.next().is_none()
    }

    /// True when every path that `self` means `other` means too.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        let longer = self.segments.len() >= other.segments.len();
        let ends = other.below || (!self.below && self.segments.len() == other.segments.len());
        let covers = |(a, b): (&String, &String)| a == b || (b == "*" && !a.is_empty());
        longer && ends && self.segments.iter().zip(&other.segments).all(covers)
    }

    /// The pattern of the paths that both mean, if there are any.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let (short, long) = match self.segments.len() <= other.segments.len() {
            true => (self, other),
            false => (other, self),
        };
        let rest = long.segments.get(short.segments.len()..)?;
        if !short.below && !rest.is_empty() {
            return None;
        }
        let both = |(a, b): (&String, &String)| match (a.as_str(), b.as_str()) {
            (same, other) if same == other => Some(a.clone()),
            ("*", one) | (one, "*") if !one.is_empty() => Some(one.to_owned()),
            _ => None,
        };
        let start: Option<Vec<String>> = short
            .segments
            .iter()
            .zip(&long.segments)
            .map(both)
            .collect();
        let mut segments = start?;
        segments.extend(rest.iter().cloned());
        // The longer one says how it ends; where both are as long, each has a say.
        let below = long.below && short.below;
        Some(Self { segments, below })
    }
}

/// Characters that stand for `.`, `/`, `\\`, `;` or `%` once a server has made them compatible.
const LOOKALIKES: [char; 12] = [
    '\u{2024}', '\u{2025}', '\u{2026}', '\u{fe52}', '\u{fe54}', '\u{fe68}', '\u{fe6a}', '\u{ff05}',
    '\u{ff0e}', '\u{ff0f}', '\u{ff1b}', '\u{ff3c}',
];

/// True when every server reads the path of a request (without its query) in the same way. Escapes
/// of characters that a path cannot have otherwise are fine, as in `/a%20b` and `/caf%C3%A9`. Not so:
///
/// - segments that lead elsewhere or nowhere: `..`, `.`, nothing but dots and spaces, `//`;
/// - `;`, before which some servers end a segment, and backslashes, which some take for slashes;
/// - escapes of those, of letters, digits and controls, which need none; of `%`, which some undo twice;
///   of bytes that are no UTF-8, as the long forms of a dot; and escapes that are not whole.
pub fn is_unambiguous(path: &str) -> bool {
    if !is_plain(path) || path.contains([';', '\\']) {
        return false;
    }
    path.split('/').all(|segment| {
        let Some(text) = unescaped(segment) else {
            return false;
        };
        let odd = |c: char| c.is_control() || LOOKALIKES.contains(&c);
        let nothing = !text.is_empty() && text.chars().all(|c| matches!(c, '.' | ' '));
        !nothing && !text.chars().any(odd)
    })
}

/// A segment without its escapes, if each of them is whole and needed.
fn unescaped(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok();
        let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"./\\;%".contains(&byte) {
            return None;
        }
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// True when the path names one place by segments that are all there.
fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["%2f", "%5c", "%2e", "%00", "//", "\\"];
    !ambiguous.iter().any(|part| lower.contains(part))
        && path.split('/').all(|part| !matches!(part, "." | ".."))
        && path.bytes().all(|byte| byte.is_ascii_graphic())
}

impl HttpRule {
    /// Whether a request of `method` for `path` (without query) is allowed.
    pub fn allows(&self, method: &str, path: &str) -> bool {
        let method = match self.methods.is_empty() {
            true => method != "CONNECT",
            false => self.methods.iter().any(|allowed| allowed.0 == method),
        };
        method && (self.paths.is_empty() || self.paths.iter().any(|p| p.matches_request(path)))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{segment}")?;
        }
        f.write_str(if self.below { "/**" } else { "" })
    }
}

impl TryFrom<String> for Method {
    type Error = ParseHttpError;

    fn try_from(text: String) -> Result<Self, ParseHttpError> {
        text.parse()
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.0
    }
}

impl TryFrom<String> for PathPattern {
    type Error = ParseHttpError;

    fn try_from(text: String) -> Result<Self, ParseHttpError> {
        text.parse()
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_say() {
        for (pattern, path, expected) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/v1/models", "/v1/models", true),
            ("/v1/models", "/v1/models/", false),
            ("/v1/", "/v1/", true),
            ("/v1/", "/v1", false),
            ("/v1/*", "/v1/a", true),
            ("/v1/*", "/v1/", false),
            ("/v1/*", "/v1/a/b", false),
            ("/v1/**", "/v1", true),
            ("/v1/**", "/v1/", true),
            ("/v1/**", "/v1/a/b", true),
            ("/v1/**", "/v2/a", false),
            ("/**", "/", true),
            ("/**", "/a//b", false),
            ("/a/**", "/a/../b", false),
            ("/a/**", "/a/%2e%2E/b", false),
            ("/a/**", "/a%2fb", false),
            ("/a/**", "/a/b%20c", true),
            ("/a/**", "a/b", false),
        ] {
            let parsed: PathPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(path), expected, "{pattern} {path}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for wrong in [
            "", "a", "/a//b", "/../a", "/a/./b", "/a*", "/**/a", "/a?b", "/a%2fb",
        ] {
            assert!(wrong.parse::<PathPattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_servers_read_in_two_ways_is_in_no_pattern() {
        let pattern: PathPattern = "/a/**".parse().unwrap();
        for plain in [
            "/a",
            "/a/",
            "/a/b%20c",
            "/a/caf%C3%A9",
            "/a/b.c..d",
            "/a/main...next",
            "/a/x@1.2:y,z=+&!",
            "/a/%5Bid%5D",
            "/a/%E2%82%AC",
            "/a/~b",
            "/a/%7Eb",
            "/a/.git",
            "/a/...b",
            "/a/%23%3F",
        ] {
            assert!(pattern.matches_request(plain), "{plain}");
        }
        for odd in [
            "/a/..;/b",
            "/a/.;/b",
            "/a/b;x=1/c",
            "/a/b;",
            "/a/..%3b/b",
            "/a/b%3Bc",
            "/a/%252e%252e/b",
            "/a/%25",
            "/a/%2525",
            "/a/b%25u002e",
            "/a/%c0%ae%c0%ae/b",
            "/a/%C0%AF",
            "/a/%e0%80%ae",
            "/a/%f0%80%80%ae",
            "/a/%E9",
            "/a/%u002e%u002e/b",
            "/a/%",
            "/a/%2",
            "/a/%zz",
            "/a/%+1",
            "/a/%c3",
            "/a/%2e%2e/b",
            "/a/%2E",
            "/a/b%2fc",
            "/a/b%5cc",
            "/a\\b",
            "/a/..\\b",
            "/a/%61",
            "/a/b%41",
            "/a/%39",
            "/a/%00",
            "/a/b%0d%0a",
            "/a/%7f",
            "/a/%c2%85",
            "/a/..",
            "/a/./b",
            "/a//b",
            "/a/.../b",
            "/a/..%20/b",
            "/a/%20",
            "/a/.%20./b",
            "/a/%ef%bc%8e%ef%bc%8e/b",
            "/a/%ef%bc%8fb",
            "/a/%ef%bc%bcb",
            "/a/%e2%80%a4",
            "/a/%e2%80%a5/b",
            "/a/\u{e9}",
            "/a/b c",
            "a/b",
        ] {
            assert!(!pattern.matches_request(odd), "{odd}");
        }
        let rule = HttpRule {
            paths: vec![pattern],
            ..HttpRule::default()
        };
        assert!(rule.allows("GET", "/a/b") && !rule.allows("GET", "/a/..;/b"));
        assert!(
            HttpRule::default().allows("GET", "/a/..;/b"),
            "not narrowed"
        );
    }

    #[test]
    fn narrower_patterns() {
        for (a, b, expected) in [
            ("/a", "/a", true),
            ("/a", "/*", true),
            ("/*", "/a", false),
            ("/a/b", "/a/**", true),
            ("/a", "/a/**", true),
            ("/a/**", "/a/*", false),
            ("/a/b/**", "/a/**", true),
            ("/a/**", "/a/b/**", false),
            ("/*/b", "/**", true),
            ("/", "/*", false),
        ] {
            let (a, b): (PathPattern, PathPattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.is_narrower_or_equal(&b), expected, "{a} {b}");
        }
    }

    #[test]
    fn both_patterns_at_once() {
        for (a, b, both) in [
            ("/a", "/*", Some("/a")),
            ("/a/**", "/*/b", Some("/a/b")),
            ("/a/**", "/a/b/**", Some("/a/b/**")),
            ("/*/b/**", "/a/**", Some("/a/b/**")),
            ("/a/**", "/a", Some("/a")),
            ("/a/*", "/*/b", Some("/a/b")),
            ("/a/**", "/a/", Some("/a/")),
            ("/*", "/", None),
            ("/a", "/a/b", None),
            ("/a/**", "/b/**", None),
            ("/a/b/**", "/a", None),
        ] {
            let parse = |text: &str| text.parse::<PathPattern>().unwrap();
            let expected = both.map(parse);
            assert_eq!(parse(a).intersect(&parse(b)), expected, "{a} {b}");
            assert_eq!(parse(b).intersect(&parse(a)), expected, "{b} {a}");
        }
    }
}

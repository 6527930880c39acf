//! Secrets that the guest never sees: it holds a placeholder, and the server gets the value. Used
//! where a request has been decided and is about to be sent.

use bulkhead_network::http::PathPattern;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

/// A secret with its value.
pub struct Secret {
    /// Its name.
    pub name: String,
    /// What the guest holds.
    pub placeholder: String,
    /// What the server gets.
    pub value: Zeroizing<Vec<u8>>,
    /// Which server.
    pub host: String,
    /// At which of its ports.
    pub port: u16,
    /// In which header.
    pub header: HeaderName,
    /// Under which paths; none: any.
    pub paths: Vec<PathPattern>,
}

impl Secret {
    fn is_for(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }
}

/// A partition's secrets.
#[derive(Default)]
pub struct Secrets(Vec<Secret>);

/// What became of the placeholders in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swapped {
    /// Names of secrets whose value is in the request now.
    pub used: Vec<String>,
    /// Names of secrets whose placeholder stands where it means nothing, and was left.
    pub left: Vec<String>,
}

impl Secrets {
    /// These.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self(secrets)
    }

    /// Whether one is bound to this port of `host`.
    pub fn has(&self, host: &str, port: u16) -> bool {
        self.0.iter().any(|secret| secret.is_for(host, port))
    }

    /// Puts values in the place of placeholders in a request for `path` to a server, its host and port.
    /// `private` says that nobody between can read it.
    pub fn swap(
        &self,
        headers: &mut HeaderMap,
        (host, port): (&str, u16),
        path: &str,
        private: bool,
    ) -> Swapped {
        let mut swapped = Swapped::default();
        for secret in &self.0 {
            let bound = private
                && secret.is_for(host, port)
                && (secret.paths.is_empty()
                    || secret.paths.iter().any(|p| p.matches_request(path)));
            let (mut used, mut left) = (false, false);
            for (name, value) in headers.iter_mut() {
                if find(value.as_bytes(), secret.placeholder.as_bytes()).is_none() {
                    continue;
                }
                let new = match bound && *name == secret.header {
                    true => replaced(value, secret.placeholder.as_bytes(), &secret.value),
                    false => None,
                };
                match new {
                    Some(new) => {
                        *value = new;
                        used = true;
                    }
                    None => left = true,
                }
            }
            swapped.used.extend(used.then(|| secret.name.clone()));
            swapped.left.extend(left.then(|| secret.name.clone()));
        }
        swapped
    }

    /// Puts placeholders in the place of values in the headers of what `host` answers, so that one
    /// that repeats a request's headers does not tell the guest.
    pub fn hide(&self, headers: &mut HeaderMap, host: &str) {
        for secret in self.0.iter().filter(|secret| secret.host == host) {
            for value in headers.values_mut() {
                if find(value.as_bytes(), &secret.value).is_some()
                    && let Some(new) = replaced(value, &secret.value, secret.placeholder.as_bytes())
                {
                    *value = new;
                }
            }
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    match part.is_empty() {
        true => None,
        false => bytes.windows(part.len()).position(|window| window == part),
    }
}

/// `value` with each `old` made `new`; `None` where that is no value of a header.
fn replaced(value: &HeaderValue, old: &[u8], new: &[u8]) -> Option<HeaderValue> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(value.len() + new.len()));
    let mut rest = value.as_bytes();
    while let Some(at) = find(rest, old) {
        bytes.extend_from_slice(rest.get(..at).unwrap_or_default());
        bytes.extend_from_slice(new);
        rest = rest.get(at + old.len()..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest);
    let mut value = HeaderValue::from_bytes(&bytes).ok()?;
    // Kept out of debugging output and of the compression tables of HTTP/2.
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACEHOLDER: &str = "bulkhead-secret-0123456789abcdef";

    fn secrets(paths: &[&str]) -> Secrets {
        Secrets::new(vec![Secret {
            name: "key".into(),
            placeholder: PLACEHOLDER.into(),
            value: Zeroizing::new(b"s3cret-value".to_vec()),
            host: "api.example".into(),
            port: 443,
            header: HeaderName::from_static("authorization"),
            paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
        }])
    }

    fn request(header: &'static str) -> HeaderMap {
        let value = format!("Bearer {PLACEHOLDER}");
        HeaderMap::from_iter([(
            HeaderName::from_static(header),
            HeaderValue::from_str(&value).unwrap(),
        )])
    }

    #[test]
    fn the_value_goes_to_its_server_header_and_path_alone() {
        let server = ("api.example", 443);
        for (to, header, path, private, swapped) in [
            (server, "authorization", "/v1/x", true, true),
            (("evil.example", 443), "authorization", "/v1/x", true, false),
            (("api.example", 8443), "authorization", "/v1/x", true, false),
            (server, "x-copy", "/v1/x", true, false),
            (server, "authorization", "/v2/x", true, false),
            (server, "authorization", "/v1/../v2", true, false),
            (server, "authorization", "/v1/x", false, false),
        ] {
            let mut headers = request(header);
            let result = secrets(&["/v1/**"]).swap(&mut headers, to, path, private);
            let found = headers[header].to_str().unwrap();
            let expected = match swapped {
                true => "Bearer s3cret-value".to_owned(),
                false => format!("Bearer {PLACEHOLDER}"),
            };
            assert_eq!(found, expected, "{to:?} {header} {path} {private}");
            assert_eq!(
                (result.used.len(), result.left.len()),
                match swapped {
                    true => (1, 0),
                    false => (0, 1),
                }
            );
            assert_eq!(headers[header].is_sensitive(), swapped);
        }
        let mut none = HeaderMap::new();
        let nothing = secrets(&[]).swap(&mut none, server, "/", true);
        assert_eq!(nothing, Swapped::default());
    }

    #[test]
    fn a_value_that_comes_back_is_a_placeholder_again() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "x-echo",
            HeaderValue::from_static("Bearer s3cret-value, s3cret-value"),
        );
        secrets(&[]).hide(&mut headers, "api.example");
        let expected = format!("Bearer {PLACEHOLDER}, {PLACEHOLDER}");
        assert_eq!(headers["x-echo"].to_str().unwrap(), expected);
    }
}

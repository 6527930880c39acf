//! Where a provider is: `https://host:port/path`, or plain HTTP on this machine's loopback.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What comes before `/chat/completions` or `/messages` in the address of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseUrl {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// A name in lower case, or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Empty, or a path that starts with a slash and does not end in one.
    pub path: String,
}

/// Why a text is no base URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseUrlError {
    /// Not of this form.
    #[error("`{}` is no base URL; write one such as https://api.example.com/v1", .0.escape_debug())]
    Form(String),
    /// Keys and prompts would cross a network in the clear.
    #[error("`{0}` is plain HTTP to another machine; write https, or an address of the loopback")]
    Clear(String),
}

impl BaseUrl {
    /// The address, if the host is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self.host.as_str() {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host.parse().ok(),
        }
    }

    /// Host and port as they stand in a URL and a `Host` header; the port only if it is not the
    /// scheme's own.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == default_port(self.tls) {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl FromStr for BaseUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, ParseUrlError> {
        let wrong = || ParseUrlError::Form(text.chars().take(120).collect());
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong()),
        };
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = path.strip_suffix('/').unwrap_or(path);
        let segment = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let segments = path.strip_prefix('/').map(|path| path.split('/'));
        let good_path = segments.is_none_or(|mut segments| {
            segments.all(|part| plain(part) && part.bytes().all(segment))
        });
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(wrong)?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(wrong)?,
            None if port.is_empty() => default_port(tls),
            None => return Err(wrong()),
        };
        let host = host.to_ascii_lowercase();
        let good_host = match authority.starts_with('[') {
            true => host.parse::<std::net::Ipv6Addr>().is_ok(),
            false => is_name(&host),
        };
        if !good_host || !good_path || text.len() > 1024 {
            return Err(wrong());
        }
        let url = Self {
            tls,
            host,
            port,
            path: path.to_owned(),
        };
        if !tls && !url.address().is_some_and(|address| address.is_loopback()) {
            return Err(ParseUrlError::Clear(text.to_owned()));
        }
        Ok(url)
    }
}

/// A name of labels, or an IPv4 address, which looks like one.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl TryFrom<String> for BaseUrl {
    type Error = ParseUrlError;

    fn try_from(text: String) -> Result<Self, ParseUrlError> {
        text.parse()
    }
}

impl From<BaseUrl> for String {
    fn from(url: BaseUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_and_print() {
        for (text, printed, port) in [
            (
                "https://api.example.com/v1",
                "https://api.example.com/v1",
                443,
            ),
            ("https://API.example.com/", "https://api.example.com", 443),
            (
                "https://api.example.com:443/a/b/",
                "https://api.example.com/a/b",
                443,
            ),
            ("https://192.0.2.1:8443", "https://192.0.2.1:8443", 8443),
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1", 8080),
            ("http://[::1]:8080", "http://[::1]:8080", 8080),
            ("http://localhost", "http://localhost", 80),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.port),
                (printed, port),
                "{text}"
            );
            assert_eq!(printed.parse(), Ok(url));
        }
        for wrong in [
            "",
            "api.example.com",
            "ftp://a",
            "https://",
            "https://a b",
            "https://a/../b",
            "https://a//b",
            "https://a?x",
            "https://a:0",
            "https://a:70000",
            "https://u@a",
            "https://[::1",
            "https://[a]",
            "https://a/%2e",
            "https://-a.example",
            "https://a:",
        ] {
            assert!(
                matches!(wrong.parse::<BaseUrl>(), Err(ParseUrlError::Form(_))),
                "{wrong}"
            );
        }
        for clear in [
            "http://api.example.com",
            "http://192.168.1.2:8080",
            "http://localhost.example",
        ] {
            assert!(
                matches!(clear.parse::<BaseUrl>(), Err(ParseUrlError::Clear(_))),
                "{clear}"
            );
        }
    }
}

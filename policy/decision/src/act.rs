//! An act as people write it, on the command line or in a file of cases.

use bulkhead_capability::{Capability, ParseCapabilityError};
use bulkhead_conditions::Act;
use bulkhead_network::Host;
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// An act by its parts, of which exactly one says what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActDraft {
    /// `HOST:PORT`, `tcp:HOST:PORT` or `udp:HOST:PORT`.
    pub net: Option<String>,
    /// The address that the name of `net` stands for.
    pub address: Option<Ipv4Addr>,
    /// Method of a web request, with `net`; `GET` if only a path is given.
    pub method: Option<String>,
    /// Its path; `/` if only a method is given.
    pub path: Option<String>,
    /// A name to resolve.
    pub dns: Option<String>,
    /// A tool.
    pub tool: Option<String>,
    /// The paths among its arguments.
    pub paths: Vec<PathBuf>,
    /// A secret.
    pub secret: Option<String>,
    /// A model.
    pub model: Option<String>,
    /// A file or directory of the host.
    pub file: Option<PathBuf>,
    /// With `file`: it is changed.
    pub write: bool,
    /// A program.
    pub exec: Option<String>,
    /// `ROLE` or `ROLE=COUNT`.
    pub spawn: Option<String>,
}

/// Why parts are no act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseActError {
    /// None says what it is, or several do.
    #[error("an act is exactly one of net, dns, tool, secret, model, file, exec and spawn")]
    NotOne,
    /// A part that belongs to another.
    #[error("`{0}` means nothing without `{1}`")]
    Without(&'static str, &'static str),
    /// The object is malformed.
    #[error(transparent)]
    Object(#[from] ParseCapabilityError),
    /// More hosts or ports than one.
    #[error("`{0}` is more than one place; write HOST:PORT")]
    NotOnePlace(String),
}

impl TryFrom<ActDraft> for Act {
    type Error = ParseActError;

    fn try_from(draft: ActDraft) -> Result<Self, ParseActError> {
        let ActDraft {
            net,
            address,
            method,
            path,
            dns,
            tool,
            paths,
            secret,
            model,
            file,
            write,
            exec,
            spawn,
        } = draft;
        for (part, written, whole, present) in [
            ("address", address.is_some(), "net", net.is_some()),
            ("method", method.is_some(), "net", net.is_some()),
            ("path", path.is_some(), "net", net.is_some()),
            ("paths", !paths.is_empty(), "tool", tool.is_some()),
            ("write", write, "file", file.is_some()),
        ] {
            if written && !present {
                return Err(ParseActError::Without(part, whole));
            }
        }
        let http = match (method, path) {
            (None, None) => None,
            (method, path) => Some((
                method.unwrap_or_else(|| "GET".to_owned()),
                path.unwrap_or_else(|| "/".to_owned()),
            )),
        };
        let file = file.map(|path| Self::File { path, write });
        let acts = [
            net.map(|net| connect(&net, address, http)).transpose()?,
            dns.map(Self::Resolve),
            tool.map(|tool| Self::Tool(tool, paths)),
            secret.map(Self::Secret),
            model.map(Self::Model),
            file,
            exec.map(Self::Exec),
            spawn.map(|spawn| role(&spawn)).transpose()?,
        ];
        let mut acts = acts.into_iter().flatten();
        match (acts.next(), acts.next()) {
            (Some(act), None) => Ok(act),
            _ => Err(ParseActError::NotOne),
        }
    }
}

fn connect(
    net: &str,
    known: Option<Ipv4Addr>,
    http: Option<(String, String)>,
) -> Result<Act, ParseActError> {
    let rule = match format!("net.connect:{net}").parse()? {
        Capability::NetConnect(rule) if rule.ports.first == rule.ports.last => rule,
        _ => return Err(ParseActError::NotOnePlace(net.to_owned())),
    };
    let (name, address) = match rule.host {
        Host::Name(name) => (Some(name), known),
        Host::Subnet {
            address,
            prefix: 32,
        } => (None, Some(address)),
        _ => return Err(ParseActError::NotOnePlace(net.to_owned())),
    };
    Ok(Act::Connect {
        protocol: rule.protocol,
        name,
        address,
        port: rule.ports.first,
        http,
    })
}

fn role(text: &str) -> Result<Act, ParseActError> {
    match format!("partition.spawn:{text}").parse()? {
        Capability::PartitionSpawn(spawn) => Ok(Act::Spawn(spawn.role().to_owned(), spawn.count())),
        _ => Err(ParseActError::NotOne),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_is_one_thing() {
        let net = |net: &str| ActDraft {
            net: Some(net.to_owned()),
            ..ActDraft::default()
        };
        for (text, shown) in [
            ("a.org:443", Some("net.connect tcp:a.org:443")),
            ("udp:10.0.0.1:53", Some("net.connect udp:10.0.0.1:53")),
            ("*.a.org:443", None),
            ("a.org:1-2", None),
            ("10.0.0.0/8:80", None),
            ("a.org", None),
        ] {
            let act = Act::try_from(net(text)).ok();
            assert_eq!(
                act.map(|act| act.request().to_string()).as_deref(),
                shown,
                "{text}"
            );
        }
        let path = ActDraft {
            path: Some("/x".to_owned()),
            ..net("a.org:443")
        };
        let act = Act::try_from(path).unwrap();
        assert_eq!(
            act.request().to_string(),
            "net.connect tcp:a.org:443 GET /x"
        );
        let two = ActDraft {
            tool: Some("fs.read".to_owned()),
            ..net("a.org:443")
        };
        assert_eq!(Act::try_from(two), Err(ParseActError::NotOne));
        assert_eq!(
            Act::try_from(ActDraft::default()),
            Err(ParseActError::NotOne)
        );
        let stray = ActDraft {
            method: Some("GET".to_owned()),
            tool: Some("fs.read".to_owned()),
            ..ActDraft::default()
        };
        assert_eq!(
            Act::try_from(stray),
            Err(ParseActError::Without("method", "net"))
        );
        let spawn = ActDraft {
            spawn: Some("worker=0".to_owned()),
            ..ActDraft::default()
        };
        assert!(matches!(
            Act::try_from(spawn),
            Err(ParseActError::Object(_))
        ));
    }
}

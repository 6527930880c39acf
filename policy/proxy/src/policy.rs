//! What a partition may ask of web servers, and why not. Pure decisions: nothing here waits, and
//! nothing else in this crate decides.

use std::net::Ipv4Addr;
use std::time::Instant;

use bulkhead_conditions::Ruling;
use bulkhead_network::http::is_unambiguous;
use bulkhead_network::{Connect, Deny, Host, Protocol};

use crate::conditions::Connection;
use crate::quota::{Exhausted, Quotas};
use crate::secrets::Secrets;

/// A TCP connection of the guest, as the packets show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The socket that it is to reach.
    pub to: std::net::SocketAddr,
    /// The port that the guest connects to.
    pub port: u16,
    /// The address that it connects to; `None` for the router's, where local services are.
    pub address: Option<Ipv4Addr>,
    /// Rules that speak of the address count: not so where it is the address of a name that is denied.
    pub by_address: bool,
    /// The names that stand for the address and that a rule grants for this port.
    pub names: Box<[String]>,
    /// All names that stand for the address.
    pub pinned: Box<[String]>,
}

/// A partition's rules and secrets.
pub struct Policy {
    allow: Vec<Connect>,
    deny: Deny,
    secrets: Secrets,
    quotas: Quotas,
    started: Instant,
}

/// A grant that allows something.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'p> {
    /// For records: which.
    pub grant: &'p Connect,
}

impl Allowed<'_> {
    /// What conditions are asked about a connection or request for `host`; without one, about any that
    /// the flow may be for.
    pub fn connection(
        &self,
        flow: &Flow,
        host: Option<&str>,
        http: Option<(&str, &str)>,
    ) -> Connection {
        let stands = |name: &str| flow.pinned.iter().any(|pinned| pinned == name);
        let (names, claimed) = match host {
            None => (flow.names.to_vec(), Vec::new()),
            Some(host) if host.parse::<Ipv4Addr>().is_ok() => (Vec::new(), flow.pinned.to_vec()),
            Some(name) if stands(name) => (vec![name.to_owned()], Vec::new()),
            Some(name) => (Vec::new(), vec![name.to_owned()]),
        };
        let allows = |address| self.grant.rule.host.allows(address);
        Connection {
            protocol: Protocol::Tcp,
            address: flow.address,
            port: flow.port,
            names,
            claimed,
            by_address: flow.address.filter(|_| flow.by_address).is_some_and(allows),
            http: http.map(|(method, path)| (method.to_owned(), path.to_owned())),
        }
    }
}

/// What to do with a connection whose first bytes are known.
#[derive(Clone, Copy, Debug)]
pub enum Treatment<'p> {
    /// Look into each request.
    Intercept,
    /// Hand on bytes.
    Tunnel(Allowed<'p>),
}

/// Why a connection or a request is refused. Its text goes to the guest, to people and into records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule allows the request.
    #[error(
        "no rule allows {method} {path} at {host}:{port}; net.connect:tcp:{host}:{port} with methods = \
         [\"{method}\"] and paths = [\"{path}\"] would allow it"
    )]
    Request {
        /// As it was asked.
        method: String,
        /// Without the query.
        path: String,
        /// Whose.
        host: String,
        /// Where.
        port: u16,
    },
    /// Servers could read the path in different ways, and what is granted depends on it.
    #[error(
        "servers may read the path {path} in different ways, and the grants for {host}:{port} narrow \
         paths; one without `..`, `;`, `//` and needless escapes can be decided"
    )]
    Ambiguous {
        /// Without the query.
        path: String,
        /// Whose.
        host: String,
        /// Where.
        port: u16,
    },
    /// The rules grant the address for other names.
    #[error(
        "{host} did not resolve to this address under a rule; net.connect:tcp:{host}:{port} would \
         allow it"
    )]
    Name {
        /// Whom it asks for.
        host: String,
        /// Where.
        port: u16,
    },
    /// One server in TLS, another in the request.
    #[error("the request is for {asked}, and the connection was made to {granted}")]
    OtherHost {
        /// In the request.
        asked: String,
        /// In TLS, or where the guest connected to.
        granted: String,
    },
    /// A request that no server gets through here.
    #[error("{0} is never forwarded")]
    Never(&'static str),
    /// A person did not consent to what takes that.
    #[error("it takes a person's consent, and there was none: {0}")]
    NoConsent(String),
    /// An amount is used up.
    #[error(transparent)]
    Quota(#[from] Exhausted),
    /// The grants allow it, and the conditions do not.
    #[error("{0}")]
    Condition(Ruling),
    /// The first bytes are malformed, or do not come.
    #[error("the connection begins with nothing that can be read")]
    Unreadable,
}

impl Policy {
    /// The rules `allow`, except for what `deny` says; they are counted against `quotas`.
    pub fn new(allow: Vec<Connect>, deny: Deny, quotas: Quotas, secrets: Secrets) -> Self {
        Self {
            allow,
            deny,
            secrets,
            quotas,
            started: Instant::now(),
        }
    }

    /// The amounts.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The secrets.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Whether what allowed something still does.
    pub(crate) fn holds(&self, allowed: Allowed<'_>) -> bool {
        !allowed.grant.is_over(self.started.elapsed().as_secs())
    }

    /// The grants that speak of this flow, when it is for the server `host`.
    fn grants<'p>(&'p self, flow: &'p Flow, host: &'p str) -> impl Iterator<Item = &'p Connect> {
        let seconds = self.started.elapsed().as_secs();
        let pinned = flow.names.iter().any(|name| name == host);
        let denied = self.deny.denies_name(Protocol::Tcp, host, flow.port);
        self.allow.iter().filter(move |grant| {
            let rule = &grant.rule;
            let address = flow.address.filter(|_| flow.by_address);
            let by_address = address.is_some_and(|address| rule.host.allows(address));
            let by_name = pinned && rule.host != Host::Any && rule.host.names(host);
            rule.protocol == Protocol::Tcp
                && rule.ports.contains(flow.port)
                && (by_address || by_name)
                && !grant.is_over(seconds)
                && !denied
        })
    }

    /// What to do with a connection that asks for `host` by TLS, or for nobody.
    ///
    /// # Errors
    /// No rule grants it.
    pub fn tls<'p>(&'p self, flow: &'p Flow, host: &'p str) -> Result<Treatment<'p>, Refusal> {
        let mut grants = self.grants(flow, host).peekable();
        if grants.peek().is_none() {
            let (host, port) = (host.to_owned(), flow.port);
            return Err(Refusal::Name { host, port });
        }
        match whole(grants) {
            Some(grant) if !self.secrets.has(host, flow.port) => {
                Ok(Treatment::Tunnel(Allowed { grant }))
            }
            _ => Ok(Treatment::Intercept),
        }
    }

    /// What to do with a connection that does not begin with TLS.
    pub fn plain<'p>(&'p self, flow: &'p Flow) -> Treatment<'p> {
        // A local service may get a secret in the clear.
        let has = |name: &String| self.secrets.has(name, flow.port);
        let secret = flow.address.is_none() && flow.names.iter().any(has);
        // Where names share the address, the bytes may be for one that is narrowed.
        let any = |host| whole(self.grants(flow, host));
        let by_address = any("");
        let by_names = || {
            let mut grants = flow.names.iter().map(|name| any(name.as_str()));
            let first = grants.next()??;
            // The one for which the most is asked.
            grants.try_fold(first, |most, grant| {
                let grant = grant?;
                Some(if most.approval { most } else { grant })
            })
        };
        match by_address.or_else(by_names) {
            Some(grant) if !secret => Treatment::Tunnel(Allowed { grant }),
            _ => Treatment::Intercept,
        }
    }

    /// Decides on a request of `method` for `path`, which is without its query, and counts it.
    ///
    /// # Errors
    /// Why not.
    pub fn request<'p>(
        &'p self,
        flow: &'p Flow,
        host: &'p str,
        method: &str,
        path: &str,
    ) -> Result<Allowed<'p>, Refusal> {
        if method == "CONNECT" {
            return Err(Refusal::Never("CONNECT, which is for a proxy,"));
        }
        let allowed = self.grants(flow, host).filter(|grant| match &grant.http {
            Some(http) => http.allows(method, path),
            None => true,
        });
        let mut allowed: Vec<&Connect> = allowed.collect();
        // Nobody is asked where another grant allows the same.
        allowed.sort_by_key(|grant| grant.approval);
        let mut allowed = allowed.into_iter();
        let Some(first) = allowed.next() else {
            let (path, host, port) = (path.to_owned(), host.to_owned(), flow.port);
            if !is_unambiguous(&path) && self.grants(flow, &host).next().is_some() {
                return Err(Refusal::Ambiguous { path, host, port });
            }
            return Err(Refusal::Request {
                method: method.to_owned(),
                path,
                host,
                port,
            });
        };
        let refused = match self.quotas.call(&first.quotas) {
            Ok(()) => return Ok(Allowed { grant: first }),
            Err(exhausted) => exhausted,
        };
        // Another grant of the same may have something left.
        let other = allowed.find(|grant| self.quotas.call(&grant.quotas).is_ok());
        other.map(|grant| Allowed { grant }).ok_or(refused.into())
    }
}

/// Of the grants for a host, the one by which its bytes are handed on as they are; none where requests
/// are decided.
fn whole<'p>(grants: impl Iterator<Item = &'p Connect>) -> Option<&'p Connect> {
    let (narrowed, whole): (Vec<_>, Vec<_>) = grants.partition(|grant| grant.http.is_some());
    let least = whole.into_iter().min_by_key(|grant| grant.approval);
    // Where some requests take nobody's consent, a person is asked for the others alone.
    least.filter(|grant| !grant.approval || narrowed.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_network::Quota;
    use bulkhead_network::http::HttpRule;

    fn narrowed(rule: &str, methods: &[&str], paths: &[&str]) -> Connect {
        let mut connect: Connect = rule.parse().unwrap();
        connect.http = Some(HttpRule {
            methods: methods.iter().map(|m| m.parse().unwrap()).collect(),
            paths: paths.iter().map(|p| p.parse().unwrap()).collect(),
        });
        connect
    }

    fn policy(allow: Vec<Connect>) -> Policy {
        Policy::new(allow, Deny::default(), Quotas::new(&[]), Secrets::default())
    }

    fn flow(address: &str, names: &[&str], port: u16) -> Flow {
        let address: Ipv4Addr = address.parse().unwrap();
        Flow {
            to: (address, port).into(),
            port,
            address: Some(address),
            by_address: true,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            pinned: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn requests_are_decided_by_host_method_and_path() {
        let policy = policy(vec![
            narrowed("tcp:api.example:443", &["GET"], &["/v1/**"]),
            narrowed("tcp:api.example:443", &["POST"], &["/v1/chat"]),
            narrowed("tcp:*.files.example:443", &[], &[]),
        ]);
        let flow = flow("192.0.2.1", &["api.example", "a.files.example"], 443);
        for (host, method, path, expected) in [
            ("api.example", "GET", "/v1/models", true),
            ("api.example", "POST", "/v1/chat", true),
            ("api.example", "POST", "/v1/models", false),
            ("api.example", "GET", "/v2", false),
            ("api.example", "GET", "/v1/../v2", false),
            ("a.files.example", "DELETE", "/x", true),
            ("a.files.example", "CONNECT", "/", false),
            ("b.files.example", "GET", "/", false),
            ("evil.example", "GET", "/v1/models", false),
        ] {
            let verdict = policy.request(&flow, host, method, path);
            assert_eq!(verdict.is_ok(), expected, "{host} {method} {path}");
        }
        let refusal = policy
            .request(&flow, "api.example", "PUT", "/v1/x")
            .unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "no rule allows PUT /v1/x at api.example:443; net.connect:tcp:api.example:443 with \
             methods = [\"PUT\"] and paths = [\"/v1/x\"] would allow it"
        );
        let other_port = Flow { port: 80, ..flow };
        assert!(
            policy
                .request(&other_port, "api.example", "GET", "/v1/models")
                .is_err()
        );
    }

    #[test]
    fn an_address_is_granted_under_any_name_and_a_name_under_none() {
        let policy = policy(vec![
            narrowed("tcp:192.0.2.0/24:80", &["GET"], &[]),
            narrowed("tcp:10.0.0.0/8:80", &["GET"], &[]),
        ]);
        let there = flow("192.0.2.1", &[], 80);
        assert!(policy.request(&there, "192.0.2.1", "GET", "/").is_ok());
        assert!(policy.request(&there, "x.example", "GET", "/").is_ok());
        let router = Flow {
            address: None,
            ..flow("10.0.2.2", &[], 80)
        };
        assert!(policy.request(&router, "10.0.2.2", "GET", "/").is_err());
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_not_decided() {
        let there = flow("192.0.2.1", &["api.example"], 443);
        let narrow = policy(vec![narrowed("tcp:api.example:443", &[], &["/a/**"])]);
        for path in ["/a/..;/b", "/a/%252e%252e/b", "/a/%c0%ae/b", "/a/x%3by"] {
            let refusal = narrow.request(&there, "api.example", "GET", path);
            let refusal = refusal.unwrap_err().to_string();
            assert!(
                refusal.starts_with(&format!("servers may read the path {path} ")),
                "{refusal}"
            );
        }
        let plain = narrow.request(&there, "api.example", "GET", "/a/caf%C3%A9%20x");
        assert!(plain.is_ok());
        let any = policy(vec![narrowed("tcp:api.example:443", &["GET"], &[])]);
        assert!(any.request(&there, "api.example", "GET", "/a;b").is_ok());
    }

    #[test]
    fn an_address_of_a_denied_name_is_granted_under_its_other_names_alone() {
        let policy = policy(vec![
            narrowed("tcp:*:443", &[], &[]),
            narrowed("tcp:a.example:443", &[], &[]),
        ]);
        let mut there = flow("192.0.2.1", &["a.example"], 443);
        assert!(policy.request(&there, "b.example", "GET", "/").is_ok());
        there.by_address = false;
        assert!(policy.request(&there, "b.example", "GET", "/").is_err());
        assert!(policy.tls(&there, "b.example").is_err());
        assert!(policy.tls(&there, "192.0.2.1").is_err());
        assert!(policy.request(&there, "a.example", "GET", "/").is_ok());
    }

    #[test]
    fn what_is_denied_is_denied_under_its_name() {
        let mut policy = policy(vec![narrowed("tcp:*:443", &[], &[])]);
        policy.deny.connect = vec!["tcp:*.evil.example:443".parse().unwrap()];
        let there = flow("192.0.2.1", &[], 443);
        assert!(policy.request(&there, "a.example", "GET", "/").is_ok());
        assert!(
            policy
                .request(&there, "x.evil.example", "GET", "/")
                .is_err()
        );
        assert!(policy.tls(&there, "x.evil.example").is_err());
    }

    #[test]
    fn what_is_not_narrowed_is_not_looked_into() {
        let policy = policy(vec![
            "tcp:a.example:443".parse().unwrap(),
            narrowed("tcp:b.example:443", &["GET"], &[]),
        ]);
        let shared = flow("192.0.2.1", &["a.example", "b.example"], 443);
        let is_tunnel = |treatment| matches!(treatment, Ok(Treatment::Tunnel(_)));
        assert!(is_tunnel(policy.tls(&shared, "a.example")));
        assert!(matches!(
            policy.tls(&shared, "b.example"),
            Ok(Treatment::Intercept)
        ));
        assert!(policy.tls(&shared, "c.example").is_err());
        assert!(policy.tls(&shared, "").is_err());
        // In the clear it cannot be told whose bytes they are.
        assert!(matches!(policy.plain(&shared), Treatment::Intercept));
        let own = flow("192.0.2.1", &["a.example"], 443);
        assert!(matches!(policy.plain(&own), Treatment::Tunnel(_)));
    }

    #[test]
    fn a_person_is_asked_only_where_no_other_grant_allows_the_same() {
        let asks = |grant: Connect| Connect {
            approval: true,
            ..grant
        };
        let there = flow("192.0.2.1", &["a.example"], 443);
        let all: Connect = "tcp:a.example:443".parse().unwrap();
        let get = narrowed("tcp:a.example:443", &["GET"], &[]);
        let both = policy(vec![asks(all.clone()), get]);
        let asked = |method| {
            both.request(&there, "a.example", method, "/")
                .unwrap()
                .grant
        };
        assert!(!asked("GET").approval && asked("POST").approval);
        assert!(matches!(
            both.tls(&there, "a.example"),
            Ok(Treatment::Intercept)
        ));
        assert!(matches!(both.plain(&there), Treatment::Intercept));
        let alone = policy(vec![asks(all.clone())]);
        for treatment in [alone.tls(&there, "a.example").unwrap(), alone.plain(&there)] {
            assert!(matches!(treatment, Treatment::Tunnel(allowed) if allowed.grant.approval));
        }
        let free = policy(vec![asks(all.clone()), all]);
        let treatment = free.tls(&there, "a.example").unwrap();
        assert!(matches!(treatment, Treatment::Tunnel(allowed) if !allowed.grant.approval));
    }

    #[test]
    fn grants_end_and_amounts_run_out() {
        let mut short = narrowed("tcp:a.example:443", &["GET"], &[]);
        short.lifetime = Some(0);
        let there = flow("192.0.2.1", &["a.example"], 443);
        let over = policy(vec![short]);
        assert!(over.request(&there, "a.example", "GET", "/").is_err());
        let quota = |name: &str| Quota {
            name: name.to_owned(),
            calls_per_minute: Some(1),
            bytes: None,
        };
        let counted = |place| Connect {
            quotas: vec![place],
            ..narrowed("tcp:a.example:443", &["GET"], &[])
        };
        let quotas = Quotas::new(&[quota("x"), quota("y")]);
        let allow = vec![counted(0), counted(1)];
        let policy = Policy::new(allow, Deny::default(), quotas, Secrets::default());
        let get = || policy.request(&there, "a.example", "GET", "/").map(|_| ());
        assert_eq!((get(), get()), (Ok(()), Ok(())));
        assert_eq!(get(), Err(Exhausted::Calls("x".into()).into()));
    }
}

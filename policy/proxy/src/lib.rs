//! HTTP and TLS between a partition and the hosts it was granted: towards the guest a server,
//! towards the servers a client. Each request is decided by host, method and path; secrets are put
//! in where the guest has a placeholder; intents and outcomes are recorded.
//!
//! - [`Proxy::serve`] serves one TCP connection of the guest, given as a stream and a [`Flow`].
//! - [`client_hello`] reads whom a TLS connection asks for, for those who look no further.
//! - [`policy`] decides, [`framing`] keeps out what could be read in two ways.
//!
//! The gateway runs it on a thread of its own. It opens connections to the addresses that it is
//! given, and nothing else: it resolves no name and reads no file.
#![forbid(unsafe_code)]

pub mod authority;
pub mod client_hello;
pub mod conditions;
mod consent;
mod exchange;
pub mod framing;
mod guarded;
mod meter;
pub mod policy;
pub mod quota;
pub mod records;
mod rewound;
pub mod secrets;
mod serve;
mod upstream;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
pub use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use policy::{Allowed, Refusal};

pub use authority::{Authority, AuthorityError};
pub use consent::Consent;
pub use policy::{Flow, Policy};
pub use records::Records;
pub use serve::End;

/// Most connections that are served at a time; each may hold a megabyte.
pub const MAX_CONNECTIONS: usize = 256;

/// Why a person's consent is none.
pub const ENDED: &str = "the grant ended before anybody answered";

/// Who is told of refusals, one sentence each.
pub type Refused = Box<dyn FnMut(&str)>;

/// What the connections of a partition have in common.
pub(crate) struct Shared {
    pub(crate) policy: Policy,
    pub(crate) records: Records,
    consent: Consent,
    authority: RefCell<Authority>,
    clients: upstream::Clients,
    tell: RefCell<Refused>,
    open: std::cell::Cell<usize>,
}

impl Shared {
    /// Asks a person, if what was allowed takes that; how they consented.
    ///
    /// # Errors
    /// They did not.
    pub(crate) async fn consent(
        &self,
        allowed: Allowed<'_>,
        object: &str,
    ) -> Result<Option<String>, Refusal> {
        if !allowed.grant.approval {
            return Ok(None);
        }
        let why = format!("the grant net.connect:{} demands it", allowed.grant.rule);
        let asking = self.consent.ask("net.connect", object, &why);
        let how = asking.await.map_err(Refusal::NoConsent)?;
        match self.policy.holds(allowed) {
            true => Ok(Some(how)),
            false => Err(Refusal::NoConsent(ENDED.to_owned())),
        }
    }

    /// Tells people and the ledger that `what` was refused.
    pub(crate) fn refused(&self, what: &str, reason: &str) {
        (self.tell.borrow_mut())(&format!("refused {what}: {reason}"));
        self.records.refusal("net.connect", what, reason);
    }
}

/// The proxy of one partition. Lives on one thread.
#[derive(Clone)]
pub struct Proxy(Rc<Shared>);

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// There is nobody to trust.
    #[error(
        "no certificate authority is trusted for the servers: the host has none, and none is named"
    )]
    NoTrust,
    /// The TLS library refuses.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The implementation of cryptography that everybody here uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The certificates in `pem`; `None` where there are none, or one is malformed.
pub fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_slice_iter(pem.as_bytes());
    let read: Vec<_> = read.collect::<Result<_, _>>().ok()?;
    (!read.is_empty()).then_some(read)
}

impl Proxy {
    /// A proxy that decides by `policy`, shows itself to the guest by `authority`, trusts servers that
    /// `trust` vouches for, and asks people by `consent`. `tell` hears of refusals.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub fn new(
        policy: Policy,
        authority: Authority,
        trust: Vec<CertificateDer<'static>>,
        records: Records,
        consent: Consent,
        tell: Refused,
    ) -> Result<Self, ProxyError> {
        let mut roots = RootCertStore::empty();
        // Hosts have some that are too old to be read.
        roots.add_parsable_certificates(trust);
        if roots.is_empty() {
            return Err(ProxyError::NoTrust);
        }
        let mut first = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        first.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut newest = first.clone();
        newest.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Rc::new(Shared {
            policy,
            records,
            consent,
            authority: RefCell::new(authority),
            clients: upstream::Clients {
                newest: Arc::new(newest),
                first: Arc::new(first),
            },
            tell: RefCell::new(tell),
            open: std::cell::Cell::new(0),
        })))
    }
}

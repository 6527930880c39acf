//! The partition's own certificate authority: it stands for the servers whose requests are looked
//! into, towards this one guest. Made by `bulkhead-gateway --authority`, used by the proxy.

use std::collections::VecDeque;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

/// Most names for which certificates are kept.
const MAX_KEPT: usize = 256;

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be made, or signs nothing.
    #[error("the partition's certificate authority cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// Its PEM holds no certificate.
    #[error("the partition's certificate authority has no certificate")]
    Certificate,
    /// What it signed does not serve.
    #[error("a certificate of the partition's authority does not serve: {0}")]
    Serve(#[from] rustls::Error),
}

/// A new authority.
pub struct Created {
    /// Its certificate, in PEM: what the guest has to trust.
    pub certificate: String,
    /// Its private key, in PEM.
    pub key: Zeroizing<String>,
}

/// Makes the authority of the partition with this name.
///
/// # Errors
/// The host gives no randomness.
pub fn create(partition: &str) -> Result<Created, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = params(partition)?.self_signed(&key)?.pem();
    Ok(Created {
        certificate,
        key: Zeroizing::new(key.serialize_pem()),
    })
}

/// Who the authority is, without its key.
fn params(partition: &str) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new())?;
    let name = format!("Bulkhead partition {partition}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// An authority that signs for servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// One key for all servers: they are all this process.
    leaf: KeyPair,
    provider: Arc<CryptoProvider>,
    kept: VecDeque<(String, Arc<ServerConfig>)>,
}

impl Authority {
    /// The authority that was [created](create) for `partition`: `pem` has its certificate and key.
    ///
    /// # Errors
    /// They are not.
    pub fn new(
        partition: &str,
        pem: &str,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        let certificate = certificate.map_err(|_| AuthorityError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
        let key = key.map_err(|_| AuthorityError::Certificate)?;
        let key = KeyPair::try_from(&key)?;
        Ok(Self {
            issuer: Issuer::new(params(partition)?, key),
            certificate,
            leaf: KeyPair::generate()?,
            provider,
            kept: VecDeque::new(),
        })
    }

    /// How to be the server `name`, a host name or an address.
    ///
    /// # Errors
    /// It is neither, or nothing can be signed.
    pub fn server(&mut self, name: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        if let Some((_, config)) = self.kept.iter().find(|(kept, _)| kept == name) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.sign(name)?);
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((name.to_owned(), config.clone()));
        Ok(config)
    }

    fn sign(&self, name: &str) -> Result<ServerConfig, AuthorityError> {
        // An address becomes one of the certificate's addresses, any other text one of its names.
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        // At most 64 characters fit, and nobody reads it where there are alternative names.
        let shown: String = name.chars().take(64).collect();
        params.distinguished_name.push(DnType::CommonName, shown);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&self.leaf, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivatePkcs8KeyDer::from(self.leaf.serialize_der());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key.into())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

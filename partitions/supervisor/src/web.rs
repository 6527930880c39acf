//! What it takes to look into a partition's web requests: an authority of its own, which the gateway
//! signs by and the guest trusts, and the rules as the gateway is told them.

use crate::error::Error;
use crate::files::open_regular;
use crate::initramfs::memory_file;
use crate::library::{Library, LibraryFile};
use crate::tools;
use bulkhead_capability::Constraints;
use bulkhead_manifest::{Connect as Granted, Denial, DeviceKind, Network, Partition};
use bulkhead_network::{Connect, NetworkDescription, Protocol, Quota, Resolve};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a Linux guest with a command finds the authority's certificate, without leading slash.
pub(crate) const CERTIFICATE: &str = "bulkhead/ca.pem";
/// The same with all that this host trusts, for programs that take one file.
pub(crate) const BUNDLE: &str = "bulkhead/ca-bundle.pem";
/// What programs are told to trust, where nobody told them otherwise.
const VARIABLES: [(&str, &str); 5] = [
    ("SSL_CERT_FILE", BUNDLE),
    ("CURL_CA_BUNDLE", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("GIT_SSL_CAINFO", BUNDLE),
    ("NODE_EXTRA_CA_CERTS", CERTIFICATE),
];
/// Where hosts keep all that they trust in one file.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];
const END: &str = "-----END CERTIFICATE-----\n";

/// A partition's own certificate authority.
#[derive(Debug)]
pub(crate) struct Authority {
    /// What the guest has to trust, in PEM.
    pub(crate) certificate: String,
    /// The same with the private key, for the gateway.
    file: File,
}

/// Whether a grant of the partition takes looking into what goes over the network.
pub(crate) fn is_needed(partition: &Partition) -> bool {
    // Of UDP nothing is looked into.
    let narrowed = |connect: &Granted| {
        let constraints = &connect.constraints;
        connect.rule.protocol == Protocol::Tcp && constraints.approval
            || constraints.http.is_some()
            || !constraints.quotas.is_empty()
    };
    let mandate = partition.mandate.as_ref();
    if mandate.is_some_and(|mandate| !mandate.secrets.is_empty()) || tools::ask_the_web(partition) {
        return true;
    }
    partition.devices.iter().any(|device| match &device.kind {
        DeviceKind::Network(network) => {
            let mut grants = network.connect.iter();
            grants.any(narrowed)
        }
        _ => false,
    })
}

impl Authority {
    /// Has a new one made by a gateway that does nothing else: nothing here knows how to sign.
    pub(crate) fn create(library: &Library, partition: &str) -> Result<Self, Error> {
        let path = library.file(LibraryFile::Gateway)?;
        let mut file = memory_file(c"authority")?;
        let failed = Error::system("make a certificate authority");
        let mut make = || -> io::Result<String> {
            let status = Command::new(&path)
                .args(["--authority", partition])
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::from(file.try_clone()?))
                .stderr(Stdio::null())
                .status()?;
            if !status.success() {
                return Err(io::Error::other(format!(
                    "{} ended with {status}",
                    path.display()
                )));
            }
            file.rewind()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            file.rewind()?;
            let certificate = text.split_inclusive(END).next();
            let certificate = certificate
                .filter(|text| text.ends_with(END))
                .map(str::to_owned);
            certificate.ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        let certificate = make().map_err(failed)?;
        Ok(Self { certificate, file })
    }

    /// For the gateway.
    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }

    /// The certificate and what this host trusts.
    pub(crate) fn bundle(&self) -> String {
        let host = BUNDLES
            .iter()
            .find_map(|path| fs::read_to_string(path).ok());
        let own = &self.certificate;
        format!("{own}{}", host.unwrap_or_default())
    }

    /// Leaves the certificate in the system's directory, for images that are to trust it.
    pub(crate) fn publish(&self, directory: &Path, partition: &str) -> Result<(), Error> {
        let path = directory.join(format!("{partition}.ca.pem"));
        let written = fs::write(&path, &self.certificate);
        written.map_err(|source| Error::StateDir { path, source })
    }
}

/// `env` with what tells programs whom to trust.
pub(crate) fn with_trust(mut env: Vec<String>) -> Vec<String> {
    for (name, path) in VARIABLES {
        let is_set = |variable: &String| variable.split('=').next() == Some(name);
        if !env.iter().any(is_set) {
            env.push(format!("{name}=/{path}"));
        }
    }
    env
}

/// Opens the files of `trust`.
pub(crate) fn trusted(network: &Network) -> Result<Vec<OwnedFd>, Error> {
    let open = |path: &std::path::PathBuf| Ok(open_regular("certificates", path)?.into());
    network.trust.iter().map(open).collect()
}

/// Tells the gateway what is allowed and denied, of at most `budget` bytes in all, to a partition that
/// is `age` seconds old.
pub(crate) fn rules(
    description: &mut NetworkDescription,
    network: &Network,
    budget: Option<u64>,
    age: u64,
) -> Result<(), Error> {
    let mut amounts = Amounts {
        quotas: Vec::new(),
        age,
    };
    for connect in &network.connect {
        let (quotas, lifetime) = amounts.of(&connect.constraints);
        description.allow.push(Connect {
            rule: connect.rule.clone(),
            http: connect.constraints.http.clone(),
            quotas,
            lifetime,
            approval: connect.constraints.approval,
        });
    }
    for resolve in &network.resolve {
        let (quotas, lifetime) = amounts.of(&resolve.constraints);
        description.resolve.push(Resolve {
            name: resolve.name.clone(),
            quotas,
            lifetime,
        });
    }
    for (forward, inbound) in description.forwards.iter_mut().zip(&network.listen) {
        (forward.quotas, forward.lifetime) = amounts.of(&inbound.constraints);
    }
    for denial in &network.deny {
        match denial {
            Denial::Connect(rule) => description.deny.connect.push(rule.clone()),
            Denial::Resolve(name) => description.deny.resolve.push(name.clone()),
        }
    }
    description.quotas = amounts.quotas;
    if budget.is_some() {
        description.budget = Some(description.quotas.len());
        description.quotas.push(Quota {
            name: "the partition's budget".to_owned(),
            calls_per_minute: None,
            bytes: budget,
        });
    }
    Ok(())
}

/// The amounts that grants share, in the same order at each start.
struct Amounts {
    quotas: Vec<Quota>,
    /// Of the partition, in seconds.
    age: u64,
}

impl Amounts {
    /// The places of a grant's amounts, and the seconds that it is left.
    fn of(&mut self, constraints: &Constraints) -> (Vec<usize>, Option<u64>) {
        let mut places = Vec::new();
        for (name, quota) in &constraints.quotas {
            let quota = Quota {
                name: name.clone(),
                calls_per_minute: quota
                    .calls_per_minute
                    .map(|calls| u32::try_from(calls).unwrap_or(u32::MAX)),
                bytes: quota.bytes,
            };
            let known = self.quotas.iter().position(|known| *known == quota);
            places.push(known.unwrap_or(self.quotas.len()));
            if known.is_none() {
                self.quotas.push(quota);
            }
        }
        (places, seconds_left(constraints, self.age))
    }
}

/// For how long a grant holds of a partition that began `age` seconds ago, if not for ever.
pub(crate) fn seconds_left(constraints: &Constraints, age: u64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(u64::MAX, |since| since.as_secs());
    let left = |end: u64, now| end.saturating_sub(now);
    let expires = constraints.expires.map(|expires| left(expires, now));
    let lifetime = constraints.lifetime.map(|lifetime| left(lifetime, age));
    expires.into_iter().chain(lifetime).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::partition;
    use bulkhead_machine::{Fd, Jail};

    fn described(grants: &str) -> (bool, Result<NetworkDescription, Error>) {
        described_at(grants, 0)
    }

    fn described_at(grants: &str, age: u64) -> (bool, Result<NetworkDescription, Error>) {
        let partition = partition(&format!(
            "kernel = \"linux\"\ncommand = [\"/x\"]\ngrants = [{grants}]\n\
             deny = [\"net.connect:*.evil.example:*\", \"dns.resolve:x.example\"]\n"
        ));
        let device = partition.devices.first().map(|device| device.kind.clone());
        let Some(DeviceKind::Network(network)) = device else {
            panic!("a network");
        };
        let mut description = NetworkDescription::new("t", Fd(3), [2, 0, 0, 0, 0, 1], Jail::None);
        let done = rules(&mut description, &network, None, age);
        (is_needed(&partition), done.map(|()| description))
    }

    #[test]
    fn grants_are_told_with_what_narrows_them() {
        let (needed, description) = described(
            r#"{ capability = "net.connect:a.example:443", methods = ["GET"], paths = ["/v1/**"], calls = "60/min" },
               { capability = "net.connect:b.example:443", lifetime = "1h", expires = "2000-01-01T00:00:00Z" },
               "net.connect:c.example:22", "dns.resolve:d.example""#,
        );
        let description = description.unwrap();
        assert!(needed);
        let [a, b, c] = &description.allow[..] else {
            panic!("{description:?}");
        };
        let http = a.http.as_ref().unwrap();
        assert!(http.allows("GET", "/v1/x") && !http.allows("POST", "/v1/x"));
        assert_eq!(a.quotas, [0]);
        assert_eq!(description.quotas[0].calls_per_minute, Some(60));
        assert_eq!((b.lifetime, b.http.is_none()), (Some(0), true), "long over");
        assert_eq!(*c, "tcp:c.example:22".parse().unwrap());
        assert_eq!(description.resolve[0].name.to_string(), "d.example");
        assert!(
            description
                .deny
                .denies_name(Protocol::Tcp, "x.evil.example", 443)
        );
        assert_eq!(description.deny.resolve, ["x.example".parse().unwrap()]);
        assert!(!described(r#""net.connect:c.example:22""#).0);
    }

    #[test]
    fn a_guest_that_resets_itself_gets_no_more_time() {
        let grants = r#"{ capability = "net.connect:a.example:443", lifetime = "1h" }"#;
        let lifetime = |age| described_at(grants, age).1.unwrap().allow[0].lifetime;
        let left = [0, 600, 3600, 9999].map(lifetime);
        assert_eq!(left, [Some(3600), Some(3000), Some(0), Some(0)]);
    }

    #[test]
    fn consent_is_asked_for_by_whoever_sees_the_flow() {
        for (protocol, looks_into) in [("tcp", true), ("udp", false)] {
            let grant = format!(
                r#"{{ capability = "net.connect:{protocol}:a.example:443", approval = true }}"#
            );
            let (needed, told) = described(&grant);
            assert!(told.unwrap().allow[0].approval, "{protocol}");
            assert_eq!(needed, looks_into, "{protocol}");
        }
    }

    #[test]
    fn programs_are_told_whom_to_trust_unless_they_were() {
        let env = with_trust(vec!["SSL_CERT_FILE=/own.pem".into()]);
        assert!(env.contains(&"SSL_CERT_FILE=/own.pem".to_owned()));
        assert!(env.contains(&"NODE_EXTRA_CA_CERTS=/bulkhead/ca.pem".to_owned()));
        assert_eq!(env.len(), 5);
    }
}

//! The models of a partition: what `models.toml` has of those that it was granted, with the keys from
//! the vault and the addresses of their hosts, as its gateway takes them. Called by the launcher.

use crate::error::Error;
use crate::initramfs::memory_file;
use crate::lasting::Lasting;
use crate::secrets::Secrets;
use crate::web::seconds_left;
use bulkhead_capability::{Capability, NamePattern};
use bulkhead_manifest::Partition;
use bulkhead_models::file::ModelsFile;
use bulkhead_models::{Budget, Grant, Key, KeyValue, Model, Models as Description, Money, Spent};
use bulkhead_network::{SPENT_BYTES, spent_from};
use bulkhead_places::Place;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Seek, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::fs::FileExt;
use zeroize::Zeroizing;

/// What the file of what a partition has spent is for.
const SPENT: &CStr = c"spent";

/// The way to a partition's models, for its gateway.
#[derive(Debug)]
pub(crate) struct Models {
    /// What the router works with.
    pub(crate) file: File,
    /// Ports of the providers.
    pub(crate) ports: Vec<u16>,
    /// Where the gateway keeps what is spent.
    pub(crate) spent: File,
    /// Calls of some take a person's consent.
    pub(crate) approval: bool,
}

impl Models {
    /// The models of a partition that began `age` seconds ago, if it may call any.
    ///
    /// # Errors
    /// A grant that nothing serves, or keys that cannot be had.
    pub(crate) fn ready(
        system: &str,
        partition: &Partition,
        secrets: &Secrets,
        lasting: &Lasting,
        age: u64,
    ) -> Result<Option<Self>, Error> {
        let Some(wanted) = Wanted::of(partition, age) else {
            return Ok(None);
        };
        let config = Place::config().map_err(Error::Place)?;
        let file = ModelsFile::load(&config).map_err(Error::Models)?;
        let spent = lasting.file(&partition.name, SPENT, &[0; SPENT_BYTES])?;
        let actor = format!("{system}/{}", partition.name);
        let value = |name: &str| key(secrets, name);
        let models = describe(&wanted, &file, actor, read(&spent)?, value, addresses)?;
        let mut ports: Vec<u16> = models.providers.iter().map(|p| p.url.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let json = serde_json::to_vec(&models).map(Zeroizing::new);
        let json = json.map_err(|error| Error::System {
            doing: "describe models",
            source: error.into(),
        })?;
        let mut file = memory_file(c"models")?;
        let written = file.write_all(&json).and_then(|()| file.rewind());
        written.map_err(Error::system("write a memfd"))?;
        let called = models.providers.iter().flat_map(|p| &p.models);
        let approval = called.flat_map(|m| &m.grants).any(|grant| grant.approval);
        Ok(Some(Self {
            file,
            ports,
            spent,
            approval,
        }))
    }
}

fn read(file: &File) -> Result<Spent, Error> {
    let mut bytes = [0; SPENT_BYTES];
    let read = file.read_exact_at(&mut bytes, 0);
    read.map_err(Error::system("read a memfd"))?;
    let (tokens, micro_cents) = spent_from(bytes);
    let money = Money::from_micro_cents(micro_cents);
    Ok(Spent { tokens, money })
}

/// What a partition was granted of models.
struct Wanted {
    granted: Vec<(NamePattern, Grant)>,
    denied: Vec<NamePattern>,
    /// Calls a minute of all grants together: the fewest that any of them says.
    calls: Option<u64>,
    budget: Budget,
}

impl Wanted {
    fn of(partition: &Partition, age: u64) -> Option<Self> {
        let mut wanted = Self {
            granted: Vec::new(),
            denied: Vec::new(),
            calls: None,
            budget: Budget::default(),
        };
        for grant in partition.grants.iter() {
            let Capability::ModelChat(pattern) = grant.capability() else {
                continue;
            };
            let constraints = grant.constraints();
            let calls = constraints
                .quotas
                .values()
                .filter_map(|q| q.calls_per_minute);
            wanted.calls = wanted.calls.into_iter().chain(calls).min();
            let grant = Grant {
                approval: constraints.approval,
                lifetime: seconds_left(constraints, age),
            };
            wanted.granted.push((pattern.clone(), grant));
        }
        for denied in partition.grants.denied() {
            if let Capability::ModelChat(pattern) = denied {
                wanted.denied.push(pattern.clone());
            }
        }
        if let Some(mandate) = &partition.mandate {
            let money = mandate.budget.money.map(Money::from_micro_cents);
            let tokens = mandate.budget.tokens;
            wanted.budget = Budget { tokens, money };
        }
        (!wanted.granted.is_empty()).then_some(wanted)
    }
}

/// What the router works with.
fn describe(
    wanted: &Wanted,
    file: &ModelsFile,
    actor: String,
    spent: Spent,
    value: impl Fn(&str) -> Result<KeyValue, Error>,
    addresses: impl Fn(&str, u16) -> Vec<IpAddr>,
) -> Result<Description, Error> {
    for (pattern, _) in &wanted.granted {
        if file.select(|name| pattern.matches(name)).is_empty() {
            return Err(Error::NoSuchModel(pattern.to_string()));
        }
    }
    // By one of its names: who is denied that is denied the model.
    let means = |pattern: &NamePattern, model: &Model| {
        let mut names = [&model.name].into_iter().chain(&model.aliases);
        names.any(|name| pattern.matches(name))
    };
    let granted = |name: &str| wanted.granted.iter().any(|(p, _)| p.matches(name));
    let mut providers = Vec::new();
    for (mut provider, keys) in file.select(granted) {
        let denied = |model: &Model| wanted.denied.iter().any(|p| means(p, model));
        provider.models.retain(|model| !denied(model));
        if provider.models.is_empty() {
            continue;
        }
        for model in &mut provider.models {
            let grants = wanted.granted.iter().filter(|(p, _)| means(p, model));
            model.grants = grants.map(|(_, grant)| *grant).collect();
        }
        for name in keys {
            let value = value(&name)?;
            provider.keys.push(Key { name, value });
        }
        provider.addresses = match provider.url.address() {
            Some(address) => vec![address],
            // A host that does not resolve is one that cannot be reached: others are asked.
            None => addresses(&provider.url.host, provider.url.port),
        };
        providers.push(provider);
    }
    let own = u64::from(file.requests_per_minute);
    let calls = wanted.calls.map_or(own, |calls| calls.min(own));
    Ok(Description {
        actor,
        order: file.order,
        providers,
        budget: wanted.budget,
        spent,
        requests_per_minute: u32::try_from(calls).unwrap_or(u32::MAX),
    })
}

fn addresses(host: &str, port: u16) -> Vec<IpAddr> {
    let found = (host, port).to_socket_addrs().into_iter().flatten();
    found.map(|address| address.ip()).collect()
}

/// A provider's key.
fn key(secrets: &Secrets, name: &str) -> Result<KeyValue, Error> {
    let secret = secrets.of_provider(name)?;
    let text = std::str::from_utf8(secret.expose());
    let text = text.ok().filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| Error::ProviderKey(name.to_owned()))?;
    Ok(KeyValue::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::partition;
    use bulkhead_models::Takes;
    use bulkhead_network::spent;
    use std::net::Ipv4Addr;

    const FILE: &[u8] = include_bytes!("../../../docs/examples/models.toml");

    fn with(grants: &str) -> Partition {
        partition(&format!(
            "kernel = \"linux\"\ncommand = [\"/x\"]\ngrants = [{grants}]\n\
             deny = [\"model.chat:claude-*\"]\n"
        ))
    }

    fn described(partition: &Partition) -> Result<Description, Error> {
        let file = ModelsFile::parse(FILE).unwrap();
        let wanted = Wanted::of(partition, 600).unwrap();
        let value = |name: &str| Ok(KeyValue::from(format!("value of {name}")));
        let resolve = |_: &str, _| vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))];
        let spent = Spent::default();
        describe(&wanted, &file, "s/p".to_owned(), spent, value, resolve)
    }

    #[test]
    fn a_partition_gets_the_models_of_its_grants_alone() {
        let models = described(&with(
            r#"{ capability = "model.chat:small", calls = "7/min" }, "model.chat:large""#,
        ));
        let models = models.unwrap();
        let names: Vec<&str> = models.providers.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            ["openai", "local"],
            "large is denied under its other name"
        );
        assert_eq!(models.requests_per_minute, 7);
        let (first, local) = (&models.providers[0], &models.providers[1]);
        assert_eq!(first.keys[0].value.expose(), "value of openai");
        assert_eq!(first.addresses, [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))]);
        assert_eq!(local.addresses, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert!(local.keys.is_empty());
        assert!(Wanted::of(&with("\"console\""), 0).is_none());
    }

    #[test]
    fn a_grant_that_nothing_serves_is_refused() {
        let absent = described(&with("\"model.chat:none\"")).unwrap_err();
        assert_eq!(absent.code(), "no-such-model");
    }

    #[test]
    fn a_grant_holds_for_what_is_left_of_it() {
        // Of the model that is called so, ten minutes after the partition began.
        let takes = |grants: &str, seconds: u64| {
            let models = described(&with(grants)).unwrap();
            let mut models = models.providers.into_iter().flat_map(|p| p.models);
            let model = models.find(|model| model.is_called("small")).unwrap();
            model.takes(seconds)
        };
        let hour = r#"{ capability = "model.chat:small", lifetime = "1h" }"#;
        let (before, after) = (3600 - 600 - 1, 3600 - 600);
        assert_eq!(takes(hour, before), Some(Takes::Nothing));
        assert_eq!(takes(hour, after), None);
        let over = r#"{ capability = "model.chat:small", expires = "2000-01-01T00:00:00Z" }"#;
        assert_eq!(takes(over, 0), None);
        let asked = r#"{ capability = "model.chat:small", approval = true }"#;
        let both = format!("{hour}, {asked}");
        assert_eq!(takes(&both, before), Some(Takes::Nothing));
        assert_eq!(takes(&both, after), Some(Takes::Consent));
    }

    #[test]
    fn a_model_takes_consent_unless_a_grant_of_it_asks_nobody() {
        // Whether it is called so, by its name or another, and whether it asks.
        let asks = |grants: &str| -> Vec<(bool, bool)> {
            let models = described(&with(grants)).unwrap();
            let models = models.providers.into_iter().flat_map(|p| p.models);
            let asks = |model: &Model| model.takes(0) == Some(Takes::Consent);
            (models.map(|model| (model.is_called("gpt-5-mini"), asks(&model)))).collect()
        };
        let all = r#"{ capability = "model.chat:*", approval = true }"#;
        let asked = asks(all);
        assert!(asked.len() > 1 && asked.iter().all(|(_, approval)| *approval));
        let asked = asks(&format!("{all}, \"model.chat:gpt-*\""));
        assert!(asked.iter().any(|(free, _)| *free) && asked.iter().any(|(_, asks)| *asks));
        assert!(asked.iter().all(|(free, asks)| free != asks), "{asked:?}");
    }

    #[test]
    fn a_key_that_the_vault_lacks_stops_the_start() {
        let lacking = key(&Secrets::default(), "openai").unwrap_err();
        assert_eq!(lacking.code(), "no-such-secret");
    }

    #[test]
    fn a_second_gateway_begins_with_what_the_first_has_spent() {
        let lasting = Lasting::default();
        let file = || lasting.file("p", SPENT, &[0; SPENT_BYTES]).unwrap();
        assert_eq!(read(&file()).unwrap(), Spent::default());
        file().write_all_at(&spent(7, u64::MAX), 0).unwrap();
        let money = Money::from_micro_cents(u64::MAX);
        assert_eq!(read(&file()).unwrap(), Spent { tokens: 7, money });
    }
}

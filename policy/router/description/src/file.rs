//! `models.toml` in the configuration directory, as an operator writes it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_places::{Place, PlaceError};
use serde::Deserialize;
use serde::de::{self, Visitor};
use toml::Spanned;

use crate::{BaseUrl, LimitField, Model, Order, Price, Provider, REQUESTS_PER_MINUTE, Wire};

/// Name of the file in the configuration directory.
pub const NAME: &str = "models.toml";
/// Longest file in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// Most providers, most models of one, most keys of one.
pub const MAX_EACH: usize = 256;
/// Seconds without a word after which a provider is given up, where nothing says otherwise.
const TIMEOUT: u32 = 120;

/// Everything an operator says of models. Providers have neither addresses nor values of keys yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelsFile {
    /// Who is asked first.
    pub order: Order,
    /// Requests a minute of one partition.
    pub requests_per_minute: u32,
    /// Providers, and the names of their keys in the vault.
    pub providers: Vec<(Provider, Vec<String>)>,
}

/// Why the file is refused: the first thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct FileError {
    /// Line, from 1.
    pub line: usize,
    /// Character in that line, from 1.
    pub column: usize,
    /// What is wrong; lower case, no full stop, one line.
    pub message: String,
}

/// Why there are no models.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration directory cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is no such file.
    #[error("there is no `{}`", .0.display())]
    Absent(PathBuf),
    /// It cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something is wrong in it.
    #[error("{}:{error}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What, and where.
        error: FileError,
    },
}

impl LoadError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::Absent(_) => "no-models",
            Self::Io { .. } => "models-unusable",
            Self::Wrong { .. } => "models-invalid",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Place(_) | Self::Io { .. } => "the operator's models are kept there",
            Self::Absent(_) | Self::Wrong { .. } => {
                "docs/models.md explains the file; docs/examples/models.toml is a whole one"
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    order: Order,
    requests_per_minute: Option<Spanned<u32>>,
    #[serde(default)]
    provider: Vec<ProviderText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderText {
    name: Spanned<String>,
    wire: Wire,
    url: BaseUrl,
    #[serde(default)]
    keys: Vec<Spanned<String>>,
    #[serde(default)]
    priority: u32,
    requests_per_minute: Option<Spanned<u32>>,
    tokens_per_minute: Option<Spanned<u64>>,
    timeout: Option<Spanned<u32>>,
    limit_field: Option<Spanned<LimitField>>,
    trust_usage: Option<bool>,
    model: Spanned<Vec<ModelText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelText {
    name: Spanned<String>,
    upstream: Option<Spanned<String>>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
    input: PriceText,
    output: PriceText,
    max_tokens: Spanned<u32>,
    #[serde(default)]
    cache: bool,
}

/// A price, which has to be a string: a number with a point would have been rounded already.
struct PriceText(Price);

impl<'de> Deserialize<'de> for PriceText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = PriceText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("dollars per million tokens as a string, such as \"3.00\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PriceText, E> {
                text.parse().map(PriceText).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Finds what is wrong in the text, or the place of it.
struct Check<'t>(&'t str);

impl Check<'_> {
    fn refuse<T>(&self, span: Range<usize>, message: impl Into<String>) -> Result<T, FileError> {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before
            .get(line_start..)
            .map_or(0, |line| line.chars().count())
            + 1;
        let line = before.matches('\n').count() + 1;
        let message = message.into();
        Err(FileError {
            line,
            column,
            message,
        })
    }

    /// 1 to 128 letters, digits and a few signs, which is what names of models are made of.
    fn name(&self, what: &str, name: &Spanned<String>) -> Result<String, FileError> {
        let text = name.get_ref();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
        match (1..=128).contains(&text.len()) && text.bytes().all(plain) {
            true => Ok(text.clone()),
            false => {
                let text = text.escape_debug();
                let is_no = format!("`{text}` is no {what}: 1 to 128 of A-Z, a-z, 0-9 and ._-/:@+");
                self.refuse(name.span(), is_no)
            }
        }
    }

    fn bounded<T>(&self, value: Spanned<T>, key: &str, low: T, high: T) -> Result<T, FileError>
    where
        T: PartialOrd + fmt::Display + Copy,
    {
        let span = value.span();
        let value = value.into_inner();
        match (low..=high).contains(&value) {
            true => Ok(value),
            false => self.refuse(span, format!("`{key}` is {value}; it is {low} to {high}")),
        }
    }

    fn at_most(&self, count: usize, what: &str, span: Range<usize>) -> Result<(), FileError> {
        match count > MAX_EACH {
            true => self.refuse(
                span,
                format!("there are {count} {what}; {MAX_EACH} are possible"),
            ),
            false => Ok(()),
        }
    }
}

impl ModelsFile {
    /// Reads the file of the operator whose configuration is at `config`.
    ///
    /// # Errors
    /// There is none, others could have written it, or something is wrong in it.
    pub fn load(config: &Place) -> Result<Self, LoadError> {
        let path = config.path().join(NAME);
        if config.existing()?.is_none() {
            return Err(LoadError::Absent(path));
        }
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| {
            // One byte more than there may be, so that a longer file is told from a whole one.
            file.take(MAX_BYTES + 1).read_to_end(&mut bytes)
        });
        match read {
            Ok(_) => Self::parse(&bytes).map_err(|error| LoadError::Wrong { path, error }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LoadError::Absent(path)),
            Err(source) => Err(LoadError::Io { path, source }),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let nowhere = |message: &str| FileError {
            line: 1,
            column: 1,
            message: message.to_owned(),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(nowhere("the file is longer than 1 MiB"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| nowhere("the file is not UTF-8"))?;
        let check = Check(text);
        let read: Text = match toml::from_str(text) {
            Ok(read) => read,
            Err(error) => {
                let message: Vec<&str> = error.message().lines().map(str::trim).collect();
                return check.refuse(error.span().unwrap_or(0..0), message.join(", "));
            }
        };
        check.at_most(read.provider.len(), "providers", 0..0)?;
        let requests_per_minute = match read.requests_per_minute {
            Some(given) => check.bounded(given, "requests_per_minute", 1, 100_000)?,
            None => REQUESTS_PER_MINUTE,
        };
        let mut names = BTreeSet::new();
        let mut providers = Vec::new();
        for given in read.provider {
            let span = given.name.span();
            let (provider, keys) = provider(&check, given)?;
            if !names.insert(provider.name.clone()) {
                return check.refuse(
                    span,
                    format!("two providers are called `{}`", provider.name),
                );
            }
            providers.push((provider, keys));
        }
        Ok(Self {
            order: read.order,
            requests_per_minute,
            providers,
        })
    }

    /// The providers that have models for which `granted` holds by name or alias, with these
    /// models alone.
    pub fn select(&self, granted: impl Fn(&str) -> bool) -> Vec<(Provider, Vec<String>)> {
        let mut providers = self.providers.clone();
        for (provider, _) in &mut providers {
            provider.models.retain(|model| {
                granted(&model.name) || model.aliases.iter().any(|alias| granted(alias))
            });
        }
        providers.retain(|(provider, _)| !provider.models.is_empty());
        providers
    }
}

fn provider(check: &Check<'_>, given: ProviderText) -> Result<(Provider, Vec<String>), FileError> {
    let name = check.name("name of a provider", &given.name)?;
    check.at_most(given.keys.len(), "keys", given.name.span())?;
    let keys = given
        .keys
        .iter()
        .map(|key| check.name("name of a secret", key));
    let keys: Vec<String> = keys.collect::<Result<_, _>>()?;
    if let Some(field) = given
        .limit_field
        .as_ref()
        .filter(|_| given.wire != Wire::Openai)
    {
        return check.refuse(
            field.span(),
            "`limit_field` is a choice of the OpenAI wire only",
        );
    }
    let span = given.model.span();
    let given_models = given.model.into_inner();
    check.at_most(given_models.len(), "models", span.clone())?;
    if given_models.is_empty() {
        return check.refuse(span, format!("provider `{name}` has no models"));
    }
    let mut called = BTreeSet::new();
    let mut models = Vec::new();
    for given in given_models {
        check.at_most(given.aliases.len(), "aliases", given.name.span())?;
        let model_name = check.name("name of a model", &given.name)?;
        let aliases = given
            .aliases
            .iter()
            .map(|alias| check.name("name of a model", alias));
        let aliases: Vec<String> = aliases.collect::<Result<_, _>>()?;
        for (text, from) in [&given.name]
            .into_iter()
            .chain(&given.aliases)
            .map(|s| (s.get_ref(), s))
        {
            if !called.insert(text.clone()) {
                let twice = format!("provider `{name}` has two models called `{text}`");
                return check.refuse(from.span(), twice);
            }
        }
        let upstream = match &given.upstream {
            Some(upstream) => check.name("name of a model", upstream)?,
            None => model_name.clone(),
        };
        models.push(Model {
            name: model_name,
            aliases,
            upstream,
            input: given.input.0,
            output: given.output.0,
            max_tokens: check.bounded(given.max_tokens, "max_tokens", 1, 10_000_000)?,
            cache: given.cache,
            grants: Vec::new(),
        });
    }
    let per_minute = given.requests_per_minute;
    let requests = per_minute.map(|n| check.bounded(n, "requests_per_minute", 1, 100_000));
    let per_minute = given.tokens_per_minute;
    let tokens = per_minute.map(|n| check.bounded(n, "tokens_per_minute", 1, u64::MAX));
    let timeout = given.timeout.map(|n| check.bounded(n, "timeout", 1, 3600));
    let provider = Provider {
        name,
        wire: given.wire,
        url: given.url,
        addresses: Vec::new(),
        keys: Vec::new(),
        priority: given.priority,
        requests_per_minute: requests.transpose()?,
        tokens_per_minute: tokens.transpose()?,
        timeout: Duration::from_secs(timeout.transpose()?.unwrap_or(TIMEOUT).into()),
        limit_field: given
            .limit_field
            .map(Spanned::into_inner)
            .unwrap_or_default(),
        trust_usage: given.trust_usage.unwrap_or(true),
        models,
    };
    Ok((provider, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../../docs/examples/models.toml");

    #[test]
    fn the_example_reads() {
        let file = ModelsFile::parse(EXAMPLE.as_bytes()).unwrap();
        let names: Vec<&str> = file
            .providers
            .iter()
            .map(|(p, _)| p.name.as_str())
            .collect();
        assert_eq!(names, ["anthropic", "openai", "local"]);
        let (first, keys) = &file.providers[0];
        assert_eq!(keys, &["anthropic.main", "anthropic.spare"]);
        assert_eq!(
            first.models[0].cost(1_000_000, 100_000),
            "4.50".parse().unwrap()
        );
    }

    #[test]
    fn the_file_is_read_from_a_private_directory() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let config = Place::at(&dir.path().join("config")).unwrap();
        assert_eq!(ModelsFile::load(&config).unwrap_err().code(), "no-models");
        let path = config.make().unwrap().join(NAME);
        assert_eq!(ModelsFile::load(&config).unwrap_err().code(), "no-models");
        std::fs::write(&path, EXAMPLE).unwrap();
        assert_eq!(ModelsFile::load(&config).unwrap().providers.len(), 3);
        std::fs::write(&path, "orders = 1").unwrap();
        let error = ModelsFile::load(&config).unwrap_err();
        assert!(
            error.to_string().contains("models.toml:1:1: unknown field"),
            "{error}"
        );
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert_eq!(
            ModelsFile::load(&config).unwrap_err().code(),
            "models-invalid"
        );
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(config.path(), open).unwrap();
        assert_eq!(
            ModelsFile::load(&config).unwrap_err().code(),
            "place-unsafe"
        );
    }

    #[test]
    fn only_what_was_granted_is_selected() {
        let file = ModelsFile::parse(EXAMPLE.as_bytes()).unwrap();
        assert!(file.select(|_| false).is_empty());
        let chosen = file.select(|name| name == "small");
        assert_eq!(
            chosen.len(),
            2,
            "two providers have it, by name and by alias"
        );
        assert!(
            chosen
                .iter()
                .all(|(p, _)| p.models.iter().all(|m| m.is_called("small")))
        );
        assert!(chosen.iter().all(|(p, _)| p.models.len() == 1));
    }

    #[test]
    fn what_is_wrong_has_a_place_and_one_sentence() {
        let model =
            "[[provider.model]]\nname = \"m\"\ninput = \"1\"\noutput = \"2\"\nmax_tokens = 9\n";
        let provider =
            "[[provider]]\nname = \"p\"\nwire = \"openai\"\nurl = \"http://127.0.0.1/v1\"\n";
        let whole = format!("{provider}{model}");
        assert!(ModelsFile::parse(whole.as_bytes()).is_ok());
        for (from, to, line, column, part) in [
            (
                "wire = \"openai\"",
                "wire = \"grpc\"",
                3,
                8,
                "unknown variant `grpc`",
            ),
            (
                "127.0.0.1",
                "192.0.2.1",
                4,
                7,
                "plain HTTP to another machine",
            ),
            ("\"1\"", "1.5", 7, 9, "as a string"),
            ("\"1\"", "\"1.5.1\"", 7, 9, "is no amount"),
            (
                "name = \"m\"",
                "name = \"m m\"",
                6,
                8,
                "is no name of a model",
            ),
            ("max_tokens = 9", "max_tokens = 0", 9, 14, "it is 1 to"),
            (
                "max_tokens = 9",
                "tokens = 9",
                9,
                1,
                "unknown field `tokens`",
            ),
            ("max_tokens = 9\n", "", 5, 1, "missing field `max_tokens`"),
            (
                "max_tokens = 9",
                "max_tokens = 9\naliases = [\"m\"]",
                10,
                12,
                "two models called `m`",
            ),
            (model, "model = []\n", 5, 9, "has no models"),
            (model, "", 1, 1, "missing field `model`"),
            (
                "openai\"",
                "anthropic\"\nlimit_field = \"max_tokens\"",
                4,
                15,
                "OpenAI wire only",
            ),
            ("[[provider]]", "x = [", 2, 6, "unexpected"),
        ] {
            let text = whole.replacen(from, to, 1);
            let error = ModelsFile::parse(text.as_bytes()).unwrap_err();
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{text}\n{error}"
            );
            assert!(error.message.contains(part), "{error}");
            assert_eq!(error.message.lines().count(), 1, "{error}");
        }
        let twice = ModelsFile::parse(format!("{whole}{whole}").as_bytes()).unwrap_err();
        assert!(twice.message.contains("two providers"), "{twice}");
        assert_eq!(ModelsFile::parse(b"").unwrap().providers, []);
        assert!(ModelsFile::parse(&[0xff]).is_err());
    }
}

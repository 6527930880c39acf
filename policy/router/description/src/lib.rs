//! Which models there are, what they cost, and what the router of one partition is handed.
//!
//! The operator writes `models.toml`, which [`file::ModelsFile`] reads. For a partition that was
//! granted models the supervisor picks those that it may call ([`file::ModelsFile::select`]), puts
//! in the keys' values from the vault and the addresses of the hosts, and hands [`Models`] to the
//! process in which `bulkhead-router` runs. A guest sees none of it.
#![forbid(unsafe_code)]

pub mod file;
mod money;
mod secret;
mod url;

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use money::{Money, ParseMoneyError, Price};
pub use secret::KeyValue;
pub use url::{BaseUrl, ParseUrlError};

/// Requests a minute that a partition may make where nothing says otherwise.
pub const REQUESTS_PER_MINUTE: u32 = 50;

/// What one partition's router works with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Who calls, as records name it: `system/partition`.
    pub actor: String,
    /// Who is asked first.
    #[serde(default)]
    pub order: Order,
    /// Providers, each with the models the partition was granted, and with no other.
    pub providers: Vec<Provider>,
    /// What may be spent.
    #[serde(default)]
    pub budget: Budget,
    /// What was spent before this process began.
    #[serde(default)]
    pub spent: Spent,
    /// Requests of the partition a minute, all models together.
    #[serde(default = "requests_per_minute")]
    pub requests_per_minute: u32,
}

fn requests_per_minute() -> u32 {
    REQUESTS_PER_MINUTE
}

/// Which provider is asked first, of several that have a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The lowest `priority`, then the cheapest.
    #[default]
    Priority,
    /// The one where the call could cost least, then the lowest `priority`.
    Cost,
}

/// How a provider wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// OpenAI's chat completions, which most local servers speak too.
    Openai,
    /// Anthropic's messages.
    Anthropic,
}

impl Wire {
    /// The wire's name in sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "OpenAI",
            Self::Anthropic => "Anthropic",
        }
    }
}

/// Under which name a provider of the OpenAI wire takes the bound on its answer. A server that
/// does not know the name would answer without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitField {
    /// What every server knows.
    #[default]
    MaxTokens,
    /// What OpenAI's models that reason demand.
    MaxCompletionTokens,
}

/// A place where models are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its name in records and messages.
    pub name: String,
    /// How it is spoken to.
    pub wire: Wire,
    /// What comes before `/chat/completions` or `/messages`.
    pub url: BaseUrl,
    /// What the host of the URL resolved to.
    pub addresses: Vec<IpAddr>,
    /// Keys, used in turn; none for a server that asks for none.
    pub keys: Vec<Key>,
    /// Lower is asked first.
    pub priority: u32,
    /// Requests a minute it may be asked, if that is bounded.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, of input and output together, if that is bounded.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    /// Time without a word from it after which it is given up.
    pub timeout: Duration,
    /// How it takes the bound on an answer.
    #[serde(default)]
    pub limit_field: LimitField,
    /// Whether it is believed what it says of the tokens that a call took.
    pub trust_usage: bool,
    /// What it serves.
    pub models: Vec<Model>,
}

/// A provider's key: its name in the vault, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its name, which records may have.
    pub name: String,
    /// Its value, which nothing may have but the request to the provider.
    pub value: KeyValue,
}

/// A model at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What guests call it.
    pub name: String,
    /// What else they may call it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What the provider calls it.
    pub upstream: String,
    /// Price of input tokens.
    pub input: Price,
    /// Price of output tokens.
    pub output: Price,
    /// Most tokens of one answer, and what a request gets that asks for no bound.
    pub max_tokens: u32,
    /// Whether an answer at temperature 0 may be given again to whoever asks the same.
    #[serde(default)]
    pub cache: bool,
    /// What lets the partition call it.
    #[serde(default)]
    pub grants: Vec<Grant>,
}

/// A grant of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Each call takes a person's consent.
    #[serde(default)]
    pub approval: bool,
    /// Seconds after the router's start for which it holds; absent: for ever.
    #[serde(default)]
    pub lifetime: Option<u64>,
}

/// What a call of a granted model takes. The lesser counts where grants differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Takes {
    /// Nothing more.
    Nothing,
    /// A person's consent.
    Consent,
}

impl Model {
    /// What a call takes this many seconds after the router's start; `None` where no grant holds then.
    pub fn takes(&self, seconds: u64) -> Option<Takes> {
        let holds = |grant: &&Grant| grant.lifetime.is_none_or(|lifetime| seconds < lifetime);
        let takes = |grant: &Grant| match grant.approval {
            true => Takes::Consent,
            false => Takes::Nothing,
        };
        self.grants.iter().filter(holds).map(takes).min()
    }

    /// Whether guests may mean it by `name`.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// What `input` and `output` tokens cost, rounded up to a millionth of a cent.
    pub fn cost(&self, input: u64, output: u64) -> Money {
        Money::of(&[(self.input, input), (self.output, output)])
    }
}

/// What a partition may spend on models. A bound that is absent does not bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Tokens, of input and output together.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Money.
    #[serde(default)]
    pub money: Option<Money>,
}

/// What a partition has spent on models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// Tokens, of input and output together.
    pub tokens: u64,
    /// Money.
    pub money: Money,
}

//! `bulkhead model`: the models that partitions can be granted.

use crate::cli::{ListFormat, ModelCommand, ModelListArgs};
use crate::failure::Failure;
use crate::table;
use bulkhead_models::file::{LoadError, ModelsFile};
use bulkhead_models::{Model, Provider, Wire};
use bulkhead_places::Place;
use serde::Serialize;

pub(crate) fn run(command: &ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::Ls(args) => list(args),
    }
}

/// A model at one provider, as JSON. Prices are for a million tokens.
#[derive(Serialize)]
struct Row {
    model: String,
    aliases: Vec<String>,
    provider: String,
    wire: Wire,
    upstream: String,
    input: String,
    output: String,
    max_tokens: u32,
}

impl Row {
    fn new(provider: &Provider, model: &Model) -> Self {
        Self {
            model: model.name.clone(),
            aliases: model.aliases.clone(),
            provider: provider.name.clone(),
            wire: provider.wire,
            upstream: model.upstream.clone(),
            input: model.input.to_string(),
            output: model.output.to_string(),
            max_tokens: model.max_tokens,
        }
    }
}

fn list(args: &ModelListArgs) -> Result<(), Failure> {
    let config = Place::config().map_err(LoadError::from)?;
    let file = ModelsFile::load(&config)?;
    let granted = |name: &str| args.grant.as_ref().is_none_or(|grant| grant.matches(name));
    let providers = file.select(granted);
    let mut rows: Vec<Row> = (providers.iter())
        .flat_map(|(provider, _)| {
            provider
                .models
                .iter()
                .map(|model| Row::new(provider, model))
        })
        .collect();
    rows.sort_by(|a, b| a.model.cmp(&b.model));
    let text = match args.format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&rows);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
        ListFormat::Table => {
            let row = |row: Row| {
                let aliases = match row.aliases.is_empty() {
                    true => "-".to_owned(),
                    false => row.aliases.join(", "),
                };
                let most = row.max_tokens.to_string();
                [
                    row.model,
                    aliases,
                    row.provider,
                    row.input,
                    row.output,
                    most,
                ]
            };
            let header = [
                "MODEL",
                "ALIASES",
                "PROVIDER",
                "INPUT",
                "OUTPUT",
                "MAX TOKENS",
            ];
            table::lines(header, rows.into_iter().map(row))
        }
    };
    crate::print(text.as_bytes())
}

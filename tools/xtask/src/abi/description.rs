//! The description of the ABI as written in `guest-kernel/abi/kernel.toml`, and the rules that a
//! parser cannot check: names that exist, numbers given once, places that do not overlap, structs
//! without holes.

use std::collections::HashSet;

use serde::Deserialize;
use toml::Spanned;

use super::place::{Place, Register};
use crate::failure::{Failure, Result};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    pub(super) faults: Vec<Party>,
    pub(super) statuses: Vec<Status>,
    pub(super) slots: Vec<Slot>,
    pub(super) rights: Vec<Right>,
    #[serde(rename = "convention")]
    pub(super) conventions: Vec<Convention>,
    #[serde(rename = "operation")]
    pub(super) operations: Vec<Operation>,
    #[serde(rename = "module")]
    pub(super) modules: Vec<Module>,
}

/// Who may be at fault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Party {
    pub(super) name: String,
    pub(super) doc: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) fault: String,
    pub(super) doc: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) doc: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Right {
    pub(super) bit: u32,
    pub(super) name: String,
    pub(super) doc: String,
}

/// Which registers hold what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Convention {
    pub(super) name: String,
    pub(super) doc: String,
    pub(super) number: Place,
    pub(super) arguments: Vec<Place>,
    pub(super) status: Place,
    pub(super) results: Vec<Place>,
    pub(super) lost: Vec<Register>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    pub(super) number: u64,
    pub(super) name: String,
    convention: String,
    pub(super) invokes: Option<String>,
    pub(super) doc: String,
    #[serde(default)]
    pub(super) arguments: Vec<Value>,
    #[serde(default)]
    pub(super) results: Vec<Value>,
    #[serde(default)]
    pub(super) errors: Vec<String>,
}

/// An argument or a result.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Value {
    pub(super) name: String,
    #[serde(rename = "is")]
    pub(super) kind: Kind,
    at: Option<Place>,
    pub(super) doc: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Handle,
    Address,
    Source,
    Destination,
    Bytes,
    Rights,
    Number,
}

/// Constants and structs of one room.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) doc: String,
    /// True when C programs are shown it.
    pub(super) header: bool,
    pub(super) constants: Vec<Constant>,
    #[serde(default, rename = "struct")]
    pub(super) structs: Vec<Struct>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Constant {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    value: Option<Spanned<i128>>,
    pub(super) bit: Option<u32>,
    pub(super) doc: String,
    /// The value as the file spells it.
    #[serde(skip)]
    pub(super) spelling: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Struct {
    pub(super) name: String,
    pub(super) doc: String,
    pub(super) fields: Vec<Field>,
    #[serde(skip)]
    pub(super) size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Field {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) doc: Option<String>,
    #[serde(skip)]
    pub(super) offset: u64,
}

/// Size and alignment of a type.
#[derive(Clone, Copy)]
struct Shape {
    size: u64,
    align: u64,
}

impl Description {
    /// Reads and checks `text`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut description: Self = toml::from_str(text)
            .map_err(|error| Failure::new(format!("the description of the ABI: {error}")))?;
        description.spell(text)?;
        description.lay_out()?;
        description.check()?;
        Ok(description)
    }

    /// The convention of an operation.
    pub(super) fn convention(&self, operation: &Operation) -> Result<&Convention> {
        let name = &operation.convention;
        (self.conventions.iter())
            .find(|convention| convention.name == *name)
            .ok_or_else(|| wrong(&operation.name, format!("there is no convention {name}")))
    }

    /// The arguments of an operation, each with its place.
    pub(super) fn arguments<'a>(&'a self, op: &'a Operation) -> Result<Vec<(Place, &'a Value)>> {
        placed(op, &op.arguments, &self.convention(op)?.arguments)
    }

    /// The results of an operation, each with its place.
    pub(super) fn results<'a>(&'a self, op: &'a Operation) -> Result<Vec<(Place, &'a Value)>> {
        placed(op, &op.results, &self.convention(op)?.results)
    }

    /// The first number that no operation has.
    pub(super) fn count(&self) -> u64 {
        let numbers = self.operations.iter().map(|operation| operation.number);
        numbers.max().map_or(0, |last| last + 1)
    }

    fn spell(&mut self, text: &str) -> Result<()> {
        for module in &mut self.modules {
            for constant in &mut module.constants {
                constant.spelling = match (&constant.value, constant.bit) {
                    (Some(value), None) => text.get(value.span()).unwrap_or_default().to_owned(),
                    (None, Some(bit)) => format!("1 << {bit}"),
                    _ => return Err(wrong(&constant.name, "it needs a value or a bit")),
                };
            }
        }
        Ok(())
    }

    /// Gives each field its offset.
    fn lay_out(&mut self) -> Result<()> {
        let mut known: Vec<(String, Shape)> = Vec::new();
        for module in &mut self.modules {
            for laid in &mut module.structs {
                let mut whole = Shape { size: 0, align: 1 };
                for field in &mut laid.fields {
                    let at = format!("{}.{}", laid.name, field.name);
                    let shape = shape(&field.kind, &known)
                        .ok_or_else(|| wrong(&at, format!("{} is no known type", field.kind)))?;
                    if !whole.size.is_multiple_of(shape.align) {
                        return Err(wrong(&at, "there is a hole before it"));
                    }
                    field.offset = whole.size;
                    whole.size += shape.size;
                    whole.align = whole.align.max(shape.align);
                }
                if !whole.size.is_multiple_of(whole.align) {
                    return Err(wrong(&laid.name, "there is a hole at its end"));
                }
                laid.size = whole.size;
                known.push((laid.name.clone(), whole));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        unique("fault", self.faults.iter().map(|party| &party.name))?;
        unique("status", self.statuses.iter().map(|status| &status.name))?;
        unique("status", self.statuses.iter().map(|status| status.number))?;
        unique("slot", self.slots.iter().map(|slot| &slot.name))?;
        unique("slot", self.slots.iter().map(|slot| slot.number))?;
        unique("right", self.rights.iter().map(|right| &right.name))?;
        unique("right", self.rights.iter().map(|right| right.bit))?;
        unique("convention", self.conventions.iter().map(|c| &c.name))?;
        unique("operation", self.operations.iter().map(|op| &op.name))?;
        unique("operation", self.operations.iter().map(|op| op.number))?;
        unique("module", self.modules.iter().map(|module| &module.name))?;
        for module in &self.modules {
            let constants = module.constants.iter().map(|constant| &constant.name);
            unique(
                "name",
                constants.chain(module.structs.iter().map(|s| &s.name)),
            )?;
        }
        let first = self.statuses.first();
        if first.is_none_or(|first| first.number != 0 || first.name != "Ok") {
            return Err(wrong("statuses", "the first has to be Ok, number 0"));
        }
        for status in &self.statuses {
            if !self.faults.iter().any(|party| party.name == status.fault) {
                return Err(wrong(
                    &status.name,
                    format!("there is no fault {}", status.fault),
                ));
            }
        }
        for convention in &self.conventions {
            convention.check()?;
        }
        for operation in &self.operations {
            self.check_operation(operation)?;
        }
        Ok(())
    }

    fn check_operation(&self, operation: &Operation) -> Result<()> {
        let convention = self.convention(operation)?;
        if !convention.number.holds(operation.number) {
            return Err(wrong(&operation.name, "its number does not fit its place"));
        }
        let arguments = self.arguments(operation)?;
        let results = self.results(operation)?;
        for (what, values, fixed) in [
            ("argument", &arguments, convention.number),
            ("result", &results, convention.status),
        ] {
            unique(what, values.iter().map(|(_, value)| &value.name))?;
            let places = values.iter().map(|(place, _)| *place);
            apart(&operation.name, std::iter::once(fixed).chain(places))?;
        }
        for (place, value) in &results {
            if !convention
                .results
                .iter()
                .any(|whole| whole.register == place.register)
            {
                return Err(wrong(&value.name, "its convention returns nothing there"));
            }
        }
        let handle = arguments
            .first()
            .is_some_and(|(_, value)| value.kind == Kind::Handle);
        if operation.invokes.is_some() && !handle {
            return Err(wrong(
                &operation.name,
                "its first argument has to be the invoked handle",
            ));
        }
        unique("error", &operation.errors)?;
        for error in &operation.errors {
            if error == "Ok" || !self.statuses.iter().any(|status| status.name == *error) {
                return Err(wrong(&operation.name, format!("there is no error {error}")));
            }
        }
        Ok(())
    }
}

impl Convention {
    fn check(&self) -> Result<()> {
        let inputs = std::iter::once(self.number).chain(self.arguments.iter().copied());
        apart(&self.name, inputs)?;
        let outputs = std::iter::once(self.status).chain(self.results.iter().copied());
        apart(&self.name, outputs.clone())?;
        if outputs
            .into_iter()
            .any(|place| self.lost.contains(&place.register))
        {
            return Err(wrong(&self.name, "a result lies in a lost register"));
        }
        Ok(())
    }
}

/// Gives every value its own place, or the next one of its convention.
fn placed<'a>(
    operation: &Operation,
    values: &'a [Value],
    places: &[Place],
) -> Result<Vec<(Place, &'a Value)>> {
    let mut next = places.iter().copied();
    (values.iter())
        .map(|value| match value.at.or_else(|| next.next()) {
            Some(place) => Ok((place, value)),
            None => Err(wrong(
                &operation.name,
                format!("there is no place for {}", value.name),
            )),
        })
        .collect()
}

fn shape(kind: &str, known: &[(String, Shape)]) -> Option<Shape> {
    if let Some((element, count)) = array(kind) {
        let one = shape(element, known)?;
        return Some(Shape {
            size: one.size * count,
            ..one
        });
    }
    let size = match kind {
        "u8" => 1,
        "u16" => 2,
        "u32" => 4,
        "u64" | "i64" => 8,
        other => {
            return known
                .iter()
                .find(|(name, _)| name == other)
                .map(|(_, shape)| *shape);
        }
    };
    Some(Shape { size, align: size })
}

/// Element and length of `[T; n]`.
pub(super) fn array(kind: &str) -> Option<(&str, u64)> {
    let (element, count) = kind
        .strip_prefix('[')?
        .strip_suffix(']')?
        .split_once("; ")?;
    Some((element, count.parse().ok()?))
}

fn apart(name: &str, places: impl Iterator<Item = Place>) -> Result<()> {
    let places: Vec<Place> = places.collect();
    for (index, place) in places.iter().enumerate() {
        if places
            .iter()
            .skip(index + 1)
            .any(|other| other.overlaps(*place))
        {
            return Err(wrong(name, format!("two values lie in {place}")));
        }
    }
    Ok(())
}

fn unique<T: std::hash::Hash + Eq + std::fmt::Display>(
    what: &str,
    names: impl IntoIterator<Item = T>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let text = name.to_string();
        if !seen.insert(name) {
            return Err(wrong(&text, format!("two of a kind: {what}")));
        }
    }
    Ok(())
}

fn wrong(name: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("the description of the ABI: {name}: {why}"))
}

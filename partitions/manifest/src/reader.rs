//! Reads one TOML table key by key: types are checked, and keys nobody knows are refused.

use crate::diagnostic::{Code, Diagnostic, Place, Rejected};
use crate::draft::At;
use crate::field::Fields;
use crate::validate::Sink;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// The text, and what was found wrong with it so far.
pub(crate) struct Report<'t> {
    pub(crate) text: &'t str,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl<'t> Report<'t> {
    /// Nothing is wrong with `text` yet.
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            diagnostics: Vec::new(),
        }
    }
}

impl Report<'_> {
    /// Has a draft of the text checked, and gives back what was made of it if nothing was wrong
    /// with either; else everything that was, in the order of the text.
    pub(crate) fn check<T>(
        mut self,
        check: impl FnOnce(&mut Sink<'_>) -> Option<T>,
        file: &str,
    ) -> Result<T, Rejected> {
        // A key of the wrong type is not in the draft, and yet not absent.
        let mistyped = (self.diagnostics.iter()).any(|found| found.code == Code::WrongType);
        let checked = check(&mut |code, span, message, help| {
            if mistyped && matches!(code, Code::MissingKey | Code::NoPartition) {
                return;
            }
            let place = span.map(|span| Place::of(self.text, span));
            self.diagnostics.push(Diagnostic {
                code,
                message,
                help,
                place,
                field: None,
            });
        });
        // What has no place concerns the file as a whole and comes first.
        self.diagnostics
            .sort_by_key(|d| d.place.as_ref().map(|place| place.span.start));
        match checked {
            Some(made) if self.diagnostics.is_empty() => Ok(made),
            _ => {
                self.name_fields();
                Err(Rejected {
                    file: Some(file.to_owned()),
                    diagnostics: self.diagnostics,
                })
            }
        }
    }

    /// Says which fields the diagnostics are about.
    fn name_fields(&mut self) {
        let Ok(root) = DeTable::parse(self.text) else {
            return;
        };
        let fields = Fields::of(root.get_ref());
        for diagnostic in &mut self.diagnostics {
            // What is missing in the text as a whole is at no field of it.
            let place = diagnostic.place.as_ref();
            let place = place.filter(|place| place.span != (0..self.text.len()));
            diagnostic.field = place.and_then(|place| fields.at(place.span.start));
        }
    }

    pub(crate) fn refuse(&mut self, code: Code, span: Range<usize>, message: String, help: String) {
        let place = Some(Place::of(self.text, span));
        self.diagnostics.push(Diagnostic {
            code,
            message,
            help,
            place,
            field: None,
        });
    }

    pub(crate) fn wrong_type(&mut self, what: &str, expected: &str, found: &Spanned<DeValue<'_>>) {
        self.refuse(
            Code::WrongType,
            found.span(),
            format!(
                "{what} is {} instead of {expected}",
                article(found.get_ref().type_str())
            ),
            format!("write {expected}"),
        );
    }

    /// A string value.
    pub(crate) fn string(
        &mut self,
        what: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<At<String>> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(what, "a string", value);
            return None;
        };
        Some(At {
            value: text.to_owned(),
            span: Some(value.span()),
        })
    }
}

fn article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

/// One table of a manifest.
pub(crate) struct Reader<'r, 'd, 't> {
    report: &'r mut Report<'t>,
    table: &'d DeTable<'d>,
}

impl<'r, 'd, 't> Reader<'r, 'd, 't> {
    /// Opens `table`, which may hold the keys `known`; every other key is refused. `what` ends a
    /// sentence: "in a partition".
    pub(crate) fn new(
        report: &'r mut Report<'t>,
        table: &'d DeTable<'d>,
        known: &[&str],
        what: &str,
    ) -> Self {
        for (key, _) in table.iter() {
            let name: &DeString<'_> = key.get_ref();
            if !known.contains(&name.as_ref()) {
                let close = known.iter().find(|known| is_close(known, name));
                let help = match close {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("keys {what}: {}", known.join(", ")),
                };
                let message = format!("unknown key `{name}` {what}");
                report.refuse(Code::UnknownKey, key.span(), message, help);
            }
        }
        Self { report, table }
    }

    fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table
            .iter()
            .find(|(name, _)| name.get_ref().as_ref() == key)
            .map(|(_, value)| value)
    }

    pub(crate) fn string(&mut self, key: &str) -> Option<At<String>> {
        let value = self.get(key)?;
        self.report.string(&format!("`{key}`"), value)
    }

    pub(crate) fn integer(&mut self, key: &str) -> Option<At<i64>> {
        let value = self.get(key)?;
        let number = value.get_ref().as_integer();
        let parsed = number.map(|n| i64::from_str_radix(n.as_str(), n.radix()));
        match parsed {
            Some(Ok(number)) => Some(At {
                value: number,
                span: Some(value.span()),
            }),
            Some(Err(_)) => Some(At {
                value: i64::MAX,
                span: Some(value.span()),
            }),
            None => {
                self.report
                    .wrong_type(&format!("`{key}`"), "a whole number", value);
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Option<At<bool>> {
        let value = self.get(key)?;
        let Some(boolean) = value.get_ref().as_bool() else {
            self.report
                .wrong_type(&format!("`{key}`"), "true or false", value);
            return None;
        };
        Some(At {
            value: boolean,
            span: Some(value.span()),
        })
    }

    /// A table, given to `read`.
    pub(crate) fn table<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Report<'t>, &'d DeTable<'d>) -> T,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.report
                .wrong_type(&format!("`{key}`"), "a table", value);
            return None;
        };
        Some(At {
            value: read(self.report, table),
            span: Some(value.span()),
        })
    }

    /// A value of more than one type, given to `read`.
    pub(crate) fn value<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Report<'t>, &'d Spanned<DeValue<'d>>) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        Some(At {
            value: read(self.report, value)?,
            span: Some(value.span()),
        })
    }

    pub(crate) fn strings(&mut self, key: &str) -> Option<At<Vec<String>>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.report
                .wrong_type(&format!("`{key}`"), "an array of strings", value);
            return None;
        };
        let what = format!("an element of `{key}`");
        let strings: Option<Vec<String>> = (array.iter())
            .map(|element| self.report.string(&what, element).map(|at| at.value))
            .collect();
        Some(At {
            value: strings?,
            span: Some(value.span()),
        })
    }

    /// An array of strings, each with its place.
    pub(crate) fn spanned_strings(&mut self, key: &str) -> Vec<At<String>> {
        let what = format!("an element of `{key}`");
        self.elements(key, |report, value| {
            report.string(&what, value).map(|at| at.value)
        })
    }

    pub(crate) fn string_map(&mut self, key: &str) -> Option<At<BTreeMap<String, String>>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.report
                .wrong_type(&format!("`{key}`"), "a table of strings", value);
            return None;
        };
        let mut map = BTreeMap::new();
        for (name, value) in table.iter() {
            let value = self
                .report
                .string(&format!("`{key}.{}`", name.get_ref()), value)?;
            map.insert(name.get_ref().to_string(), value.value);
        }
        Some(At {
            value: map,
            span: Some(value.span()),
        })
    }

    /// The tables of `[[key]]`, each given to `read`.
    pub(crate) fn tables<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&mut Report<'t>, &'d DeTable<'d>) -> T,
    ) -> Vec<At<T>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.report
                .wrong_type(&format!("`{key}`"), "an array of tables", value);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in array.iter() {
            match element.get_ref().as_table() {
                Some(table) => {
                    let value = read(self.report, table);
                    tables.push(At {
                        value,
                        span: Some(element.span()),
                    });
                }
                None => {
                    self.report
                        .wrong_type(&format!("an element of `{key}`"), "a table", element);
                }
            }
        }
        tables
    }

    /// The elements of an array, each given to `read`.
    pub(crate) fn elements<T>(
        &mut self,
        key: &str,
        read: impl Fn(&mut Report<'t>, &'d Spanned<DeValue<'d>>) -> Option<T>,
    ) -> Vec<At<T>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.report
                .wrong_type(&format!("`{key}`"), "an array", value);
            return Vec::new();
        };
        let mut elements = Vec::new();
        for element in array.iter() {
            if let Some(value) = read(self.report, element) {
                elements.push(At {
                    value,
                    span: Some(element.span()),
                });
            }
        }
        elements
    }
}

/// True when a person may have meant `known` by `name`.
fn is_close(known: &str, name: &str) -> bool {
    // Comparing costs the product of both lengths, and the name comes from outside.
    name.len() <= 32 && strsim::levenshtein(known, name) <= 2
}

//! Which key a place in a TOML text is about: `identity.role`, `grants[2]`. Used where a manifest is
//! refused, for records and scripts that name the field.

use std::fmt::Write;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Characters of a key that are told; no key that anybody knows has as many.
const MAX_KEY: usize = 64;

/// Every key and every element of a text.
pub(crate) struct Fields<'d> {
    fields: Vec<Field<'d>>,
    /// Indices into `fields`, by where they begin.
    order: Vec<usize>,
}

struct Field<'d> {
    start: usize,
    /// Index of what it is in.
    parent: Option<usize>,
    name: Name<'d>,
}

#[derive(Clone, Copy)]
enum Name<'d> {
    Key(&'d str),
    Element(usize),
}

impl<'d> Fields<'d> {
    /// Those of a whole text.
    pub(crate) fn of(root: &'d DeTable<'d>) -> Self {
        let mut all = Self {
            fields: Vec::new(),
            order: Vec::new(),
        };
        all.add_table(None, root);
        all.order = (0..all.fields.len()).collect();
        let (fields, order) = (&all.fields, &mut all.order);
        order.sort_by_key(|index| fields.get(*index).map(|field| field.start));
        all
    }

    /// The field that the byte at `at` belongs to; none before the first.
    pub(crate) fn at(&self, at: usize) -> Option<String> {
        let begins = |index: &usize| self.fields.get(*index).is_some_and(|f| f.start <= at);
        let after = self.order.partition_point(begins);
        let mut index = self.order.get(after.checked_sub(1)?).copied();
        let mut names = Vec::new();
        while let Some(field) = index.and_then(|index| self.fields.get(index)) {
            names.push(field.name);
            index = field.parent;
        }
        let mut path = String::new();
        for name in names.into_iter().rev() {
            let dot = if path.is_empty() { "" } else { "." };
            // Writing to a string cannot fail.
            let _ = match name {
                Name::Key(key) => {
                    let key: String = key.chars().take(MAX_KEY).collect();
                    write!(path, "{dot}{key}")
                }
                Name::Element(index) => write!(path, "[{index}]"),
            };
        }
        Some(path)
    }

    fn add_table(&mut self, parent: Option<usize>, table: &'d DeTable<'d>) {
        for (key, value) in table.iter() {
            let name = Name::Key(key.get_ref().as_ref());
            // What is said of a table is said of its header, which begins before its key.
            let start = key.span().start.min(value.span().start);
            self.add(start, parent, name, value);
        }
    }

    // As deep as the parser lets a text be.
    fn add(
        &mut self,
        start: usize,
        parent: Option<usize>,
        name: Name<'d>,
        value: &'d Spanned<DeValue<'d>>,
    ) {
        let own = Some(self.fields.len());
        self.fields.push(Field {
            start,
            parent,
            name,
        });
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(own, table),
            DeValue::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let start = element.span().start;
                    self.add(start, own, Name::Element(index), element);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
grants = ["one", { capability = "two", calls = "three" }]
[identity]
role = "four"
[[secrets]]
name = "five"
[[secrets]]
name = "six"
bound.path = "seven"
[limits]
"#;

    #[test]
    fn each_place_is_about_a_field() {
        let root = DeTable::parse(TEXT).unwrap();
        let fields = Fields::of(root.get_ref());
        for (text, field) in [
            ("grants", "grants"),
            ("one", "grants[0]"),
            ("two", "grants[1].capability"),
            ("three", "grants[1].calls"),
            ("four", "identity.role"),
            ("five", "secrets[0].name"),
            ("six", "secrets[1].name"),
            ("seven", "secrets[1].bound.path"),
            ("[identity]", "identity"),
            ("[limits]", "limits"),
        ] {
            let at = TEXT.find(text).unwrap();
            assert_eq!(fields.at(at).as_deref(), Some(field), "{text}");
        }
        assert_eq!(fields.at(0), None);
        assert!(fields.at(usize::MAX).is_some());
    }
}

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
    /// Where headers of tables begin, and the indices of those into `fields`.
    headers: Vec<(usize, usize)>,
    /// Everything that begins somewhere, in order, with its index.
    order: Vec<(usize, usize)>,
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
            headers: Vec::new(),
            order: Vec::new(),
        };
        all.add_table(None, root);
        let starts = all.fields.iter().enumerate();
        let starts = starts.map(|(index, field)| (field.start, index));
        all.order = starts.chain(all.headers.iter().copied()).collect();
        all.order.sort_unstable();
        all
    }

    /// The field that the byte at `at` belongs to; none before the first.
    pub(crate) fn at(&self, at: usize) -> Option<String> {
        let after = self.order.partition_point(|(start, _)| *start <= at);
        let (_, last) = self.order.get(after.checked_sub(1)?)?;
        let mut index = Some(*last);
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
            let own = self.add(key.span().start, parent, name, value);
            // What is said of a table is said of its header, which begins before its key.
            let header = value.span().start;
            if header < key.span().start {
                self.headers.push((header, own));
            }
        }
    }

    // As deep as the parser lets a text be.
    fn add(
        &mut self,
        start: usize,
        parent: Option<usize>,
        name: Name<'d>,
        value: &'d Spanned<DeValue<'d>>,
    ) -> usize {
        let own = self.fields.len();
        self.fields.push(Field {
            start,
            parent,
            name,
        });
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(Some(own), table),
            DeValue::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let start = element.span().start;
                    self.add(start, Some(own), Name::Element(index), element);
                }
            }
            _ => {}
        }
        own
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
[first.second]
third = "eight"
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
            ("[first.second]", "first.second"),
            ("second]", "first.second"),
            ("eight", "first.second.third"),
        ] {
            let at = TEXT.find(text).unwrap();
            assert_eq!(fields.at(at).as_deref(), Some(field), "{text}");
        }
        assert_eq!(fields.at(0), None);
        assert!(fields.at(usize::MAX).is_some());
    }
}

//! Documentation of the description in the forms that others need: the links of Rust documentation
//! taken out or given other names, lines wrapped.

/// Where a line of a comment ends.
const WIDTH: usize = 100;

/// `doc` with every \[`NAME`\] replaced by what `name` makes of it.
pub(super) fn links(doc: &str, name: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = doc;
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((link, behind)) = after.split_once("`]") else {
            break;
        };
        out += before;
        out += &name(link);
        rest = behind;
    }
    out + rest
}

/// The last part of a path: what a reader calls it.
pub(super) fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// The lines of a comment, each with `prefix` before it. Paragraphs in one line are wrapped, those
/// with line breaks of their own stay as they are.
pub(super) fn comment(prefix: &str, doc: &str) -> String {
    let mut out = String::new();
    for line in doc.trim_end().lines() {
        let mut column = String::from(prefix);
        for word in line.split_whitespace() {
            if column.len() + 1 + word.len() > WIDTH && column != prefix && !line.starts_with('|') {
                out += &format!("{column}\n");
                column = String::from(prefix);
            }
            column += " ";
            column += word;
        }
        out += &format!("{column}\n");
    }
    out
}

/// `PhysRange` as `phys_range`.
pub(super) fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

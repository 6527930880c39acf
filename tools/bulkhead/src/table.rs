//! Lists for people: columns without rules, as `docker ps` has them.

use comfy_table::{Table, presets};

/// The lines of a table, with two spaces between its columns.
pub(crate) fn lines<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["a".to_owned(), "b".to_owned()]];
        assert_eq!(super::lines(["LONG", "X"], rows), "LONG  X\na     b\n");
        assert_eq!(super::lines(["X"], []), "X\n");
    }
}

//! Tables for people: columns aligned, a line a row, whatever the cells contain.

use std::fmt::{self, Display};

use chrono::{DateTime, SecondsFormat, Utc};

/// The longest cell; what is longer is cut, and a command shows it whole.
const LONGEST: usize = 80;

/// Rows under a heading.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).to_vec()],
        }
    }

    pub(super) fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.map(|cell| cut(&one_line(&cell))).to_vec());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Names and values, one below the other.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    pub(super) fn push(&mut self, name: &'static str, value: impl Display) {
        self.0.push((name, one_line(&value.to_string())));
    }

    /// Leaves out what isn't there.
    pub(super) fn push_some(&mut self, name: &'static str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.push(name, value);
        }
    }
}

impl Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.len()).max();
        let width = width.unwrap_or_default();
        for (name, value) in &self.0 {
            writeln!(f, "{name:<width$}  {value}")?;
        }
        Ok(())
    }
}

/// A text of several lines, without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

/// A text on one line, whatever somebody has put into it.
pub(super) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A time, to the second.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A value, or a dash.
pub(super) fn or_dash(value: Option<&str>) -> String {
    value.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_are_lines() {
        let mut table = Table::new(["ID", "ERROR"]);
        table.push(["a".to_owned(), "one\ntwo\u{1b}[31m".to_owned()]);
        table.push(["long".to_owned(), "é".repeat(100)]);
        let cut = "é".repeat(80);
        assert_eq!(
            table.to_string(),
            format!("ID    ERROR\na     one two [31m\nlong  {cut}…\n")
        );
        let mut facts = Facts::default();
        facts.push("a", 1);
        facts.push_some("long", Some("x\ny"));
        facts.push_some("none", None::<&str>);
        assert_eq!(facts.to_string(), "a     1\nlong  x y\n");
        assert_eq!(printable("{\n\t\u{9b}2J}"), "{\n  2J}");
    }
}

//! Tables for a terminal: text that is safe to print, columns sized by what is visible, colours.

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};

pub const STRONG: Style = Style::new().bold();
pub const FAINT: Style = Style::new().dimmed();
pub const RED: Style = AnsiColor::Red.on_default().bold();
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
pub const GREEN: Style = AnsiColor::Green.on_default();

/// Colours a word; `anstream` removes the colour if the output is not a terminal.
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The text of a cell, safe to print, with colours.
pub struct TableCell(String);

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        Self(clean(&text))
    }
}

impl TableCell {
    pub fn painted(style: Style, text: &str) -> Self {
        Self(paint(style, &clean(text)))
    }

    /// Adds more text.
    pub fn then(mut self, text: &str) -> Self {
        self.0.push_str(&clean(text));
        self
    }

    /// Adds coloured text.
    pub fn then_painted(mut self, style: Style, text: &str) -> Self {
        self.0.push_str(&paint(style, &clean(text)));
        self
    }
}

/// A table being built. Columns are sized by visible text.
pub struct TableBuilder(Table);

impl TableBuilder {
    pub fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        Self(table)
    }

    pub fn add(&mut self, cells: impl IntoIterator<Item = impl Into<TableCell>>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.into().0));
    }

    pub fn show(&self, out: &mut String) {
        for (number, line) in self.0.to_string().lines().enumerate() {
            let line = line.trim_end();
            if number == 0 {
                out.push_str(&paint(FAINT, line));
            } else {
                out.push_str(line);
            }
            out.push('\n');
        }
    }
}

/// Names and paths are controlled by the observed workloads: control characters are escaped.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() || matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                character.escape_default().to_string()
            } else {
                character.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_observed_names_are_escaped() {
        let evil = "/tmp/\u{1b}[2J\u{202e}gpj.key\nfake row";
        let escaped = clean(evil);
        assert!(!escaped.chars().any(char::is_control), "{escaped:?}");
        assert!(!escaped.contains('\u{202e}'));
        let mut rows = TableBuilder::new(&["PLACE"]);
        rows.add(vec![evil.to_owned()]);
        let mut out = String::new();
        rows.show(&mut out);
        assert_eq!(out.lines().count(), 2, "{out:?}");
        assert!(!out.contains("\u{1b}[2J"), "{out:?}");
    }

    /// A place may contain a word that is coloured elsewhere.
    #[test]
    fn only_the_column_of_a_verdict_has_its_colour() {
        let mut rows = TableBuilder::new(&["PLACE", "SEVERITY", "WORKLOAD"]);
        rows.add([
            TableCell::from("/srv/a high b".to_owned()),
            TableCell::painted(RED, "high"),
            TableCell::from("wide 漢字".to_owned()),
        ]);
        let mut out = String::new();
        rows.show(&mut out);
        let row = out.lines().nth(1).expect("a row");
        let painted = paint(RED, "high");
        assert_eq!(row.matches(&painted).count(), 1, "{row:?}");
        let visible = row.replace(&painted, "high");
        assert_eq!(visible, " /srv/a high b  high      wide 漢字");
    }
}

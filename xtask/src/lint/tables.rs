//! Measured tables in the docs, which carry the commit and the date of their measurement.

use anyhow::{Context as _, Result};
use jiff::{Zoned, civil::Date};
use std::{fs, path::Path};

/// Pages with measured tables.
const PAGES: [&str; 2] = ["docs/benchmarks.md", "docs/coverage.md"];
/// The line that dates a table: `Measured at COMMIT on DATE`.
const MARK: &str = "Measured at ";
const DAYS_MAX: i32 = 30;

/// Pages without a date, and tables that are too old.
pub fn stale(root: &Path) -> Result<Vec<String>> {
    let today = Zoned::now().date();
    let mut found = Vec::new();
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).with_context(|| format!("no {page}"))?;
        let dates: Vec<Option<Date>> = text
            .lines()
            .filter_map(|line| line.split_once(MARK))
            .map(|(_, rest)| date_of(rest))
            .collect();
        if dates.is_empty() {
            found.push(format!("{page}: no line `{MARK}COMMIT on DATE`"));
        }
        for date in dates {
            match date {
                None => found.push(format!("{page}: a line `{MARK}…` without a date")),
                Some(date) if days_between(date, today) > DAYS_MAX => {
                    found.push(format!("{page}: measured on {date}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(found)
}

/// The date after `COMMIT on `.
fn date_of(rest: &str) -> Option<Date> {
    let (_, date) = rest.split_once(" on ")?;
    date.get(..10)?.parse().ok()
}

fn days_between(from: Date, to: Date) -> i32 {
    from.until(to).map_or(i32::MAX, |span| span.get_days())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_dated() {
        let date = date_of("0a49415 on 2026-11-26, on two processors.").expect("a date");
        assert_eq!(days_between(date, date), 0);
        assert_eq!(
            days_between(date, date.saturating_add(jiff::Span::new().days(31))),
            31
        );
        assert_eq!(date_of("yesterday"), None);
    }
}

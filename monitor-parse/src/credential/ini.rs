//! Parses sections of `name = value` line by line without copying: libraries build trees that use
//! two hundred times the size of a hostile file.

use super::finder::SecretFinder;

/// Finds the values of the names that the class lists.
pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    for entry in parse(text) {
        // `.npmrc` has `//registry.example/:_authToken=…`.
        let (scope, field) = match entry.name.rsplit_once("/:") {
            Some((scope, field)) if scope.starts_with("//") => (Some(scope), field),
            _ => (None, entry.name),
        };
        if finder.class.keys.iter().any(|key| key == field) {
            let scope = scope.map(|scope| scope.trim_matches('/'));
            let label = entry.section.or(scope).map(str::to_owned);
            finder.add_secret(entry.value, label, Vec::new());
        }
    }
}

/// One assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IniEntry<'a> {
    /// The section heading above it.
    pub section: Option<&'a str>,
    /// Number of headings above it: two sections may have the same name.
    pub heading: usize,
    pub name: &'a str,
    pub value: &'a str,
}

/// The assignments of a file, in order. A malformed line is skipped.
pub fn parse(text: &str) -> impl Iterator<Item = IniEntry<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut section, mut heading) = (None, 0);
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            return None;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = Some(name.trim());
            heading += 1;
            return None;
        }
        let (name, value) = line.split_once('=').or_else(|| line.split_once(':'))?;
        Some(IniEntry {
            section,
            heading,
            name: name.trim(),
            value: unquoted(value.trim()),
        })
    })
}

fn unquoted(value: &str) -> &str {
    let inside = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_and_values() {
        let text = "\u{feff}first = 1\n[ a ]\n# x = 2\n  b=\"3\" \nnothing\n[c]\nd : 'e=f'\n";
        let found: Vec<_> = parse(text)
            .map(|entry| (entry.section, entry.heading, entry.name, entry.value))
            .collect();
        assert_eq!(
            found,
            [
                (None, 0, "first", "1"),
                (Some("a"), 1, "b", "3"),
                (Some("c"), 2, "d : 'e", "f'"),
            ]
        );
        let colon: Vec<_> = parse("a: b").collect();
        assert_eq!((colon[0].name, colon[0].value), ("a", "b"));
    }

    proptest! {
        #[test]
        fn any_text(text in "(\\PC|[\\n=:\\[\\]\"'#]){0,80}") {
            for entry in parse(&text) {
                prop_assert!(text.contains(entry.name) && text.contains(entry.value));
            }
        }
    }
}

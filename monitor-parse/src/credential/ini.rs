//! Parses sections of `name = value` line by line without copying: libraries build trees that use
//! two hundred times the size of a hostile file.

use super::{
    finder::{SecretFinder, decode_text},
    json, urls,
};
use std::collections::BTreeMap;

/// Registries of which the user is remembered.
const USERS_MAX: usize = 256;

/// Finds the values of the names that the class lists.
pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    // Found once, because a file may have very many passwords.
    let users: BTreeMap<&str, &str> = parse(text)
        .filter_map(|entry| match scope_of(entry.name) {
            (Some(scope), "username") => Some((scope, entry.value)),
            _ => None,
        })
        .take(USERS_MAX)
        .collect();
    for entry in parse(text) {
        let (scope, field) = scope_of(entry.name);
        if !finder.class.keys.iter().any(|key| key == field) || is_reference(entry.value) {
            continue;
        }
        if entry.value.starts_with('{') {
            // rclone keeps what an issuer answered.
            json::find(finder, entry.value);
            continue;
        }
        if entry.value.contains("://") {
            urls::find_in_url(finder, entry.value);
            continue;
        }
        let Some(scope) = scope else {
            let label = entry.section.map(str::to_owned);
            finder.add_secret(entry.value, label, Vec::new());
            continue;
        };
        let (secret, aliases) = match field {
            "_auth" => finder.basic_pair(entry.value),
            "_password" => password_of(finder, users.get(scope).copied(), entry.value),
            _ => (entry.value.to_owned(), Vec::new()),
        };
        finder.add_for_host(scope, &secret, Some(scope.to_owned()), aliases);
    }
}

/// The registry and the name in `//registry.example:4873/path/:_authToken`, as in `.npmrc`.
fn scope_of(name: &str) -> (Option<&str>, &str) {
    match name.rsplit_once("/:") {
        Some((scope, field)) if scope.starts_with("//") => (Some(scope.trim_matches('/')), field),
        _ => (None, name),
    }
}

/// Whether a value only names a variable, which is another credential's place.
fn is_reference(value: &str) -> bool {
    value
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|name| !name.contains('}'))
}

/// A password in base64, and the pair that is sent with the user of the same registry.
fn password_of(finder: &SecretFinder<'_>, user: Option<&str>, value: &str) -> (String, Vec<u64>) {
    let Some(password) = decode_text(value) else {
        return (value.to_owned(), Vec::new());
    };
    let mut aliases = vec![finder.fingerprint(value.as_bytes())];
    aliases.extend(user.map(|user| finder.basic_form(user, &password)));
    (password, aliases)
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

/// A value without quotes, and without a comment behind them.
fn unquoted(value: &str) -> &str {
    let inside = |quote: char| {
        let rest = value.strip_prefix(quote)?;
        let (inside, behind) = rest.split_once(quote)?;
        let behind = behind.trim_start();
        let ends = behind.is_empty() || behind.starts_with(['#', ';']);
        if ends {
            Some(inside)
        } else {
            rest.strip_suffix(quote)
        }
    };
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_and_values() {
        let comment = parse("token = \"glrt-FAKE\" # of the runner").next();
        assert_eq!(comment.map(|entry| entry.value), Some("glrt-FAKE"));
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

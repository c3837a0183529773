//! Parses `.env` files line by line. A malformed line is skipped, and nothing is expanded: `$NAME`
//! in a value stays unchanged, because its expansion depends on the program that reads the file.

use super::finder::{SecretFinder, percent_decode};
use std::collections::BTreeMap;

/// Maximum variables per file.
const VARIABLES_MAX: usize = 4096;

/// Finds the variables that the catalog names, or whose value has an issuer's mark.
pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let mut variables: BTreeMap<String, String> = parse(text).into_iter().collect();
    if let (Some(id), Some(secret)) = (
        variables.get("AWS_ACCESS_KEY_ID"),
        variables.get("AWS_SECRET_ACCESS_KEY"),
    ) {
        let mut aliases = vec![finder.fingerprint(secret.as_bytes())];
        aliases.extend(
            variables
                .get("AWS_SESSION_TOKEN")
                .map(|token| finder.fingerprint(token.as_bytes())),
        );
        finder.add_secret(id, Some("AWS_ACCESS_KEY_ID".to_owned()), aliases);
        variables.retain(|name, _| !name.starts_with("AWS_"));
    }
    for (name, value) in &variables {
        let form = finder.catalog.class_of_secret(value.as_bytes());
        let Some(class) = form
            .filter(|form| form.class != "jwt")
            .or_else(|| finder.catalog.variable(name))
        else {
            continue;
        };
        let by_url = class.url_environment.iter().any(|_| value.contains("://"));
        let secret = if by_url {
            match url::Url::parse(value) {
                Ok(url) => match url.password() {
                    Some(password) => percent_decode(password),
                    None => continue,
                },
                Err(_) => continue,
            }
        } else {
            value.clone()
        };
        let class_name = class.class.clone();
        let before = finder.found.len();
        if secret.len() >= 8 {
            finder.add_secret(&secret, Some(name.clone()), Vec::new());
        }
        for found in &mut finder.found[before..] {
            if class_name != "generic-secret" {
                found.class.clone_from(&class_name);
            }
        }
    }
}

/// The variables of a file, in order.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    while !rest.is_empty() && variables.len() < VARIABLES_MAX {
        let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = behind;
        let Some((name, value)) = assignment(line) else {
            continue;
        };
        let value = match multiline(value, behind) {
            Some((value, after)) => {
                rest = after;
                value
            }
            None => unquoted(value).to_owned(),
        };
        variables.push((name.to_owned(), value));
    }
    variables
}

/// `export NAME = value`, or with a colon.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once(['=', ':'])?;
    let name = name.trim_end();
    let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-');
    (!name.is_empty() && name.chars().all(fits)).then(|| (name, value.trim_start()))
}

/// A quoted value, which may span several lines, and the text after it. `None` if the value is not
/// quoted, or the quotes are not closed.
fn multiline<'a>(value: &str, behind: &'a str) -> Option<(String, &'a str)> {
    let quote = value
        .chars()
        .next()
        .filter(|char| matches!(char, '"' | '\'' | '`'))?;
    let (mut inside, mut escaped) = (String::new(), false);
    for char in value[1..].chars() {
        if push_quoted(quote, char, &mut escaped, &mut inside) {
            // After the closing quote, the rest of the line is a comment or invalid.
            return Some((inside, behind));
        }
    }
    inside.push('\n');
    for (at, char) in behind.char_indices() {
        if push_quoted(quote, char, &mut escaped, &mut inside) {
            let after = &behind[at + 1..];
            return Some((inside, after.split_once('\n').map_or("", |(_, next)| next)));
        }
    }
    None
}

/// Adds one character of a quoted value; returns whether it ends the value.
fn push_quoted(quote: char, char: char, escaped: &mut bool, inside: &mut String) -> bool {
    if *escaped {
        *escaped = false;
        match char {
            'n' => inside.push('\n'),
            'r' => inside.push('\r'),
            't' => inside.push('\t'),
            '"' | '\\' | '$' => inside.push(char),
            other => inside.extend(['\\', other]),
        }
        return false;
    }
    if char == quote {
        return true;
    }
    // Other quotes take everything literally.
    if char == '\\' && quote == '"' {
        *escaped = true;
    } else {
        inside.push(char);
    }
    false
}

/// A value without its comment, which begins after white space.
fn unquoted(value: &str) -> &str {
    let end = value
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|at| *at == 0 || value[..*at].ends_with(char::is_whitespace));
    value[..end.unwrap_or(value.len())].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str, name: &str) -> Option<String> {
        let found = parse(text);
        found
            .into_iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    #[test]
    fn common_dotenv_styles() {
        let text = "\u{feff}APP-NAME=shop
MAIL_FROM=Shop Team <shop@example>
not a line
export STRIPE_SECRET_KEY=sk_live_FAKEfakeFAKEfake01 # of staging
DB_PASSWORD=\"p@$$w0rd-$HOME-1\"
PASSWORD_SECRET=$1a$10$ABC123abcdef
SINGLE='a\\n\"b'
KEY='-----BEGIN FAKE KEY-----
MIG
-----END FAKE KEY-----' # behind
UNENDED='FAKE
AFTER=FAKE#1
WINDOWS=FAKE\r
YAML: FAKE
EMPTY=
";
        for (name, expected) in [
            ("APP-NAME", "shop"),
            ("MAIL_FROM", "Shop Team <shop@example>"),
            ("STRIPE_SECRET_KEY", "sk_live_FAKEfakeFAKEfake01"),
            ("DB_PASSWORD", "p@$$w0rd-$HOME-1"),
            ("PASSWORD_SECRET", "$1a$10$ABC123abcdef"),
            ("SINGLE", "a\\n\"b"),
            (
                "KEY",
                "-----BEGIN FAKE KEY-----\nMIG\n-----END FAKE KEY-----",
            ),
            ("UNENDED", "'FAKE"),
            ("AFTER", "FAKE#1"),
            ("WINDOWS", "FAKE"),
            ("YAML", "FAKE"),
            ("EMPTY", ""),
        ] {
            assert_eq!(value(text, name).as_deref(), Some(expected), "{name}");
        }
    }

    /// Each of these once crashed an agent, or was expanded from its environment.
    #[test]
    fn nothing_is_expanded() {
        let mut text = String::from("A0=x\n");
        for number in 1..40 {
            let before = number - 1;
            text.push_str(&format!("A{number}=\"${{A{before}}}${{A{before}}}\"\n"));
        }
        assert_eq!(value(&text, "A39").as_deref(), Some("${A38}${A38}"));
        assert_eq!(value("A=${PATH}", "A").as_deref(), Some("${PATH}"));
    }

    proptest! {
        #[test]
        fn any_text(text in "(\\PC|[\n\"'`=#$\\\\]){0,80}") {
            let bytes: usize = parse(&text).iter().map(|(_, value)| value.len()).sum();
            prop_assert!(bytes <= text.len(), "it holds no more than the file does");
        }
    }
}

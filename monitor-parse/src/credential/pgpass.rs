//! `.pgpass` files.

use super::finder::SecretFinder;

/// `host:port:database:user:password`, with `\:` and `\\` escaped.
pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        let mut fields = vec![String::new()];
        let mut escaped = false;
        for character in line.chars() {
            match character {
                _ if escaped => {
                    escaped = false;
                    if let Some(field) = fields.last_mut() {
                        field.push(character);
                    }
                }
                '\\' => escaped = true,
                ':' if fields.len() < 5 => fields.push(String::new()),
                _ => {
                    if let Some(field) = fields.last_mut() {
                        field.push(character);
                    }
                }
            }
        }
        if let [host, _, database, user, password] = fields.as_slice() {
            finder.add_for_host(
                host,
                password,
                Some(format!("{user}@{host}/{database}")),
                Vec::new(),
            );
        }
    }
}

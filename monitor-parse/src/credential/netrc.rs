//! `.netrc` files, entry by entry: an unknown word costs itself, and not the file.

use super::finder::SecretFinder;

/// What a file says about one host.
#[derive(Debug, Default)]
struct Machine {
    /// Absent in the entry for all other hosts.
    host: Option<String>,
    login: Option<String>,
}

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let mut words = Words { rest: text };
    let mut machine = Machine::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" => {
                machine = Machine {
                    host: words.value(),
                    login: None,
                }
            }
            "default" => machine = Machine::default(),
            "login" | "user" => machine.login = words.value(),
            "password" | "passwd" => {
                if let Some(password) = words.value() {
                    let login = machine.login.as_deref().unwrap_or_default();
                    add(finder, machine.host.as_deref(), login, &password);
                }
            }
            "account" | "port" | "protocol" => drop(words.value()),
            "macdef" => words.skip_macro(),
            _ => {}
        }
    }
}

/// Adds a password. A token may be the user, with a constant beside it.
fn add(finder: &mut SecretFinder<'_>, host: Option<&str>, login: &str, password: &str) {
    let alias = finder.basic_form(login, password);
    let host = host.unwrap_or("default");
    let label = Some(host.to_owned());
    if finder.is_token(login) {
        finder.add_for_host(host, login, label, vec![alias]);
    } else {
        finder.add_for_host(host, password, label, vec![alias]);
    }
}

/// The words of a file, without comments. A word may be in quotes.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// The next word that is not in a comment.
    fn next(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return self.value();
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, next)| next);
        }
    }

    /// The next word, which may begin like a comment, as a password does.
    fn value(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() {
            return None;
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return Some(self.quoted(quoted.len()));
        }
        let end = self.rest.find(char::is_whitespace);
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(word.to_owned())
    }

    /// A word in quotes, in which a backslash takes the next character literally.
    fn quoted(&mut self, len: usize) -> String {
        let inside = &self.rest[self.rest.len() - len..];
        let (mut word, mut escaped) = (String::new(), false);
        for (at, char) in inside.char_indices() {
            match char {
                _ if escaped => {
                    escaped = false;
                    word.push(char);
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = &inside[at + 1..];
                    return word;
                }
                _ => word.push(char),
            }
        }
        self.rest = "";
        word
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        let ends = ["\n\n", "\r\n\r\n", "\n\r\n"];
        let found = ends.iter().filter_map(|end| self.rest.find(end));
        self.rest = found.min().map_or("", |at| &self.rest[at..]);
    }
}

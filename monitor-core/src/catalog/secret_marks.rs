//! Recognises secrets in names by their issuers' marks: a name that contains a secret is itself secret.
//! Nothing is guessed from how random a name looks.

use super::Catalog;
use std::{borrow::Cow, collections::BTreeMap};

/// Characters after a mark that ends with a separator, such as `ghp_`.
const AFTER_MARK_MIN: usize = 16;
/// Letters and digits of an AWS key id, with its mark.
const AWS_KEY_ID: usize = 20;
/// Letters and digits in a row, with any other mark that is only letters.
const RUN_MIN: usize = 32;
/// A mark of Slack that a separator follows.
const SLACK_MARK: &str = "xoxe";
/// The mark of Google's API keys, and their length; they may contain separators anywhere.
const GOOGLE_MARK: &str = "aiza";
const GOOGLE_KEY: usize = 39;
/// Length of the second part of a secret with dots.
const DOTTED_MORE_MIN: usize = 32;

/// The marks of issuers, as they appear in names.
#[derive(Clone, Debug, Default)]
pub struct SecretMarks {
    /// Marks in lower case, with the classes that are shown instead, by their first byte: many names
    /// are searched, and few contain one.
    marks: BTreeMap<u8, Vec<(String, String)>>,
}

impl SecretMarks {
    pub fn new(catalog: &Catalog) -> Self {
        let mut marks: BTreeMap<u8, Vec<_>> = BTreeMap::new();
        // Those of a format, such as a JWT's, are no issuer's.
        let of_issuers = catalog
            .marks()
            .filter(|(mark, _)| mark.len() >= 3 && !mark.starts_with("eyJ"));
        for (mark, class) in of_issuers {
            let mark = mark.to_ascii_lowercase();
            let first = mark.as_bytes()[0];
            marks
                .entry(first)
                .or_default()
                .push((mark, class.to_owned()));
        }
        Self { marks }
    }

    /// The marks with which a text may begin, with what follows, and the class.
    fn marks_of<'m, 't>(
        &'m self,
        text: &'t str,
    ) -> impl Iterator<Item = (&'m str, &'t str, &'m str)> {
        let marks = text.bytes().next().and_then(|first| self.marks.get(&first));
        marks.into_iter().flatten().filter_map(|(mark, class)| {
            let rest = text.strip_prefix(mark.as_str())?;
            Some((mark.as_str(), rest, class.as_str()))
        })
    }

    /// The class of a mark at the start of a label in lower case, or of a part of it after a
    /// separator.
    pub fn class_of_label(&self, label: &str) -> Option<&str> {
        let bytes = label.as_bytes();
        let starts = (0..bytes.len()).filter(|at| *at == 0 || is_separator(bytes[at - 1]));
        let mut parts = starts.filter_map(|at| label.get(at..));
        parts.find_map(|part| {
            self.marks_of(part)
                .filter(|(mark, ..)| !mark.contains('.'))
                .find(|(mark, rest, class)| is_long_enough(mark, class, part, rest))
                .map(|(.., class)| class)
        })
    }

    /// The class of a secret with dots at the start of a name in lower case, such as `hvs.`, and the
    /// number of its labels.
    pub fn dotted_secret(&self, name: &str) -> Option<(&str, usize)> {
        self.marks_of(name)
            .filter(|(mark, ..)| mark.ends_with('.'))
            .filter_map(|(mark, rest, class)| {
                let mut after = rest.split('.');
                let first = after.next()?;
                let more = after.take_while(|label| label.len() >= DOTTED_MORE_MIN);
                let count = mark.matches('.').count() + 1 + more.count();
                (first.len() >= AFTER_MARK_MIN).then_some((class, count))
            })
            .max_by_key(|(_, count)| *count)
    }

    /// The class of a secret in a part of a path, or in the name of a variable or a unit.
    pub fn class_of_segment(&self, segment: &str) -> Option<&str> {
        // Most are shorter.
        if segment.len() < AFTER_MARK_MIN {
            return None;
        }
        let lower = segment.to_ascii_lowercase();
        let dotted = || {
            let starts = (0..lower.len()).filter(|at| {
                lower.is_char_boundary(*at) && (*at == 0 || is_separator(lower.as_bytes()[at - 1]))
            });
            starts
                .filter_map(|at| self.dotted_secret(&lower[at..]))
                .map(|(class, _)| class)
                .next()
        };
        self.class_of_label(&lower).or_else(dotted)
    }

    /// As [`mask`](Self::mask), and the name itself if it contains no secret.
    pub fn masked(&self, name: String) -> String {
        self.mask(&name).unwrap_or(name)
    }

    /// A path, or another name, with `(CLASS)` in place of each part that contains a secret; `None` if
    /// it contains none.
    pub fn mask(&self, name: &str) -> Option<String> {
        let is_short = |part: &str| part.len() < AFTER_MARK_MIN;
        if name.split('/').all(is_short) {
            return None;
        }
        let mut found = false;
        let parts: Vec<Cow<'_, str>> = name
            .split('/')
            .map(|part| match self.class_of_segment(part) {
                Some(class) => {
                    found = true;
                    Cow::Owned(format!("({class})"))
                }
                None => Cow::Borrowed(part),
            })
            .collect();
        found.then(|| parts.join("/"))
    }
}

fn is_separator(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric()
}

/// Whether enough follows a mark. `part` is both together.
fn is_long_enough(mark: &str, class: &str, part: &str, rest: &str) -> bool {
    if mark.bytes().any(is_separator) {
        return rest.len() >= AFTER_MARK_MIN;
    }
    // The separator may follow: xoxe-.
    if rest.bytes().next().is_some_and(is_separator) {
        return mark == SLACK_MARK && rest.len() > AFTER_MARK_MIN;
    }
    let run = part.bytes().take_while(u8::is_ascii_alphanumeric).count();
    if class.starts_with("aws-") {
        run == AWS_KEY_ID
    } else {
        run >= RUN_MIN || (mark == GOOGLE_MARK && part.len() == GOOGLE_KEY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marks() -> SecretMarks {
        SecretMarks::new(&Catalog::new("", &[], &[]).expect("the catalog"))
    }

    #[test]
    fn secrets_in_paths_and_variables() {
        let marks = marks();
        let token = "ghp_FAKE0FAKE0FAKE0FAKE0FAKE0FAKE0FAKE0F";
        for (name, masked) in [
            (format!("/tmp/{token}/.netrc"), "/tmp/(github-token)/.netrc"),
            (
                format!("/tmp/x-{}.txt", token.to_lowercase()),
                "/tmp/(github-token)",
            ),
            (format!("{}_TOKEN", token.to_uppercase()), "(github-token)"),
            (
                format!("/srv/hvs.{}", "FAKE5".repeat(8)),
                "/srv/(vault-token)",
            ),
        ] {
            assert_eq!(marks.mask(&name).as_deref(), Some(masked), "{name}");
        }
        for honest in [
            "/home/app/.aws/credentials",
            "/usr/lib/x86_64-linux-gnu/libssl.so.3",
            "/var/lib/docker/overlay2/a1b2c3d4e5f60718293a4b5c6d7e8f90/merged/app",
            "/run/secrets/kubernetes.io/serviceaccount/token",
            "GITHUB_TOKEN_OF_THE_DEPLOYMENT",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert_eq!(marks.mask(honest), None, "{honest}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_masked(name in "\\PC{0,60}") {
            let marks = marks();
            if let Some(masked) = marks.mask(&name) {
                // What is masked is not masked again.
                prop_assert_eq!(marks.mask(&masked), None);
            }
        }
    }
}

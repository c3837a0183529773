//! Errors of YAML documents, in words that do not depend on the library that parses them.

use crate::spelling::nearest;
use serde_saphyr::{Error, Localizer, UserMessageFormatter};
use std::{borrow::Cow, fmt};

/// Where and why a document is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// Line and column count from 1.
    pub line: u64,
    pub column: u64,
    pub reason: String,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.reason)
    }
}

impl From<Error> for YamlError {
    fn from(error: Error) -> Self {
        let location = error.location();
        Self {
            line: location.map_or(1, |location| location.line()),
            column: location.map_or(1, |location| location.column()),
            reason: reason(error.without_snippet()),
        }
    }
}

/// Leaves positions out of the library's messages: they are reported separately.
struct WithoutPosition;

impl Localizer for WithoutPosition {
    fn attach_location<'a>(
        &self,
        message: Cow<'a, str>,
        _: serde_saphyr::Location,
    ) -> Cow<'a, str> {
        message
    }
}

fn reason(error: &Error) -> String {
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` is set twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is set twice".to_owned(),
        Error::UnknownAnchor { .. } => {
            "an alias (`*name`) refers to an anchor (`&name`) that is not defined before it"
                .to_owned()
        }
        // An error in what an alias refers to.
        Error::AliasError { error, .. } => reason(error.without_snippet()),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "the file is too large, too deeply nested, or expands to too much".to_owned()
        }
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. }
        | Error::ExpectedStringKeyForExternallyTaggedEnum { .. } => "expected one word".to_owned(),
        Error::Unexpected { expected, .. } => match *expected {
            "sequence start" => "expected a list".to_owned(),
            "mapping start" => "expected keys and values (`key: value`)".to_owned(),
            "string scalar" => "expected a text".to_owned(),
            other => format!("expected {other}"),
        },
        Error::SerdeUnknownField {
            field, expected, ..
        } => unknown("field", field, expected),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => unknown("value", variant, expected),
        other => {
            let text =
                other.render_with_formatter(&UserMessageFormatter.with_localizer(&WithoutPosition));
            text.lines().next().unwrap_or_default().to_owned()
        }
    }
}

/// A word that is none of those expected, with a suggestion.
fn unknown(kind: &str, word: &str, expected: &[&str]) -> String {
    let mut reason = format!(
        "unknown {kind} `{word}`, expected one of {}",
        expected.join(", ")
    );
    if let Some(meant) = nearest(word, expected.iter().copied()) {
        reason.push_str(&format!("; did you mean `{meant}`?"));
    }
    reason
}

//! Why a configuration cannot be used, in words that do not depend on the YAML library.

use monitor_core::{catalog::CatalogError, policy::expectation::check::nearest};
use serde_saphyr::Error;
use std::path::{Path, PathBuf};

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Line and column count from 1.
    #[error("{path}:{line}:{column}: {reason}")]
    Syntax {
        path: PathBuf,
        line: u64,
        column: u64,
        reason: String,
    },
    #[error("cannot read the catalog {path}: {source}")]
    UnreadableCatalog {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl ConfigError {
    /// Describes an error of the YAML library, with its position.
    pub fn syntax(path: &Path, error: &Error) -> Self {
        let location = error.location();
        Self::Syntax {
            path: path.to_owned(),
            line: location.map_or(1, |location| location.line()),
            column: location.map_or(1, |location| location.column()),
            reason: reason(error.without_snippet()),
        }
    }
}

/// The reason without the library's terms, and with a suggestion for a misspelt word.
fn reason(error: &Error) -> String {
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` is set twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is set twice".to_owned(),
        Error::UnknownAnchor { .. } | Error::AliasError { .. } => {
            "an alias (`*name`) refers to an anchor (`&name`) that is not defined before it"
                .to_owned()
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "the file is too large, too deeply nested, or expands to too much".to_owned()
        }
        other => {
            let text = other.to_string();
            let mut reason = text.lines().next().unwrap_or_default().to_owned();
            if let Some(meant) = meant(&reason) {
                reason.push_str(&format!("; did you mean `{meant}`?"));
            }
            reason
        }
    }
}

/// The word that was probably meant by an unknown one, from the message that lists the known ones.
fn meant(message: &str) -> Option<&str> {
    let (said, known) = message
        .strip_prefix("unknown ")?
        .split_once(", expected ")?;
    let word = said.split('`').nth(1)?;
    let known = known.split(" at line ").next().unwrap_or(known);
    let known = known.trim_start_matches("one of ").split([',', ' ']);
    nearest(
        word,
        known
            .map(|word| word.trim_matches('`'))
            .filter(|word| !word.is_empty()),
    )
}

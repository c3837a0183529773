//! Why a configuration cannot be used.

use monitor_core::{
    catalog::CatalogError, policy::expectation::limits::PolicyLimitError, yaml::YamlError,
};
use std::path::PathBuf;

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}:{error}")]
    Syntax { path: PathBuf, error: YamlError },
    #[error("cannot read the catalog {path}: {source}")]
    UnreadableCatalog {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Limit(#[from] PolicyLimitError),
}

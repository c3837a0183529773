//! Arguments that several commands share, and why a command fails.

use crate::{
    agent::STATE_DIR,
    ledger::reader::{LedgerReader, QueryError},
};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use monitor_core::{history::TimeRange, time};
use std::path::PathBuf;
use url::Url;

/// Environment variable with the state directory: set in the agent's pod, so that `keytrail` inside
/// it queries the agent that runs there.
pub(super) const STATE_DIR_VARIABLE: &str = "KEYTRAIL_STATE_DIR";

/// Why a command failed.
pub(super) enum CliError {
    /// Wrong arguments or configuration: exit status 2.
    Usage(String),
    /// The command failed: exit status 1.
    Failed(String),
    /// The command has already printed why: exit status 1.
    Reported,
}

impl From<QueryError> for CliError {
    fn from(error: QueryError) -> Self {
        Self::Failed(error.to_string())
    }
}

#[derive(Debug, Args)]
pub(super) struct RangeArgs {
    /// RFC 3339, or a duration before now: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub since: Option<Timestamp>,
    /// RFC 3339, or a duration before now: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub until: Option<Timestamp>,
}

impl RangeArgs {
    pub fn range(&self) -> Result<TimeRange, CliError> {
        let range = TimeRange {
            since: self.since,
            until: self.until,
        };
        if range.is_reversed() {
            return Err(CliError::Usage(
                "--since is after --until: the range is empty".to_owned(),
            ));
        }
        Ok(range)
    }
}

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[arg(long, value_enum, default_value_t)]
    pub output: OutputFormat,
    #[command(flatten)]
    pub ledger: LedgerArgs,
}

/// The ledger to query.
#[derive(Debug, Args)]
pub(super) struct LedgerArgs {
    /// The agent's state directory
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = STATE_DIR_VARIABLE)]
    pub state_dir: PathBuf,
    /// The same as a URL: file:///var/lib/keytrail
    #[arg(long, value_name = "URL", conflicts_with = "state_dir")]
    pub store: Option<Url>,
}

/// As [`StoreArgs`], for answers that are graphs.
#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    #[arg(long, value_enum, default_value_t)]
    pub output: GraphFormat,
    #[command(flatten)]
    pub ledger: LedgerArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum GraphFormat {
    #[default]
    Table,
    Json,
    /// A graph for Graphviz
    Dot,
}

pub(super) fn parse_moment(text: &str) -> Result<Timestamp, String> {
    time::moment(text, Timestamp::now())
}

/// Opens the ledger to query.
pub(super) fn open(ledger: &LedgerArgs) -> Result<LedgerReader, CliError> {
    let directory = match &ledger.store {
        None => ledger.state_dir.clone(),
        Some(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| {
            CliError::Usage(format!(
                "`{url}` is not a path: write file:///var/lib/keytrail"
            ))
        })?,
        Some(url) => {
            return Err(CliError::Usage(format!(
                "`{url}`: only a ledger in a directory of this machine can be read (file:///var/lib/keytrail); fleet stores are not supported yet"
            )));
        }
    };
    LedgerReader::open(&directory).map_err(|error| CliError::Failed(error.to_string()))
}

//! `keytrail policy`: check, suggest and test expectations.

use super::{
    args::{CliError, LedgerArgs, RangeArgs, StoreArgs, open},
    load,
    print::{print_answer, write_out},
};
use clap::Subcommand;
use monitor_core::policy::{suggest::suggest, trial::replay_history};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Check a file or directory of expectations for errors
    Check { file: PathBuf },
    /// Print expectations derived from what was recorded, for review
    Suggest {
        /// The agent's configuration, for the classes of its catalog
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        ledger: LedgerArgs,
    },
    /// Show what a file of expectations would have flagged in what was recorded
    Test {
        file: PathBuf,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
}

pub(super) fn run(command: PolicyCommand) -> Result<(), CliError> {
    match command {
        PolicyCommand::Check { file } => {
            let loaded = load(Some(&file))?;
            let catalog = loaded
                .catalog(Some(&file))
                .map_err(|error| CliError::Usage(error.to_string()))?;
            for warning in loaded.warnings(&catalog) {
                anstream::eprintln!("{}: {warning}", file.display());
            }
            anstream::println!(
                "{}: valid; {} credentials, {} authenticators",
                file.display(),
                loaded.expectations.credentials.len(),
                loaded.expectations.authenticators.len()
            );
            Ok(())
        }
        PolicyCommand::Suggest {
            config,
            range,
            ledger,
        } => {
            let loaded = load(config.as_deref())?;
            let catalog = loaded
                .catalog(config.as_deref())
                .map_err(|error| CliError::Usage(error.to_string()))?;
            let history = open(&ledger)?.history(range.range()?)?;
            write_out(&suggest(&history, &catalog))
        }
        PolicyCommand::Test { file, range, store } => {
            let loaded = load(Some(&file))?;
            let catalog = loaded
                .catalog(Some(&file))
                .map_err(|error| CliError::Usage(error.to_string()))?;
            let history = open(&store.ledger)?.history(range.range()?)?;
            print_answer(
                store.output,
                &replay_history(loaded.expectations, catalog, history),
            )
        }
    }
}

//! The command line.

mod args;
mod page;
mod policy;
mod print;
mod query;

use crate::{
    agent::{self, AgentOptions, CONFIG, LISTEN, STATE_DIR},
    config::Config,
    config::settings::FindingsFormat,
    export::{
        findings::FindingStream,
        lines::{Delivery, LineWriter},
    },
    ledger::{queries::QueryFilter, reader::QueryError},
    reader,
    sensor::{
        canary, doctor,
        exclude::{ContainerImages, ExclusionRules},
    },
};
use args::{CliError, LedgerArgs, OutputFormat, RangeArgs, STATE_DIR_VARIABLE, StoreArgs, open};
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use policy::PolicyCommand;
use print::print_answer;
use query::QueryCommand;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

/// Follows every credential from the process that picks it up to the destination where it is used,
/// and reports which of those hops should not be there.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(RunArgs),
    /// Query what was observed: who used a credential, where it went, what a workload can reach
    Query {
        #[command(subcommand)]
        query: QueryCommand,
    },
    /// List every credential: class, role, lifetime, age, expiry, owner, workloads, last use
    Inventory {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// List violations of expectations and rules, the worst first
    Findings {
        /// Only findings of this rule
        #[arg(long)]
        rule: Option<String>,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check, suggest and test expectations
    Policy {
        #[command(subcommand)]
        policy: PolicyCommand,
    },
    /// Show what this kernel supports, probe by probe, and what will be missed
    Doctor {
        #[arg(long, value_enum, default_value_t)]
        output: OutputFormat,
        /// The agent's configuration, to show which programs are excluded from inspection
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print a link that opens the agent's page, once and within ten minutes
    Page {
        /// The agent's state directory
        #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = STATE_DIR_VARIABLE)]
        state_dir: PathBuf,
    },
    /// Copy the ledger to a file while the agent keeps writing
    Backup {
        /// The file to create; it must not exist
        file: PathBuf,
        #[command(flatten)]
        ledger: LedgerArgs,
    },
    /// Write observations to a file, until interrupted
    Record {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// Open and parse files for the agent, which starts this process
    #[command(hide = true)]
    Reader,
    /// Do what the probes must report, for the agent, which starts this process
    #[command(hide = true)]
    Canary,
    /// Replay a recording through the same trail and policy
    Replay {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also store the results in a ledger
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Where to write findings: a file, or - for standard output
        #[arg(long, value_name = "FILE|-", default_value = "-")]
        findings: String,
        #[arg(long, value_enum, default_value_t)]
        findings_format: FindingsFormat,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration and expectations, in YAML [default: /etc/keytrail/config.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the ledger and the fingerprint key [default: /var/lib/keytrail]
    #[arg(long, value_name = "DIR", env = STATE_DIR_VARIABLE)]
    state_dir: Option<PathBuf>,
    /// Address of metrics and API [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Another address, on any interface, for metrics and health checks only
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// Where to write findings: a file, or - for standard output [default: -]
    #[arg(long, value_name = "FILE|-")]
    findings: Option<String>,
    /// Format of findings [default: json]
    #[arg(long, value_enum)]
    findings_format: Option<FindingsFormat>,
    /// Attach to no program or library: what is presented inside TLS is not observed
    #[arg(long, env = "KEYTRAIL_NO_UPROBES")]
    no_uprobes: bool,
}

/// The definition of the command line.
#[cfg(test)]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

/// Runs the command line; returns the exit status.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The Kubernetes client logs every failed request; the agent logs an outage once.
    let filter = EnvFilter::try_from_env("KEYTRAIL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // An agent must not wait for the reader of its log.
    let lines = matches!(command, Command::Run(_) | Command::Record { .. })
        .then(|| LineWriter::start("log", Box::new(std::io::stderr()), Delivery::Lossy));
    let lines = match lines.transpose() {
        Ok(lines) => lines,
        Err(error) => {
            anstream::eprintln!("keytrail: cannot start the logger's thread: {error}");
            return ExitCode::from(1);
        }
    };
    match lines.clone() {
        Some(lines) => logger.with_writer(move || lines.clone()).init(),
        None => logger.with_writer(std::io::stderr).init(),
    }
    let status = exit_status(command);
    if let Some(lines) = lines {
        lines.flush();
    }
    status
}

fn exit_status(command: Command) -> ExitCode {
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Reported) => ExitCode::from(1),
        Err(CliError::Failed(error)) => {
            anstream::eprintln!("keytrail: {error}");
            ExitCode::from(1)
        }
        Err(CliError::Usage(error)) => {
            anstream::eprintln!("keytrail: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(args) => run_agent(args),
        Command::Query { query } => query::run(query),
        Command::Inventory { store } => {
            let reader = open(&store.ledger)?;
            let answer = reader.inventory(Timestamp::now())?;
            print_answer(store.output, &answer)
        }
        Command::Findings { rule, range, store } => {
            if let Some(rule) = &rule {
                monitor_core::policy::rules::check_rule_name(rule).map_err(CliError::Usage)?;
            }
            let mut answer = open(&store.ledger)?.findings(
                QueryFilter::default(),
                rule.as_deref(),
                None,
                range.range()?,
            )?;
            answer.mark_gaps(usize::MAX);
            print_answer(store.output, &answer)
        }
        Command::Page { state_dir } => page::run(&state_dir),
        Command::Policy { policy } => policy::run(policy),
        Command::Backup { file, ledger } => {
            open(&ledger)?.back_up(&file).map_err(QueryError::from)?;
            anstream::println!("{}: written", file.display());
            Ok(())
        }
        Command::Doctor { output, config } => {
            let loaded = load(config_of(config).as_deref())?;
            // A short-lived command does not query runtimes for images.
            let exclusion =
                ExclusionRules::new(loaded.settings.inspect.exclude, ContainerImages::default());
            let report = doctor::examine(&exclusion);
            print_answer(output, &report)?;
            if report.healthy() {
                Ok(())
            } else {
                Err(CliError::Reported)
            }
        }
        Command::Canary => canary::serve().map_err(|error| CliError::Usage(error.to_string())),
        Command::Reader => reader::serve().map_err(|error| CliError::Usage(error.to_string())),
        Command::Record {
            file,
            config,
            state_dir,
        } => record(file, config, state_dir),
        Command::Replay {
            file,
            config,
            state_dir,
            findings,
            findings_format,
        } => {
            let target = (findings.as_str(), findings_format);
            replay(&file, config.as_deref(), state_dir.as_deref(), target)
        }
    }
}

fn record(
    file: PathBuf,
    config: Option<PathBuf>,
    state_dir: Option<PathBuf>,
) -> Result<(), CliError> {
    let config = config_of(config);
    let loaded = load(config.as_deref())?;
    let options = AgentOptions {
        state_dir: state_dir_of(state_dir, &loaded),
        config,
        listen: LISTEN.to_owned(),
        metrics_listen: None,
        findings: "-".to_owned(),
        findings_format: FindingsFormat::Json,
        uprobes: true,
        record: Some(file),
    };
    agent::run(&options, loaded).map_err(command_failed)
}

fn replay(
    file: &Path,
    config: Option<&Path>,
    state_dir: Option<&Path>,
    (findings, format): (&str, FindingsFormat),
) -> Result<(), CliError> {
    let loaded = load(config)?;
    let catalog = loaded
        .catalog(config)
        .map_err(|error| CliError::Usage(error.to_string()))?;
    let stream = FindingStream::open(findings, format, Delivery::Complete)
        .map_err(|error| CliError::Failed(format!("cannot write to {findings}: {error}")))?;
    let count = agent::replay(file, loaded, catalog, stream, state_dir).map_err(command_failed)?;
    anstream::eprintln!("{}: {count} events replayed", file.display());
    Ok(())
}

fn run_agent(args: RunArgs) -> Result<(), CliError> {
    let config = config_of(args.config);
    let loaded = load(config.as_deref())?;
    loaded
        .catalog(config.as_deref())
        .map_err(|error| CliError::Usage(error.to_string()))?;
    let settings = AgentOptions {
        state_dir: state_dir_of(args.state_dir, &loaded),
        config,
        listen: args
            .listen
            .or_else(|| loaded.settings.listen.clone())
            .unwrap_or_else(|| LISTEN.to_owned()),
        metrics_listen: args
            .metrics_listen
            .or_else(|| loaded.settings.metrics_listen.clone()),
        findings: args
            .findings
            .or_else(|| loaded.settings.findings.clone())
            .unwrap_or_else(|| "-".to_owned()),
        findings_format: args
            .findings_format
            .or(loaded.settings.findings_format)
            .unwrap_or_default(),
        uprobes: !args.no_uprobes,
        record: None,
    };
    agent::run(&settings, loaded).map_err(|error| {
        use crate::http::{
            access::{certificate::CertificateError, token::TokenError},
            server::ListenError,
        };
        let wrong = matches!(
            error.downcast_ref::<ListenError>(),
            Some(ListenError::Address(_))
        ) || error.downcast_ref::<TokenError>().is_some()
            || error.downcast_ref::<CertificateError>().is_some();
        if wrong {
            usage_error(error)
        } else {
            command_failed(error)
        }
    })
}

fn state_dir_of(flag: Option<PathBuf>, config: &Config) -> PathBuf {
    flag.or_else(|| config.settings.state_dir.clone())
        .unwrap_or_else(|| PathBuf::from(STATE_DIR))
}

/// The configuration file of an agent: the given one, or the default if it exists.
fn config_of(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from(CONFIG)).filter(|usual| usual.is_file()))
}

fn load(config: Option<&Path>) -> Result<Config, CliError> {
    match config {
        Some(path) => Config::load(path).map_err(|error| CliError::Usage(error.to_string())),
        None => Ok(Config::default()),
    }
}

fn command_failed(error: anyhow::Error) -> CliError {
    CliError::Failed(format!("{error:#}"))
}

fn usage_error(error: anyhow::Error) -> CliError {
    CliError::Usage(format!("{error:#}"))
}

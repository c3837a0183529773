//! The command line.

use crate::{
    agent::{self, AgentOptions, CONFIG, LISTEN, STATE_DIR},
    config::Config,
    config::settings::FindingsFormat,
    ledger::read::{LedgerReader, QueryError, QueryFilter},
    report::{
        dot,
        findings::FindingStream,
        lines::{Delivery, LineWriter},
        table,
    },
    sensor::{
        doctor,
        exclude::{ContainerImages, ExclusionRules},
    },
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use monitor_core::{
    history::TimeRange,
    policy::{suggest::suggest, trial::replay_history},
    time,
};
use serde::Serialize;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;
use url::Url;

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
}

#[derive(Debug, Subcommand)]
enum QueryCommand {
    /// Which workloads used a credential, when, and how it is known
    Who {
        /// An id, a unique prefix of one, a policy name, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Where a credential went
    Where {
        /// An id, a unique prefix of one, a policy name, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// What a credential was minted from, what was minted with it, and where all of that went
    Chain {
        /// An id, a unique prefix of one, a policy name, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Which workloads first used a credential after a time, and at which new destinations
    FirstUse {
        /// An id, a unique prefix of one, a policy name, a path, or env:NAME
        credential: String,
        /// RFC 3339, or a duration before now: 2h, 7d
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        after: Timestamp,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Which credentials a workload held, and where it presented them
    BlastRadius {
        /// namespace/name, a unit, a container, or an executable's path
        workload: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// What happened, oldest first
    Timeline {
        #[arg(long, value_name = "CREDENTIAL")]
        credential: Option<String>,
        #[arg(long, value_name = "WORKLOAD")]
        workload: Option<String>,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
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

#[derive(Debug, Args)]
struct RangeArgs {
    /// RFC 3339, or a duration before now: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// RFC 3339, or a duration before now: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<Timestamp>,
}

impl RangeArgs {
    fn range(&self) -> Result<TimeRange, CliError> {
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
struct StoreArgs {
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// The ledger to query.
#[derive(Debug, Args)]
struct LedgerArgs {
    /// The agent's state directory
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = STATE_DIR_VARIABLE)]
    state_dir: PathBuf,
    /// The same as a URL: file:///var/lib/keytrail
    #[arg(long, value_name = "URL", conflicts_with = "state_dir")]
    store: Option<Url>,
}

/// As [`StoreArgs`], for answers that are graphs.
#[derive(Debug, Args)]
struct GraphArgs {
    #[arg(long, value_enum, default_value_t)]
    output: GraphFormat,
    #[command(flatten)]
    ledger: LedgerArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum GraphFormat {
    #[default]
    Table,
    Json,
    /// A graph for Graphviz
    Dot,
}

fn parse_moment(text: &str) -> Result<Timestamp, String> {
    time::moment(text, Timestamp::now())
}

/// Why a command failed.
enum CliError {
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

/// The definition of the command line.
#[cfg(test)]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

/// Environment variable with the state directory: set in the agent's pod, so that `keytrail` inside
/// it queries the agent that runs there.
const STATE_DIR_VARIABLE: &str = "KEYTRAIL_STATE_DIR";

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
        Command::Query { query } => run_query(query),
        Command::Inventory { store } => {
            let reader = open(&store.ledger)?;
            let answer = reader.inventory(Timestamp::now())?;
            write_output(store.output, &answer, table::inventory)
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
            write_output(store.output, &answer, table::findings)
        }
        Command::Policy { policy } => run_policy(policy),
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
            write_output(output, &report, table::doctor)?;
            if report.healthy() {
                Ok(())
            } else {
                Err(CliError::Reported)
            }
        }
        Command::Record {
            file,
            config,
            state_dir,
        } => {
            let config = config_of(config);
            let loaded = load(config.as_deref())?;
            let settings = AgentOptions {
                state_dir: state_dir_of(state_dir, &loaded),
                config,
                listen: LISTEN.to_owned(),
                metrics_listen: None,
                findings: "-".to_owned(),
                findings_format: FindingsFormat::Json,
                record: Some(file),
            };
            agent::run(&settings, loaded).map_err(command_failed)
        }
        Command::Replay {
            file,
            config,
            state_dir,
            findings,
            findings_format,
        } => {
            let loaded = load(config.as_deref())?;
            let catalog = loaded
                .catalog(config.as_deref())
                .map_err(|error| CliError::Usage(error.to_string()))?;
            let stream = FindingStream::open(&findings, findings_format, Delivery::Complete)
                .map_err(|error| {
                    CliError::Failed(format!("cannot write to {findings}: {error}"))
                })?;
            let count = agent::replay(&file, loaded, catalog, stream, state_dir.as_deref())
                .map_err(command_failed)?;
            anstream::eprintln!("{}: {count} events replayed", file.display());
            Ok(())
        }
    }
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
        record: None,
    };
    agent::run(&settings, loaded).map_err(|error| {
        use crate::report::{access::AccessError, http::ListenError};
        let wrong = matches!(
            error.downcast_ref::<ListenError>(),
            Some(ListenError::Address(_) | ListenError::Public(_))
        ) || error.downcast_ref::<AccessError>().is_some();
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

fn open(ledger: &LedgerArgs) -> Result<LedgerReader, CliError> {
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

fn run_policy(command: PolicyCommand) -> Result<(), CliError> {
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
            write_output(
                store.output,
                &replay_history(loaded.expectations, catalog, history),
                table::trial,
            )
        }
    }
}

fn run_query(query: QueryCommand) -> Result<(), CliError> {
    match query {
        QueryCommand::Who {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.who(&credential, range.range()?)?;
            print_answer(store.output, &answer, table::who, dot::who)
        }
        QueryCommand::Where {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.where_to(&credential, range.range()?)?;
            print_answer(store.output, &answer, table::where_to, dot::where_to)
        }
        QueryCommand::Chain {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.chain(&credential, range.range()?)?;
            print_answer(store.output, &answer, table::chain, dot::chain)
        }
        QueryCommand::FirstUse {
            credential,
            after,
            store,
        } => {
            let answer = open(&store.ledger)?.first_use(&credential, after)?;
            print_answer(store.output, &answer, table::first_use, dot::first_use)
        }
        QueryCommand::BlastRadius {
            workload,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.blast_radius(&workload, range.range()?)?;
            print_answer(
                store.output,
                &answer,
                table::blast_radius,
                dot::blast_radius,
            )
        }
        QueryCommand::Timeline {
            credential,
            workload,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.timeline(
                credential.as_deref(),
                workload.as_deref(),
                range.range()?,
            )?;
            print_answer(store.output, &answer, table::timeline, dot::timeline)
        }
    }
}

fn print_answer<T: Serialize>(
    output: GraphFormat,
    answer: &T,
    table: fn(&T) -> String,
    dot: fn(&T) -> String,
) -> Result<(), CliError> {
    match output {
        GraphFormat::Table => write_output(OutputFormat::Table, answer, table),
        GraphFormat::Json => write_output(OutputFormat::Json, answer, table),
        GraphFormat::Dot => write_out(&dot(answer)),
    }
}

fn write_output<T: Serialize>(
    output: OutputFormat,
    answer: &T,
    show: fn(&T) -> String,
) -> Result<(), CliError> {
    match output {
        OutputFormat::Table => write_out(&show(answer)),
        OutputFormat::Json => {
            let text = serde_json::to_string_pretty(answer)
                .map_err(|error| CliError::Failed(format!("cannot write the answer: {error}")))?;
            write_out(&(text + "\n"))
        }
    }
}

fn write_out(text: &str) -> Result<(), CliError> {
    match anstream::stdout().write_all(text.as_bytes()) {
        // The reader, such as `head`, has closed the pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::Failed(format!(
            "cannot write the answer: {error}"
        ))),
        Ok(()) => Ok(()),
    }
}

//! The command line.

use crate::{
    agent::{self, CONFIG, LISTEN, STATE_DIR, Settings},
    attribution::names::Images,
    ledger::read::{About, QueryError, Range, Reader},
    policy::{Policy, document::Document, suggest::suggest, trial::try_on},
    report::{
        dot,
        findings::{Format, Stream},
        lines::{Delivery, Lines},
        table,
    },
    sensor::{doctor, exclude::Exclusion},
    time,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;
use url::Url;

/// Follows every credential from the process that picks it up to the destination where it is
/// used, and says which of those hops should not be there.
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
    /// Ask what was seen: who used a credential, where it went, what a workload can reach
    Query {
        #[command(subcommand)]
        query: QueryCommand,
    },
    /// Every credential: class, role, lifetime, age, expiry, owner, workloads, last use
    Inventory {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// What breaks an expectation or a rule, the worst first
    Findings {
        /// Only those of this rule
        #[arg(long)]
        rule: Option<String>,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Expectations
    Policy {
        #[command(subcommand)]
        policy: PolicyCommand,
    },
    /// What this kernel allows, probe by probe, and what will be missed
    Doctor {
        #[arg(long, value_enum, default_value_t)]
        output: Output,
        /// What the agent runs with: it says which programs are excluded from inspection
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Copy the ledger to a file, while the agent goes on writing
    Backup {
        /// The copy; it must not be there yet
        file: PathBuf,
        #[command(flatten)]
        ledger: LedgerArgs,
    },
    /// Write what is observed to a file, until interrupted
    Record {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// Pass a recording through the same trail and policy
    Replay {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also keep what follows from it in a ledger
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Where findings go: a file, or - for standard output
        #[arg(long, value_name = "FILE|-", default_value = "-")]
        findings: String,
        #[arg(long, value_enum, default_value_t)]
        findings_format: Format,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration and expectations, in YAML [default: /etc/keytrail/config.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the ledger and the fingerprint key are [default: /var/lib/keytrail]
    #[arg(long, value_name = "DIR", env = STATE_DIR_VARIABLE)]
    state_dir: Option<PathBuf>,
    /// Address of metrics and API [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Another address, of any kind, with nothing but metrics and health checks
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// Where findings go: a file, or - for standard output [default: -]
    #[arg(long, value_name = "FILE|-")]
    findings: Option<String>,
    /// How findings are written [default: json]
    #[arg(long, value_enum)]
    findings_format: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum QueryCommand {
    /// Who used a credential, when, and how it is known
    Who {
        /// An id, the beginning of one, a name of the policy, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Where a credential went
    Where {
        /// An id, the beginning of one, a name of the policy, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// What a credential was minted from, what was minted with it, and where all of that went
    Chain {
        /// An id, the beginning of one, a name of the policy, a path, or env:NAME
        credential: String,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Who was new to a credential after a time, and where it was newly taken
    FirstUse {
        /// An id, the beginning of one, a name of the policy, a path, or env:NAME
        credential: String,
        /// RFC 3339, or how long ago: 2h, 7d
        #[arg(long, value_name = "TIME", value_parser = moment)]
        after: Timestamp,
        #[command(flatten)]
        store: GraphArgs,
    },
    /// Which credentials a workload held, and where it took them
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
    /// Say what is wrong with a file of expectations, or a directory of them
    Check { file: PathBuf },
    /// Print expectations drawn from what was recorded, for a person to review
    Suggest {
        /// What the agent runs with: its catalog names the classes
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        ledger: LedgerArgs,
    },
    /// Say what a file of expectations would have flagged of what was recorded
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
    /// RFC 3339, or how long ago: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// RFC 3339, or how long ago: 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
}

impl RangeArgs {
    fn range(&self) -> Result<Range, Failure> {
        let range = Range {
            since: self.since,
            until: self.until,
        };
        if range.is_reversed() {
            return Err(Failure::Usage(
                "--since is after --until: nothing can be in between".to_owned(),
            ));
        }
        Ok(range)
    }
}

#[derive(Debug, Args)]
struct StoreArgs {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// Whose ledger is asked.
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
    output: GraphOutput,
    #[command(flatten)]
    ledger: LedgerArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum GraphOutput {
    #[default]
    Table,
    Json,
    /// A graph for Graphviz
    Dot,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    time::moment(text, Timestamp::now())
}

/// How a command ends badly.
enum Failure {
    /// It was asked or configured wrongly: status 2.
    Usage(String),
    /// It failed: status 1.
    Failed(String),
    /// It has said why already: status 1.
    Told,
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The command line as it describes itself.
#[cfg(test)]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

/// Where the state directory is, where no option says so: set in the agent's pod, so that `keytrail`
/// in it asks the agent that runs there.
const STATE_DIR_VARIABLE: &str = "KEYTRAIL_STATE_DIR";

/// Runs the command of the process; gives its exit status.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The client of the Kubernetes API reports each failed request; its user reports an outage once.
    let filter = EnvFilter::try_from_env("KEYTRAIL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // An agent must not wait for whoever reads its log.
    let lines = matches!(command, Command::Run(_) | Command::Record { .. })
        .then(|| Lines::start("log", Box::new(std::io::stderr()), Delivery::Lossy));
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
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::Failed(error)) => {
            anstream::eprintln!("keytrail: {error}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            anstream::eprintln!("keytrail: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run_agent(args),
        Command::Query { query } => ask(query),
        Command::Inventory { store } => {
            let reader = open(&store.ledger)?;
            let answer = reader.inventory(Timestamp::now())?;
            print(store.output, &answer, table::inventory)
        }
        Command::Findings { rule, range, store } => {
            if let Some(rule) = &rule {
                crate::policy::rules::known(rule).map_err(Failure::Usage)?;
            }
            let mut answer = open(&store.ledger)?.findings(
                About::default(),
                rule.as_deref(),
                None,
                range.range()?,
            )?;
            answer.mark_gaps(usize::MAX);
            print(store.output, &answer, table::findings)
        }
        Command::Policy { policy } => on_policy(policy),
        Command::Backup { file, ledger } => {
            open(&ledger)?.back_up(&file).map_err(QueryError::from)?;
            anstream::println!("{}: written", file.display());
            Ok(())
        }
        Command::Doctor { output, config } => {
            let document = load(config_of(config).as_deref())?;
            // A short-lived command asks no runtime for images.
            let exclusion = Exclusion::new(document.inspect.exclude, Images::default());
            let report = doctor::examine(&exclusion);
            print(output, &report, table::doctor)?;
            if report.healthy() {
                Ok(())
            } else {
                Err(Failure::Told)
            }
        }
        Command::Record {
            file,
            config,
            state_dir,
        } => {
            let config = config_of(config);
            let document = load(config.as_deref())?;
            let settings = Settings {
                state_dir: state_dir_of(state_dir, &document),
                config,
                listen: LISTEN.to_owned(),
                metrics_listen: None,
                findings: "-".to_owned(),
                findings_format: Format::Json,
                record: Some(file),
            };
            agent::run(&settings, document).map_err(failed)
        }
        Command::Replay {
            file,
            config,
            state_dir,
            findings,
            findings_format,
        } => {
            let document = load(config.as_deref())?;
            let catalog = agent::catalog(&document, config.as_deref()).map_err(usage)?;
            let stream = Stream::open(&findings, findings_format, Delivery::Complete)
                .map_err(|error| Failure::Failed(format!("cannot write to {findings}: {error}")))?;
            let count = agent::replay(&file, document, catalog, stream, state_dir.as_deref())
                .map_err(failed)?;
            anstream::eprintln!("{}: {count} events replayed", file.display());
            Ok(())
        }
    }
}

fn run_agent(args: RunArgs) -> Result<(), Failure> {
    let config = config_of(args.config);
    let document = load(config.as_deref())?;
    agent::catalog(&document, config.as_deref()).map_err(usage)?;
    let settings = Settings {
        state_dir: state_dir_of(args.state_dir, &document),
        config,
        listen: args
            .listen
            .or_else(|| document.listen.clone())
            .unwrap_or_else(|| LISTEN.to_owned()),
        metrics_listen: args
            .metrics_listen
            .or_else(|| document.metrics_listen.clone()),
        findings: args
            .findings
            .or_else(|| document.findings.clone())
            .unwrap_or_else(|| "-".to_owned()),
        findings_format: args
            .findings_format
            .or(document.findings_format)
            .unwrap_or_default(),
        record: None,
    };
    agent::run(&settings, document).map_err(|error| {
        use crate::report::{access::AccessError, http::ListenError};
        let wrong = matches!(
            error.downcast_ref::<ListenError>(),
            Some(ListenError::Address(_) | ListenError::Public(_))
        ) || error.downcast_ref::<AccessError>().is_some();
        if wrong { usage(error) } else { failed(error) }
    })
}

fn state_dir_of(flag: Option<PathBuf>, document: &Document) -> PathBuf {
    flag.or_else(|| document.state_dir.clone())
        .unwrap_or_else(|| PathBuf::from(STATE_DIR))
}

/// The configuration of an agent: the one that is named, or else the usual one if it exists.
fn config_of(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from(CONFIG)).filter(|usual| usual.is_file()))
}

fn load(config: Option<&Path>) -> Result<Document, Failure> {
    match config {
        Some(path) => Document::load(path).map_err(|error| Failure::Usage(error.to_string())),
        None => Ok(Document::default()),
    }
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::Failed(format!("{error:#}"))
}

fn usage(error: anyhow::Error) -> Failure {
    Failure::Usage(format!("{error:#}"))
}

fn open(ledger: &LedgerArgs) -> Result<Reader, Failure> {
    let directory = match &ledger.store {
        None => ledger.state_dir.clone(),
        Some(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| {
            Failure::Usage(format!(
                "`{url}` is no path: write file:///var/lib/keytrail"
            ))
        })?,
        Some(url) => {
            return Err(Failure::Usage(format!(
                "`{url}`: a ledger is read from a directory of this machine (file:///var/lib/keytrail); one of a fleet is not there yet"
            )));
        }
    };
    Reader::open(&directory).map_err(|error| Failure::Failed(error.to_string()))
}

fn on_policy(command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { file } => {
            let document = load(Some(&file))?;
            let catalog = agent::catalog(&document, Some(&file)).map_err(usage)?;
            for doubt in document.doubts(&catalog) {
                anstream::eprintln!("{}: {doubt}", file.display());
            }
            anstream::println!(
                "{}: right; {} credentials, {} authenticators",
                file.display(),
                document.credentials.len(),
                document.authenticators.len()
            );
            Ok(())
        }
        PolicyCommand::Suggest {
            config,
            range,
            ledger,
        } => {
            let document = load(config.as_deref())?;
            let catalog = agent::catalog(&document, config.as_deref()).map_err(usage)?;
            let history = open(&ledger)?.history(range.range()?)?;
            write_out(&suggest(&history, &catalog))
        }
        PolicyCommand::Test { file, range, store } => {
            let document = load(Some(&file))?;
            let catalog = agent::catalog(&document, Some(&file)).map_err(usage)?;
            let history = open(&store.ledger)?.history(range.range()?)?;
            let mut policy = Policy::new(document, catalog);
            print(store.output, &try_on(&mut policy, history), table::trial)
        }
    }
}

fn ask(query: QueryCommand) -> Result<(), Failure> {
    match query {
        QueryCommand::Who {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.who(&credential, range.range()?)?;
            show(store.output, &answer, table::who, dot::who)
        }
        QueryCommand::Where {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.where_to(&credential, range.range()?)?;
            show(store.output, &answer, table::where_to, dot::where_to)
        }
        QueryCommand::Chain {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.chain(&credential, range.range()?)?;
            show(store.output, &answer, table::chain, dot::chain)
        }
        QueryCommand::FirstUse {
            credential,
            after,
            store,
        } => {
            let answer = open(&store.ledger)?.first_use(&credential, after)?;
            show(store.output, &answer, table::first_use, dot::first_use)
        }
        QueryCommand::BlastRadius {
            workload,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.blast_radius(&workload, range.range()?)?;
            show(
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
            show(store.output, &answer, table::timeline, dot::timeline)
        }
    }
}

fn show<T: Serialize>(
    output: GraphOutput,
    answer: &T,
    table: fn(&T) -> String,
    dot: fn(&T) -> String,
) -> Result<(), Failure> {
    match output {
        GraphOutput::Table => print(Output::Table, answer, table),
        GraphOutput::Json => print(Output::Json, answer, table),
        GraphOutput::Dot => write_out(&dot(answer)),
    }
}

fn print<T: Serialize>(output: Output, answer: &T, show: fn(&T) -> String) -> Result<(), Failure> {
    match output {
        Output::Table => write_out(&show(answer)),
        Output::Json => {
            let text = serde_json::to_string_pretty(answer)
                .map_err(|error| Failure::Failed(format!("cannot write the answer: {error}")))?;
            write_out(&(text + "\n"))
        }
    }
}

fn write_out(text: &str) -> Result<(), Failure> {
    match anstream::stdout().write_all(text.as_bytes()) {
        // Whoever reads with `head` has enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Failed(format!("cannot write the answer: {error}"))),
        Ok(()) => Ok(()),
    }
}

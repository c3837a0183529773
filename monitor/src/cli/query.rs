//! `keytrail query`: one command per question.

use super::{
    args::{CliError, GraphArgs, RangeArgs, open, parse_moment},
    print::print_graph,
};
use clap::Subcommand;
use jiff::Timestamp;

#[derive(Debug, Subcommand)]
pub(super) enum QueryCommand {
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

pub(super) fn run(query: QueryCommand) -> Result<(), CliError> {
    match query {
        QueryCommand::Who {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.who(&credential, range.range()?)?;
            print_graph(store.output, &answer)
        }
        QueryCommand::Where {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.where_to(&credential, range.range()?)?;
            print_graph(store.output, &answer)
        }
        QueryCommand::Chain {
            credential,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.chain(&credential, range.range()?)?;
            print_graph(store.output, &answer)
        }
        QueryCommand::FirstUse {
            credential,
            after,
            store,
        } => {
            let answer = open(&store.ledger)?.first_use(&credential, after)?;
            print_graph(store.output, &answer)
        }
        QueryCommand::BlastRadius {
            workload,
            range,
            store,
        } => {
            let answer = open(&store.ledger)?.blast_radius(&workload, range.range()?)?;
            print_graph(store.output, &answer)
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
            print_graph(store.output, &answer)
        }
    }
}

//! `keytrail`: the agent, and the queries to its ledger.

mod agent;
mod attribution;
mod cli;
mod cluster;
mod completion;
mod config;
mod credential;
mod export;
mod health;
mod host;
mod http;
mod interval;
mod ledger;
mod metrics;
mod observed;
mod output;
mod pipeline;
mod private_file;
mod reader;
#[cfg(test)]
mod reference;
mod sensor;

use std::process::ExitCode;

/// Zeroes every freed block: parsers of credential files leave copies of secrets in freed memory,
/// none of which may remain. Beneath it is jemalloc, whose own thread returns memory that only the
/// start needed after a second (a third less resident memory than with glibc): `.cargo/config.toml`
/// configures its build.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<tikv_jemallocator::Jemalloc> =
    zeroizing_alloc::ZeroAlloc(tikv_jemallocator::Jemalloc);

fn main() -> ExitCode {
    cli::main()
}

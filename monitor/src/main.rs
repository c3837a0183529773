//! `keytrail`: the agent, and the queries to its ledger.

mod agent;
mod attribution;
mod cli;
mod cluster;
mod config;
mod credential;
mod done;
mod host;
mod ledger;
mod notices;
#[cfg(test)]
mod peak;
mod pipeline;
#[cfg(test)]
mod reference;
mod report;
mod reserved;
mod sensor;

use std::process::ExitCode;

/// Zeroes every freed block: parsers of credential files leave copies of secrets in freed memory,
/// none of which may remain. Beneath it is jemalloc, whose own thread returns memory that only the
/// start needed after a second (a third less resident memory than with glibc): `.cargo/config.toml`
/// configures its build.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<tikv_jemallocator::Jemalloc> =
    zeroizing_alloc::ZeroAlloc(tikv_jemallocator::Jemalloc);

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: peak::CountingAllocator<zeroizing_alloc::ZeroAlloc<tikv_jemallocator::Jemalloc>> =
    peak::CountingAllocator(zeroizing_alloc::ZeroAlloc(tikv_jemallocator::Jemalloc));

fn main() -> ExitCode {
    cli::main()
}

//! `keytrail`: the agent, and the questions to what it remembers.

mod agent;
mod attribution;
mod cli;
mod cluster;
mod credential;
mod host;
mod ledger;
mod model;
mod pipeline;
mod policy;
mod recent;
#[cfg(test)]
mod reference;
mod report;
mod sensor;
mod time;
mod trail;
mod watch;

use std::process::ExitCode;

/// Zeroes every block that it takes back: parsers of credential files leave copies of secrets in
/// memory that is freed, and none of it may stay behind.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    cli::main()
}

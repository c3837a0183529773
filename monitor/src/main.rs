//! `keytrail`: the agent, and the questions to what it remembers.

mod agent;
mod attribution;
mod cli;
mod cluster;
mod credential;
mod done;
mod host;
mod ledger;
mod model;
mod notices;
#[cfg(test)]
mod peak;
mod pipeline;
mod policy;
mod recent;
#[cfg(test)]
mod reference;
mod report;
mod reserved;
mod sensor;
mod time;
mod trail;
mod watch;

use std::process::ExitCode;

/// Zeroes every block that it takes back: parsers of credential files leave copies of secrets in
/// memory that is freed, and none of it may stay behind. Below it is jemalloc, which gives back what the
/// start needed and later blocks do not (a third of what was resident with glibc's), after a second, by
/// a thread of its own: `.cargo/config.toml` says so to its build.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<tikv_jemallocator::Jemalloc> =
    zeroizing_alloc::ZeroAlloc(tikv_jemallocator::Jemalloc);

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: peak::Counting<zeroizing_alloc::ZeroAlloc<tikv_jemallocator::Jemalloc>> =
    peak::Counting(zeroizing_alloc::ZeroAlloc(tikv_jemallocator::Jemalloc));

fn main() -> ExitCode {
    cli::main()
}

//! Every parser of untrusted bytes, without I/O and without a clock. Each has a memory and a time
//! budget, and returns an error or nothing for malformed input; none panics.

// Tests read the libraries of the machine that they run on.
#![cfg_attr(test, allow(clippy::disallowed_types, clippy::disallowed_methods))]

pub mod cgroup;
pub mod client_hello;
pub mod credential;
pub mod dns;
pub mod elf;
pub mod go_table;
#[cfg(any(test, feature = "peak"))]
pub mod peak;
pub mod resolvers;
pub mod tls_functions;

#[cfg(any(test, feature = "peak"))]
#[global_allocator]
static ALLOCATOR: peak::CountingAllocator<std::alloc::System> =
    peak::CountingAllocator(std::alloc::System);

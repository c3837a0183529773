//! Keytrail's terms as types. Findings, answers and the ledger consist of these, and their
//! serialised names are the public interface.

mod activity;
mod context;
mod credential;
mod destination;
mod finding;
mod gap;
mod gateway;
mod term;
mod workload;

pub use activity::*;
pub use context::*;
pub use credential::*;
pub use destination::*;
pub use finding::*;
pub use gap::*;
pub use gateway::*;
pub use term::*;
pub use workload::*;

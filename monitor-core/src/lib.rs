//! The pure core of Keytrail: the model, the catalog, the trail and the policy.
//!
//! Nothing here performs I/O or reads a clock: time and data come in as values, and the results go
//! out as values.

pub mod baseline;
pub mod catalog;
pub mod counted_lru;
pub mod fair_cache;
pub mod history;
pub mod model;
pub mod policy;
pub mod process_table;
pub mod spelling;
pub mod time;
pub mod trail;
pub mod yaml;

//! The questions, one per file: what is read, the answer, how it is shown, and its row in the test
//! that every answer comes from an index.

pub mod blast_radius;
pub mod chain;
pub mod findings;
pub mod first_use;
mod history;
pub mod hops;
#[cfg(test)]
mod index_cases;
pub mod inventory;
pub mod timeline;
pub mod where_to;
pub mod who;
pub mod workloads;

#[cfg(test)]
pub use index_cases::{INDEX_CASES, IndexCase, IndexSample};

/// Filter for findings or hops; without any field everything matches.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryFilter<'a> {
    pub credential: Option<&'a str>,
    pub workload: Option<&'a str>,
}

/// An answer that is a list.
pub trait RowList {
    type Row;

    fn rows(&mut self) -> &mut Vec<Self::Row>;
}

//! Answers for people: tables and graphs. An answer says how it is shown; the formats are here.

mod doctor;
pub mod dot;
pub mod sections;
pub mod table;
pub mod times;
mod trial;

use serde::Serialize;

/// An answer that is shown as a table, or as JSON.
pub trait TableAnswer: Serialize {
    /// Lines of text; colours are removed if the output is not a terminal.
    fn table(&self) -> String;
}

/// An answer that can also be drawn.
pub trait GraphAnswer: TableAnswer {
    /// A graph in DOT.
    fn graph(&self) -> String;
}

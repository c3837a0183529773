//! Keys and values of the maps.
//!
//! Integers only, explicit padding, sizes asserted at compile time on both sides: two halves of a
//! release must agree on them. Derived conversions prove that no type has padding, of which a key
//! could differ.

mod connection;
mod file;
mod process;
mod scratch;
mod stream;
mod tls;

pub use connection::*;
pub use file::*;
pub use process::*;
pub use scratch::*;
pub use stream::*;
pub use tls::*;

//! Keys and values of the maps.
//!
//! What both sides use has integers only, explicit padding, and a size that is asserted at compile
//! time: the two halves of a release must agree. Derived conversions prove that it has no padding,
//! in which two equal keys could differ. Memory of the probes alone is in `scratch`.

mod agent;
mod connection;
mod evicting;
mod file;
mod limited;
mod process;
mod ring;
mod scratch;
mod stream;
mod tls;

pub use agent::*;
pub use connection::*;
pub use evicting::*;
pub use file::*;
pub use limited::*;
pub use process::*;
pub use ring::*;
pub use scratch::*;
pub use stream::*;
pub use tls::*;

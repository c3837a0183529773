//! Secrets in the environment of an exec.

pub mod exec;
pub mod name;
pub mod scratch;
pub mod trim;
pub mod value;

//! Shared by the probes: maps, kernel structures, tasks, paths, and the search for credentials.

pub mod agent;
pub mod foreign;
pub mod kernel;
pub mod maps;
pub mod path;
pub mod presentations;
pub mod repeats;
pub mod ring;
pub mod search;
pub mod secret;
pub mod task;
pub mod view;

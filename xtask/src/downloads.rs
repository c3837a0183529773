//! Fetches what later steps need while the first ones compile.

use crate::{setup, vm};
use anyhow::Result;
use std::{thread, thread::JoinHandle};

/// Downloads in progress. Dropping it waits for them, also after an error: the next run would take
/// an incomplete file for a complete one.
pub struct Downloads(Option<JoinHandle<()>>);

impl Downloads {
    /// Starts to fetch what the checks need, and with `root` what the scenarios need too. Whatever
    /// is there already takes no time.
    pub fn start(root: bool) -> Self {
        Self(Some(thread::spawn(move || {
            fetch("helm", setup::helm());
            fetch("Python's packages", setup::python());
            fetch("Prometheus", setup::prometheus());
            if root {
                fetch("Go", setup::go());
                fetch("the newest Go", setup::newest_go());
                fetch("a browser", setup::browser());
                fetch("the dashboards' components", setup::panels());
                fetch("containerd", setup::containerd());
                fetch("kernels", vm::fetch_kernels());
            }
        })))
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the downloads panicked; the steps that need them fetch what is missing");
        }
    }
}

/// An error is not final: the step that needs it tries again, and reports it.
fn fetch<T>(what: &str, result: Result<T>) {
    if let Err(error) = result {
        eprintln!("{what} could not be fetched in advance: {error:#}");
    }
}

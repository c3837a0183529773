//! The context of processes: AI agents by the process tree, jobs of CI systems by an environment below
//! a runner.
//!
//! Children have the context of their parent, also after it has exited.

use super::{Attribution, ProcessEntry, program_name};
use hashlink::LruCache;
use monitor_core::{
    catalog::Catalog,
    model::{CiJob, Subject, Workload},
};
use std::sync::Arc;

/// Number of containers of which the job is remembered.
const CONTAINERS_CACHED: usize = 4_096;
/// Ancestors among which a runner or a job is looked for.
const ANCESTORS_SEARCHED: usize = 16;

/// What is known about the contexts of processes.
#[derive(Debug)]
pub(super) struct Contexts {
    catalog: Option<Arc<Catalog>>,
    /// The jobs of containers, by the environment of their first process.
    of_containers: LruCache<String, Arc<CiJob>>,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            catalog: None,
            of_containers: LruCache::new(CONTAINERS_CACHED),
        }
    }
}

impl Contexts {
    /// The AI agent that a program is, by its name or by what a script calls itself.
    pub fn ai_agent(&self, exe: &str, comm: &str) -> Option<Arc<str>> {
        let catalog = self.catalog.as_ref()?;
        [program_name(exe), comm]
            .into_iter()
            .find(|name| catalog.is_ai_agent(name))
            .map(Arc::from)
    }

    fn is_ci_runner(&self, entry: &ProcessEntry) -> bool {
        let catalog = self.catalog.as_ref();
        catalog.is_some_and(|catalog| {
            catalog.is_ci_runner(program_name(&entry.exe)) || catalog.is_ci_runner(&entry.comm)
        })
    }
}

impl Attribution {
    /// Sets by what agents and runners are recognised.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.contexts.catalog = Some(catalog);
    }

    /// Whether a process is below the runner of a CI system, and the job is not known yet.
    pub fn may_be_in_job(&self, subject: Subject) -> bool {
        let Some(entry) = self.table.get(subject) else {
            return false;
        };
        let mut above = self.table.ancestors(subject).take(ANCESTORS_SEARCHED);
        entry.ci_job.is_none() && above.any(|(_, entry)| self.contexts.is_ci_runner(entry))
    }

    /// The environment of a process names a job: it is its own, and that of the container of which it
    /// is the first process.
    pub fn set_ci_job(&mut self, subject: Subject, job: CiJob, is_first: bool) {
        let job = Arc::new(job);
        let Some(entry) = self.table.get_mut(subject) else {
            return;
        };
        if is_first && let Some(container) = &entry.group.container {
            let job = Arc::clone(&job);
            self.contexts.of_containers.insert(container.clone(), job);
        }
        entry.ci_job = Some(job);
    }

    /// Adds its context to the workload of a process.
    pub(super) fn add_context(&self, entry: &ProcessEntry, workload: &mut Workload) {
        let container = entry.group.container.as_ref();
        let of_container = || self.contexts.of_containers.peek(container?).cloned();
        workload.ci_job = entry.ci_job.clone().or_else(of_container);
        workload.ai_agent.clone_from(&entry.ai_agent);
    }
}

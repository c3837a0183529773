//! What environments declare: the gateways of a workload, by its first process, and the jobs of CI
//! systems.

use super::Enricher;
use crate::reader::{ReadId, protocol::EnvironmentAnswer};
use hashlink::LruCache;
use jiff::Timestamp;
use monitor_core::{
    model::{CiJob, Subject, WorkloadGateways},
    trail::TrailEvent,
};

/// Number of processes that are remembered.
const CACHED: usize = 8192;

/// The processes whose environments were read.
#[derive(Debug)]
pub(super) struct DeclarationReads(LruCache<Subject, ()>);

impl Default for DeclarationReads {
    fn default() -> Self {
        Self(LruCache::new(CACHED))
    }
}

impl DeclarationReads {
    /// A process has another environment now.
    pub fn forget(&mut self, subject: Subject) {
        self.0.remove(&subject);
    }
}

impl Enricher {
    /// Requests the environment of the first process of a process's workload, and its own below the
    /// runner of a CI system, if they were not read yet.
    pub(super) fn request_declarations(&mut self, now: Timestamp, subject: Subject) -> Vec<ReadId> {
        let first = self.attribution.first_process(now, subject);
        let first = first.map(|process| (process, true));
        let in_job = self.attribution.may_be_in_job(subject);
        let in_job = in_job.then_some((subject, false));
        let mut requested = Vec::new();
        for (process, is_first) in first.into_iter().chain(in_job) {
            if self.declarations.0.insert(process, ()).is_none() {
                requested.push(self.reads.request_declarations(process, is_first));
            }
        }
        requested
    }

    /// Takes the job that the environment of a process names.
    pub(super) fn take_job(&mut self, process: Subject, job: Option<CiJob>, is_first: bool) {
        let Some(mut job) = job else {
            return;
        };
        let marks = self.credentials.marks();
        for value in job.values_mut() {
            *value = value.take().map(|value| marks.masked(value));
        }
        self.attribution.set_ci_job(process, job, is_first);
    }

    /// Takes the environment of the first process of a workload, or of one in a job.
    pub(super) fn take_declarations(
        &mut self,
        time: Timestamp,
        (process, is_first): (Subject, bool),
        environment: Option<EnvironmentAnswer>,
        events: &mut Vec<TrailEvent>,
    ) {
        let Some(environment) = environment else {
            // The next credential asks again.
            self.declarations.forget(process);
            return;
        };
        self.take_job(process, environment.ci_job, is_first);
        if !is_first {
            return;
        }
        let marks = self.credentials.marks();
        let mut gateways = environment.gateways;
        gateways.retain(|gateway| marks.mask(&gateway.host).is_none());
        events.push(TrailEvent::Gateways(Box::new(WorkloadGateways {
            time,
            workload: self.attribution.workload(process),
            tenant: self.attribution.tenant(process),
            gateways,
        })));
    }
}

//! The gateways that the environment of a workload's first process names.

use super::Enricher;
use crate::reader::{ReadId, protocol::EnvironmentAnswer};
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    model::{Subject, WorkloadGateways},
    trail::TrailEvent,
};

/// Number of processes, and of cgroups, that are remembered.
const CACHED: usize = 8192;
/// How long the first process of a workload is taken for it. Finding it means looking at every
/// process.
const FOUND_FOR: SignedDuration = SignedDuration::from_secs(1);

/// Which environments were read.
#[derive(Debug)]
pub(super) struct GatewayReads {
    read: LruCache<Subject, ()>,
    /// The first process of the workload in a cgroup, and when it was found.
    first_of: LruCache<String, (Option<Subject>, Timestamp)>,
}

impl Default for GatewayReads {
    fn default() -> Self {
        Self {
            read: LruCache::new(CACHED),
            first_of: LruCache::new(CACHED),
        }
    }
}

impl GatewayReads {
    /// A process has another environment now.
    pub fn forget(&mut self, subject: Subject) {
        self.read.remove(&subject);
    }
}

impl Enricher {
    /// The first process of a process's workload.
    pub(super) fn first_process(&mut self, now: Timestamp, subject: Subject) -> Option<Subject> {
        let group = &self.attribution.entry(subject)?.group.path;
        match self.gateways.first_of.get(group) {
            // The clock may have been set back.
            Some((first, when)) if now.duration_since(*when).abs() < FOUND_FOR => *first,
            _ => {
                let first = self.attribution.first_process(subject);
                let group = group.clone();
                self.gateways.first_of.insert(group, (first, now));
                first
            }
        }
    }

    /// Requests the environment of the first process of a process's workload, if it was not read yet.
    pub(super) fn request_gateways(&mut self, now: Timestamp, subject: Subject) -> Option<ReadId> {
        let first = self.first_process(now, subject)?;
        if self.gateways.read.get(&first).is_some() {
            return None;
        }
        self.gateways.read.insert(first, ());
        Some(self.reads.request_gateways(first))
    }

    /// Takes the environment of a workload's first process.
    pub(super) fn take_gateways(
        &mut self,
        time: Timestamp,
        first: Subject,
        environment: Option<EnvironmentAnswer>,
        events: &mut Vec<TrailEvent>,
    ) {
        let Some(environment) = environment else {
            // The next credential asks again.
            self.gateways.forget(first);
            return;
        };
        let marks = self.credentials.marks();
        let mut gateways = environment.gateways;
        gateways.retain(|gateway| marks.mask(&gateway.host).is_none());
        events.push(TrailEvent::Gateways(Box::new(WorkloadGateways {
            time,
            workload: self.attribution.workload(first),
            tenant: self.attribution.tenant(first),
            gateways,
        })));
    }
}

//! Gateways that workloads declare: servers to which the environment of a workload's first process
//! sends credentials instead of to their issuers.
//!
//! Only the first process counts: whoever starts another one chooses its environment.

use crate::{
    fair_cache::{FairCache, Tenant, size_of_list},
    model::{DeclaredGateway, Workload},
};

/// Number of workloads whose gateways are remembered.
const WORKLOADS_CACHED: usize = 4096;

/// Each container of a pod has an environment of its own.
fn container_key(workload: &Workload) -> String {
    let container = workload.container.as_deref().unwrap_or_default();
    format!("{} {container}", workload.key())
}

/// The gateways of workloads.
#[derive(Debug)]
pub struct DeclaredGateways(FairCache<String, Vec<DeclaredGateway>>);

impl Default for DeclaredGateways {
    fn default() -> Self {
        Self(FairCache::new(WORKLOADS_CACHED))
    }
}

impl DeclaredGateways {
    /// Replaces the gateways of a workload.
    pub fn set(&mut self, tenant: &Tenant, workload: &Workload, gateways: Vec<DeclaredGateway>) {
        let key = container_key(workload);
        if gateways.is_empty() {
            self.0.remove(&key);
            return;
        }
        let size = size_of_list(gateways.len());
        self.0.insert(tenant, key.clone(), gateways);
        self.0.resize(&key, size);
    }

    pub fn of(&self, workload: &Workload) -> &[DeclaredGateway] {
        self.0
            .peek(&container_key(workload))
            .map_or(&[], Vec::as_slice)
    }

    /// A workload was renamed.
    pub fn rename(&mut self, old: &Workload, new: &Workload) {
        if let Some((tenant, gateways)) = self.0.remove(&container_key(old)) {
            self.set(&tenant, new, gateways);
        }
    }

    /// Number of workloads that were forgotten for lack of room.
    pub fn forgotten(&self) -> u64 {
        self.0.evicted()
    }
}

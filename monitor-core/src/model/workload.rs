//! Processes and workloads.

use super::{CiJob, WorkloadKind};
use crate::fair_cache::Tenant;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::Arc,
};
use utoipa::ToSchema;

/// One process: thread-group id and start time, never the pid alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    pub pid: u32,
    /// Hundredths of a second since boot, the resolution of `/proc`.
    pub start: u64,
}

/// The workload of a process.
///
/// Two are equal if they are the same apart from their context: a job or an agent is not another
/// workload.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    pub kind: WorkloadKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The owner's name, the container, the unit, or the path of the executable.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The workload that it runs inside, for a container in a container: its own name is then what
    /// that workload calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Part of its name is not known yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The job of a CI system in which the process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CiJob>)]
    pub ci_job: Option<Arc<CiJob>>,
    /// The AI agent that had the process started: the name of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ai_agent: Option<Arc<str>>,
}

impl PartialEq for Workload {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Workload {}

impl Hash for Workload {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl Workload {
    /// What makes a workload itself.
    fn identity(&self) -> impl PartialEq + Hash {
        let Self {
            kind,
            namespace,
            name,
            pod,
            container,
            service_account,
            unit,
            image,
            within,
            partial,
            ci_job: _,
            ai_agent: _,
        } = self;
        (
            kind,
            namespace,
            name,
            pod,
            container,
            service_account,
            unit,
            image,
            within,
            partial,
        )
    }

    /// Another name for it, in the same context.
    pub fn renamed(&self, new: &Self) -> Self {
        Self {
            ci_job: self.ci_job.clone(),
            ai_agent: self.ai_agent.clone(),
            ..new.clone()
        }
    }

    /// Its name in tables, with its context.
    pub fn label(&self) -> String {
        let mut label = self.key();
        if let Some(job) = &self.ci_job {
            label = format!("{label} [{}]", job.label());
        }
        if let Some(agent) = &self.ai_agent {
            label = format!("{label} [by {agent}]");
        }
        label
    }

    /// A process on the host, identified by its executable.
    pub fn host(executable: &str) -> Self {
        Self {
            kind: WorkloadKind::Host,
            namespace: None,
            name: executable.to_owned(),
            pod: None,
            container: None,
            service_account: None,
            unit: None,
            image: None,
            within: None,
            partial: false,
            ci_job: None,
            ai_agent: None,
        }
    }

    /// Whether it is known by ids only, and may still get a name.
    pub fn is_unnamed(&self) -> bool {
        matches!(self.kind, WorkloadKind::Pod | WorkloadKind::Container)
            && self.namespace.is_none()
            && self.image.is_none()
            && self.within.is_none()
    }

    /// A workload whose cgroup was removed before it could be examined: most likely a container, but
    /// unknown which.
    pub fn vanished(cgroup: u64) -> Self {
        Self {
            kind: WorkloadKind::Container,
            partial: true,
            ..Self::host(&format!("cgroup-{cgroup}"))
        }
    }

    /// Whether its cgroup was removed before it could be examined: it never gets a name.
    pub fn is_vanished(&self) -> bool {
        self.kind == WorkloadKind::Container && self.container.is_none() && self.partial
    }

    /// A container that runs inside this workload, which chose its id.
    pub fn nested(&self, id: &str) -> Self {
        let short: String = id.chars().take(12).collect();
        Self {
            kind: WorkloadKind::Container,
            container: Some(short.clone()),
            within: Some(self.key()),
            ..Self::host(&short)
        }
    }

    /// Whether its processes run in containers.
    pub fn is_contained(&self) -> bool {
        !matches!(self.kind, WorkloadKind::Unit | WorkloadKind::Host)
    }

    /// Whose resolvers it uses: those of its pod or container, or the host's (empty).
    pub fn network(&self) -> String {
        match (&self.pod, &self.namespace) {
            _ if !self.is_contained() => String::new(),
            (Some(pod), Some(namespace)) => format!("{namespace}/{pod}"),
            _ => self.key(),
        }
    }

    /// The name used in queries: `namespace/name`, or the name alone.
    pub fn key(&self) -> String {
        match (&self.within, &self.namespace) {
            (Some(outer), _) => format!("{outer}/{}", self.name),
            (None, Some(namespace)) => format!("{namespace}/{}", self.name),
            (None, None) => self.name.clone(),
        }
    }

    /// The repository of its image, without tag and digest.
    pub fn image_repository(&self) -> Option<&str> {
        let image = self.image.as_deref()?;
        let image = image.split('@').next().unwrap_or(image);
        let name = image.rfind('/').map_or(0, |at| at + 1);
        let tag = image[name..].find(':').map(|at| name + at);
        Some(&image[..tag.unwrap_or(image.len())])
    }
}

/// An ancestor of the process in a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ancestor {
    pub pid: u32,
    pub exe: String,
    pub comm: String,
}

/// The process of a use or a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub pid: u32,
    pub start_time: Timestamp,
    pub exe: String,
    pub comm: String,
    pub uid: u32,
    /// Whose share of bounded tables its records use; not recorded.
    #[serde(skip)]
    #[schema(ignore)]
    pub tenant: Tenant,
    /// The nearest first.
    // Shared, because many records name the same ones.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<Ancestor>)]
    pub ancestors: Arc<[Ancestor]>,
}

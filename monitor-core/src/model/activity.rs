//! What workloads do with credentials: the trail's output.

use crate::model::{
    Credential, Destination, Evidence, Look, OnBehalfOf, Place, Process, Untrusted, Workload,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, sync::Arc};

/// A workload picked up a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    pub time: Timestamp,
    pub workload: Workload,
    pub process: Process,
    pub credential: Arc<Credential>,
    pub place: Place,
    pub count: u64,
    /// The interactive login from which it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// The uid of the pod whose volume contains the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_of: Option<String>,
    /// The workload of that pod, or of the pod to which the credential was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Box<Workload>>,
    /// The reader's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// When the file was last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
    /// Why the executable cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<Untrusted>,
    /// The credential was provided to the reader on purpose: a variable of its environment, a file
    /// mounted individually into its container, or the normal use of its class.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    /// A container reads it in a home directory of the host that is mounted into it, as containers for
    /// development have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_mounted_home: bool,
}

/// An interactive login: a process with a controlling terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    pub uid: u32,
    /// The user's home directory; a credential inside it is personal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
}

/// A workload, a credential, a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub time: Timestamp,
    pub workload: Workload,
    pub process: Process,
    pub credential: Arc<Credential>,
    pub destination: Destination,
    /// Other possible destinations: see [`Destination::one_of`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Destination>,
    pub evidence: Evidence,
    /// Presented outside TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// The same use of the same connection was already reported with other evidence: it counts
    /// once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// The other credentials that the process held, with the first hop of a connection for which the
    /// evidence is [`Evidence::Held`]; not recorded.
    #[serde(skip)]
    pub held_with: Vec<Arc<Credential>>,
    /// The process picked the credential up, or was given it by one that did; where it was presented.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub picked_up: bool,
    /// The workload that presented it to this one a moment before: a broker presents what others
    /// send through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Box<OnBehalfOf>>,
    /// The destination is a proxy, and the credential is meant for the proxy itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_proxy: bool,
    /// How often it was presented, if the probes counted instead of reporting each time.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub count: u64,
}

/// A workload authenticated to an authenticator, or obtained a credential from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mint {
    pub time: Timestamp,
    pub workload: Workload,
    pub process: Process,
    pub authenticator: Destination,
    /// What it presented; absent if nothing was presented or seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented: Option<Credential>,
    /// What it obtained; absent if the response could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted: Option<Credential>,
}

/// A process was read by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRead {
    pub time: Timestamp,
    /// The reader.
    pub workload: Workload,
    pub process: Process,
    /// The process that was read.
    pub victim: Workload,
    pub victim_process: Process,
    pub look: Look,
    /// What the victim is known to hold; it may hold more.
    pub credentials: Vec<Arc<Credential>>,
    /// [`Evidence::Sole`] if the victim holds one credential.
    pub evidence: Evidence,
    pub relation: Kinship,
}

/// How the reader of a process is related to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kinship {
    /// The reader started it, or one of its ancestors.
    Ancestor,
    /// It started the reader, or one of its ancestors.
    Descendant,
    Unrelated,
}

/// The count of what is reported each time.
pub fn once() -> u64 {
    1
}

/// Whether it is [`once`].
pub fn is_once(count: &u64) -> bool {
    *count == 1
}

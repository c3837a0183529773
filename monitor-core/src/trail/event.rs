//! The input and output of the trail.

use crate::{
    fair_cache::Tenant,
    model::{
        Credential, Destination, ForeignRead, Gap, Hop, Login, Look, Mint, Place, Process, Subject,
        Untrusted, Use, Workload, WorkloadGateways, is_once, once,
    },
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The actor of an event, as attributed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub subject: Subject,
    pub workload: Workload,
    pub process: Process,
}

/// The trail's input: observations with attribution and credentials. `keytrail record` writes them,
/// one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TrailEvent {
    /// The first event of a recording.
    Recording {
        version: u32,
    },
    Fork {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
    },
    Exec {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
        /// User and cgroup: a credential in memory does not cross them.
        boundary: String,
        /// The executable is a shell.
        #[serde(default)]
        shell: bool,
    },
    Exit {
        time: Timestamp,
        subject: Subject,
    },
    /// The environment of a workload's first process names these gateways.
    Gateways(Box<WorkloadGateways>),
    /// These processes exited long ago, and are forgotten. Attribution decides when.
    Gone {
        subjects: Vec<Subject>,
    },
    PickUp(Box<PickUp>),
    Connect {
        time: Timestamp,
        #[serde(rename = "who")]
        actor: Actor,
        connection: u64,
        destination: Destination,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin: Option<u64>,
    },
    /// The first payload of a connection, with the server name if it is a ClientHello.
    Payload {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<ConnectionName>,
    },
    /// The connection was never established.
    Refused {
        connection: u64,
    },
    /// A process's environment or memory was read by another.
    Foreign {
        time: Timestamp,
        #[serde(rename = "who")]
        actor: Actor,
        victim: Box<Actor>,
        look: Look,
    },
    /// The fingerprint of a credential was seen in the bytes of a connection.
    Presented(Box<Presented>),
    /// As `Presented`, outside TLS.
    Clear {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        credential: Arc<Credential>,
        place: Place,
        /// The packet is addressed to loopback, whatever the destination of the connection is.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        to_loopback: bool,
        #[serde(default = "once", skip_serializing_if = "is_once")]
        count: u64,
    },
    /// A credential was issued in a response.
    Minted {
        time: Timestamp,
        connection: u64,
        credential: Arc<Credential>,
        place: Place,
    },
    /// A DNS response.
    Resolved {
        time: Timestamp,
        /// Who asked.
        #[serde(skip)]
        tenant: Tenant,
        /// For whom (see [`Workload::network`]).
        #[serde(default, skip_serializing_if = "String::is_empty")]
        network: String,
        /// That network is not configured with this resolver: whoever runs it chooses its answers.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unconfigured: bool,
        /// The requested name, and those that it resolved to.
        names: Vec<String>,
        addresses: Vec<IpAddr>,
    },
    /// Names of addresses from the host's `hosts` file, or from an earlier run.
    Names {
        time: Timestamp,
        known: Vec<(String, IpAddr)>,
    },
    /// A workload got a name, or will not get one soon: then both are the same.
    Renamed {
        time: Timestamp,
        old: Workload,
        new: Workload,
    },
    /// Cluster objects at addresses of existing connections became known.
    Objects {
        time: Timestamp,
        objects: BTreeMap<IpAddr, String>,
    },
    Gap {
        gap: Gap,
    },
    /// Time has passed.
    Tick {
        time: Timestamp,
    },
}

/// The name that a ClientHello, or the head of a plaintext request, adds to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionName {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(default)]
    pub ech: bool,
    /// It comes from the head of a request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
    /// The request asks a proxy for a connection to that server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tunnel: bool,
}

/// The trail's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrailOutput {
    Use(Box<Use>),
    Hop(Box<Hop>),
    Foreign(Box<ForeignRead>),
    Mint(Box<Mint>),
    /// Everything about the first workload now belongs to the second.
    Renamed(Box<[Workload; 2]>),
    /// The first process of a workload was told to send credentials there.
    Gateways(Box<WorkloadGateways>),
    Gap(Gap),
}

/// A process obtained a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PickUp {
    pub time: Timestamp,
    #[serde(rename = "who")]
    pub actor: Actor,
    pub credential: Arc<Credential>,
    pub place: Place,
    pub count: u64,
    /// The pipe at the reader's standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<u64>,
    /// The parent has the same standard output, so it does not read from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdout_of_parent: bool,
    /// The reader does so as part of its normal operation, and passes it to no other process.
    #[serde(default)]
    pub usual: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Box<Workload>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<Untrusted>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    /// See [`Use::in_mounted_home`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_mounted_home: bool,
}

/// The fingerprint of a credential was seen in the bytes of a connection, inside TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presented {
    pub time: Timestamp,
    #[serde(rename = "who")]
    pub actor: Actor,
    /// Absent if it is not known which connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// The server name that the program requested, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The server name in the head of the request; [`crate::model::UNKNOWN_NAME`] if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub credential: Arc<Credential>,
    pub place: Place,
    /// How often, since the last event of it on the connection.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub count: u64,
}

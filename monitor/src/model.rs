//! Keytrail's terms as types. Findings, answers and the ledger consist of these, and their
//! serialised names are the public interface.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Type, schema::Schema},
};

/// One process: thread-group id and start time, never the pid alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    pub pid: u32,
    /// Hundredths of a second since boot, the resolution of `/proc`.
    pub start: u64,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }
        impl $name {
            /// The name that is shown and stored.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words = [$($text),*];
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
            }
        }
        impl ToSchema for $name {}
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    other => Err(format!("`{other}` is not one of {}", [$($text),*].join(", "))),
                }
            }
        }
    };
}

words! {
    /// The purpose of a credential.
    Role { Identity = "identity", Access = "access", }
}
words! {
    /// How long a credential lives.
    Lifetime { Static = "static", ShortLived = "short-lived", }
}
words! {
    /// Where a credential was picked up.
    Source {
        File = "file", Environment = "environment", Metadata = "metadata", Socket = "socket",
        Inherited = "inherited", Presented = "presented",
    }
}
words! {
    /// The confidence of a hop, ordered from weak to strong.
    Evidence { Held = "held", Sole = "sole", Presented = "presented", }
}
words! {
    /// The policy's verdict on a hop.
    Verdict { Expected = "expected", Unproven = "unproven", Unexpected = "unexpected", }
}
words! {
    /// The severity of a finding, ordered from mild to severe.
    Severity { Low = "low", Medium = "medium", High = "high", Critical = "critical", }
}
words! {
    /// The origin of a destination's name.
    NameSource {
        None = "none", Sni = "sni", Dns = "dns", Kubernetes = "kubernetes", HttpHost = "http-host",
    }
}
words! {
    /// How another process was read.
    Look { Environ = "environ", Memory = "memory", Trace = "trace", }
}
words! {
    /// Why an executable cannot be trusted.
    Untrusted {
        Memory = "memory", Deleted = "deleted", Added = "added", Temporary = "temporary",
    }
}
words! {
    Transport { Tcp = "tcp", Udp = "udp", }
}
words! {
    /// The kind of a workload. `owner` is a pod controller that is not part of Kubernetes.
    WorkloadKind {
        Deployment = "deployment", StatefulSet = "statefulset", DaemonSet = "daemonset",
        ReplicaSet = "replicaset", Job = "job", CronJob = "cronjob", Owner = "owner",
        Pod = "pod", Container = "container", Unit = "unit", Host = "host",
    }
}

/// The workload of a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
    /// Part of its name is not known yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl Workload {
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
            partial: false,
        }
    }

    /// Whether it is known by ids only, and may still get a name.
    pub fn is_unnamed(&self) -> bool {
        matches!(self.kind, WorkloadKind::Pod | WorkloadKind::Container)
            && self.namespace.is_none()
            && self.image.is_none()
    }

    /// Whether its processes run in containers.
    pub fn is_contained(&self) -> bool {
        !matches!(self.kind, WorkloadKind::Unit | WorkloadKind::Host)
    }

    /// The name used in queries: `namespace/name`, or the name alone.
    pub fn key(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

/// A credential's id: `kt-` and its fingerprint, or `loc-` and the hash of its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct CredentialId(pub String);

impl CredentialId {
    /// The id of a secret whose fingerprint is known.
    pub fn from_fingerprint(fingerprint: u64) -> Self {
        Self(format!("kt-{fingerprint:016x}"))
    }

    /// The id of a credential that is known by place only.
    pub fn from_place(hash: u64) -> Self {
        Self(format!("loc-{hash:016x}"))
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a credential was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Place {
    pub source: Source,
    /// The path of a file, or `env:NAME`.
    pub place: String,
}

/// What is known about a credential. Nothing here is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    pub id: CredentialId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub class: String,
    pub role: Role,
    pub lifetime: Lifetime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Distinguishes several credentials in one place: a profile, a user, a registry, a subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Audiences named by the credential itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audience: Vec<String>,
    /// The pod to which it was issued, according to the credential itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_to: Option<IssuedTo>,
    /// The issuer of its class marks its secrets, and this one has no such mark: it belongs to
    /// another service that accepts the same variables and files, and whose home is unknown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Place>,
}

/// The pod to which a service-account token is bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct IssuedTo {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub service_account: String,
    /// The pod's owner and its kind, if the cluster reported them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WorkloadKind>,
}

/// The destination of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Destination {
    #[schema(value_type = String, examples("203.0.113.7"))]
    pub address: IpAddr,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub name_source: NameSource,
    pub transport: Transport,
    /// The ClientHello was encrypted: the name, if any, is only the outer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ech: bool,
    /// It is not known which connection of the process was used: it was one of this many
    /// destinations. 0 if it is known.
    #[serde(default, skip_serializing_if = "is_known")]
    pub one_of: u32,
    /// Contradicting names of the connection from other sources: a name is only a claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disputed: Vec<SourcedName>,
    /// The Kubernetes object at the address: `NAME.NAMESPACE.svc`, `OWNER.NAMESPACE.pod`,
    /// `NAME.node`. It is also the name if there is no better one. `?` if the cluster has not
    /// reported it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// A name, and its origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct SourcedName {
    /// `?` if it is only known to be a different one.
    pub name: String,
    pub name_source: NameSource,
}

/// Stands for a name that is not known but differs from the expected one.
pub const UNKNOWN_NAME: &str = "?";

fn is_known(one_of: &u32) -> bool {
    *one_of == 0
}

impl Destination {
    /// An address and a port without a name.
    pub fn unnamed(address: IpAddr, port: u16, transport: Transport) -> Self {
        Self {
            address,
            port,
            name: None,
            name_source: NameSource::None,
            transport,
            ech: false,
            one_of: 0,
            disputed: Vec::new(),
            object: None,
        }
    }

    /// Adds the Kubernetes object at the address.
    pub fn with_object(mut self, object: Option<String>) -> Self {
        if let Some(object) = &object {
            self.set_object(object);
        }
        self
    }

    /// Sets the Kubernetes object at the address.
    pub fn set_object(&mut self, object: &str) {
        if object != UNKNOWN_NAME {
            self.add_name(object, NameSource::Kubernetes);
        }
        self.object = Some(object.to_owned());
    }

    /// Whether Kubernetes may have an object there that it has not reported yet.
    pub fn is_object_pending(&self) -> bool {
        self.object.as_deref() == Some(UNKNOWN_NAME)
    }

    /// Adds a name. The first one stays, unless a later one comes from a source nearer to the
    /// connection; contradicting names are kept as disputed.
    pub fn add_name(&mut self, name: &str, source: NameSource) {
        let distance = |source| match source {
            NameSource::None => 3,
            NameSource::Kubernetes => 2,
            NameSource::Dns => 1,
            NameSource::Sni | NameSource::HttpHost => 0,
        };
        let nearer = distance(source) < distance(self.name_source);
        let before = self.name.clone();
        if nearer {
            self.name = Some(name.to_owned());
            self.name_source = source;
            self.disputed.clear();
        } else if before.as_deref() != Some(name) {
            let named = SourcedName {
                name: name.to_owned(),
                name_source: source,
            };
            if !self.disputed.contains(&named) {
                self.disputed.push(named);
            }
        }
    }

    /// `name:port` or `address:port`, with a note if it is one of several possible destinations.
    pub fn label(&self) -> String {
        let mut label = self.place();
        if self.one_of > 0 {
            label = format!("{label} (one of {})", self.one_of);
        }
        for other in &self.disputed {
            label = format!("{label} ({} by {})", other.name, other.name_source);
        }
        label
    }

    fn place(&self) -> String {
        match (&self.name, self.address) {
            (Some(name), _) => format!("{name}:{}", self.port),
            (None, IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            (None, address) => format!("{address}:{}", self.port),
        }
    }
}

/// The kind of a gap that exists everywhere in this release.
pub const NOT_COVERED: &str = "not-covered";

/// An interval or a kind of traffic that was not observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// `agent-down`, `lost-events`, `started-before-agent`, `probe-missing`, …
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    pub detail: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Number of events known to be missing; 0 if unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// The agent is or was blind because of it: also a finding.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blind: bool,
}

/// A gap that ended at most this long before is attached to a finding.
const GAP_PROXIMITY: SignedDuration = SignedDuration::from_secs(60);

impl Gap {
    /// Whether the gap may affect what was observed between two times.
    pub fn touches(&self, from: Timestamp, to: Timestamp) -> bool {
        self.kind != NOT_COVERED
            && self.since <= to
            && self
                .until
                .is_none_or(|until| from.duration_since(until) <= GAP_PROXIMITY)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A workload picked up a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    pub time: Timestamp,
    pub workload: Workload,
    pub process: Process,
    pub credential: Credential,
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
    pub credential: Credential,
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

/// A process that holds a credential was read by another.
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
    pub credential: Credential,
    /// [`Evidence::Sole`] if the victim holds nothing else.
    pub evidence: Evidence,
    /// The reader is an ancestor of the victim, and started it.
    pub ancestor: bool,
}

/// A use or hop that violates an expectation or a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    pub id: String,
    pub time: Timestamp,
    pub rule: String,
    pub severity: Severity,
    pub summary: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    pub workload: Workload,
    /// Absent if it concerns no single process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Absent if it concerns no single credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
}

impl Finding {
    /// Orders findings with the same id from mild to severe.
    pub fn rank(&self) -> (Severity, Option<Evidence>) {
        (self.severity, self.evidence)
    }
}

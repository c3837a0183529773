//! The words of Keytrail as types. What findings, answers and the ledger show is made of these,
//! and their serialised names are the interface.

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
    /// Hundredths of a second since boot, the resolution that `/proc` has.
    pub start: u64,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }
        impl $name {
            /// The word that is shown and stored.
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
    /// What a credential is for.
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
    /// How sure a hop is; the order is from weak to strong.
    Evidence { Held = "held", Sole = "sole", Presented = "presented", }
}
words! {
    /// What the policy says of a hop.
    Verdict { Expected = "expected", Unproven = "unproven", Unexpected = "unexpected", }
}
words! {
    /// How bad a finding is; the order is from mild to bad.
    Severity { Low = "low", Medium = "medium", High = "high", Critical = "critical", }
}
words! {
    /// Where the name of a destination came from.
    NameSource {
        None = "none", Sni = "sni", Dns = "dns", Kubernetes = "kubernetes", HttpHost = "http-host",
    }
}
words! {
    /// How another process was looked at.
    Look { Environ = "environ", Memory = "memory", Trace = "trace", }
}
words! {
    /// Why an executable is not to be trusted.
    Untrusted {
        Memory = "memory", Deleted = "deleted", Added = "added", Temporary = "temporary",
    }
}
words! {
    Transport { Tcp = "tcp", Udp = "udp", }
}
words! {
    /// What a workload is. An owner is a controller of pods that Kubernetes itself does not have.
    WorkloadKind {
        Deployment = "deployment", StatefulSet = "statefulset", DaemonSet = "daemonset",
        ReplicaSet = "replicaset", Job = "job", CronJob = "cronjob", Owner = "owner",
        Pod = "pod", Container = "container", Unit = "unit", Host = "host",
    }
}

/// What a subject belongs to.
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
    /// Not all of its name has been told yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl Workload {
    /// A plain process of the host, by its executable.
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

    /// Whether it is known by ids alone, and may still get a name.
    pub fn is_unnamed(&self) -> bool {
        matches!(self.kind, WorkloadKind::Pod | WorkloadKind::Container)
            && self.namespace.is_none()
            && self.image.is_none()
    }

    /// Whether its processes are in containers.
    pub fn is_contained(&self) -> bool {
        !matches!(self.kind, WorkloadKind::Unit | WorkloadKind::Host)
    }

    /// How it is asked for: `namespace/name`, or the name alone.
    pub fn key(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A process above the one that a finding is about.
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
    pub fn of_fingerprint(fingerprint: u64) -> Self {
        Self(format!("kt-{fingerprint:016x}"))
    }

    /// The id of a credential that is known only by place.
    pub fn of_place(hash: u64) -> Self {
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

/// What is known of a credential. Nothing here is secret.
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
    /// Which one of several in its place: a profile, a user, a registry, a subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Audiences that the credential itself names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audience: Vec<String>,
    /// The pod that it was issued to, as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_to: Option<IssuedTo>,
    /// Whoever issues its class marks what he issues, and this has no such mark: it is of somebody who takes the same
    /// variables and files, and whose home nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Place>,
}

/// The pod that a service-account token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct IssuedTo {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub service_account: String,
    /// What that pod belongs to and its kind, where the cluster has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WorkloadKind>,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Destination {
    #[schema(value_type = String, examples("203.0.113.7"))]
    pub address: IpAddr,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub name_source: NameSource,
    pub transport: Transport,
    /// The ClientHello was encrypted: the name, if any, is only its outer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ech: bool,
    /// Which connection of the process it was is not known: it was one of so many destinations.
    /// 0 where it is known.
    #[serde(default, skip_serializing_if = "is_known")]
    pub one_of: u32,
    /// Names that other sources give the same connection, where they do not agree with `name`: a
    /// name is only what somebody says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disputed: Vec<Named>,
    /// What Kubernetes has at the address: `NAME.NAMESPACE.svc`, `OWNER.NAMESPACE.pod`, `NAME.node`. It
    /// is the name as well where nobody says a better one. `?` where it has not told yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// A name, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Named {
    /// `?` where all that is known is that it is another one.
    pub name: String,
    pub name_source: NameSource,
}

/// In place of a name that is not known, and is not the one that it should be.
pub const ANOTHER: &str = "?";

fn is_known(one_of: &u32) -> bool {
    *one_of == 0
}

impl Destination {
    /// An address and a port, of which no name is known.
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

    /// The same, with what Kubernetes has there.
    pub fn with_object(mut self, object: Option<String>) -> Self {
        if let Some(object) = &object {
            self.take_object(object);
        }
        self
    }

    /// Takes what Kubernetes has there.
    pub fn take_object(&mut self, object: &str) {
        if object != ANOTHER {
            self.take_name(object, NameSource::Kubernetes);
        }
        self.object = Some(object.to_owned());
    }

    /// Whether Kubernetes may have something there, and has not told what.
    pub fn is_untold(&self) -> bool {
        self.object.as_deref() == Some(ANOTHER)
    }

    /// Takes a name from a source. The first to come stays, unless the later one is nearer to the
    /// connection; what does not agree is kept beside it.
    pub fn take_name(&mut self, name: &str, source: NameSource) {
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
            let named = Named {
                name: name.to_owned(),
                name_source: source,
            };
            if !self.disputed.contains(&named) {
                self.disputed.push(named);
            }
        }
    }

    /// `name:port`, or `address:port`, and whether it is only one of several that it may be.
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

/// The kind of a gap that this release has everywhere.
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
    /// Events known to be missing; 0 where that cannot be told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// The agent is or was blinded by it: a finding as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blind: bool,
}

/// What is found is near a gap that ended no longer ago than this.
const NEAR: SignedDuration = SignedDuration::from_secs(60);

impl Gap {
    /// Whether something that is missing may be missing from what was seen between two times.
    pub fn touches(&self, from: Timestamp, to: Timestamp) -> bool {
        self.kind != NOT_COVERED
            && self.since <= to
            && self
                .until
                .is_none_or(|until| from.duration_since(until) <= NEAR)
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
    /// Read from an interactive login, and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// The uid of the pod whose volume the file is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_of: Option<String>,
    /// The workload of that pod, or of the one that the credential was issued to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Box<Workload>>,
    /// The pod that the reader is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// When the file was last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
    /// What is wrong with the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<Untrusted>,
    /// The credential was put there for the reader: a variable of its environment, a file that was mounted
    /// into its container by itself, or what the class is for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
}

/// An interactive login: a process with a controlling terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    pub uid: u32,
    /// The user's home directory; a credential inside it is the person's own.
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
    /// Where else it may have been: see [`Destination::one_of`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Destination>,
    pub evidence: Evidence,
    /// Presented outside TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// The same use of the same connection was told already, with other evidence: it counts once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// A workload proved who it is to an authenticator, or got a credential from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mint {
    pub time: Timestamp,
    pub workload: Workload,
    pub process: Process,
    pub authenticator: Destination,
    /// What it showed; absent where it showed nothing, or nothing was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented: Option<Credential>,
    /// What it got; absent where the answer could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted: Option<Credential>,
}

/// A process that holds a credential was looked at by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRead {
    pub time: Timestamp,
    /// Who looked.
    pub workload: Workload,
    pub process: Process,
    /// Whom.
    pub victim: Workload,
    pub victim_process: Process,
    pub look: Look,
    pub credential: Credential,
    /// [`Evidence::Sole`] where it is all that the other one holds.
    pub evidence: Evidence,
    /// The one who looked is an ancestor of the other, and started it.
    pub ancestor: bool,
}

/// A use or hop that breaks an expectation or a rule.
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
    /// Absent where no single process did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Absent where it is about no single one.
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
    /// What makes it worse than another of the same id.
    pub fn rank(&self) -> (Severity, Option<Evidence>) {
        (self.severity, self.evidence)
    }
}

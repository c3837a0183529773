//! Credentials: ids, places, and public properties.

use crate::model::{Lifetime, Role, Source, WorkloadKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    fmt::{self, Debug},
    hash::Hash,
};
use utoipa::ToSchema;

/// A credential's id: `kt-` and its fingerprint, or `loc-` and the hash of its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct CredentialId(pub String);

impl CredentialId {
    /// The id of a secret whose fingerprint is known.
    pub fn from_fingerprint(fingerprint: u64) -> Self {
        Self(format!("kt-{fingerprint:016x}"))
    }

    /// The fingerprint of its secret; `None` if it is known by place only.
    pub fn fingerprint(&self) -> Option<u64> {
        u64::from_str_radix(self.0.strip_prefix("kt-")?, 16).ok()
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
    pub issued_to: Option<Box<IssuedTo>>,
    /// The issuer of its class marks its secrets, and this one has no such mark: it belongs to
    /// another service that accepts the same variables and files, and whose home is unknown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Place>,
    /// Those of its places to which it was written after it was known elsewhere: what is said about
    /// them does not apply to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Place>,
}

impl Credential {
    /// A credential of which nothing more is known.
    pub fn new(
        id: CredentialId,
        class: &str,
        role: Role,
        lifetime: Lifetime,
        sources: Vec<Place>,
    ) -> Self {
        Self {
            id,
            name: None,
            class: class.to_owned(),
            role,
            lifetime,
            issued_at: None,
            expires_at: None,
            owner: None,
            label: None,
            audience: Vec::new(),
            issued_to: None,
            unmarked: false,
            sources,
            copies: Vec::new(),
        }
    }
}

impl Credential {
    /// Whether it was seen only in use or in a response, and never picked up.
    pub fn is_only_seen(&self) -> bool {
        let made_up = |place: &Place| matches!(place.source, Source::Presented | Source::Metadata);
        self.sources.iter().all(made_up)
    }
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

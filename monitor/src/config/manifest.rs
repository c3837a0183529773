//! The custom resource `CredentialPolicy`, as passed to kubectl.

use monitor_core::policy::expectation::{
    AuthenticatorEntry, Expectation, Expectations, GatewayEntry, reader::ReaderPattern,
};
use serde::{Deserialize, de::IgnoredAny};

/// The custom resource, as passed to kubectl.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyManifest {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    spec: PolicySpec,
}

/// What a custom resource may contain.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    credentials: Vec<Expectation>,
    authenticators: Vec<AuthenticatorEntry>,
    gateways: Vec<GatewayEntry>,
    inspectors: Vec<ReaderPattern>,
}

/// Enough of a YAML document to tell which of the two it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DocumentKind {
    pub kind: Option<String>,
}

/// The kind of the custom resource.
pub const MANIFEST: &str = "CredentialPolicy";

impl From<PolicyManifest> for Expectations {
    fn from(manifest: PolicyManifest) -> Self {
        Self {
            credentials: manifest.spec.credentials,
            authenticators: manifest.spec.authenticators,
            gateways: manifest.spec.gateways,
            inspectors: manifest.spec.inspectors,
            mode: None,
        }
    }
}

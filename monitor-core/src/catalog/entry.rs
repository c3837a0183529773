//! The entries of the catalog, as written in YAML.

use crate::model::{Lifetime, Role};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// How secrets are stored in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// The file is one token, possibly surrounded by white space.
    #[default]
    Token,
    Pem,
    Ini,
    Json,
    Yaml,
    Netrc,
    Pgpass,
    /// Each line is a URL with user info.
    Urls,
    Dotenv,
    /// AWS profiles: key pairs, named by their access key id.
    Aws,
    /// Docker's registry credentials.
    Docker,
    /// The text of elements, and the value of `<add key="…" value="…"/>`.
    Xml,
    /// Every byte of the file is the secret.
    Whole,
    /// Known by place only; never read.
    Opaque,
}

/// A class of credentials, as written in the catalog.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialClass {
    pub class: String,
    pub role: Role,
    pub lifetime: Lifetime,
    #[serde(default)]
    pub short_form: bool,
    #[serde(default)]
    pub files: Vec<String>,
    #[serde(default)]
    pub sockets: Vec<String>,
    #[serde(default)]
    pub format: FileFormat,
    #[serde(default)]
    pub keys: Vec<String>,
    #[serde(default)]
    pub environment: Vec<String>,
    #[serde(default)]
    pub url_environment: Vec<String>,
    #[serde(default)]
    pub prefixes: Vec<String>,
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub home: Vec<String>,
    #[serde(default)]
    pub self_hosted: bool,
    #[serde(default)]
    pub marked: bool,
    #[serde(default)]
    pub jwt: bool,
    #[serde(default)]
    pub usual: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogDocument {
    #[serde(default)]
    pub classes: Vec<CredentialClass>,
    #[serde(default)]
    pub never_files: Vec<String>,
    #[serde(default)]
    pub never_environment: Vec<String>,
    #[serde(default)]
    pub metadata: Vec<String>,
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub authenticators: Vec<CatalogAuthenticator>,
    #[serde(default)]
    pub answers: Vec<IssuedField>,
    #[serde(default)]
    pub pointers: Vec<PathVariable>,
    #[serde(default)]
    pub tenants: Vec<String>,
    #[serde(default)]
    pub gateways: Vec<GatewayVariable>,
    #[serde(default)]
    pub ci_systems: Vec<CiSystem>,
    #[serde(default)]
    pub ai_agents: Vec<String>,
}

/// A CI system, and the variables by which the processes of a job know it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CiSystem {
    pub name: String,
    /// Names of the programs that run jobs.
    pub runners: Vec<String>,
    /// A variable that only its jobs have.
    pub mark: String,
    #[serde(default)]
    pub repository: Option<String>,
    #[serde(default)]
    pub workflow: Option<String>,
    #[serde(default)]
    pub run: Option<String>,
    #[serde(default)]
    pub job: Option<String>,
}

/// A variable whose value is the server to which credentials of some classes go instead of to their
/// issuer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayVariable {
    /// The variable's name, or a glob over names.
    pub variable: String,
    pub classes: Vec<String>,
}

/// A variable whose value is the path of a credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathVariable {
    pub variable: String,
    pub class: String,
    /// File name, if the variable names its directory.
    #[serde(default)]
    pub below: Option<String>,
}

/// A system that issues credentials, or performs primary authentication.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogAuthenticator {
    pub name: String,
    pub hosts: Vec<String>,
    #[serde(default)]
    pub port: Option<u16>,
}

/// A response field whose value is a credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedField {
    pub field: String,
    /// Its class; without one a value is recognised only by its form.
    #[serde(default)]
    pub class: Option<String>,
    /// The field that identifies the whole key pair.
    #[serde(default)]
    pub of: Option<String>,
}

impl CiSystem {
    /// Whether it is one of its variables.
    pub fn uses(&self, variable: &str) -> bool {
        let values = [&self.repository, &self.workflow, &self.run, &self.job];
        let mut names = values.into_iter().flatten().chain([&self.mark]);
        names.any(|name| name == variable)
    }
}

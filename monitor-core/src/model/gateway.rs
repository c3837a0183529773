//! Gateways: servers to which credentials go instead of to their issuers.

use super::{Workload, is_in_domain};
use crate::fair_cache::Tenant;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

/// A gateway that a variable names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredGateway {
    /// A name or an address, in lower case.
    pub host: String,
    /// Any port if the variable names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The classes that go there.
    pub classes: Vec<String>,
}

/// Longer values name no server.
const VALUE_MAX: usize = 1024;

impl DeclaredGateway {
    /// The server that a variable's value names: a URL, or a host with or without a port. Nothing else
    /// of the value is kept, because a URL may contain a password.
    pub fn parse(value: &str, classes: Vec<String>) -> Option<Self> {
        let value = value.trim();
        if value.is_empty() || value.len() > VALUE_MAX {
            return None;
        }
        let url = if value.contains("://") {
            Url::parse(value).ok()?
        } else {
            // The scheme is only for the parser, which drops its default port.
            Url::parse(&format!("gateway://{value}")).ok()?
        };
        let host = url
            .host_str()?
            .trim_matches(['[', ']'])
            .to_ascii_lowercase();
        let is_name = |part: char| part.is_ascii_alphanumeric() || "-._:".contains(part);
        (!host.is_empty() && host.chars().all(is_name)).then(|| Self {
            host,
            port: url.port(),
            classes,
        })
    }

    /// Whether it is this server, or one below its name.
    pub fn is_at(&self, host: &str, port: u16) -> bool {
        is_in_domain(&self.host, host) && self.port.is_none_or(|known| known == port)
    }
}

/// What the environment of a workload's first process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadGateways {
    pub time: Timestamp,
    pub workload: Workload,
    #[serde(skip)]
    pub tenant: Tenant,
    pub gateways: Vec<DeclaredGateway>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_of_every_form() {
        for (value, host, port) in [
            ("https://llm.corp.example/v1", "llm.corp.example", None),
            (
                "https://LLM.corp.example:8443",
                "llm.corp.example",
                Some(8443),
            ),
            (
                "http://user:FakeFake@proxy.example:3128/",
                "proxy.example",
                Some(3128),
            ),
            ("ghe.corp.example", "ghe.corp.example", None),
            ("minio:9000", "minio", Some(9000)),
            ("http://[fd00::1]:9000", "fd00::1", Some(9000)),
            (
                "sparse+https://crates.corp.example/index/",
                "crates.corp.example",
                None,
            ),
        ] {
            let parsed = DeclaredGateway::parse(value, Vec::new()).expect(value);
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port), "{value}");
        }
        for value in ["", "https://", "/a/path", "a b", "x\u{0}y"] {
            assert_eq!(DeclaredGateway::parse(value, Vec::new()), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_value_can_be_parsed(value in "\\PC{0,80}") {
            let _ = DeclaredGateway::parse(&value, Vec::new());
        }
    }
}

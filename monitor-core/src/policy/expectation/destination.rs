//! Patterns over destinations.

use super::pattern::TextMatcher;
use crate::model::Destination;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::{fmt::Debug, net::IpAddr};

/// `host-glob`, an address or a network, with or without `:port`.
#[derive(Clone, Debug)]
pub struct DestinationPattern {
    pub text: String,
    pub(super) target: DestinationTarget,
    /// The same name inside the cluster's domain, if it is that of a service.
    in_cluster: Option<TextMatcher>,
    port: Option<u16>,
}

/// The default DNS domain of clusters.
const CLUSTER_DOMAIN: &str = "cluster.local";

#[derive(Clone, Debug)]
pub(super) enum DestinationTarget {
    Name(TextMatcher),
    Network(IpNet),
}

impl DestinationPattern {
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (target, port) = split_port(text)?;
        let port = match port {
            None | Some("*") => None,
            Some(port) => Some(
                port.parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| format!("`{text}`: `{port}` is not a port"))?,
            ),
        };
        let bare = target.trim_start_matches('[').trim_end_matches(']');
        let glob = |name: &str| {
            TextMatcher::new(&name.to_ascii_lowercase(), false)
                .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))
        };
        let mut in_cluster = None;
        let target =
            if target.contains('/') {
                let network = target.replace(['[', ']'], "");
                DestinationTarget::Network(network.parse().map_err(|_| {
                    format!("`{text}`: `{target}` is not a network such as 10.0.0.0/8")
                })?)
            } else if let Ok(address) = bare.parse::<IpAddr>() {
                DestinationTarget::Network(IpNet::from(address))
            } else {
                // Names are compared without the trailing dot of the root.
                let name = target.trim_end_matches('.');
                if name.is_empty() || name.contains(char::is_whitespace) || bare.contains(':') {
                    return Err(format!(
                        "`{text}`: `{target}` is not a name, address or network"
                    ));
                }
                if name.to_ascii_lowercase().ends_with(".svc") {
                    in_cluster = Some(glob(&format!("{name}.{CLUSTER_DOMAIN}"))?);
                }
                DestinationTarget::Name(glob(name)?)
            };
        Ok(Self {
            text: text.to_owned(),
            target,
            in_cluster,
            port,
        })
    }

    /// Whether it had to be compiled.
    pub(super) fn is_glob(&self) -> bool {
        matches!(&self.target, DestinationTarget::Name(name) if name.is_glob())
    }

    pub fn matches(&self, destination: &Destination) -> bool {
        if self.port.is_some_and(|port| port != destination.port) {
            return false;
        }
        match &self.target {
            DestinationTarget::Name(glob) => destination.name.as_deref().is_some_and(|name| {
                let in_cluster = self.in_cluster.as_ref();
                glob.matches(name) || in_cluster.is_some_and(|glob| glob.matches(name))
            }),
            DestinationTarget::Network(network) => network.contains(&destination.address),
        }
    }
}

/// Whether a destination matches one of several patterns.
pub fn is_any_at(patterns: &[DestinationPattern], destination: &Destination) -> bool {
    patterns.iter().any(|pattern| pattern.matches(destination))
}

/// The port of a destination, if any: the text after the last `:` outside brackets, unless the
/// whole is an IPv6 address.
fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if text.is_empty() {
        return Err("a destination is empty".to_owned());
    }
    if let Some(end) = text.rfind(']') {
        let after = text[end + 1..].rfind(':').map(|at| end + 1 + at);
        return Ok(after.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..]))));
    }
    if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        return Ok((text, None));
    }
    Ok(text
        .rsplit_once(':')
        .map_or((text, None), |(target, port)| (target, Some(port))))
}

impl<'de> Deserialize<'de> for DestinationPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

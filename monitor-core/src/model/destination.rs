//! Destinations and their names.

use crate::model::{NameSource, Transport};
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, hash::Hash, net::IpAddr};
use utoipa::ToSchema;

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
    /// The proxy through which it is reached, with its port: the address is the proxy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

/// A name, and its origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct SourcedName {
    /// `?` if it is only known to be a different one.
    pub name: String,
    pub name_source: NameSource,
}

/// The port of a server that is reached through a proxy: a request for another one is rare, and its
/// port is not seen.
const TUNNEL_PORT: u16 = 443;

/// Stands for a name that is not known but differs from the expected one.
pub const UNKNOWN_NAME: &str = "?";

/// Whether a host is a name or below it. Whoever has a domain gives out the names below it.
pub fn is_in_domain(domain: &str, host: &str) -> bool {
    if domain.eq_ignore_ascii_case(host) {
        return !host.is_empty();
    }
    let labels = domain.split('.').filter(|label| !label.is_empty()).count();
    let is_address = domain.parse::<IpAddr>().is_ok();
    let begin = host.len().checked_sub(domain.len() + 1);
    labels >= 2
        && !is_address
        && begin.is_some_and(|begin| {
            host.is_char_boundary(begin + 1)
                && host.as_bytes()[begin] == b'.'
                && host[begin + 1..].eq_ignore_ascii_case(domain)
        })
}

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
            via: None,
        }
    }

    /// A server that is reached through a proxy at this destination. Names of the proxy's address say
    /// nothing about it.
    pub fn tunnel_to(&self, name: Option<&str>) -> Self {
        Self {
            name: name.map(str::to_owned),
            name_source: name.map_or(NameSource::None, |_| NameSource::HttpHost),
            via: Some(self.place()),
            ..Self::unnamed(self.address, TUNNEL_PORT, self.transport)
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

    /// Whether all of its names, if any, are those that a machine has for itself.
    pub fn has_local_names(&self) -> bool {
        let is_local = |name: &str| {
            name == "localhost"
                || name.ends_with(".localhost")
                || name
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        };
        let disputed = self.disputed.iter().map(|named| &*named.name);
        self.name
            .as_deref()
            .into_iter()
            .chain(disputed)
            .all(is_local)
    }

    /// `name:port` or `address:port`, with a note if it is one of several possible destinations.
    pub fn label(&self) -> String {
        let mut label = self.place();
        if self.one_of > 0 {
            label = format!("{label} (one of {})", self.one_of);
        }
        if let Some(via) = &self.via {
            label = format!("{label} via {via}");
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

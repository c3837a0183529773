//! The fixed vocabularies: each term has one name, which is shown, stored and serialised.

use serde::{Deserialize, Serialize};
use std::{
    fmt::{self, Debug},
    hash::Hash,
    str::FromStr,
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Type, schema::Schema},
};

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
        Memory = "memory", Deleted = "deleted", Added = "added", Downloaded = "downloaded",
        Temporary = "temporary",
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

//! Names from the container runtime over CRI: containerd, CRI-O and compatible ones.
//!
//! The messages contain only the fields of the published interface (`runtime.v1`) that names need,
//! by field number; others are skipped.

use super::{ContainerNames, NameProvider, ProviderError};
use crate::host;
use hyper_util::rt::TokioIo;
use prost::Message;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// Sockets of known runtimes.
const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
];

/// Timeout of a request; it is retried later.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Labels that the kubelet sets on a container.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

#[derive(Clone, PartialEq, Message)]
struct CriListRequest {}

#[derive(Clone, PartialEq, Message)]
struct CriContainers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<CriContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CriContainer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<CriContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<CriImage>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct CriContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct CriImage {
    #[prost(string, tag = "1")]
    image: String,
    /// As the user wrote it.
    #[prost(string, tag = "18")]
    user_specified: String,
}

#[derive(Clone, PartialEq, Message)]
struct CriSandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<CriSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct CriSandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<CriSandboxMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct CriSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// A runtime, identified by its socket.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    channel: Option<Channel>,
}

/// Maximum size of a response in bytes.
const RESPONSE_MAX: usize = 64 << 20;

impl Cri {
    /// Every runtime that may be present; an absent one is checked again each time. An agent in a
    /// container finds them in the host's root, so no socket has to be mounted.
    pub fn known_runtimes() -> Vec<Self> {
        SOCKETS
            .iter()
            .map(|socket| Self {
                socket: host::path(Path::new(socket)),
                channel: None,
            })
            .collect()
    }

    fn failed(&self, reason: impl ToString) -> ProviderError {
        ProviderError {
            asked: self.socket.display().to_string(),
            reason: reason.to_string(),
        }
    }

    fn channel(&mut self) -> Result<Channel, ProviderError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let socket = self.socket.clone();
        // The address is ignored: the connector knows the socket.
        let endpoint =
            Endpoint::try_from("http://runtime.invalid").map_err(|error| self.failed(error))?;
        let channel = endpoint
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT)
            .connect_with_connector_lazy(service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }));
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn call<Answer: Message + Default + 'static>(
        &mut self,
        path: &'static str,
    ) -> Result<Answer, ProviderError> {
        // A node with many pods has long lists; anything longer than this is rejected and logged.
        let mut client = Grpc::new(self.channel()?).max_decoding_message_size(RESPONSE_MAX);
        let asked = async {
            client.ready().await.map_err(|error| error_text(&error))?;
            client
                .unary(
                    Request::new(CriListRequest {}),
                    PathAndQuery::from_static(path),
                    ProstCodec::default(),
                )
                .await
                .map_err(|status| format!("{}: {}", status.code(), status.message()))
        };
        match timeout(TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(reason)) => {
                self.channel = None;
                Err(self.failed(reason))
            }
            Err(_) => {
                self.channel = None;
                Err(self.failed(format!("no response within {TIMEOUT:?}")))
            }
        }
    }

    async fn query(&mut self) -> Result<Vec<ContainerNames>, ProviderError> {
        let sandboxes: CriSandboxes = self
            .call("/runtime.v1.RuntimeService/ListPodSandbox")
            .await?;
        let containers: CriContainers = self
            .call("/runtime.v1.RuntimeService/ListContainers")
            .await?;
        Ok(join_lists(sandboxes, containers))
    }
}

/// An error with its causes.
fn error_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => error_text(source),
        None => error.to_string(),
    }
}

impl NameProvider for Cri {
    fn is_here(&self) -> bool {
        self.socket.exists()
    }

    fn list(&mut self, runtime: &Runtime) -> Result<Vec<ContainerNames>, ProviderError> {
        runtime.block_on(self.query())
    }
}

/// Joins the two lists. A container whose sandbox is not listed has its labels.
fn join_lists(sandboxes: CriSandboxes, containers: CriContainers) -> Vec<ContainerNames> {
    let pods: HashMap<String, CriSandboxMetadata> = sandboxes
        .items
        .into_iter()
        .filter_map(|sandbox| Some((sandbox.id, sandbox.metadata?)))
        .collect();
    let mut named: Vec<ContainerNames> = pods
        .iter()
        .map(|(id, pod)| ContainerNames {
            id: id.clone(),
            pod_uid: non_empty(&pod.uid),
            namespace: non_empty(&pod.namespace),
            pod: non_empty(&pod.name),
            ..ContainerNames::default()
        })
        .collect();
    named.extend(containers.containers.into_iter().map(|container| {
        let label = |name: &str| {
            container
                .labels
                .get(name)
                .and_then(|value| non_empty(value))
        };
        let pod = pods.get(&container.sandbox);
        ContainerNames {
            pod_uid: pod.and_then(|pod| non_empty(&pod.uid)),
            namespace: pod
                .and_then(|pod| non_empty(&pod.namespace))
                .or_else(|| label(POD_NAMESPACE)),
            pod: pod
                .and_then(|pod| non_empty(&pod.name))
                .or_else(|| label(POD_NAME)),
            container: container
                .metadata
                .as_ref()
                .and_then(|metadata| non_empty(&metadata.name))
                .or_else(|| label(CONTAINER_NAME)),
            image: container.image.as_ref().and_then(|image| {
                non_empty(&image.user_specified).or_else(|| non_empty(&image.image))
            }),
            id: container.id,
            ..ContainerNames::default()
        }
    }));
    named
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_container_has_the_names_of_its_sandbox() {
        let sandbox = |id: &str, name: &str| CriSandbox {
            id: id.into(),
            metadata: Some(CriSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "payments".into(),
            }),
        };
        let container = |id: &str, sandbox: &str| CriContainer {
            id: id.into(),
            sandbox: sandbox.into(),
            metadata: Some(CriContainerMetadata { name: "api".into() }),
            image: Some(CriImage {
                image: "sha256:0".into(),
                user_specified: "registry.example/api:1".into(),
            }),
            labels: HashMap::from([(POD_NAME.into(), "by-label".into())]),
        };
        let named = join_lists(
            CriSandboxes {
                items: vec![sandbox("s1", "api-0")],
            },
            CriContainers {
                containers: vec![container("c1", "s1"), container("c2", "gone")],
            },
        );
        let of = |id: &str| {
            named
                .iter()
                .find(|named| named.id == id)
                .expect("it is named")
        };
        assert_eq!(of("s1").pod.as_deref(), Some("api-0"));
        assert_eq!(of("s1").container, None);
        assert_eq!(of("c1").pod.as_deref(), Some("api-0"));
        assert_eq!(of("c1").namespace.as_deref(), Some("payments"));
        assert_eq!(of("c1").pod_uid.as_deref(), Some("uid-api-0"));
        assert_eq!(of("c1").image.as_deref(), Some("registry.example/api:1"));
        assert_eq!(of("c2").pod.as_deref(), Some("by-label"));
        assert_eq!(of("c2").pod_uid, None);
    }

    proptest! {
        #[test]
        fn any_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let (Ok(sandboxes), Ok(containers)) =
                (CriSandboxes::decode(&*bytes), CriContainers::decode(&*bytes))
            {
                let _ = join_lists(sandboxes, containers);
            }
        }
    }
}

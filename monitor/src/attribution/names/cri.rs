//! Names from the container runtime, over CRI: containerd, CRI-O and what speaks like them.
//!
//! The messages are the few of the published interface (`runtime.v1`) that names need, by the numbers
//! of their fields; what else they hold is skipped.

use super::{Named, Source, SourceError};
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

/// Where runtimes listen.
const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
];

/// A runtime that takes longer is asked again later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Labels that the kubelet gives a container.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

#[derive(Clone, PartialEq, Message)]
struct ListRequest {}

#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
    /// As the user wrote it.
    #[prost(string, tag = "18")]
    user_specified: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// A runtime, by its socket.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    channel: Option<Channel>,
}

/// Bytes of an answer.
const LONGEST: usize = 64 << 20;

impl Cri {
    /// Every runtime that may be here; one that is not is asked for again each time. An agent in a
    /// container finds them in the host's root, so that no socket has to be mounted.
    pub fn all() -> Vec<Self> {
        SOCKETS
            .iter()
            .map(|socket| Self {
                socket: host::path(Path::new(socket)),
                channel: None,
            })
            .collect()
    }

    fn failed(&self, reason: impl ToString) -> SourceError {
        SourceError {
            asked: self.socket.display().to_string(),
            reason: reason.to_string(),
        }
    }

    fn channel(&mut self) -> Result<Channel, SourceError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let socket = self.socket.clone();
        // The address is not looked at: the connector knows where to go.
        let endpoint =
            Endpoint::try_from("http://runtime.invalid").map_err(|error| self.failed(error))?;
        let channel = endpoint
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
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
    ) -> Result<Answer, SourceError> {
        // A node with many pods has long lists; what is longer than this is refused, and told.
        let mut client = Grpc::new(self.channel()?).max_decoding_message_size(LONGEST);
        let asked = async {
            client.ready().await.map_err(|error| error_text(&error))?;
            client
                .unary(
                    Request::new(ListRequest {}),
                    PathAndQuery::from_static(path),
                    ProstCodec::default(),
                )
                .await
                .map_err(|status| format!("{}: {}", status.code(), status.message()))
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(reason)) => {
                self.channel = None;
                Err(self.failed(reason))
            }
            Err(_) => {
                self.channel = None;
                Err(self.failed(format!("no answer within {PATIENCE:?}")))
            }
        }
    }

    async fn ask(&mut self) -> Result<Vec<Named>, SourceError> {
        let sandboxes: Sandboxes = self
            .call("/runtime.v1.RuntimeService/ListPodSandbox")
            .await?;
        let containers: Containers = self
            .call("/runtime.v1.RuntimeService/ListContainers")
            .await?;
        Ok(names(sandboxes, containers))
    }
}

/// An error with what caused it.
fn error_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => error_text(source),
        None => error.to_string(),
    }
}

impl Source for Cri {
    fn is_here(&self) -> bool {
        self.socket.exists()
    }

    fn list(&mut self, runtime: &Runtime) -> Result<Vec<Named>, SourceError> {
        runtime.block_on(self.ask())
    }
}

/// Puts together what the two lists say. A container whose sandbox is not listed has its labels.
fn names(sandboxes: Sandboxes, containers: Containers) -> Vec<Named> {
    let pods: HashMap<String, SandboxMetadata> = sandboxes
        .items
        .into_iter()
        .filter_map(|sandbox| Some((sandbox.id, sandbox.metadata?)))
        .collect();
    let mut named: Vec<Named> = pods
        .iter()
        .map(|(id, pod)| Named {
            id: id.clone(),
            pod_uid: some(&pod.uid),
            namespace: some(&pod.namespace),
            pod: some(&pod.name),
            ..Named::default()
        })
        .collect();
    named.extend(containers.containers.into_iter().map(|container| {
        let label = |name: &str| container.labels.get(name).and_then(|value| some(value));
        let pod = pods.get(&container.sandbox);
        Named {
            pod_uid: pod.and_then(|pod| some(&pod.uid)),
            namespace: pod
                .and_then(|pod| some(&pod.namespace))
                .or_else(|| label(POD_NAMESPACE)),
            pod: pod
                .and_then(|pod| some(&pod.name))
                .or_else(|| label(POD_NAME)),
            container: container
                .metadata
                .as_ref()
                .and_then(|metadata| some(&metadata.name))
                .or_else(|| label(CONTAINER_NAME)),
            image: container
                .image
                .as_ref()
                .and_then(|image| some(&image.user_specified).or_else(|| some(&image.image))),
            id: container.id,
            ..Named::default()
        }
    }));
    named
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_container_has_the_names_of_its_sandbox() {
        let sandbox = |id: &str, name: &str| Sandbox {
            id: id.into(),
            metadata: Some(SandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "payments".into(),
            }),
        };
        let container = |id: &str, sandbox: &str| Container {
            id: id.into(),
            sandbox: sandbox.into(),
            metadata: Some(ContainerMetadata { name: "api".into() }),
            image: Some(Image {
                image: "sha256:0".into(),
                user_specified: "registry.example/api:1".into(),
            }),
            labels: HashMap::from([(POD_NAME.into(), "by-label".into())]),
        };
        let named = names(
            Sandboxes {
                items: vec![sandbox("s1", "api-0")],
            },
            Containers {
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
                (Sandboxes::decode(&*bytes), Containers::decode(&*bytes))
            {
                let _ = names(sandboxes, containers);
            }
        }
    }
}

//! Names from the container runtime over CRI: containerd, CRI-O and compatible ones.
//!
//! The messages are generated from `proto/cri.proto`, which has the fields of the published interface
//! that names need; others are skipped.

use super::{ContainerNames, NameProvider, ProviderError};
use crate::host;
use hyper_util::rt::TokioIo;
use messages::{
    ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
    PodSandboxMetadata,
};
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

/// The generated messages.
mod messages {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

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
            provider: self.socket.display().to_string(),
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

    async fn call<Asked, Answer>(
        &mut self,
        path: &'static str,
        request: Asked,
    ) -> Result<Answer, ProviderError>
    where
        Asked: Message + 'static,
        Answer: Message + Default + 'static,
    {
        // A node with many pods has long lists; anything longer than this is rejected and logged.
        let mut client = Grpc::new(self.channel()?).max_decoding_message_size(RESPONSE_MAX);
        let call = async {
            client.ready().await.map_err(|error| error_text(&error))?;
            client
                .unary(
                    Request::new(request),
                    PathAndQuery::from_static(path),
                    ProstCodec::<Asked, Answer>::default(),
                )
                .await
                .map_err(|status| format!("{}: {}", status.code(), status.message()))
        };
        match timeout(TIMEOUT, call).await {
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
        let sandboxes: ListPodSandboxResponse = self
            .call(
                "/runtime.v1.RuntimeService/ListPodSandbox",
                ListPodSandboxRequest {},
            )
            .await?;
        let containers: ListContainersResponse = self
            .call(
                "/runtime.v1.RuntimeService/ListContainers",
                ListContainersRequest {},
            )
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
fn join_lists(
    sandboxes: ListPodSandboxResponse,
    containers: ListContainersResponse,
) -> Vec<ContainerNames> {
    let pods: HashMap<String, PodSandboxMetadata> = sandboxes
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
        let pod = pods.get(&container.pod_sandbox_id);
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
                non_empty(&image.user_specified_image).or_else(|| non_empty(&image.image))
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
    use super::{
        messages::{Container, ContainerMetadata, ImageSpec, PodSandbox},
        *,
    };
    use proptest::prelude::*;

    #[test]
    fn a_container_has_the_names_of_its_sandbox() {
        let sandbox = |id: &str, name: &str| PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "payments".into(),
            }),
        };
        let container = |id: &str, sandbox: &str| Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata { name: "api".into() }),
            image: Some(ImageSpec {
                image: "sha256:0".into(),
                user_specified_image: "registry.example/api:1".into(),
            }),
            labels: HashMap::from([(POD_NAME.into(), "by-label".into())]),
        };
        let named = join_lists(
            ListPodSandboxResponse {
                items: vec![sandbox("s1", "api-0")],
            },
            ListContainersResponse {
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
                (ListPodSandboxResponse::decode(&*bytes), ListContainersResponse::decode(&*bytes))
            {
                let _ = join_lists(sandboxes, containers);
            }
        }
    }
}

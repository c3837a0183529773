//! A real containerd, controlled over CRI as the kubelet does.

use crate::{skip::skip, wait_for};
use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use messages::*;
use prost::Message;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The messages of CRI, generated from `proto/cri.proto`.
#[allow(clippy::enum_variant_names, reason = "the names of the interface")]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// Where the agent expects it.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of every container: busybox, which waits until it is stopped.
const IMAGE: &str = "lab.example/tools:1";

/// A containerd that is stopped when dropped, with its pods.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    busybox: PathBuf,
    runtime: Runtime,
    channel: Channel,
    directory: tempfile::TempDir,
}

/// A network for pods.
#[derive(Clone, Copy, Debug)]
pub struct PodNetwork<'a> {
    /// Directory of the CNI programs.
    pub plugins: &'a Path,
    /// A CNI configuration list, as JSON.
    pub configuration: &'a str,
}

/// A pod with host networking.
#[derive(Debug)]
pub struct TestPod {
    pub uid: String,
    sandbox: String,
    config: PodSandboxConfig,
}

/// A host directory mounted into a container.
#[derive(Clone, Copy, Debug)]
pub struct BindMount<'a> {
    pub host: &'a Path,
    pub container: &'a str,
}

impl Containerd {
    /// Starts it with an image; `None`, with the reason, if it cannot run here.
    pub fn start() -> Result<Option<Self>> {
        Self::start_on(None)
    }

    /// As [`start`](Self::start), for pods with their own network if one is given.
    pub fn start_on(network: Option<&PodNetwork<'_>>) -> Result<Option<Self>> {
        let Some(busybox) = std::env::var_os("KEYTRAIL_BUSYBOX").map(PathBuf::from) else {
            skip("containers", "no busybox for an image (KEYTRAIL_BUSYBOX)")?;
            return Ok(None);
        };
        if Command::new("containerd")
            .arg("--version")
            .output()
            .is_err()
        {
            skip("containers", "no containerd on the PATH")?;
            return Ok(None);
        }
        ensure!(
            std::os::unix::net::UnixStream::connect(SOCKET).is_err(),
            "a containerd of this machine has {SOCKET}"
        );
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        fs::create_dir(at("cni"))?;
        if let Some(network) = network {
            fs::write(at("cni/lab.conflist"), network.configuration)?;
        }
        let plugins = network.map_or_else(
            || at("cni"),
            |network| network.plugins.display().to_string(),
        );
        fs::write(
            at("config.toml"),
            format!(
                r#"version = 2
root = "{}"
state = "{}"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{}"
    bin_dir = "{plugins}"
"#,
                at("root"),
                at("state"),
                at("opt"),
                at("cni"),
            ),
        )?;
        let log = fs::File::create(at("containerd.log"))?;
        let child = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = {
            let _inside = runtime.enter();
            Endpoint::try_from("http://containerd.invalid")?.connect_with_connector_lazy(
                tower::service_fn(|_| async {
                    UnixStream::connect(SOCKET).await.map(TokioIo::new)
                }),
            )
        };
        let this = Self {
            child,
            busybox,
            runtime,
            channel,
            directory,
        };
        wait_for("containerd answers", Duration::from_secs(30), || {
            let answer = this.call::<_, VersionResponse>("Version", &VersionRequest::default());
            Ok(answer.ok().map(|_| ()))
        })?;
        this.import(IMAGE, &[])?;
        Ok(Some(this))
    }

    /// Builds an image from busybox and some programs with their libraries; it runs the first of
    /// them.
    pub fn import(&self, name: &str, programs: &[&Path]) -> Result<()> {
        let image = self.directory.path().join("image.tar");
        let made = Command::new("python3")
            .arg(crate::client("image.py"))
            .args([&self.busybox, &image])
            .arg(name)
            .args(programs)
            .status()?;
        ensure!(made.success(), "no image {name} was made");
        let imported = Command::new("ctr")
            .args(["--address", SOCKET, "--namespace", "k8s.io"])
            .args(["images", "import"])
            .arg(&image)
            .output()?;
        ensure!(
            imported.status.success(),
            "the image {name} was not taken: {}",
            String::from_utf8_lossy(&imported.stderr)
        );
        Ok(())
    }

    fn call<Asked, Answer>(&self, method: &str, asked: &Asked) -> Result<Answer>
    where
        Asked: Message + Clone + 'static,
        Answer: Message + Default + 'static,
    {
        let path = PathAndQuery::from_maybe_shared(format!("/runtime.v1.RuntimeService/{method}"))?;
        self.runtime.block_on(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await?;
            let answer = client
                .unary(
                    Request::new(asked.clone()),
                    path,
                    ProstCodec::<Asked, Answer>::default(),
                )
                .await
                .with_context(|| method.to_owned())?;
            Ok(answer.into_inner())
        })
    }

    /// Creates a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<TestPod> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("fa4e0000-0000-4000-8000-{number:012}");
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: namespace.to_owned(),
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/burstable/pod{uid}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: NamespaceMode::Node as i32,
                    }),
                }),
            }),
        };
        let RunPodSandboxResponse {
            pod_sandbox_id: sandbox,
        } = self.call(
            "RunPodSandbox",
            &RunPodSandboxRequest {
                config: Some(config.clone()),
            },
        )?;
        Ok(TestPod {
            uid,
            sandbox,
            config,
        })
    }

    /// Runs a script in a new container of a pod; returns the container's id.
    pub fn run(
        &self,
        pod: &TestPod,
        name: &str,
        script: &str,
        binds: &[BindMount<'_>],
    ) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
            }),
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
            }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            mounts: binds
                .iter()
                .map(|bind| Mount {
                    container_path: bind.container.to_owned(),
                    host_path: bind.host.display().to_string(),
                })
                .collect(),
        };
        let CreateContainerResponse { container_id: id } = self.call(
            "CreateContainer",
            &CreateContainerRequest {
                pod_sandbox_id: pod.sandbox.clone(),
                config: Some(config),
                sandbox_config: Some(pod.config.clone()),
            },
        )?;
        self.call::<_, StartContainerResponse>(
            "StartContainer",
            &StartContainerRequest {
                container_id: id.clone(),
            },
        )?;
        Ok(id)
    }

    /// Waits until a container has exited successfully.
    pub fn wait(&self, container: &str) -> Result<()> {
        let status = wait_for("the container ends", Duration::from_secs(30), || {
            let answer: ContainerStatusResponse = self.call(
                "ContainerStatus",
                &ContainerStatusRequest {
                    container_id: container.to_owned(),
                },
            )?;
            Ok(answer
                .status
                .filter(|status| status.state() == ContainerState::ContainerExited))
        })?;
        ensure!(
            status.exit_code == 0,
            "the container ended with {}: {}",
            status.exit_code,
            status.message
        );
        Ok(())
    }

    /// Stops and removes a pod.
    pub fn remove(&self, pod: TestPod) -> Result<()> {
        self.remove_sandbox(pod.sandbox)
    }

    fn remove_sandbox(&self, pod_sandbox_id: String) -> Result<()> {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        self.call::<_, StopPodSandboxResponse>("StopPodSandbox", &stop)?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        self.call::<_, RemovePodSandboxResponse>("RemovePodSandbox", &remove)?;
        Ok(())
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("containerd.log")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims survive unless their containers are removed.
        if let Ok(pods) =
            self.call::<_, ListPodSandboxResponse>("ListPodSandbox", &ListPodSandboxRequest {})
        {
            for pod in pods.items {
                let _ = self.remove_sandbox(pod.id);
            }
        }
        // It may have exited already.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(SOCKET);
    }
}

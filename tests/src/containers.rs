//! A real containerd, spoken to over CRI as the kubelet does.

use crate::wait_for;
use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use prost::Message;
use std::{
    collections::HashMap,
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

/// Where the agent looks for it.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of every container: busybox, which does nothing until it is ended.
const IMAGE: &str = "lab.example/tools:1";

/// A containerd that ends with this value, and its pods with it.
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
pub struct Network<'a> {
    /// Where the programs of CNI are.
    pub plugins: &'a Path,
    /// A list of CNI's, as JSON.
    pub configuration: &'a str,
}

/// A pod that runs on the network of the host.
#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    sandbox: String,
    config: SandboxConfig,
}

/// A directory of the host that a container sees.
#[derive(Clone, Copy, Debug)]
pub struct Bind<'a> {
    pub host: &'a Path,
    pub container: &'a str,
}

impl Containerd {
    /// Starts it with an image; `None`, and why, where it cannot run here.
    pub fn start() -> Result<Option<Self>> {
        Self::start_on(None)
    }

    /// The same for pods with a network of their own, where there is one.
    pub fn start_on(network: Option<&Network<'_>>) -> Result<Option<Self>> {
        let Some(busybox) = std::env::var_os("KEYTRAIL_BUSYBOX").map(PathBuf::from) else {
            println!("skipped: no busybox for an image (KEYTRAIL_BUSYBOX)");
            return Ok(None);
        };
        if Command::new("containerd")
            .arg("--version")
            .output()
            .is_err()
        {
            println!("skipped: no containerd on the PATH");
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
            let answer = this.call::<_, Version>("Version", &Version::default());
            Ok(answer.ok().map(|_| ()))
        })?;
        this.import(IMAGE, &[])?;
        Ok(Some(this))
    }

    /// Makes an image of busybox and some programs with their libraries, of which it runs the first.
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

    /// A new pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("fa4e0000-0000-4000-8000-{number:012}");
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: namespace.to_owned(),
            }),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("/kubepods/burstable/pod{uid}"),
                security: Some(SandboxSecurity {
                    namespaces: Some(Namespaces { network: NODE }),
                }),
            }),
        };
        let SandboxId { id: sandbox } = self.call(
            "RunPodSandbox",
            &RunSandbox {
                config: Some(config.clone()),
            },
        )?;
        Ok(Pod {
            uid,
            sandbox,
            config,
        })
    }

    /// Runs a script in a new container of a pod, and gives the container's id.
    pub fn run(&self, pod: &Pod, name: &str, script: &str, binds: &[Bind<'_>]) -> Result<String> {
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
            labels: HashMap::new(),
        };
        let ContainerId { id } = self.call(
            "CreateContainer",
            &CreateContainer {
                sandbox: pod.sandbox.clone(),
                config: Some(config),
                sandbox_config: Some(pod.config.clone()),
            },
        )?;
        self.call::<_, Nothing>("StartContainer", &ContainerId { id: id.clone() })?;
        Ok(id)
    }

    /// Waits until a container has ended well.
    pub fn wait(&self, container: &str) -> Result<()> {
        const EXITED: i32 = 2;
        let status = wait_for("the container ends", Duration::from_secs(30), || {
            let answer: StatusAnswer = self.call(
                "ContainerStatus",
                &ContainerId {
                    id: container.to_owned(),
                },
            )?;
            Ok(answer.status.filter(|status| status.state == EXITED))
        })?;
        ensure!(
            status.exit_code == 0,
            "the container ended with {}: {}",
            status.exit_code,
            status.message
        );
        Ok(())
    }

    /// Ends a pod and forgets it.
    pub fn remove(&self, pod: Pod) -> Result<()> {
        let id = SandboxId { id: pod.sandbox };
        self.call::<_, Nothing>("StopPodSandbox", &id)?;
        self.call::<_, Nothing>("RemovePodSandbox", &id)?;
        Ok(())
    }

    /// Where it writes its log.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("containerd.log")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims live on without their containers' ends.
        if let Ok(pods) = self.call::<_, Sandboxes>("ListPodSandbox", &Nothing {}) {
            for id in pods.items {
                let _ = self.call::<_, Nothing>("StopPodSandbox", &id);
                let _ = self.call::<_, Nothing>("RemovePodSandbox", &id);
            }
        }
        // It may have ended already.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(SOCKET);
    }
}

const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "1")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
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

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

/// Of a sandbox wherever it is the only field, and the first of many.
#[derive(Clone, PartialEq, Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<SandboxId>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
    #[prost(string, tag = "11")]
    message: String,
}

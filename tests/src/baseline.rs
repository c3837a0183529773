//! What the cost of the agent is compared with: empty programs on its hooks, and other tools.

use crate::{child::KilledChild, workload::cgroup_root};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, UProbe, uprobe::UProbeScope,
    },
};
use std::{
    any::Any,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// Runs until it is dropped; `None` if it is not available here.
pub type BackgroundLoad = Option<Box<dyn Any>>;

/// Loads the programs that do nothing.
pub fn load_empty(probes: &Path) -> Result<Ebpf> {
    EbpfLoader::new()
        .btf(None)
        .load_file(probes)
        .with_context(|| format!("cannot load {}", probes.display()))
}

/// A program of the object, by name.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("no {name} in the probes"))
}

/// An empty program for the packets that the host sends.
pub fn empty_egress(probes: &Path) -> Result<BackgroundLoad> {
    let mut ebpf = load_empty(probes)?;
    attach_packets(&mut ebpf, "empty_egress", CgroupSkbAttachType::Egress)?;
    Ok(Some(Box::new(ebpf)))
}

/// Empty programs for all packets: on the hooks that the agent uses.
pub fn empty_packets(probes: &Path) -> Result<BackgroundLoad> {
    let mut ebpf = load_empty(probes)?;
    attach_packets(&mut ebpf, "empty_egress", CgroupSkbAttachType::Egress)?;
    attach_packets(&mut ebpf, "empty_ingress", CgroupSkbAttachType::Ingress)?;
    Ok(Some(Box::new(ebpf)))
}

fn attach_packets(ebpf: &mut Ebpf, name: &str, direction: CgroupSkbAttachType) -> Result<()> {
    let root = File::open(cgroup_root().context("no cgroup v2")?)?;
    let program: &mut CgroupSkb = program(ebpf, name)?.try_into()?;
    program.load()?;
    program.attach(root, direction, CgroupAttachMode::Single)?;
    Ok(())
}

/// An empty program at the writes of an OpenSSL library.
pub fn empty_uprobe(probes: &Path, library: &Path) -> Result<BackgroundLoad> {
    let mut ebpf = load_empty(probes)?;
    let program: &mut UProbe = program(&mut ebpf, "empty_uprobe")?.try_into()?;
    program.load()?;
    for function in ["SSL_write", "SSL_write_ex"] {
        program.attach(function, library, UProbeScope::AllProcesses)?;
    }
    Ok(Some(Box::new(ebpf)))
}

/// What opensnoop does, for bpftrace.
pub const OPENSNOOP: &str = "tracepoint:syscalls:sys_enter_openat { @name[tid] = args->filename; } tracepoint:syscalls:sys_exit_openat /@name[tid]/ { printf(\"%d %s %d %s\\n\", pid, comm, args->ret, str(@name[tid])); delete(@name[tid]); }";

/// What execsnoop does, for bpftrace.
pub const EXECSNOOP: &str =
    "tracepoint:syscalls:sys_enter_execve { printf(\"%d %s \", pid, comm); join(args->argv); }";

/// A script for bpftrace, its output discarded; `None` if it is not installed.
pub fn bpftrace(script: &str) -> Result<BackgroundLoad> {
    let script = format!("BEGIN {{ printf(\"ready\\n\"); }} {script}");
    let mut command = Command::new("bpftrace");
    command
        .args(["-e", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    discard_output(command, "ready")
}

/// Starts a tool and discards its output; `None` if it is not installed, or ends before it writes a
/// line with this text.
pub fn discard_output(mut command: Command, ready: &str) -> Result<BackgroundLoad> {
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else {
        return Ok(None);
    };
    let mut output = BufReader::new(child.stdout.take().context("its output")?);
    let running = KilledChild(child);
    let mut line = String::new();
    while !line.contains(ready) {
        line.clear();
        if output.read_line(&mut line)? == 0 {
            return Ok(None);
        }
    }
    // Its output must be read, or it would block.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    Ok(Some(Box::new(running)))
}

/// Rules of the kernel's audit, removed when dropped.
#[derive(Debug)]
pub struct AuditRules;

impl AuditRules {
    /// Sets rules, each given as `auditctl` takes it; `None` if audit is not available.
    pub fn set<'a>(rules: impl IntoIterator<Item = &'a [&'a str]>) -> BackgroundLoad {
        let set = rules
            .into_iter()
            .all(|rule| auditctl(&[rule, &["-k", "keytrail-bench"]].concat()));
        (set && auditctl(&["-e", "1"])).then(|| Box::new(Self) as Box<dyn Any>)
    }
}

impl Drop for AuditRules {
    /// A rule that cannot be removed was not added.
    fn drop(&mut self) {
        auditctl(&["-D"]);
        auditctl(&["-e", "0"]);
    }
}

fn auditctl(arguments: &[&str]) -> bool {
    let output = Command::new("auditctl").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// The median; not a number if there are no values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

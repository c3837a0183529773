//! The root file system of the virtual machines: the programs under test, the tools that the
//! scenarios call, and the libraries of both, as an ext4 image. Every machine boots from it and
//! discards its changes.

use super::qemu::STATUS_MARK;
use crate::{
    commands::run_checked,
    debian::{Apt, codename},
    setup::tools,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// Tools of the build machine, copied with their libraries.
const TOOLS: [&str; 12] = [
    "bash", "cat", "curl", "cp", "env", "ln", "mkdir", "mount", "sed", "setpriv", "sleep",
    "unshare",
];

/// Directory of the programs under test in the machine.
pub const PROGRAMS: &str = "/opt/keytrail";

/// Builds the image with these programs and the probes' object file.
pub fn build(programs: &[(String, PathBuf)], probes: &Path, image: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path();
    for directory in [
        "bin",
        "dev",
        "etc",
        "lib64",
        "opt/keytrail",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "var/lib",
        "var/tmp",
        "home",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let busybox = busybox()?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let path = which(tool)
            .with_context(|| format!("the machine has no `{tool}`, which the scenarios call"))?;
        fs::copy(&path, root.join("usr/bin").join(tool))?;
        libraries.extend(needed(&path)?);
    }
    for (name, program) in programs {
        let copy = root.join("opt/keytrail").join(name);
        // Debug information would double the size.
        run_checked(
            Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(&copy)
                .arg(program),
        )?;
        libraries.extend(needed(program)?);
    }
    fs::copy(probes, root.join("opt/keytrail/keytrail-bench-probes"))?;
    for library in libraries {
        let place = root.join(library.strip_prefix("/").unwrap_or(&library));
        if let Some(above) = place.parent() {
            fs::create_dir_all(above)?;
        }
        fs::copy(&library, place)?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nlab:x:1000:1000:lab:/home/lab:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nlab:x:1000:\nnogroup:x:65534:\n",
    )?;
    fs::write(
        root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    symlink("/usr/bin/bash", root.join("bin/bash"))?;
    let init = root.join("init");
    fs::write(&init, init_script())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    if image.exists() {
        fs::remove_file(image)?;
    }
    run_checked(
        Command::new("mke2fs")
            .args([
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(root)
            .arg(image)
            .arg("512M"),
    )
    .context("cannot create the root file system; e2fsprogs is needed")
}

/// The machine's init program: sets it up, runs the job, reports the result.
fn init_script() -> String {
    format!(
        r#"#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
stty -F /dev/ttyS1 raw 2>/dev/null
echo "$1" | base64 -d > /run/job
bash /run/job
echo "{STATUS_MARK} $?"
# Draining the console: without it the last lines can be lost.
stty -F /dev/console -echo sane
stty -F /dev/ttyS1 sane
sync
echo b >/proc/sysrq-trigger
sleep 10
"#
    )
}

/// A static busybox: the system's, or Debian's package of it.
pub fn busybox() -> Result<PathBuf> {
    let place = tools().join("busybox");
    let binary = place.join("bin/busybox");
    if !binary.is_file() {
        Apt::new(&[&codename()?])?
            .unpack(&["busybox-static".to_owned()], &place)
            .context("a static busybox is needed")?;
    }
    Ok(binary)
}

fn which(tool: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| path.is_file())
}

/// The shared libraries of a program, including its loader.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    // A static program has none, which ldd reports as an error.
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

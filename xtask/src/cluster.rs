//! Runs the scenario on a real Kubernetes, which is built here from Debian's source package.

use crate::{
    build,
    commands::{self, cargo, run_checked},
    debian::{Apt, codename},
    setup, vm,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The programs to build.
const PROGRAMS: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];
/// Programs that its makefile calls, and those that can be fetched if missing.
const TOOLS: [&str; 4] = ["make", "dpkg-source", "rsync", "jq"];
const FETCHED: [&str; 2] = ["rsync", "jq"];

fn directory() -> PathBuf {
    setup::tools().join("kubernetes")
}

fn programs() -> PathBuf {
    directory().join("bin")
}

/// Whether Kubernetes is built.
pub fn is_built() -> bool {
    PROGRAMS
        .iter()
        .all(|program| programs().join(program).is_file())
}

/// Builds what is missing, and runs the scenario in separate namespaces.
pub fn run() -> Result<()> {
    if !lab::is_root() {
        bail!("a cluster needs root");
    }
    if !is_built() {
        build()?;
    }
    let node = directory().join("node");
    let etcd = node.join("usr/bin");
    let plugins = node.join("usr/lib/cni");
    if !etcd.join("etcd").is_file() || !plugins.join("bridge").is_file() {
        let packages = ["etcd-server", "containernetworking-plugins"].map(str::to_owned);
        Apt::new(&[&codename()?])?.unpack(&packages, &node)?;
    }
    build::run()?;
    let helm = setup::helm()?;
    let mut path = vec![etcd];
    if helm.is_absolute() {
        path.extend(["helm", "kubectl"].map(|name| directory().join(name)));
    }
    path.extend(setup::containerd()?);
    let own = std::env::var_os("PATH").unwrap_or_default();
    path.extend(std::env::split_paths(&own));
    let cargo = cargo();
    let mut inside = Command::new("unshare");
    commands::clear_cargo_environment(&mut inside);
    run_checked(
        inside
            .args(["--mount", "--net", "--propagation", "private", "--"])
            .arg(cargo.get_program())
            .args(["test", "--release", "--package", "lab", "--test", "cluster"])
            .args(["--", "--nocapture"])
            .current_dir(crate::root())
            .env("PATH", std::env::join_paths(path)?)
            .env("KEYTRAIL_KUBERNETES", programs())
            .env("KEYTRAIL_CNI", plugins)
            .env("KEYTRAIL_BUSYBOX", vm::busybox()?),
    )
}

fn build() -> Result<()> {
    let missing: Vec<_> = TOOLS
        .into_iter()
        .filter(|tool| Command::new(tool).arg("--version").output().is_err())
        .collect();
    let (fetched, missing): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|tool| FETCHED.contains(tool));
    if !missing.is_empty() {
        bail!(
            "building Kubernetes needs {}; install it",
            missing.join(", ")
        );
    }
    let more = directory().join("tools");
    if !fetched.is_empty() {
        eprintln!("fetching {}", fetched.join(" and "));
        Apt::new(&[&codename()?])?.unpack_with_needed(&fetched, &more)?;
    }
    eprintln!("building Kubernetes, about ten minutes");
    let sources = directory().join("sources");
    if sources.exists() {
        fs::remove_dir_all(&sources)?;
    }
    let version = Apt::with_sources(&[&codename()?])?.unpack_source("kubernetes", &sources)?;
    renew_reflection(&sources)?;
    let mut path = Vec::new();
    path.extend(setup::go()?);
    path.push(more.join("usr/bin"));
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let own = std::env::var_os("PATH").unwrap_or_default();
    path.extend(std::env::split_paths(&own));
    let path = std::env::join_paths(path)?;
    let home = tempfile::tempdir()?;
    // The makefile expects a GOPATH layout.
    let place = sources.join(".go/src/k8s.io");
    fs::create_dir_all(&place)?;
    std::os::unix::fs::symlink(&sources, place.join("kubernetes"))?;
    for program in PROGRAMS {
        run_checked(
            Command::new("make")
                .arg(format!("WHAT=cmd/{program}"))
                .current_dir(&sources)
                .env("PATH", &path)
                .env("LD_LIBRARY_PATH", more.join(&libraries))
                .env("HOME", home.path())
                .env("GOPATH", sources.join(".go"))
                .env("GOCACHE", sources.join(".cache"))
                .env("GOPROXY", "off")
                .env("CGO_ENABLED", "0")
                .env("KUBE_BUILD_PLATFORMS", "linux/amd64")
                .env("KUBE_GIT_VERSION", format!("v{version}")),
        )?;
    }
    let built = sources.join("_output/local/bin/linux/amd64");
    fs::create_dir_all(programs())?;
    for program in PROGRAMS {
        fs::copy(built.join(program), programs().join(program))
            .with_context(|| format!("make did not build {program}"))?;
    }
    discard(&sources)
}

/// The reflect2 in Kubernetes 1.20 reads maps as Go before 1.18 did: with a later Go, the API
/// server crashes at the first custom resource. Debian has the fixed version.
fn renew_reflection(sources: &Path) -> Result<()> {
    const PACKAGE: &str = "golang-github-modern-go-reflect2-dev";
    let work = tempfile::tempdir()?;
    Apt::new(&[&codename()?])?.unpack(&[PACKAGE.to_owned()], work.path())?;
    let name = "github.com/modern-go/reflect2";
    let carried = sources.join("vendor").join(name);
    fs::remove_dir_all(&carried)?;
    run_checked(
        Command::new("cp")
            .arg("-r")
            .arg(work.path().join("usr/share/gocode/src").join(name))
            .arg(carried),
    )
}

/// Several gigabytes that are not needed again.
fn discard(sources: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(sources)?)
}

//! Checks what is shipped beside the agent: the chart and the unit. An invalid manifest fails here
//! rather than on a cluster.

use crate::{build, commands::run_checked, root, setup, skips::SkipLog};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path, process::Command};

/// Versions of the Kubernetes API against which the chart is checked.
const VERSIONS: [&str; 3] = ["1.28", "1.32", "1.36"];

/// Values with which every part of the chart is rendered at least once, and invalid ones.
const RENDERED: [&[&str]; 3] = [
    &[],
    &[
        "config.mode=learn",
        "stateDir=/srv/keytrail",
        "metrics.port=9100",
        "config.access=open",
        "networkPolicy.enabled=false",
        "serviceAccount.create=false",
        "serviceAccount.name=other",
        "rbac.create=false",
    ],
    &[
        "imagePullSecrets[0].name=pull",
        "nodeSelector.pool=a",
        "podLabels.team=security",
        "podAnnotations.note=x",
        "extraEnv[0].name=KEYTRAIL_LOG",
        "extraEnv[0].value=debug",
        "serviceAccount.annotations.note=x",
        "image.tag=1",
        "tokenSecret=keytrail-token",
        "metrics.readers[0].name=prometheus",
        "metrics.readers[0].namespace=monitoring",
        "networkPolicy.from[0].namespaceSelector.matchLabels.team=monitoring",
        "securityContext.extraCapabilities={SYS_RESOURCE}",
    ],
];
const WRONG: [&str; 7] = [
    "config.access=everyone",
    "metrics.readers[0].name=prometheus",
    "securityContext.extraCapabilities={SYS_ADMIN}",
    "metrics.port=many",
    "stateDir=relative/path",
    "config.mode=loud",
    "securityContext.privileged=true",
];

/// Checks the chart and the unit.
pub fn check() -> Result<()> {
    let chart = root().join("deploy/helm/keytrail");
    let helm = setup::helm()?;
    let helm = || Command::new(&helm);
    run_checked(helm().args(["lint", "--strict", "--quiet"]).arg(&chart))?;
    let validate = setup::python()?.join("kubernetes-validate");
    let work = tempfile::tempdir()?;
    let rendered = work.path().join("rendered.yaml");
    for version in VERSIONS {
        for values in RENDERED {
            let output = helm()
                .args(["template", "test", "--namespace", "keytrail"])
                .args(["--kube-version", version])
                .args(values.iter().flat_map(|value| ["--set", value]))
                .arg(&chart)
                .output()?;
            if !output.status.success() {
                bail!(
                    "rendering the chart with {values:?} failed: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            fs::write(&rendered, output.stdout)?;
            run_checked(
                Command::new(&validate)
                    .args(["--strict", "--quiet", "-k", version])
                    .arg(&rendered),
            )
            .with_context(|| format!("rendered for {version} with {values:?}"))?;
        }
    }
    for value in WRONG {
        let status = helm()
            .args(["template", "test", "--set", value])
            .arg(&chart)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()?;
        if status.success() {
            bail!("the chart accepts the invalid value `{value}`");
        }
    }
    binary()?;
    println!(
        "chart: {} renderings are valid, {} invalid values are rejected",
        VERSIONS.len() * RENDERED.len(),
        WRONG.len()
    );
    unit(work.path())
}

/// The shipped binary: without symbols, and within its size limit.
fn binary() -> Result<()> {
    const LARGEST: u64 = 36 << 20;
    let agent = build::run()?;
    let size = fs::metadata(&agent)?.len();
    if size > LARGEST {
        bail!(
            "{} has {} MiB: is it stripped?",
            agent.display(),
            size >> 20
        );
    }
    println!("agent: {:.1} MiB", size as f64 / f64::from(1 << 20));
    Ok(())
}

/// The unit, with the agent that was built in place of the installed one.
fn unit(work: &Path) -> Result<()> {
    const NAME: &str = "keytrail.service";
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return SkipLog::of_run().skip("the systemd unit", "no systemd-analyze on the PATH");
    }
    let text = fs::read_to_string(root().join("deploy/systemd").join(NAME))?;
    let agent = build::run()?.display().to_string();
    let copy = work.join(NAME);
    fs::write(&copy, text.replace("/usr/bin/keytrail", &agent))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&copy)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    // Problems of a unit are printed, although the exit status is 0.
    if !output.status.success() || text.contains(NAME) {
        bail!("{NAME}: {text}");
    }
    println!("unit: {NAME} is valid");
    Ok(())
}

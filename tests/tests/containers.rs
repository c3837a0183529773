//! Workloads of a real container runtime: each has its own name, and none has another's.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::Agent,
    containers::{BindMount, Containerd},
    web::WebServer,
};
use serde_json::Value;

/// Path of the secret in containers.
const SECRET: &str = "/run/secrets/lab";

fn uses(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["uses"].as_array().into_iter().flatten()
}

#[test]
fn a_pod_and_one_that_steals_from_it() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let Some(containerd) = Containerd::start()? else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let secrets = directory.path().join("secrets");
    std::fs::create_dir(&secrets)?;
    std::fs::write(secrets.join("token"), "FAKE-token-of-payments-00000001")?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        format!(
            "credentials:
  - name: payments
    match: {{ file: {SECRET}/token }}
    readers: [ {{ namespace: payments, workload: api-0, container: api }} ]
"
        ),
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let server = WebServer::start_plain("127.0.0.1")?;
    let script = format!(
        "wget -q -O /dev/null --header \"Authorization: Bearer $(cat {SECRET}/token)\" http://{}/",
        server.address
    );
    let bind = BindMount {
        host: &secrets,
        container: SECRET,
    };
    let own = containerd.pod("payments", "api-0")?;
    let other = containerd.pod("default", "thief")?;
    // One container after another: two of one pod, and one of another.
    for (pod, name) in [(&own, "api"), (&own, "sidecar"), (&other, "shell")] {
        let id = containerd.run(pod, name, &script, &[bind])?;
        containerd.wait(&id).with_context(|| name.to_owned())?;
    }
    let answer = agent.await_json(&["query", "where", "payments"], |answer| {
        answer["hops"].as_array().is_some_and(|hops| {
            hops.iter()
                .filter(|hop| hop["evidence"] == "presented")
                .filter(|hop| hop["workload"]["image"] == "lab.example/tools:1")
                .count()
                == 3
        })
    })?;
    let mut names: Vec<(String, String)> = answer["hops"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|hop| {
            let workload = &hop["workload"];
            let text = |name: &str| workload[name].as_str().unwrap_or_default().to_owned();
            (
                format!("{}/{}", text("namespace"), text("pod")),
                text("container"),
            )
        })
        .collect();
    names.sort();
    names.dedup();
    let expected = [
        ("default/thief", "shell"),
        ("payments/api-0", "api"),
        ("payments/api-0", "sidecar"),
    ];
    ensure!(
        names
            .iter()
            .map(|(pod, container)| (pod.as_str(), container.as_str()))
            .eq(expected),
        "{names:?}"
    );
    // A reader that is not permitted is found by name, one that is permitted is not.
    for container in ["shell", "sidecar"] {
        let finding = agent.await_finding(|finding| {
            finding["rule"] == "unexpected-reader" && finding["workload"]["container"] == container
        })?;
        assert_eq!(finding["severity"], "high");
        assert_eq!(finding["workload"]["kind"], "pod");
    }
    let findings = agent.findings()?;
    ensure!(
        !findings.iter().any(|finding| {
            finding["rule"] == "unexpected-reader" && finding["workload"]["container"] == "api"
        }),
        "{findings:#?}"
    );
    containerd.remove(own)?;
    containerd.remove(other)
}

/// Pods that come and go: each secret is attributed to its own pod, and none to another.
#[test]
fn names_in_a_churn_of_pods() -> Result<()> {
    let Some(containerd) = Containerd::start()? else {
        return Ok(());
    };
    let pods: usize = std::env::var("KEYTRAIL_CHURN")
        .ok()
        .map_or(Ok(24), |count| count.parse())?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        format!("credentials: [ {{ name: lab, match: {{ file: '{SECRET}/*' }} }} ]\n"),
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let secret = |number: usize| format!("FAKE-secret-of-pod-{number:08}");
    for number in 0..pods {
        let secrets = directory.path().join(format!("secrets-{number}"));
        std::fs::create_dir(&secrets)?;
        std::fs::write(secrets.join("token"), secret(number))?;
        let pod = containerd.pod("churn", &format!("pod-{number}"))?;
        let bind = BindMount {
            host: &secrets,
            container: SECRET,
        };
        let id = containerd.run(
            &pod,
            &format!("container-{number}"),
            &format!("exec cat {SECRET}/token"),
            &[bind],
        )?;
        // Every other one exits too soon for a lookup to take long.
        if number % 2 == 0 {
            containerd.wait(&id)?;
        }
        containerd.remove(pod)?;
    }
    let (mut named, mut unnamed) = (0, 0);
    for number in 0..pods {
        let id = agent.id_of(&secret(number))?;
        let Some(answer) = agent.json(&["query", "who", &id])? else {
            // It was stopped before it had read.
            ensure!(number % 2 == 1, "pod {number} was not seen");
            continue;
        };
        for used in uses(&answer) {
            let workload = &used["workload"];
            match workload["namespace"].as_str() {
                Some(namespace) => {
                    assert_eq!(namespace, "churn");
                    assert_eq!(workload["pod"], format!("pod-{number}").as_str());
                    assert_eq!(
                        workload["container"],
                        format!("container-{number}").as_str()
                    );
                    named += 1;
                }
                None => {
                    assert_eq!(workload["kind"], "pod", "{workload}");
                    unnamed += 1;
                }
            }
        }
    }
    println!("of {pods} pods {named} uses have their name, {unnamed} have none, and 0 another's");
    ensure!(named > 0, "nobody was named");
    Ok(())
}

/// Evasions from inside a container: files mounted into it, and files of its own overlay.
#[test]
fn evasions_from_inside() -> Result<()> {
    let Some(containerd) = Containerd::start()? else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let secrets = directory.path().join("secrets");
    std::fs::create_dir(&secrets)?;
    let mounted = "FAKE-token-that-is-mounted-0001";
    std::fs::write(secrets.join("token"), mounted)?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        format!("credentials: [ {{ name: lab, match: {{ file: '{SECRET}/*' }} }} ]\n"),
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let pod = containerd.pod("evasions", "evader")?;
    let bind = BindMount {
        host: &secrets,
        container: SECRET,
    };
    let of_mount = [
        ("its-own-name", format!("cat {SECRET}/token")),
        (
            "a-symbolic-link",
            format!("ln -s {SECRET}/token /x; cat /x"),
        ),
        (
            "a-relative-path",
            format!("cd {SECRET}/..; cat lab/../lab/token"),
        ),
        ("its-own-root", format!("cat /proc/self/root{SECRET}/token")),
        (
            "a-descriptor",
            format!("exec 3<{SECRET}/token; cat /proc/self/fd/3"),
        ),
    ];
    let of_overlay = [
        ("written-and-read", "cat /root/.netrc"),
        ("a-hard-link", "ln /root/.netrc /innocent; cat /innocent"),
        ("a-rename", "mv /root/.netrc /innocent; cat /innocent"),
    ];
    let is_by = |used: &Value, name: &str| {
        used["source"] == "file"
            && used["workload"]["container"] == name
            && used["workload"]["pod"] == "evader"
            && used["workload"]["namespace"] == "evasions"
    };
    for (name, script) in &of_mount {
        let id = containerd.run(&pod, name, script, &[bind])?;
        containerd.wait(&id).with_context(|| (*name).to_owned())?;
    }
    let known = agent.id_of(mounted)?;
    for (name, _) in &of_mount {
        agent
            .await_json(&["query", "who", &known], |answer| {
                uses(answer).any(|used| is_by(used, name))
            })
            .with_context(|| format!("by {name}"))?;
    }
    for (name, script) in of_overlay {
        let secret = format!("FAKE-password-{name}-00001");
        // What was written is first read under its own name, and under another one when the agent
        // has learned it.
        let flags = directory.path().join(format!("flags-{name}"));
        std::fs::create_dir(&flags)?;
        let flag = BindMount {
            host: &flags,
            container: "/flags",
        };
        let script = format!(
            "mkdir -p /root; echo 'machine a.example login b password {secret}' > /root/.netrc; cat /root/.netrc >/dev/null; until [ -e /flags/go ]; do usleep 10000; done; {script} >/dev/null; until [ -e /flags/end ]; do usleep 10000; done"
        );
        let id = containerd.run(&pod, name, &script, &[flag])?;
        let known = agent.id_of(&secret)?;
        let count = |wanted: u64| {
            agent
                .await_json(&["query", "who", &known], |answer| {
                    uses(answer)
                        .filter(|used| is_by(used, name))
                        .filter_map(|used| used["count"].as_u64())
                        .sum::<u64>()
                        >= wanted
                })
                .with_context(|| format!("in an overlay, by {name}, {wanted} uses"))
        };
        count(1)?;
        std::fs::write(flags.join("go"), "")?;
        // The overlay goes away with its container, and its files can no longer be read.
        count(2)?;
        std::fs::write(flags.join("end"), "")?;
        containerd.wait(&id).with_context(|| name.to_owned())?;
    }
    containerd.remove(pod)
}

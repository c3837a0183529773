use super::*;
use crate::catalog::glob::normalise;
use monitor_common::{
    environ::word_key,
    filter::{
        FilterKind, NEEDS_PAIR, URL_WORD, hash_of_name, key, pair_key, prefix_word, value_key,
    },
};
use proptest::prelude::*;

fn catalog() -> Catalog {
    Catalog::new("", &[], &[]).expect("the embedded catalog is right")
}

fn class_of(path: &str) -> Option<String> {
    catalog()
        .file(&normalise(path))
        .map(|class| class.class.clone())
}

#[test]
fn files_of_every_kind() {
    for (path, class) in [
        (
            "/var/run/secrets/kubernetes.io/serviceaccount/..2024_11_24_01/token",
            "k8s-service-account-token",
        ),
        (
            "/run/secrets/eks.amazonaws.com/serviceaccount/token",
            "eks-web-identity-token",
        ),
        (
            "/run/secrets/azure/wi/token/azure-identity-token",
            "azure-federated-token",
        ),
        ("/home/u/.aws/credentials", "aws-access-key"),
        ("/root/.aws/sso/cache/abc.json", "aws-sso-token"),
        ("/root/.docker/config.json", "registry-credential"),
        ("/root/.kube/config", "kubeconfig"),
        ("/root/.netrc", "netrc-password"),
        ("/root/.ssh/id_ed25519", "ssh-key"),
        ("/etc/ssh/ssh_host_rsa_key", "ssh-host-key"),
        ("/etc/shadow", "password-hashes"),
        ("/srv/app/.env", "dotenv-secret"),
        ("/srv/app/.env.production", "dotenv-secret"),
        ("/srv/tls/server.key", "private-key"),
        ("/srv/tls/server.p12", "keystore"),
        ("/run/secrets/payments/stripe", "mounted-secret"),
        ("/run/credentials/nginx.service/tls", "systemd-credential"),
        (
            "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~secret/db/..2024_x/password",
            "volume-secret",
        ),
        ("/vault/secrets/db", "vault-agent-secret"),
    ] {
        assert_eq!(class_of(path).as_deref(), Some(class), "{path}");
    }
}

#[test]
fn never_sensitive() {
    for path in [
        "/etc/passwd",
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/ssl/certs/DigiCert.pem",
        "/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        "/run/secrets/kubernetes.io/serviceaccount/..2024/namespace",
        "/root/.ssh/known_hosts",
        "/root/.ssh/config",
        "/root/.ssh/id_rsa.pub",
        "/etc/ssh/ssh_host_rsa_key.pub",
        "/srv/app/.env.example",
        "/srv/app/config.json",
        "/srv/app/credentials",
        "/srv/node_modules/x/test.key",
        "/proc/1/environ",
    ] {
        assert_eq!(class_of(path), None, "{path}");
    }
    let catalog = catalog();
    for name in [
        "PWD",
        "HOME",
        "PATH",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "SSH_AUTH_SOCK",
        "TOKEN_PATH",
        "LANG",
    ] {
        assert!(catalog.variable(name).is_none(), "{name}");
    }
}

#[test]
fn variables_and_forms() {
    let catalog = catalog();
    for (name, class) in [
        ("AWS_SECRET_ACCESS_KEY", "aws-access-key"),
        ("GITHUB_TOKEN", "github-token"),
        ("SLACK_BOT_TOKEN", "slack-token"),
        ("STRIPE_SECRET_KEY", "stripe-key"),
        ("MY_APP_API_KEY", "generic-secret"),
        ("DB_PASSWORD", "generic-secret"),
        ("DATABASE_URL", "database-password"),
    ] {
        assert_eq!(
            catalog.variable(name).map(|c| c.class.as_str()),
            Some(class),
            "{name}"
        );
    }
    assert_eq!(
        catalog
            .class_of_secret(b"ghs_fakefakefakefakefake")
            .map(|c| c.class.as_str()),
        Some("github-app-token")
    );
    assert!(catalog.class_of_secret(b"plain text of no form").is_none());
    assert_eq!(
        catalog.at_home("aws-access-key", "s3.eu-central-1.amazonaws.com"),
        Some(true)
    );
    assert_eq!(
        catalog.at_home("aws-access-key", "paste.example"),
        Some(false)
    );
    assert_eq!(catalog.at_home("private-key", "paste.example"), None);
}

#[test]
fn every_file_class_reaches_the_kernel() {
    let catalog = catalog();
    let rules = catalog.filter_rules([]).0;
    let has = |kind, text: &str| rules.contains_key(&key(kind, hash_of_name(text.as_bytes())));
    assert!(has(FilterKind::Name, "credentials") && has(FilterKind::Name, ".netrc"));
    assert_eq!(
        rules[&key(FilterKind::Name, hash_of_name(b"credentials"))],
        NEEDS_PAIR
    );
    assert!(rules.contains_key(&pair_key(
        hash_of_name(b".aws"),
        hash_of_name(b"credentials")
    )));
    assert!(has(FilterKind::Parent, "secrets") && has(FilterKind::Parent, "credentials"));
    assert!(rules.contains_key(&key(FilterKind::Suffix, prefix_word(b".p12"))));
    assert!(rules.contains_key(&key(FilterKind::Prefix, prefix_word(b".env"))));
    assert!(
        !rules.contains_key(&word_key("pwd").expect("a word")),
        "PWD is everywhere"
    );
    assert_eq!(rules[&word_key("url").expect("a word")], URL_WORD);
    assert!(rules.contains_key(&value_key(prefix_word(b"ghp_"), 4)));
}

proptest! {
    #[test]
    fn normalising_twice_is_once(path in "(/[a-z.]{1,8}){1,8}") {
        let once = normalise(&path);
        prop_assert_eq!(normalise(&once), once);
    }
}

#[test]
fn jobs_of_ci_systems() {
    let catalog = Catalog::new("", &[], &[]).expect("valid");
    let job = |text: &str| {
        let variables = text.split(' ').filter_map(|entry| entry.split_once('='));
        catalog.ci_job(variables).map(|job| job.label())
    };
    for (environment, label) in [
        (
            "GITHUB_ACTIONS=true GITHUB_REPOSITORY=org/x GITHUB_RUN_ID=7 GITHUB_JOB=build GITHUB_WORKFLOW=ci",
            Some("github org/x, ci, run 7, build"),
        ),
        // Gitea's runner also says that it is GitHub's.
        (
            "GITHUB_ACTIONS=true GITEA_ACTIONS=true GITHUB_REPOSITORY=org/x",
            Some("gitea org/x"),
        ),
        (
            "GITLAB_CI=true CI_PROJECT_PATH=group/x CI_PIPELINE_ID=9 CI_JOB_NAME=deploy",
            Some("gitlab group/x, run 9, deploy"),
        ),
        (
            "JENKINS_URL=https://ci.example GIT_URL=https://u:FakeCi-01@git.example/x.git JOB_NAME=x BUILD_NUMBER=3",
            Some("jenkins git.example/x.git, x, run 3"),
        ),
        ("GITHUB_REPOSITORY=org/x", None),
        ("CI=true", None),
    ] {
        assert_eq!(job(environment).as_deref(), label, "{environment}");
    }
    assert!(catalog.is_ci_runner("Runner.Worker") && !catalog.is_ci_runner("bash"));
    assert!(catalog.is_ai_agent("claude") && !catalog.is_ai_agent("node"));
}

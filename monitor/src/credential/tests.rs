use super::{
    pointers::targets,
    variables::{parse_variable, variable_place},
    *,
};
use crate::sensor::observation::{ObservedSecret, ObservedVariable};
use monitor_core::catalog::glob::volume_of;
use std::{os::unix::fs::MetadataExt as _, path::Path};

const KEY: FingerprintKey = FingerprintKey { k0: 3, k1: 4 };

fn credentials() -> Credentials {
    let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
    Credentials::new(catalog, KEY).expect("a buffer")
}

fn variable(name: &str, secret: &str) -> ObservedVariable {
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    parse_variable(&catalog, KEY, format!("{name}={secret}").as_bytes()).expect("an entry")
}

#[test]
fn a_presented_credential_keeps_the_places_where_it_was_picked_up() {
    let mut credentials = credentials();
    let token = variable("GITHUB_TOKEN", "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001");
    let observed = ObservedSecret {
        fingerprint: token.fingerprint,
        inner: None,
        secret_len: 40,
        header: 0,
        prefix: None,
        dots: 0,
    };
    credentials.in_environment(&[token]);
    let (presented, place) = credentials.presented(observed);
    assert_eq!(presented.sources, [place, variable_place("GITHUB_TOKEN")]);
    // Another agent that restores what this one knew.
    let mut later = super::tests::credentials();
    let named = Credential {
        name: Some("before".to_owned()),
        ..presented.clone()
    };
    later.remember(vec![named]);
    let (again, _) = later.presented(observed);
    assert_eq!(
        again, presented,
        "names come from the expectations of today"
    );
}

fn own_view() -> MountView<'static> {
    MountView {
        pid: std::process::id(),
        peer: None,
        container: "",
    }
}

fn file_id(path: &Path) -> FileId {
    FileId {
        device: 1,
        inode: std::fs::metadata(path).expect("there").ino(),
        generation: 0,
    }
}

fn opened(path: &Path) -> OpenedFile<'_> {
    OpenedFile {
        path,
        source: None,
        file: file_id(path),
    }
}

#[test]
fn volumes_of_pods_under_any_path() {
    for (path, uid) in [
        (
            "/var/lib/kubelet/pods/a-1/volumes/kubernetes.io~secret/db/password",
            Some("a-1"),
        ),
        (
            "/host/kubelet/pods/a-1/volumes/kubernetes.io~projected/t/..data/token",
            Some("a-1"),
        ),
        (
            "/var/snap/microk8s/common/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/x/mount/y",
            Some("u"),
        ),
        ("/srv/volumes/kubernetes.io~secret/x", None),
        ("/var/lib/kubelet/pods/a-1/etc-hosts", None),
        ("/volumes/kubernetes.io~x", None),
    ] {
        assert_eq!(volume_of(path).as_deref(), uid, "{path}");
    }
}

#[test]
fn one_key_pair_has_one_id_in_file_and_environment() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(".aws/credentials");
    std::fs::create_dir(directory.path().join(".aws")).expect("made");
    std::fs::write(
        &path,
        "[default]\naws_access_key_id=AKIAFAKEFAKEFAKEFAKE\naws_secret_access_key=fakesecretfakesecret\n",
    )
    .expect("written");
    let mut credentials = credentials();
    let in_file = credentials
        .in_file(opened(&path), own_view())
        .expect("a credential");
    let id = in_file.credentials[0].id.clone();
    let picked = credentials.in_environment(&[
        variable("AWS_ACCESS_KEY_ID", "AKIAFAKEFAKEFAKEFAKE"),
        variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret"),
    ]);
    assert_eq!(picked.len(), 1);
    assert_eq!(picked[0].0.id, id);
    // The secret half alone is the same credential.
    let alone =
        credentials.in_environment(&[variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret")]);
    assert_eq!(alone[0].0.id, id);
}

#[test]
fn a_new_version_of_a_file_is_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(".netrc");
    let mut credentials = credentials();
    let mut ids = Vec::new();
    for password in ["fake-one", "fake-other"] {
        std::fs::write(&path, format!("machine a login b password {password}\n")).expect("written");
        let found = credentials
            .in_file(opened(&path), own_view())
            .expect("found");
        ids.push(found.credentials[0].id.clone());
    }
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn an_unreadable_file_is_known_by_its_place() {
    let mut credentials = credentials();
    let path = Path::new("/nonexistent/.netrc");
    let file = FileId {
        device: 1,
        inode: 1,
        generation: 0,
    };
    let found = credentials
        .in_file(
            OpenedFile {
                path,
                source: None,
                file,
            },
            own_view(),
        )
        .expect("by place");
    assert!(found.credentials[0].id.0.starts_with("loc-"));
    assert_eq!(credentials.unreadable, 1);
}

#[test]
fn paths_in_variables() {
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let found = |entry: &str| -> Vec<(String, String)> {
        targets(&catalog, entry.as_bytes())
            .into_iter()
            .map(|(path, class)| (path.display().to_string(), class))
            .collect()
    };
    let one = |path: &str, class: &str| (path.to_owned(), class.to_owned());
    assert_eq!(
        found("KUBECONFIG=/a/one:/b/other"),
        [one("/a/one", "kubeconfig"), one("/b/other", "kubeconfig")]
    );
    assert_eq!(
        found("DOCKER_CONFIG=/a"),
        [one("/a/config.json", "registry-credential")]
    );
    assert_eq!(
        found("SPIFFE_ENDPOINT_SOCKET=unix:///run/x.sock"),
        [one("/run/x.sock", "spiffe-svid")]
    );
    for nothing in [
        "KUBECONFIG=",
        "KUBECONFIG",
        "PATH=/bin",
        "",
        "=x",
        "GOOGLE_APPLICATION_CREDENTIALS={\"private_key\"}",
        "KUBECONFIG=users\n- token",
    ] {
        assert_eq!(found(nothing), [], "{nothing}");
    }
}

#[test]
fn a_variable_cannot_make_an_excluded_file_a_credential() {
    let mut credentials = credentials();
    let mut child = std::process::Command::new("cat")
        .env(
            "KUBECONFIG",
            "/etc/passwd:/nonexistent/kt:/proc/self/root/etc/passwd",
        )
        .env("GOOGLE_APPLICATION_CREDENTIALS", "keytrail-test-sa.json")
        .current_dir("/tmp")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    // Once it responds, it has executed the program.
    use std::io::{Read as _, Write as _};
    child
        .stdin
        .as_mut()
        .expect("a pipe")
        .write_all(b"x")
        .expect("written");
    let mut answer = [0];
    child
        .stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut answer)
        .expect("read");
    std::fs::write("/tmp/keytrail-test-sa.json", "{}").expect("written");
    let (files, is_new) = credentials.follow(child.id(), "", &[]).expect("it runs");
    std::fs::remove_file("/tmp/keytrail-test-sa.json").expect("removed");
    drop(child.stdin.take());
    child.wait().expect("it ended");
    assert!(is_new && files.len() == 1, "{files:?}");
    assert!(credentials.is_place(Path::new("/tmp/keytrail-test-sa.json")));
    for none in ["/nonexistent/kt", "/etc/passwd"] {
        assert!(!credentials.is_place(Path::new(none)), "{none}");
    }
    assert_eq!(credentials.pointed.len(), 1, "{:?}", credentials.pointed);
}

#[test]
fn a_pointer_counts_only_with_the_form_of_a_credential() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut credentials = credentials();
    let mut read = |name: &str, class: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let place = (String::new(), path.display().to_string());
        credentials.pointed.insert(place, class.to_owned());
        let found = credentials.in_file(opened(&path), own_view());
        found.map_or(0, |found| found.credentials.len())
    };
    let jwt = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4IiwiZXhwIjoxNzAwMDAzNjAwfQ.fakesignature";
    let config = b"users: [ { name: a, user: { token: FAKE-pointed-1 } } ]";
    assert_eq!(read("a", "eks-web-identity-token", jwt), 1);
    assert_eq!(read("b", "kubeconfig", config), 1);
    let hosts = b"127.0.0.1 localhost\n::1 localhost\n";
    assert_eq!(read("c", "eks-web-identity-token", hosts), 0);
    assert_eq!(read("d", "kubeconfig", hosts), 0);
    assert_eq!(read("e", "kubeconfig", b"\x7fELF\x02\xff\xfe\x00"), 0);
}

#[test]
fn settings_are_no_secrets() {
    let mut credentials = credentials();
    for (name, value) in [
        ("PWD", "/root/some/where"),
        ("NEXT_TOKEN", "short"),
        ("HOMEPAGE_URL", "https://example.com/path"),
        ("SOME_JSON", "eyJmYWtlIjoieCJ9fakefakefake"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-fake/agent.1"),
    ] {
        assert_eq!(
            credentials.in_environment(&[variable(name, value)]),
            vec![],
            "{name}"
        );
    }
    let url =
        credentials.in_environment(&[variable("DATABASE_URL", "postgres://u:fakepassword@db/x")]);
    let plain = credentials.in_environment(&[variable("PGPASSWORD", "fakepassword")]);
    assert_eq!(url[0].0.id, plain[0].0.id);
}

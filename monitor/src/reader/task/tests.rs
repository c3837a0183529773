use super::{environment::targets, *};
use crate::observed::file::FileId;
use monitor_common::fingerprint::fingerprint;

const KEY: FingerprintKey = FingerprintKey { k0: 3, k1: 4 };

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
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("sa.json"), "{}").expect("written");
    let mut child = std::process::Command::new("cat")
        .env(
            "KUBECONFIG",
            "/etc/passwd:/nonexistent/kt:/proc/self/root/etc/passwd",
        )
        .env("GOOGLE_APPLICATION_CREDENTIALS", "sa.json")
        .env("GITHUB_TOKEN", "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001")
        .current_dir(&directory)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    // Once it responds, it has executed the program.
    use std::io::{Read as _, Write as _};
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"x").expect("written");
    let output = child.stdout.as_mut().expect("a pipe");
    output.read_exact(&mut [0]).expect("read");
    let process = live_subject(child.id()).expect("it runs");
    let mut tasks = ReaderTasks::for_tests(KEY);
    let answer = tasks.result(&ReadRequest::Environment { process });
    let recycled = Subject {
        start: process.start + 1,
        ..process
    };
    let other = tasks.result(&ReadRequest::Environment { process: recycled });
    drop(input);
    child.wait().expect("it ended");
    let Ok(ReadAnswer::Environment(found)) = answer else {
        panic!("{answer:?}");
    };
    let paths: Vec<&str> = found
        .places
        .iter()
        .map(|place| place.path.as_str())
        .collect();
    let expected = directory.path().join("sa.json");
    assert_eq!(paths, [expected.to_str().expect("text")]);
    let token = found
        .variables
        .iter()
        .find(|variable| variable.name == "GITHUB_TOKEN")
        .expect("a variable");
    let secret = b"ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001";
    assert_eq!(token.fingerprint, fingerprint(KEY, secret));
    assert!(other.is_err(), "its pid belongs to another process");
}

#[test]
fn a_known_version_is_not_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory
        .path()
        .canonicalize()
        .expect("a path")
        .join(".netrc");
    std::fs::write(&path, "machine a login b password fake-one").expect("written");
    let catalog = Catalog::compile(CatalogSources::default()).expect("embedded");
    let class = catalog.file("/home/a/.netrc").expect("a class");
    let mut request = FileRequest {
        class: class.class.clone(),
        format: class.format,
        ..FileRequest::for_tests(&path, FileId::for_tests(&path))
    };
    let mut tasks = ReaderTasks::for_tests(KEY);
    let mut read = |request: &FileRequest| match tasks.result(&ReadRequest::File(request.clone())) {
        Ok(ReadAnswer::File(answer)) => answer.contents.expect("read"),
        other => panic!("{other:?}"),
    };
    let first = read(&request);
    assert_eq!(first.found.as_ref().map(Vec::len), Some(1));
    request.known = Some(first.version);
    assert_eq!(read(&request).found, None);
    std::fs::write(&path, "machine a login b password fake-other").expect("written");
    assert!(read(&request).found.is_some());
}

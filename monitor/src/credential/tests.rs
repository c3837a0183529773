use super::{files::FileCredentials, variables::variable_place, *};
use crate::{
    observed::variable::ObservedVariable,
    reader::{
        ReadFailure, ReaderTasks,
        protocol::{PointedPlace, ReadAnswer, ReadRequest},
    },
    sensor::observation::ObservedSecret,
};
use monitor_common::environ::value_marks;
use monitor_core::{catalog::glob::volume_of, fair_cache::Tenant};
use std::path::Path;

const KEY: FingerprintKey = FingerprintKey { k0: 3, k1: 4 };

fn credentials() -> Credentials {
    let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
    Credentials::new(catalog, KEY)
}

/// A variable as a probe reports it.
fn variable(name: &str, value: &str) -> ObservedVariable {
    let catalog = Catalog::new("", &[], &[]).expect("embedded");
    let url = catalog
        .variable(name)
        .is_some_and(|class| !class.url_environment.is_empty());
    let password = value_marks(value.as_bytes()).password().filter(|_| url);
    let secret = password.map_or(value, |(start, len)| {
        &value[start as usize..(start + len) as usize]
    });
    ObservedVariable {
        name: name.to_owned(),
        fingerprint: fingerprint(KEY, secret.as_bytes()),
        secret_len: secret.len() as u32,
        prefix: catalog.prefix_index(secret.as_bytes()),
        dots: value.matches('.').count() as u32,
        url: password.is_some(),
    }
}

/// What the reader finds in a file that this process opened.
fn read(credentials: &mut Credentials, opened: OpenedFile<'_>) -> Option<FileCredentials> {
    let place = credentials.credential_file(opened, "")?;
    let view = MountView {
        pid: std::process::id(),
        peer: None,
        container: "",
    };
    let request = credentials.file_request(&place, opened, view, false);
    let answer = ReaderTasks::for_tests(KEY).result(&ReadRequest::File(request));
    let contents = answer.and_then(|answer| match answer {
        ReadAnswer::File(answer) => answer.contents.map_err(|_| ReadFailure::Unreadable),
        other => panic!("{other:?}"),
    });
    credentials.in_file(&Tenant::default(), &place, contents)
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
        count: 1,
    };
    credentials.in_environment(&Tenant::default(), &[token]);
    let (presented, place) = credentials.presented(&Tenant::default(), observed);
    assert_eq!(presented.sources, [place, variable_place("GITHUB_TOKEN")]);
    // Another agent that restores what this one knew.
    let mut later = super::tests::credentials();
    let named = Credential {
        name: Some("before".to_owned()),
        ..(*presented).clone()
    };
    later.remember(vec![(named, jiff::Timestamp::now())]);
    let (again, _) = later.presented(&Tenant::default(), observed);
    assert_eq!(
        again, presented,
        "names come from the expectations of today"
    );
}

fn opened(path: &Path) -> OpenedFile<'_> {
    OpenedFile {
        path,
        source: None,
        file: FileId::for_tests(path),
        magic: 0,
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
    let in_file = read(&mut credentials, opened(&path)).expect("a credential");
    let id = in_file.credentials[0].id.clone();
    let picked = credentials.in_environment(
        &Tenant::default(),
        &[
            variable("AWS_ACCESS_KEY_ID", "AKIAFAKEFAKEFAKEFAKE"),
            variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret"),
        ],
    );
    assert_eq!(picked.len(), 1);
    assert_eq!(picked[0].0.id, id);
    // The secret half alone is the same credential.
    let alone = credentials.in_environment(
        &Tenant::default(),
        &[variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret")],
    );
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
        let found = read(&mut credentials, opened(&path)).expect("found");
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
    let opened = OpenedFile {
        path,
        source: None,
        file,
        magic: 0,
    };
    let found = read(&mut credentials, opened).expect("by place");
    assert!(found.credentials[0].id.0.starts_with("loc-"));
    assert_eq!(credentials.unreadable, 1);
}

#[test]
fn places_that_variables_name_are_bounded() {
    let mut credentials = credentials();
    let place = |number: usize| PointedPlace {
        path: format!("/srv/{number}"),
        class: "kubeconfig".to_owned(),
        file: None,
    };
    let (files, is_new) = credentials.add_places("", &[7], vec![place(0), place(0)]);
    assert!(files.is_empty() && is_new);
    assert_eq!(
        credentials.add_places("", &[], vec![place(0)]),
        (vec![], false)
    );
    credentials.add_places("", &[], (0..1000).map(place).collect());
    assert_eq!(credentials.pointed.len(), 256);
    assert_eq!(credentials.unfollowed, 1000 - 256);
    credentials.add_places("other", &[], vec![place(0)]);
    assert_eq!(credentials.pointed.len(), 257, "another container has room");
}

#[test]
fn a_pointer_counts_only_with_the_form_of_a_credential() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut credentials = credentials();
    let mut found = |name: &str, class: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let place = (String::new(), path.display().to_string());
        credentials.pointed.insert(place, class.to_owned());
        let found = read(&mut credentials, opened(&path));
        found.map_or(0, |found| found.credentials.len())
    };
    let jwt = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4IiwiZXhwIjoxNzAwMDAzNjAwfQ.fakesignature";
    let config = b"users: [ { name: a, user: { token: FAKE-pointed-1 } } ]";
    assert_eq!(found("a", "eks-web-identity-token", jwt), 1);
    assert_eq!(found("b", "kubeconfig", config), 1);
    let hosts = b"127.0.0.1 localhost\n::1 localhost\n";
    assert_eq!(found("c", "eks-web-identity-token", hosts), 0);
    assert_eq!(found("d", "kubeconfig", hosts), 0);
    assert_eq!(found("e", "kubeconfig", b"\x7fELF\x02\xff\xfe\x00"), 0);
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
            credentials.in_environment(&Tenant::default(), &[variable(name, value)]),
            vec![],
            "{name}"
        );
    }
    let url = credentials.in_environment(
        &Tenant::default(),
        &[variable("DATABASE_URL", "postgres://u:fakepassword@db/x")],
    );
    let plain = credentials.in_environment(
        &Tenant::default(),
        &[variable("PGPASSWORD", "fakepassword")],
    );
    assert_eq!(url[0].0.id, plain[0].0.id);
}

/// A user whose processes have very many variables with names of credentials.
#[test]
fn junk_variables_hide_no_credential_of_others() {
    let mut credentials = credentials();
    let shop = Tenant {
        group: "/system.slice/shop.service".into(),
        user: 0,
    };
    let stranger = Tenant {
        group: "/user.slice/user-1000.slice".into(),
        user: 1000,
    };
    let own = variable("STRIPE_SECRET_KEY", "FAKE-key-of-the-shop-0001");
    let known = credentials.in_environment(&shop, std::slice::from_ref(&own));
    let mut junk = variable("JUNK_TOKEN", "FAKE-junk-of-a-stranger");
    for number in 0..36_000u64 {
        junk.fingerprint = number;
        credentials.in_environment(&stranger, std::slice::from_ref(&junk));
    }
    let presented = ObservedSecret {
        fingerprint: own.fingerprint,
        inner: None,
        secret_len: 25,
        header: 0,
        prefix: None,
        dots: 0,
        count: 1,
    };
    let (credential, place) = credentials.presented(&shop, presented);
    assert_eq!(credential.sources, [place, known[0].1.clone()]);
    assert!(credentials.forgotten()[0].1 > 19_000);
}

/// What an attacker writes to another place is still what it was, also after a restart.
#[test]
fn no_place_changes_what_a_credential_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = "ghp_FAKEwashFAKEwashFAKEwashFAKEwash0001";
    let key = "0123456789abcdef0123456789abcdef";
    let mut known = credentials();
    let class = |found: &FileCredentials| found.credentials[0].class.clone();
    // A marked secret under the names of other classes, before and after it was known.
    for file in ["first.keystore", "x.p12", ".netrc.key", ".vault-token"] {
        let path = directory.path().join(file);
        std::fs::write(&path, format!("{token}\n")).expect("written");
        let Some(found) = read(&mut known, opened(&path)) else {
            assert_eq!(file, ".vault-token", "it is in no home here");
            continue;
        };
        assert_eq!(class(&found), "github-token", "{file}");
        assert!(!found.credentials[0].unmarked);
    }
    for name in ["PGPASSWORD", "DD_API_KEY", "OPENAI_API_KEY", "APP_SECRET"] {
        let found = known.in_environment(&Tenant::default(), &[variable(name, token)]);
        assert_eq!(found[0].0.class, "github-token", "{name}");
    }
    // An unmarked one: the first place counts.
    let own = known.in_environment(&Tenant::default(), &[variable("DD_API_KEY", key)]);
    assert_eq!(own[0].0.class, "datadog-key");
    let remembered: Vec<_> = own
        .iter()
        .map(|(known, _)| ((**known).clone(), Timestamp::now()))
        .collect();
    let mut restarted = credentials();
    restarted.remember(remembered);
    for known in [&mut known, &mut restarted] {
        let path = directory.path().join("y.keystore");
        std::fs::write(&path, format!("{key}\n")).expect("written");
        let found = read(known, opened(&path)).expect("a credential");
        assert_eq!(class(&found), "datadog-key");
        let found = known.in_environment(&Tenant::default(), &[variable("PGPASSWORD", key)]);
        assert_eq!(found[0].0.class, "datadog-key");
    }
}

#[test]
fn what_is_written_elsewhere_later_is_a_copy() {
    let directory = tempfile::tempdir().expect("a directory");
    let secret = "FAKEfakeFAKEfakeFAKE-copied-0001";
    let place = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(
            &path,
            format!(
                "machine {} login x password {secret}\n",
                name.replace('/', "-")
            ),
        )
        .expect("written");
        path
    };
    std::fs::create_dir(directory.path().join("a")).expect("made");
    std::fs::create_dir(directory.path().join("b")).expect("made");
    std::fs::create_dir(directory.path().join("c")).expect("made");
    let mut known = credentials();
    // Two files that both existed before.
    let (first, second) = (place("a/.netrc"), place("b/.netrc"));
    let found = read(&mut known, opened(&first)).expect("a credential");
    assert_eq!(found.credentials[0].copies, []);
    let found = read(&mut known, opened(&second)).expect("a credential");
    assert_eq!(found.credentials[0].copies, []);
    // One that is written when the credential is known.
    let third = place("c/.netrc");
    let found = read(&mut known, opened(&third)).expect("a credential");
    let copied = &found.credentials[0];
    assert_eq!(copied.copies.len(), 1);
    assert_eq!(Path::new(&copied.copies[0].place), third);
    assert_eq!(
        copied.audience,
        ["b-.netrc", "a-.netrc"],
        "the copy's host does not count"
    );
    let found = read(&mut known, opened(&third)).expect("a credential");
    let again = &found.credentials[0];
    assert_eq!(again.copies.len(), 1, "it stays a copy");
    assert_eq!(again.audience, ["b-.netrc", "a-.netrc"]);
    // Known places may be written again.
    place("a/.netrc");
    let found = read(&mut known, opened(&first)).expect("a credential");
    assert_eq!(found.credentials[0].copies.len(), 1);
}
